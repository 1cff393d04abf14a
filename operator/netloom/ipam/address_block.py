"""One block of a node, as a supply of single addresses: which are never given, and in which order the others are.

An address that was never given comes first, in the order of the addresses; then the one that has been free longest,
once it has rested. What was given before is remembered as far as `REMEMBERED` goes, so a /64 costs no more than a /20.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache

from netloom.cidr import WIDTH, Address, Cidr, Version

REMEMBERED = 4096
"""Freed addresses of one block whose order is known. Of more, those that are free longest count as never given."""


def withheld(cidr: Cidr, *, gateway: bool, whole: bool, taken: Collection[Address] = ()) -> frozenset[int]:
    """The addresses of a block that no pod gets.

    The first is the network's, and the tunnel device's; the last is the broadcast address in IPv4, and the probe's. A
    block of one or two addresses has neither. gateway: the second one is withheld, too. whole: the first and the last
    are not. taken: what the node has itself, of which those inside are never given.
    """
    mine = {int.from_bytes(each, "big") for each in taken if cidr.holds(each)}
    if cidr.length < WIDTH[cidr.version] - 1:
        mine |= set() if whole else {cidr.base, cidr.last}
        mine |= {cidr.base + 1} if gateway else set()
    return frozenset(mine)


def usable(cidr: Cidr, *, gateway: bool, whole: bool) -> int:
    """How many addresses of a block pods can have, if the node itself has none of the others."""
    return _usable(cidr.version, cidr.length, gateway, whole)


@lru_cache(maxsize=1024)
def _usable(version: Version, length: int, gateway: bool, whole: bool) -> int:
    """All blocks of a size have as many; that of a node is asked for at each of its changes."""
    block = Cidr(version, 0, length)
    return block.last + 1 - len(withheld(block, gateway=gateway, whole=whole))


class AddressBlock:
    """Addresses are integers here. `used` may hold withheld ones, which pods had before Netloom came."""

    __slots__ = ("_forgotten", "_next", "cidr", "freed", "pool", "used", "withheld")

    def __init__(self, cidr: Cidr, pool: str, withheld: frozenset[int]) -> None:
        self.cidr = cidr
        self.pool = pool
        self.withheld = withheld
        self.used: set[int] = set()
        self.freed: dict[int, float] = {}
        """When each was freed, the longest free first."""
        self._next = cidr.base
        self._forgotten = False

    def longest_free(self, now: float, rest: float) -> int | None:
        """The next to be given; None where all are used or rest."""
        fresh = self._fresh()
        if fresh is None and self._forgotten:
            self._next, self._forgotten = self.cidr.base, False
            fresh = self._fresh()
        if fresh is not None:
            return fresh
        address, at = next(iter(self.freed.items()), (None, now))
        return address if at + rest <= now else None

    def _fresh(self) -> int | None:
        at, last = self._next, self.cidr.last
        while at <= last and (at in self.used or at in self.freed or at in self.withheld):
            at += 1
        self._next = at
        return at if at <= last else None

    def use(self, address: int) -> None:
        """From now on it is used."""
        self.freed.pop(address, None)
        self.used.add(address)

    def free(self, address: int, at: float) -> None:
        """It is not used any more, and rests."""
        self.used.discard(address)
        self.freed.pop(address, None)
        if address in self.withheld:
            return
        self.freed[address] = at
        if len(self.freed) > REMEMBERED:
            del self.freed[next(iter(self.freed))]
            self._forgotten = True

    def next_ready(self, rest: float) -> float | None:
        """When the first that rests will have rested."""
        return next((at + rest for at in self.freed.values()), None)

    def resting(self, now: float, rest: float) -> int:
        """How many were freed less than `rest` seconds ago."""
        count = 0
        for at in reversed(self.freed.values()):
            if at + rest <= now:
                break
            count += 1
        return count

    def ready(self, now: float, rest: float) -> int:
        """How many can be given at once."""
        size = self.cidr.last - self.cidr.base + 1
        return size - len(self.withheld | self.used) - self.resting(now, rest)

    def packed(self, address: int) -> Address:
        """As bytes."""
        return address.to_bytes(WIDTH[self.cidr.version] // 8, "big")

    def remembered(self) -> Iterator[tuple[Address, float]]:
        """What was freed, and when, the longest free first."""
        for address, at in self.freed.items():
            yield self.packed(address), at
