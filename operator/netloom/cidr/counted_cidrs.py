"""CIDRs that may repeat and contain one another: which of them does no other contain?

Thousands of nodes may have the same (`172.17.0.0/16`, where each runs Docker), and one may lie in another's. So each
is counted, kept once, and a change costs what it concerns, whatever the number of nodes: one of the outermost, plus
those that it contains directly, none where CIDRs are apart. Which these are does not depend on the order of arrival.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from sortedcontainers import SortedList

from netloom.cidr import Cidr, Version
from netloom.cidr.interval_set import IntervalSet, highest, outermost

Change = tuple[list[Cidr], list[Cidr]]
"""CIDRs that become outermost, and those that cease to be."""


class CountedCidrs:
    """See the module."""

    def __init__(self) -> None:
        self._times: Counter[Cidr] = Counter()
        self._sorted: SortedList[Cidr] = SortedList()
        self._outermost = IntervalSet()

    def __len__(self) -> int:
        return len(self._times)

    def add(self, cidr: Cidr) -> Change | None:
        """Once more; None where this very CIDR was there before."""
        self._times[cidr] += 1
        if self._times[cidr] > 1:
            return None
        self._sorted.add(cidr)
        inner = self._outermost.absorb(cidr)
        return ([], []) if inner is None else ([cidr], inner)

    def add_all(self, cidrs: Sequence[Cidr]) -> Change:
        """Each of these once more. Costs a walk over all that there are."""
        before = set(self._outermost)
        self._times.update(cidrs)
        self._sorted = SortedList(self._times)
        self._outermost = IntervalSet(self._sorted)
        now = set(self._outermost)
        return [cidr for cidr in self._outermost if cidr not in before], [cidr for cidr in before if cidr not in now]

    def remove(self, cidr: Cidr) -> Change | None:
        """Once less; None where this very CIDR is still there. Raises KeyError where it was not."""
        if cidr not in self._times:
            raise KeyError(cidr)
        self._times[cidr] -= 1
        if self._times[cidr]:
            return None
        del self._times[cidr]
        self._sorted.remove(cidr)
        if cidr not in self._outermost:
            return [], []
        self._outermost.remove(cidr)
        inner = list(outermost(self._sorted.irange(cidr, highest(cidr))))
        for each in inner:
            self._outermost.add(each)
        return inner, [cidr]

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """The highest of the outermost CIDRs that shares an address with this one."""
        return self._outermost.overlap(cidr)

    def outermost(self, version: Version) -> Iterable[Cidr]:
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
