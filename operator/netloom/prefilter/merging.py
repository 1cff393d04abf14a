"""Several prefilters of one node, and their lists, as one set of entries.

The rules, which are the same on every node and whatever came first:

- The longest entry that holds a packet's source decides, whoever it is of.
- Of one and the same CIDR, an exception comes before a denial. Where they are of two prefilters, that is a
  contradiction and told of both: who wrote the exception named just this, while lists name thousands; and what passes
  by mistake is seen, what is dropped by mistake may be the way to mend it.
- Of one and the same CIDR denied by several, the one whose name comes first counts what is dropped.

An entry costs a few bytes: each list stays a `Records`, and what they come to is kept once, as the kernel takes it
(`Merged`). When a list changes, only what is different in it is looked up in the others (`Merger.replace`), and the
rest is moved as it is; where much is, all is merged again, a piece at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from netloom.cidr import VERSIONS, Version
from netloom.prefilter.merged import Merged
from netloom.prefilter.packing import counted, marked
from netloom.prefilter.records import SIZES, Records, boundaries, within
from netloom.prefilter.rules import ALLOW, EMPTY, ENTRY_SIZES, Entries, mark

PIECE = 1 << 14
"""Entries that are objects at a time."""
FEW = 2048
"""Entries that differ in a list, up to which they are looked up one by one."""


class Source(NamedTuple):
    """One list of one prefilter. key: what names the list to whoever reads it, such as a ConfigMap's name and key."""

    prefilter: str
    allow: bool
    key: str


class Contradiction(NamedTuple):
    """An exception of one prefilter for just the CIDR that another denies."""

    record: bytes
    denied_by: str
    allowed_by: str


MOST_CONTRADICTIONS: Final = 64
"""That are kept; people mend them one after another."""


