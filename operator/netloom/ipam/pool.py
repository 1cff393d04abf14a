"""Where nodes' blocks come from: the CIDRs of a pool in the order of their list, cut into equal blocks.

The next free block is found in amortised O(1): a cursor passes over each block once, and one that is freed behind it is
queued. Blocks never used come first, then the one free for longest, so that a block rests before another node gets
it and packets for its former holder have died out. Once `RESTING` rest, the oldest of them comes before one never used:
else nodes that come and go would walk through the whole pool, and every ledger range that they came through stays open.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netloom.cidr import WIDTH, Cidr, Version
from netloom.cidr.interval_set import IntervalSet
from netloom.ipam.ledger_range import LEDGER_RANGE_LENGTH, MOST_ENTRIES

Occupied = Callable[[Cidr], int | None]
"""The last address of what overlaps a block, None where it is free."""

RESTING = 1024
"""Blocks of one CIDR that came back and rest, while there are others: of more, the oldest is given again."""


class Usage(NamedTuple):
    """Blocks of one CIDR of a pool, of prefix length `mask`. `reserved`: not in use, and given to nobody."""

    cidr: Cidr
    mask: int
    total: int
    used: int
    reserved: int = 0
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No free block is left in any CIDR of the pool's family. `reserved` of its `blocks` are given to nobody.

    pool: the NetloomIPPool; "" for the cluster CIDRs of mode `cluster-pool`.
    """

    version: Version
    cidrs: tuple[Cidr, ...]
    mask: int
    blocks: int
    reserved: int = 0
    pool: str = ""

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.cidrs)) + (f" (NetloomIPPool {self.pool})" if self.pool else "")
        reserved = f", or reserved for Services, nodes and their networks ({self.reserved})" if self.reserved else ""
        return f"all {self.blocks} IPv{self.version} blocks (/{self.mask}) of {listed} are in use{reserved}"


class _Source:
    """The blocks of one CIDR: `total`, of which `given` at most, as ledgers take no more."""

    __slots__ = ("_cursor", "_freed", "cidr", "given", "mask", "step", "total")

    def __init__(self, cidr: Cidr, mask: int) -> None:
        self.cidr = cidr
        self.mask = mask
        self.step = WIDTH[cidr.version] - mask
        self.total = 1 << (mask - cidr.length)
        ledgers = 1 << max(0, LEDGER_RANGE_LENGTH[cidr.version] - cidr.length)
        self.given = min(self.total, ledgers * MOST_ENTRIES)
        self._cursor = 0
        self._freed: OrderedDict[int, None] = OrderedDict()

    def take(self, occupied: Occupied) -> Cidr | None:
        return self._take_freed(occupied, RESTING) or self._take_new(occupied) or self._take_freed(occupied, 0)

    def _take_new(self, occupied: Occupied) -> Cidr | None:
        while self._cursor < self.total:
            block = self._block(self._cursor)
            last = occupied(block)
            if last is None:
                self._cursor += 1
                return block
            self._cursor = max(self._cursor + 1, self._index(last) + 1)
        return None

    def _take_freed(self, occupied: Occupied, left: int) -> Cidr | None:
        while len(self._freed) > left:
            index, _ = self._freed.popitem(last=False)
            block = self._block(index)
            if occupied(block) is None:
                return block
        return None

    def put_back(self, cidr: Cidr) -> None:
        if not self.cidr.overlaps(cidr):
            return
        first = max(0, self._index(cidr.base))
        if cidr.length < self.mask:  # it covered many blocks: pass over them again
            self._cursor = min(self._cursor, first)
        elif first < self._cursor:
            self._freed[first] = None
            self._freed.move_to_end(first)

    def used(self, taken: IntervalSet) -> int:
        indexes: set[int] = set()
        whole = 0
        for cidr in taken.near(self.cidr):
            if cidr.length <= self.cidr.length:
                return self.total
            if cidr.length < self.mask:
                whole += 1 << (self.mask - cidr.length)
            else:
                indexes.add(self._index(cidr.base))
        return whole + len(indexes)

    def _block(self, index: int) -> Cidr:
        return Cidr(self.cidr.version, self.cidr.base + (index << self.step), self.mask)

    def _index(self, address: int) -> int:
        return (address - self.cidr.base) >> self.step


class Pool:
    """The blocks of one family of a pool. Knows what may be given, not what is: that, `occupied` says."""

    def __init__(
        self, version: Version, cidrs: Sequence[Cidr], mask: int, name: str = "", *, draining: bool = False
    ) -> None:
        """`cidrs`: overlap none of the others and are not longer than `mask`. `name`: see `Exhausted.pool`. `draining`:
        nothing is to be taken."""
        least = LEDGER_RANGE_LENGTH[version]
        if mask < least:
            raise ValueError(f"an IPv{version} mask size below {least} does not fit into one ledger")
        if any(cidr.version != version or cidr.length > mask for cidr in cidrs):
            raise ValueError(f"not all of {', '.join(map(str, cidrs))} hold an IPv{version} /{mask}")
        self.name = name
        self.draining = draining
        self.version = version
        self.cidrs = tuple(cidrs)
        self.mask = mask
        self._sources = [_Source(cidr, mask) for cidr in cidrs]

    def take(self, occupied: Occupied) -> Cidr | Exhausted:
        """The next free block. It is not remembered as given: `occupied` must say so from now on."""
        for source in self._sources:
            block = source.take(occupied)
            if block is not None:
                return block
        blocks = sum(source.given for source in self._sources)
        return Exhausted(self.version, self.cidrs, self.mask, blocks, pool=self.name)

    def gives(self, cidr: Cidr) -> bool:
        """Whether it is one of the blocks."""
        return cidr.length == self.mask and self.holds(cidr)

    def holds(self, cidr: Cidr) -> bool:
        """Whether any of its blocks shares an address with a CIDR."""
        return any(source.overlaps(cidr) for source in self.cidrs)

    def put_back(self, cidr: Cidr) -> None:
        """`cidr` is (perhaps) free again. To say so too often does no harm."""
        for source in self._sources:
            source.put_back(cidr)

    def usage(self, cidrs: Collection[Cidr], reserved: Collection[Cidr] = ()) -> list[Usage]:
        """Blocks per cluster CIDR; used is every block that shares an address with one of `cidrs`, reserved every
        other one that shares an address with one of `reserved`."""
        held = IntervalSet(cidrs)
        taken = IntervalSet([*cidrs, *reserved]) if reserved else held
        found: list[Usage] = []
        for source in self._sources:
            used, given_up = source.used(held), source.used(taken)
            total = max(source.given, used)
            found.append(Usage(source.cidr, source.mask, total, used, min(given_up, total) - used, self.name))
        return found
