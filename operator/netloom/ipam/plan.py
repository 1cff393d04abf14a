"""What nodes ask of the ledgers, how that is answered, and the batch in between: values without logic."""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import NamedTuple

from netloom.cidr import Cidr, Version
from netloom.ipam.ledger import Entry
from netloom.ipam.pool import Exhausted


class Want(NamedTuple):
    """So many more blocks of one family of a pool; "" is the pool of modes in which a node has one of each family."""

    pool: str
    version: Version
    blocks: int = 1


class Block(NamedTuple):
    """Of which pool it was given."""

    pool: str
    cidr: Cidr


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """A node that needs blocks: those in `cidrs`, or, where that is empty, what it wants of pools."""

    node: str
    mode: str
    cidrs: tuple[Cidr, ...] = ()
    wants: tuple[Want, ...] = ()
    partly: bool = False
    """A part of what it wants is better than nothing; else it is all or none."""
    adopt: bool = False
    """The node holds `cidrs` already: enter what is missing, send nothing."""
    since: str = ""
    """Of adoptions that exclude each other, the one that holds for longest counts."""


@dataclass(frozen=True, slots=True)
class Release:
    """Free `cidr` of `node`, which was seen, live, not to hold it after the ledger had changed as often as this."""

    node: str
    cidr: Cidr
    foreign_changes: int


@dataclass(frozen=True, slots=True)
class BlockTaken:
    """`cidr` overlaps `other`, which belongs to `holder`."""

    cidr: Cidr
    other: Cidr
    holder: str

    def __str__(self) -> str:
        which = "is" if self.cidr == self.other else f"overlaps {self.other},"
        return f"{self.cidr} {which} held by node {self.holder}"


@dataclass(frozen=True, slots=True)
class Deferred:
    """Nothing can be given at the moment. `reason` is CamelCase for a condition."""

    reason: str
    message: str


Refusal = Exhausted | BlockTaken | Deferred


class ChosenBlocks(NamedTuple):
    """Blocks that can be given to a node; `short`: why they are not all that it wants."""

    blocks: tuple[Block, ...]
    short: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Until `deadline`, requests may be sent that write `blocks` to `node`. Hand it back by `Marks.finish`, once.
    `short`: why it is not all that was wanted."""

    node: str
    mode: str
    blocks: tuple[Block, ...]
    deadline: float
    short: Refusal | None = None

    @property
    def cidrs(self) -> tuple[Cidr, ...]:
        """The blocks, of whatever pool."""
        return tuple([block.cidr for block in self.blocks])


Decision = Grant | Refusal | None
"""None: adopted."""


@dataclass(slots=True)
class BatchPlan:
    """One batch: what to commit per ledger, and what holds for each node if that succeeds."""

    edits: dict[str, dict[Cidr, Entry | None]] = field(default_factory=dict)
    """By ledger: each block's new entry, None where it is freed."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    released: list[Release] = field(default_factory=list)
    entered: dict[str, set[str]] = field(default_factory=dict)
    """By node, the ledgers that get entries or marks for it, and must have been committed before it is answered."""

    @property
    def opens(self) -> Set[str]:
        """Ledgers that get entries: they must be open for the mode."""
        return set().union(*self.entered.values())