class Merger:
    """The lists of one node, and what they come to. `slots`: of the prefilters, by name. `work`: how often they were
    `merged`, of both families as one, and how many `entries` were looked at for it, one by one."""

    def __init__(self, work: Counter[str] | None = None) -> None:
        self.work: Counter[str] = Counter() if work is None else work
        self.slots: dict[str, int] = {}
        self.merged: dict[Version, Merged] = {version: Merged(version, EMPTY[version]) for version in VERSIONS}
        self.counts: dict[Version, Counter[int]] = {version: Counter() for version in VERSIONS}
        """Entries by value."""
        self.contradictions: dict[Version, tuple[Contradiction, ...]] = {4: (), 6: ()}
        self._lists: dict[Source, Mapping[Version, Records]] = {}

    def replace(
        self, lists: Mapping[Source, Mapping[Version, Records]], slots: Mapping[str, int]
    ) -> dict[Version, set[bytes] | None]:
        """Take these lists instead of the former; one that is the same object as before costs nothing. Returns by
        family which entries may have changed, None where that is too many to say; families without are left out."""
        reordered = any(self.slots.get(name) != slot for name, slot in slots.items() if name in self.slots)
        before, self._lists = self._lists, dict(lists)
        self.slots = dict(slots)
        changed: dict[Version, set[bytes] | None] = {}
        for version in VERSIONS:
            differing = None if reordered else _differing(version, before, self._lists)
            if differing is None or len(differing) > FEW:
                self._merge_all(version)
                changed[version] = None
            elif differing:
                self._merge_some(version, differing)
                changed[version] = differing
                self.work["entries"] += len(differing)
        self.work["merged"] += bool(changed)
        return changed

    def _sources(self, version: Version) -> list[tuple[Source, Records]]:
        """In the order in which they count for one and the same CIDR."""
        order = sorted(self._lists, key=lambda source: (not source.allow, source.prefilter, source.key))
        return [(source, records) for source in order if (records := self._lists[source][version])]

    def _value(self, source: Source) -> int:
        return self.slots[source.prefilter] | (ALLOW if source.allow else 0)

    def _merge_all(self, version: Version) -> None:
        sources = self._sources(version)
        if len(sources) == 1:  # one list alone is sorted, and none of it twice
            source, records = sources[0]
            entries = marked(records, mark(self._value(source)))
        else:  # none, or several
            entries = Entries(b"".join(self._pieces(version, sources)), ENTRY_SIZES[version])
        found: list[Contradiction] = []
        for source, each in sources:
            if source.allow and len(found) < MOST_CONTRADICTIONS:
                found += self._contradictions_in(version, each)
        self.work["entries"] += sum(len(records) for _, records in sources)
        self.merged[version] = Merged(version, entries)
        self.counts[version] = counted(entries)
        self.contradictions[version] = tuple(sorted(set(found)))[:MOST_CONTRADICTIONS]

    def _pieces(self, version: Version, sources: Sequence[tuple[Source, Records]]) -> Iterator[bytes]:
        size = SIZES[version]
        marks = {source: mark(self._value(source)) for source, _ in sources}
        same = next(iter(marks.values())) if len(set(marks.values())) == 1 else b""
        for start, below in boundaries((each for _, each in sources), size, PIECE):
            winners: dict[bytes, bytes] = {}
            for source, each in reversed(sources):  # what counts more comes later, and stays
                winners.update(dict.fromkeys(within(each, start, below), marks[source]))
            records = sorted(winners)
            if same:  # as most often: half the time
                yield marked(Records(b"".join(records), size), same).packed
            else:
                yield b"".join([record + winners[record] for record in records])

    def _merge_some(self, version: Version, differing: set[bytes]) -> None:
        merged, sources, counts = self.merged[version], self._sources(version), self.counts[version]
        values: dict[bytes, int | None] = {}
        for record in differing:
            if (before := merged.value(record)) is not None:
                counts[before] -= 1
            winner = next((source for source, each in sources if record in each), None)
            values[record] = None if winner is None else self._value(winner)
            if winner is not None:
                counts[self._value(winner)] += 1
        self.merged[version] = merged.changed(values)
        kept = [each for each in self.contradictions[version] if each.record not in differing]
        kept += self._contradictions_in(version, differing)
        self.contradictions[version] = tuple(sorted(set(kept)))[:MOST_CONTRADICTIONS]

    def _contradictions_in(self, version: Version, records: Iterable[bytes]) -> list[Contradiction]:
        """Of these CIDRs; exceptions are few, lists are long."""
        sources = self._sources(version)
        allowing = [(source, each) for source, each in sources if source.allow]
        denying = [(source, each) for source, each in sources if not source.allow]
        found: list[Contradiction] = []
        if len({source.prefilter for source, _ in sources}) < 2 or not allowing:
            return found
        for record in records:
            exception = next((source for source, each in allowing if record in each), None)
            if exception is None:
                continue
            found += [
                Contradiction(record, source.prefilter, exception.prefilter)
                for source, each in denying
                if source.prefilter != exception.prefilter and record in each
            ]
            if len(found) >= MOST_CONTRADICTIONS:
                break
        return found


def _differing(
    version: Version,
    before: Mapping[Source, Mapping[Version, Records]],
    after: Mapping[Source, Mapping[Version, Records]],
) -> set[bytes] | None:
    """Entries that are in a list of one and not in the same list of the other; None: far more than FEW."""
    nothing = Records(b"", SIZES[version])
    found: set[bytes] = set()
    for source in before.keys() | after.keys():
        old = before[source][version] if source in before else nothing
        new = after[source][version] if source in after else nothing
        if old is new or old == new:
            continue
        if abs(len(old) - len(new)) > FEW:
            return None
        found |= difference(old, new)
        if len(found) > FEW:
            return None
    return found


def difference(old: Records, new: Records) -> set[bytes]:
    """Entries that are in one alone. What both begin and end with is compared as bytes, not entry by entry."""
    size = old.size
    start = _common(old.packed, new.packed) // size
    rest = min(len(old), len(new)) - start
    end = _common_end(old.packed, new.packed, rest * size) // size
    return set(Records(old.packed[start * size : len(old.packed) - end * size], size)) ^ set(
        Records(new.packed[start * size : len(new.packed) - end * size], size)
    )


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(one: bytes, other: bytes, most: int) -> int:
    """How many bytes, of `most`, both end with."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low
