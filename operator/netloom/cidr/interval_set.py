"""A set of addresses, as CIDRs in order: what overlaps this one?

Two CIDRs are apart, or one contains the other. So in order of address and length, all that lies in a CIDR is one slice,
and of CIDRs that are apart, the one that contains it stands right before. Both families share one list.

The list is `sortedcontainers`': a question costs it 2 to 5 us, a change 2 us, of 65,000 elements as of 256. (One flat
list and `bisect`: 1.6 us and 8 us at 65,000.) An element is the CIDR itself, so a set costs 8 bytes for each. Blocks of
a cluster are mostly of one length, and then no order is needed: such a question costs 1 us.

To make such a set of a few CIDRs costs more (8 us) than all that a decision of the guard asks of it. What is made for
a question and goes after it is a `FrozenIntervalSet` (1 us).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from sortedcontainers import SortedList

from netloom.cidr import VERSIONS, WIDTH, Address, Cidr, Version


class FrozenIntervalSet:
    """A set that never changes, to ask what of a CIDR it covers."""

    __slots__ = ("_cidrs",)

    def __init__(self, cidrs: Iterable[Cidr] = ()) -> None:
        self._cidrs = list(outermost(sorted(cidrs)))

    def gaps(self, cidr: Cidr) -> Iterator[tuple[int, int]]:
        """The addresses of a CIDR that are not in the set, as (first, last)."""
        cidrs, version, at, last = self._cidrs, cidr.version, cidr.base, cidr.last
        start = bisect_left(cidrs, cidr)
        if start and cidrs[start - 1].contains(cidr):
            return
        for index in range(start, len(cidrs)):  # not a slice, of all that is left: a list may have 60,000 elements
            each = cidrs[index]
            if each.version != version or each.base > last:
                break
            if at < each.base:
                yield at, each.base - 1
            at = each.last + 1
        if at <= last:
            yield at, last

    def covers(self, cidr: Cidr) -> bool:
        """Whether all addresses of a CIDR are in the set: as well if it lies in two halves and in neither of them."""
        return next(self.gaps(cidr), None) is None


class IntervalSet:
    """CIDRs that are apart; adjacent ones are not merged."""

    __slots__ = ("_cidrs", "_lengths")

    def __init__(self, cidrs: Iterable[Cidr] = ()) -> None:
        """Of CIDRs that contain one another, the largest is taken."""
        self._cidrs: SortedList[Cidr] = SortedList(outermost(sorted(cidrs)))
        self._lengths: dict[Version, dict[int, int]] = {version: {} for version in VERSIONS}
        for cidr in self._cidrs:
            self._count(cidr)

    def __len__(self) -> int:
        return len(self._cidrs)

    def __iter__(self) -> Iterator[Cidr]:
        """In order."""
        return iter(self._cidrs)

    def __contains__(self, cidr: Cidr) -> bool:
        """Whether this very CIDR is an element."""
        return cidr in self._cidrs

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """The highest element that shares an address with a CIDR, if any does."""
        lengths = self._lengths[cidr.version]
        if len(lengths) <= 1 and (not lengths or cidr.length in lengths):
            return cidr if cidr in self._cidrs else None
        at = self._cidrs.bisect_right(highest(cidr))
        found = self._cidrs[at - 1] if at else None
        return found if found is not None and found.overlaps(cidr) else None

    def inside(self, cidr: Cidr) -> Iterator[Cidr]:
        """The elements that lie in a CIDR, itself included."""
        found: Iterator[Cidr] = self._cidrs.irange(cidr, highest(cidr))
        return found

    def near(self, cidr: Cidr) -> Iterable[Cidr]:
        """The elements that share an address with a CIDR, in order."""
        found = self.overlap(cidr)
        return () if found is None else (found,) if found.contains(cidr) else self.inside(cidr)

    def add(self, cidr: Cidr) -> None:
        """Adds a CIDR that overlaps none. ValueError if it does."""
        overlap = self.overlap(cidr)
        if overlap is not None:
            raise ValueError(f"{cidr} overlaps {overlap}")
        self._insert(cidr)

    def absorb(self, cidr: Cidr) -> list[Cidr] | None:
        """Adds a CIDR in place of the elements that lie in it, and returns those; None where one contains it."""
        overlap = self.overlap(cidr)
        if overlap is not None and overlap.contains(cidr):
            return None
        inner = list(self.inside(cidr)) if overlap is not None else []
        for each in inner:
            self.remove(each)
        self._insert(cidr)
        return inner

    def remove(self, cidr: Cidr) -> None:
        """Removes this very element. KeyError if it is none."""
        try:
            self._cidrs.remove(cidr)
        except ValueError:
            raise KeyError(cidr) from None
        lengths = self._lengths[cidr.version]
        lengths[cidr.length] -= 1
        if not lengths[cidr.length]:
            del lengths[cidr.length]

    def _insert(self, cidr: Cidr) -> None:
        self._cidrs.add(cidr)
        self._count(cidr)

    def _count(self, cidr: Cidr) -> None:
        lengths = self._lengths[cidr.version]
        lengths[cidr.length] = lengths.get(cidr.length, 0) + 1


def outermost(cidrs: Iterable[Cidr]) -> Iterator[Cidr]:
    """Of CIDRs in order, those that no other contains."""
    last: Cidr | None = None
    for cidr in cidrs:
        if last is None or not last.contains(cidr):
            last = cidr
            yield cidr


def span(addresses: Sequence[Address], cidr: Cidr) -> tuple[int, int]:
    """Where among addresses of its family, in order, those of a CIDR start and end."""
    return bisect_left(addresses, cidr.packed), bisect_right(addresses, cidr.packed_last)


def highest(cidr: Cidr) -> Cidr:
    """What comes last of all that lies in a CIDR."""
    return Cidr(cidr.version, cidr.last, WIDTH[cidr.version])
