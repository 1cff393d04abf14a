"""CIDRs that may repeat and contain one another, to the elements of an interval set, which may not.

Two CIDRs never overlap in part: they are apart, or one contains the other. So the set needs exactly the CIDRs that no
other contains, and which these are does not depend on the order of arrival. Adding or removing a CIDR changes one
element, plus those that it contained, directly: none in a healthy cluster, where CIDRs are apart.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable

from netloom.cidr import Cidr

START, END = b"\1", b"\0"
"""Last byte of a key. END sorts first: where one CIDR ends and the next begins, both are at the same address."""

_LENGTH_BITS = 8


def keys(prefix: Cidr) -> tuple[bytes, ...]:
    """The elements that the kernel holds for a CIDR: its first address, and the first address behind it.

    A CIDR at the end of the address space has nothing behind it, and is open.
    """
    start, behind = prefix.packed, prefix.last + 1
    size = len(start)
    start += START
    return (start,) if behind >> (size * 8) else (start, behind.to_bytes(size, "big") + END)


def prefix_of(interval: tuple[bytes, ...]) -> Cidr | None:
    """The CIDR of which these are the elements; None if they are those of none."""
    size, first = len(interval[0]) - 1, int.from_bytes(interval[0][:-1], "big")
    behind = int.from_bytes(interval[1][:-1], "big") if len(interval) > 1 else 1 << size * 8
    addresses = behind - first
    if addresses & (addresses - 1) or first % addresses:
        return None
    return Cidr.of(interval[0][:-1], size * 8 - addresses.bit_length() + 1)


class Cover:
    """The CIDRs of one family, counted, and which of them no other contains."""

    def __init__(self, size: int) -> None:
        """`size`: bytes of an address, 4 or 16."""
        self._size = size
        self._bits = size * 8
        self._count: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()
        self._sorted: list[int] = []

    def add(self, prefix: Cidr) -> tuple[list[Cidr], list[Cidr]]:
        """Count the CIDR in. Returns the CIDRs that become elements, and those that cease to be."""
        entry = self._entry(prefix)
        self._count[entry] += 1
        if self._count[entry] > 1:
            return [], []
        self._lengths[prefix.length] += 1
        insort(self._sorted, entry)
        if self._contained(entry):
            return [], []
        return [self._prefix(entry)], [self._prefix(inner) for inner in self._outermost_in(entry)]

    def remove(self, prefix: Cidr) -> tuple[list[Cidr], list[Cidr]]:
        """Count the CIDR out; as `add`. Raises KeyError if it was not counted in."""
        entry = self._entry(prefix)
        if entry not in self._count:
            raise KeyError(prefix)
        self._count[entry] -= 1
        if self._count[entry]:
            return [], []
        del self._count[entry]
        self._lengths[prefix.length] -= 1
        if not self._lengths[prefix.length]:
            del self._lengths[prefix.length]
        del self._sorted[bisect_left(self._sorted, entry)]
        if self._contained(entry):
            return [], []
        return [self._prefix(inner) for inner in self._outermost_in(entry)], [self._prefix(entry)]

    # An entry is an integer: the first address, then the length. Sorted, a CIDR comes before all that it contains.

    def _entry(self, prefix: Cidr) -> int:
        return prefix.base << _LENGTH_BITS | prefix.length

    def _prefix(self, entry: int) -> Cidr:
        return Cidr.of((entry >> _LENGTH_BITS).to_bytes(self._size, "big"), entry & 0xFF)

    def _behind(self, entry: int) -> int:
        """Where the first entry that begins behind this CIDR would be."""
        return ((entry >> _LENGTH_BITS) + (1 << (self._bits - (entry & 0xFF)))) << _LENGTH_BITS

    def _contained(self, entry: int) -> bool:
        start, own = entry >> _LENGTH_BITS, entry & 0xFF
        for length in self._lengths:
            host = self._bits - length
            if length < own and (start >> host << host) << _LENGTH_BITS | length in self._count:
                return True
        return False

    def _outermost_in(self, entry: int) -> Iterable[int]:
        at, end = bisect_right(self._sorted, entry), self._behind(entry)
        while at < len(self._sorted) and self._sorted[at] < end:
            inner = self._sorted[at]
            yield inner
            at = bisect_left(self._sorted, self._behind(inner), at)
