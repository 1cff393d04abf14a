"""CIDRs of which no block is given: something that is no pod has addresses there. What is given already stays given.

Thousands of nodes may reserve the same (`172.17.0.0/16`, where each runs Docker), and one may lie in another's. So each
CIDR is counted, kept once, and a change costs what it concerns, whatever the number of nodes.
"""

from collections.abc import Iterable, Iterator

from sortedcontainers import SortedList

from netloom.cidr import Cidr, Version
from netloom.cidr.interval_set import IntervalSet, highest, outermost


class Reservations:
    """Each CIDR as often as it was reserved."""

    def __init__(self) -> None:
        self._times: dict[Cidr, int] = {}
        self._sorted: SortedList[Cidr] = SortedList()
        self._outermost = IntervalSet()

    def __len__(self) -> int:
        return len(self._times)

    def reserve(self, cidr: Cidr) -> bool:
        """Once more; whether nobody had reserved this very CIDR before."""
        times = self._times.get(cidr, 0)
        self._times[cidr] = times + 1
        if times:
            return False
        self._sorted.add(cidr)
        self._outermost.absorb(cidr)
        return True

    def let_go(self, cidr: Cidr) -> bool:
        """Once less; whether nobody reserves this very CIDR any more. KeyError where nobody did."""
        if self._times[cidr] > 1:
            self._times[cidr] -= 1
            return False
        del self._times[cidr]
        self._sorted.remove(cidr)
        if cidr in self._outermost:
            self._outermost.remove(cidr)
            for inner in outermost(self._sorted.irange(cidr, highest(cidr))):
                self._outermost.add(inner)
        return True

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """The highest of the outermost CIDRs that shares an address with this one."""
        return self._outermost.overlap(cidr)

    def of(self, version: Version) -> Iterable[Cidr]:
        """Those of a family that no other contains."""
        return self._outermost.inside(Cidr(version, 0, 0))

    def overlapping(self, cidr: Cidr) -> Iterator[Cidr]:
        """All that share an address with this one, those that contain it first."""
        around = self._outermost.overlap(cidr)
        if around is None:
            return
        if around.contains(cidr):
            for length in range(around.length, cidr.length):
                if (outer := cidr.supernet(length)) in self._times:
                    yield outer
        yield from self._sorted.irange(cidr, highest(cidr))
