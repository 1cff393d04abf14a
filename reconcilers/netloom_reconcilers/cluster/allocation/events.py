"""What the parts of the allocation tell, without knowing whom: `Allocation` decides who does something about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class NodesAffected:
    """What is known of these nodes changed: they are to be reconciled."""

    names: Iterable[str]


@dataclass(frozen=True, slots=True)
class BlocksFreed:
    """So many blocks can be given to others; None: a whole ledger's, or nobody knows how many."""

    count: int | None = None


class Changed(Enum):
    """What else may be told or done differently now."""

    LEDGERS = auto()
    """Ledgers were written or read."""
    NETWORK = auto()
    """The NetloomNetwork came, went or was edited, or its status was written."""
    SETTINGS = auto()
    """Blocks are given by other rules than before."""
    WAITING = auto()
    """Other nodes wait, or for other reasons."""


Event = NodesAffected | BlocksFreed | Changed
