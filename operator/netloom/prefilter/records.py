"""CIDRs of one family as records: the address's bytes and one byte of prefix length, so that they sort as bytes do.

A record is 5 bytes (IPv4) or 17 (IPv6). Many of them are kept end to end in one `bytes`, sorted, none twice: a million
of IPv4 are 5 MB, where a list of them as `bytes` objects is 46 MB, as `Cidr` 80 MB. A list is made only of a piece at
a time.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from netloom.cidr import Address, Cidr, Version, format_address

SIZES: Final[dict[Version, int]] = {4: 5, 6: 17}
"""Bytes of a record."""

_VERSIONS: Final[dict[int, Version]] = {5: 4, 17: 6}
_LENGTHS = [bytes([length]) for length in range(129)]
_MASKS: Final[dict[int, list[int]]] = {
    width: [(1 << width) - (1 << (width - length)) for length in range(width + 1)] for width in (32, 128)
}


def record_of(address: Address, length: int) -> bytes:
    """Of an address whose host bits are zero."""
    return address + _LENGTHS[length]


def record(cidr: Cidr) -> bytes:
    """Of a CIDR."""
    return cidr.packed + _LENGTHS[cidr.length]


def cidr_of(record: bytes) -> Cidr:
    """The CIDR that a record is."""
    return Cidr(_VERSIONS[len(record)], int.from_bytes(record[:-1], "big"), record[-1])


def text_of(record: bytes) -> str:
    """As `10.0.0.0/8`."""
    return f"{format_address(record[:-1])}/{record[-1]}"


def masked(address: Address, length: int) -> Address:
    """The address with its host bits zero."""
    width = len(address) * 8
    return (int.from_bytes(address, "big") & _MASKS[width][length]).to_bytes(len(address), "big")


def split(packed: bytes, size: int) -> list[bytes]:
    """The records of a `bytes` of them, as objects."""
    return [packed[at : at + size] for at in range(0, len(packed), size)]


class Records(Sequence[bytes]):
    """Sorted records of one family, none twice, over the bytes that hold them."""

    __slots__ = ("packed", "size")

    def __init__(self, packed: bytes, size: int) -> None:
        self.packed = packed
        self.size = size

    @classmethod
    def of(cls, records: Iterable[bytes], size: int) -> "Records":
        """Of records in any order; those that are there twice are kept once."""
        return cls(b"".join(dict.fromkeys(sorted(records))), size)  # sorting makes use of what is in order already

    def __len__(self) -> int:
        return len(self.packed) // self.size

    def __getitem__(self, at: int) -> bytes:  # type: ignore[override]
        """One record; for a slice of them, slice `packed`."""
        start = at * self.size
        return self.packed[start : start + self.size]

    def __iter__(self) -> Iterator[bytes]:
        return iter(split(self.packed, self.size))

    def __contains__(self, record: object) -> bool:
        assert isinstance(record, bytes)
        at = bisect_left(self, record)
        return at < len(self) and self[at] == record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)


def spliced(packed: bytes, size: int, changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    """What is packed at `size` bytes each, with others in the place of those from one on and before another; the same
    object without a change. The changes are in order, and none reaches into the next."""
    if not changes:
        return packed
    old = memoryview(packed)
    parts: list[bytes | memoryview] = []
    done = 0
    for start, end, new in changes:
        parts += (old[done * size : start * size], new)
        done = end
    return b"".join([*parts, old[done * size :]])


def boundaries(firsts: Iterable[Records], size: int, most: int) -> list[tuple[bytes, bytes]]:
    """Ranges that together hold all possible records, each with about `most` of those that there are: (from, below).
    An empty `below` is the end."""
    samples = sorted(each[at] for each in firsts for at in range(0, len(each), _SAMPLE))
    step = max(1, most // _SAMPLE)
    cuts = sorted({b"", *samples[step::step]})
    return [*pairwise(cuts), (cuts[-1], b"")]


_SAMPLE = 1024


def within(records: Records, start: bytes, below: bytes) -> list[bytes]:
    """Those from `start` on that are less than `below`, as objects."""
    first = bisect_left(records, start) if start else 0
    end = bisect_left(records, below) if below else len(records)
    return split(records.packed[first * records.size : end * records.size], records.size)
