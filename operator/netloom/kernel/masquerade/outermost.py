"""CIDRs that may repeat and contain one another, to the elements of an nftables interval set, which may not.

The set needs exactly the CIDRs that no other contains, and which these are does not depend on the order of arrival.
Adding or removing a CIDR changes one element, plus those that it contained, directly: none in a healthy cluster, where
CIDRs are apart.
"""

from collections import Counter
from collections.abc import Sequence

from sortedcontainers import SortedList

from netloom.cidr import Cidr
from netloom.cidr.interval_set import IntervalSet, highest, outermost
from netloom.kernel.netlink.nftables import END, START


def keys(cidr: Cidr) -> tuple[bytes, ...]:
    """The elements that the kernel holds for a CIDR: its first address, and the first address behind it.

    A CIDR at the end of the address space has nothing behind it, and is open.
    """
    start, behind = cidr.packed, cidr.last + 1
    if behind >> len(start) * 8:
        return (start + START,)
    return start + START, behind.to_bytes(len(start), "big") + END


def cidr_of(interval: tuple[bytes, ...]) -> Cidr | None:
    """The CIDR of which these are the elements; None if they are those of none."""
    size, first = len(interval[0]) - 1, int.from_bytes(interval[0][:-1], "big")
    behind = int.from_bytes(interval[1][:-1], "big") if len(interval) > 1 else 1 << size * 8
    addresses = behind - first
    if addresses & (addresses - 1) or first % addresses:
        return None
    return Cidr.of(interval[0][:-1], size * 8 - addresses.bit_length() + 1)


class OutermostCidrs:
    """CIDRs, counted, and which of them no other contains."""

    def __init__(self) -> None:
        self._count: Counter[Cidr] = Counter()
        self._outermost = IntervalSet()
        self._contained: SortedList[Cidr] = SortedList()

    def add(self, cidr: Cidr) -> tuple[list[Cidr], list[Cidr]]:
        """Count the CIDR in. Returns the CIDRs that become elements, and those that cease to be."""
        count = self._count[cidr] = self._count[cidr] + 1
        if count > 1:
            return [], []
        inner = self._outermost.absorb(cidr)
        if inner is None:
            self._contained.add(cidr)
            return [], []
        self._contained.update(inner)
        return [cidr], inner

    def add_all(self, cidrs: Sequence[Cidr]) -> tuple[list[Cidr], list[Cidr]]:
        """Count all of these in; as `add`. Costs a walk over all that there are."""
        before = set(self._outermost)
        self._count.update(cidrs)
        self._outermost = IntervalSet(self._count)
        now = set(self._outermost)
        self._contained = SortedList(self._count.keys() - now)
        return [cidr for cidr in self._outermost if cidr not in before], [cidr for cidr in before if cidr not in now]

    def remove(self, cidr: Cidr) -> tuple[list[Cidr], list[Cidr]]:
        """Count the CIDR out; as `add`. Raises KeyError if it was not counted in."""
        if cidr not in self._count:
            raise KeyError(cidr)
        self._count[cidr] -= 1
        if self._count[cidr]:
            return [], []
        del self._count[cidr]
        if cidr not in self._outermost:
            self._contained.remove(cidr)
            return [], []
        self._outermost.remove(cidr)
        inner = list(outermost(self._contained.irange(cidr, highest(cidr))))
        for each in inner:
            self._contained.remove(each)
            self._outermost.add(each)
        return inner, [cidr]
