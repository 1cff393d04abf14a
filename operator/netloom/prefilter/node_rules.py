"""What one node drops, of the prefilters that select it: lists in, the kernel's entries and what to say out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from netloom.cidr import VERSIONS, Address, Version
from netloom.prefilter.lists import ParsedList
from netloom.prefilter.lookup import holding
from netloom.prefilter.merging import Merger, Source
from netloom.prefilter.records import Records, text_of
from netloom.prefilter.rules import ALLOW, SLOT, Rules
from netloom.prefilter.slots import assigned
from netloom.prefilter.withheld import Lifeline, WithheldEntries, WithheldEntry


@dataclass(frozen=True, slots=True)
class Filter:
    """One prefilter. lists: by what names each, whether it is of exceptions, and its entries. may_cut_off: entries that
    would cut the node off are active."""

    name: str
    lists: Mapping[tuple[bool, str], ParsedList] = field(default_factory=dict)
    may_cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What is one prefilter's. entries: by family, that are active. contradictions: as sentences."""

    entries: Mapping[Version, int]
    withheld: tuple[WithheldEntry, ...] = ()
    contradictions: tuple[str, ...] = ()


class NodeRules:
    """Keeps what it made: what is the same is not made again, and `rules` is the same object then. work: as `Merger`
    counts it."""

    def __init__(self, work: Counter[str] | None = None) -> None:
        self.rules = Rules()
        self.shares: Mapping[str, Share] = {}
        self._merger = Merger(work)
        self._withheld = {version: WithheldEntries(version) for version in VERSIONS}

    def update(self, filters: Sequence[Filter], lifelines: Sequence[Lifeline]) -> None:
        """`rules` and `shares` of these. May take a second where much changed: to be called in a thread of its own."""
        names = assigned(self.rules.names, [each.name for each in filters])
        slots = {name: slot for slot, name in enumerate(names) if name}
        lists: dict[Source, Mapping[Version, Records]] = {
            Source(each.name, allow, key): {4: parsed.v4, 6: parsed.v6}
            for each in filters
            if each.name in slots
            for (allow, key), parsed in each.lists.items()
        }
        changed = self._merger.replace(lists, slots)
        confirmed = frozenset(slots[each.name] for each in filters if each.may_cut_off and each.name in slots)
        entries = {4: self.rules.v4, 6: self.rules.v6}
        for version, withheld in self._withheld.items():
            merged = self._merger.merged[version]
            withheld.look(merged, changed.get(version, ()), lifelines, confirmed)
            self._merger.merged[version] = merged = merged.withholding(withheld.entries)
            entries[version] = merged.entries
        made = Rules(entries[4], entries[6], names)
        if changed or made.v4 is not self.rules.v4 or made.v6 is not self.rules.v6 or names != self.rules.names:
            self.rules = made
        self.shares = {name: self._share(name, slot) for name, slot in slots.items()}

    def decisive(self, version: Version, address: Address) -> tuple[bytes, str, bool] | None:
        """The active entry that decides about packets from an address, of which prefilter it is, and whether it is an
        exception; None where none holds the address."""
        merged = self._merger.merged[version]
        found = next(holding(merged.active, address), None)
        if found is None:
            return None
        at, record = found
        value = merged.entries.value(at)
        return record, self.rules.names[value & SLOT], bool(value & ALLOW)

    def _share(self, name: str, slot: int) -> Share:
        withheld = [each for group in self._withheld.values() for each in group.entries.values() if each.slot == slot]
        counts = {version: self._merger.counts[version] for version in VERSIONS}
        entries = {version: counts[version][slot] + counts[version][slot | ALLOW] for version in VERSIONS}
        for each in withheld:
            entries[4 if len(each.record) == 5 else 6] -= 1
        found = [each for some in self._merger.contradictions.values() for each in some]
        said = [
            f"{text_of(each.record)} is denied by NetloomPrefilter {each.denied_by} and an exception of "
            f"NetloomPrefilter {each.allowed_by}: it passes. Remove it from one of them."
            for each in found
            if name in (each.denied_by, each.allowed_by)
        ]
        return Share(entries, tuple(sorted(withheld)), tuple(said))
