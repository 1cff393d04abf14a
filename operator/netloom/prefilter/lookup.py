"""Which entries hold an address, longest first: what the kernel's trie answers, and what without that entry."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from netloom.cidr import Address
from netloom.prefilter.records import masked, record_of


def holding(records: Sequence[bytes], address: Address, longest: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Place and record of each entry of at most that prefix length that holds the address, longest first.

    In sorted records all that hold an address come before it. The last that is not behind it may be one; else what both
    have in common is how long one can be at most. So an entry costs a bisection or two, whatever lengths there are.
    """
    length = len(address) * 8 if longest is None else longest
    while length >= 0:
        at = bisect_right(records, record_of(masked(address, length), length)) - 1
        if at < 0:
            return
        found = records[at]
        common = min(_common_bits(found[:-1], address), length)
        if found[-1] <= common:
            yield at, found
            length = found[-1] - 1
        else:
            length = common


def _common_bits(one: Address, other: Address) -> int:
    differing = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) * 8 - differing.bit_length()
