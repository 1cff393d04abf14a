"""What the lists of a node come to, of one family: entries that are active, and beside them the few that are withheld.

The active ones are what the kernel is given, as one object: a million of them once more, without the withheld ones,
were 12 MB on a node that has one entry to withhold.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from netloom.cidr import Version
from netloom.prefilter.packing import EntryRecords, of_values
from netloom.prefilter.records import spliced
from netloom.prefilter.rules import EMPTY, ENTRY_SIZES, Entries, entry


@dataclass(frozen=True, slots=True)
class Merged:
    """See the module. A place counts both kinds, in their common order."""

    version: Version
    entries: Entries
    withheld: Entries = field(default=EMPTY[4])
    _held_at: tuple[int, ...] = field(default=(), repr=False)
    """Places of the withheld ones."""

    @property
    def records(self) -> Sequence[bytes]:
        """Of all of them, in their order."""
        return _Records(self) if self._held_at else EntryRecords(self.entries)

    @property
    def active(self) -> Sequence[bytes]:
        """Records of the entries that are active, in their order."""
        return EntryRecords(self.entries)

    def value(self, record: bytes) -> int | None:
        """Of just this entry; None where there is none."""
        records = self.records
        at = bisect_left(records, record)
        return self.value_at(at) if at < len(records) and records[at] == record else None

    def value_at(self, at: int) -> int:
        """Of the entry at a place."""
        entries, place = self.at(at)
        return entries.value(place)

    def at(self, at: int) -> tuple[Entries, int]:
        """In which entries the one at a place is, and at which of theirs."""
        before = bisect_left(self._held_at, at)
        if before < len(self._held_at) and self._held_at[before] == at:
            return self.withheld, before
        return self.entries, at - before

    def changed(self, values: Mapping[bytes, int | None]) -> "Merged":
        """With other values of these records, None: without it. None of them is withheld then."""
        return self._with(values, {each: value for each, value in self._held().items() if each not in values})

    def withholding(self, records: Collection[bytes]) -> "Merged":
        """With these withheld, as far as they are there, and no others; the same object where that is so already."""
        held = self._held()
        if held.keys() == set(records):
            return self
        found = {each: value for each in records if (value := self.value(each)) is not None}
        values: dict[bytes, int | None] = {each: value for each, value in held.items() if each not in found}
        values |= {each: None for each in found if each not in held}
        return self._with(values, found)

    def _held(self) -> dict[bytes, int]:
        return {self.withheld.record(at): self.withheld.value(at) for at in range(len(self.withheld))}

    def _with(self, values: Mapping[bytes, int | None], held: Mapping[bytes, int]) -> "Merged":
        """With other active entries, None: without it; and with these withheld."""
        records, changes = self.active, list[tuple[int, int, bytes]]()
        for record in sorted(values):
            at = bisect_left(records, record)
            there = at < len(records) and records[at] == record
            value = values[record]
            if there or value is not None:
                changes.append((at, at + there, b"" if value is None else entry(record, value)))
        entries = self.entries
        if changes:
            entries = Entries(spliced(entries.packed, entries.size, changes), entries.size)
        records = EntryRecords(entries)
        places = tuple(bisect_left(records, each) + number for number, each in enumerate(sorted(held)))
        return Merged(self.version, entries, of_values(held, ENTRY_SIZES[self.version]), places)


class _Records(Sequence[bytes]):
    """Of all entries."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self._count = len(merged.entries) + len(merged.withheld)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(self._count))

    def __getitem__(self, at: int) -> bytes:  # type: ignore[override]
        """One record."""
        entries, place = self._merged.at(at)
        return entries.record(place)
