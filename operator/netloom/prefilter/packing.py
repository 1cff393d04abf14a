"""Entries (`rules.Entries`) made of records, read as records, and put together anew.

Bytes are moved in long stretches or by place, none by entry: a million are made of records in 20 ms, and are there
again with one changed in 2.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from netloom.prefilter.records import Records
from netloom.prefilter.rules import MARK_SIZE, Entries, entry


def marked(records: Records, mark: bytes) -> Entries:
    """Of records that all have one mark."""
    packed, width = records.packed, records.size
    size = width + MARK_SIZE
    found = bytearray(len(records) * size)
    for place in range(width):
        found[place::size] = packed[place::width]
    for place, byte in enumerate(mark, width):
        found[place::size] = bytes((byte,)) * len(records)
    return Entries(bytes(found), size)


def of_values(values: Mapping[bytes, int], size: int) -> Entries:
    """Of records, in any order, and their values. size: of an entry."""
    return Entries(b"".join([entry(record, values[record]) for record in sorted(values)]), size)


class EntryRecords(Sequence[bytes]):
    """Entries, read as records: sorted, none twice, and nothing beside them is kept."""

    __slots__ = ("_packed", "_size", "_width")

    def __init__(self, entries: Entries) -> None:
        self._packed = entries.packed
        self._size = entries.size
        self._width = entries.size - MARK_SIZE

    def __len__(self) -> int:
        return len(self._packed) // self._size

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: int) -> bytes:  # type: ignore[override]
        """One record."""
        start = at * self._size
        return self._packed[start : start + self._width]


def counted(entries: Entries) -> Counter[int]:
    """How many have which value."""
    size = entries.size
    marks = bytearray(len(entries) * MARK_SIZE)
    marks[0::MARK_SIZE] = entries.packed[size - MARK_SIZE :: size]
    marks[1::MARK_SIZE] = entries.packed[size - 1 :: size]
    found = Counter(memoryview(marks).cast("H"))
    return Counter({low_high & 0xFF | low_high >> 8 << 24: count for low_high, count in found.items()})
