"""Entries that would cut a node off: of its own addresses, its gateways, the API server, other nodes, link-local
neighbours, and of everybody. They are withheld, unless the prefilter says that this is meant.

What counts is what the kernel would decide, not what a CIDR holds: 10.0.0.0/8 may be denied where an exception lets
the nodes' 10.1.0.0/16 pass. So each address that is to be kept is looked up; where a denial decides, that entry is
withheld, and the next shorter one is asked. An address costs a bisection or two: 5,000 peers in a million entries
0.1 s. When few entries change, only those addresses are asked again that lie in one of them.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from netloom.cidr import LINK_LOCAL, WIDTH, Address, Cidr, Version, format_address
from netloom.cidr.interval_set import highest
from netloom.prefilter.lookup import holding
from netloom.prefilter.merged import Merged
from netloom.prefilter.records import cidr_of, record
from netloom.prefilter.rules import ALLOW, SLOT


class Lifeline(NamedTuple):
    """What a node lives by. cidr: an address, or a network of which nothing may be dropped as a whole. what: "a gateway
    of this node". inside: whether entries within the network are withheld as well."""

    cidr: Cidr
    what: str
    inside: bool = False


EVERYBODY = "it drops everybody's packets"
NEIGHBOURS = Lifeline(LINK_LOCAL[6], "link-local neighbours, by whom IPv6 finds its ways", inside=True)


class WithheldEntry(NamedTuple):
    """An entry that is not active, whose it is (its slot), and why: the end of a sentence."""

    record: bytes
    slot: int
    why: str


class WithheldEntries:
    """Of one family. `entries`: by record, in no order."""

    def __init__(self, version: Version) -> None:
        self.entries: dict[bytes, WithheldEntry] = {}
        self._version = version
        self._lifelines: dict[Cidr, Lifeline] = {}
        self._given: Sequence[Lifeline] = ()
        self._sorted: list[Cidr] = []
        self._by_lifeline: dict[Cidr, tuple[WithheldEntry, ...]] = {}
        self._confirmed: frozenset[int] = frozenset()

    def look(
        self,
        merged: Merged,
        changed: Collection[bytes] | None,
        lifelines: Sequence[Lifeline],
        confirmed: frozenset[int],
    ) -> None:
        """Brings `entries` up to date. changed: entries that may be others than at the last look, None: all may be.
        lifelines: all of them, the same object if they are the same; of two of one CIDR the first is told. confirmed:
        slots that may cut the node off."""
        now = self._lifelines if lifelines is self._given else self._of_family(lifelines)
        self._given = lifelines
        every = changed is None or confirmed != self._confirmed
        if every:
            asked = set(now)
        else:
            others = {} if now is self._lifelines else now
            asked = {cidr for cidr, each in others.items() if self._lifelines.get(cidr) != each}
        if now.keys() != self._lifelines.keys():
            self._sorted = sorted(now)
        self._lifelines, self._confirmed = now, confirmed
        if not every and changed:
            asked.update(cidr for each in changed for cidr in self._near(cidr_of(each)))
        self._by_lifeline = {} if every else {c: held for c, held in self._by_lifeline.items() if c in now}
        for cidr in asked:
            self._by_lifeline.pop(cidr, None)
            if found := tuple(self._asked(merged, now[cidr])):
                self._by_lifeline[cidr] = found
        held = [self._by_lifeline[cidr] for cidr in reversed(now) if cidr in self._by_lifeline]  # the first is told
        self.entries = {each.record: each for some in held for each in some}
        self.entries |= {each.record: each for each in self._everybody(merged)}

    def _of_family(self, lifelines: Iterable[Lifeline]) -> dict[Cidr, Lifeline]:
        found: dict[Cidr, Lifeline] = {}
        for each in lifelines:
            if each.cidr.version == self._version:
                found.setdefault(each.cidr, each)
        return found

    def _near(self, entry: Cidr) -> Iterable[Cidr]:
        """Lifelines within an entry, and those that hold it: of the latter there are few lengths."""
        last = highest(entry)
        at = bisect_left(self._sorted, Cidr(entry.version, entry.base, 0))
        while at < len(self._sorted) and self._sorted[at] <= last:
            yield self._sorted[at]
            at += 1
        yield from (each.cidr for each in self._lifelines.values() if each.inside and each.cidr.contains(entry))

    def _asked(self, merged: Merged, lifeline: Lifeline) -> Iterable[WithheldEntry]:
        cidr = lifeline.cidr
        for at, found in holding(merged.records, cidr.packed, cidr.length):
            if not self._is_to_be_withheld(value := merged.value_at(at)):
                break
            yield WithheldEntry(found, value & SLOT, f"it holds {_named(lifeline)}")
        if lifeline.inside:
            behind = cidr.packed_last + b"\xff"  # no prefix length is so long
            for at in range(bisect_left(merged.records, record(cidr)), bisect_left(merged.records, behind)):
                if self._is_to_be_withheld(value := merged.value_at(at)):
                    yield WithheldEntry(merged.records[at], value & SLOT, f"it is of {_named(lifeline)}")

    def _everybody(self, merged: Merged) -> Iterable[WithheldEntry]:
        found = record(Cidr(self._version, 0, 0))
        value = merged.value(found)
        if value is not None and self._is_to_be_withheld(value):
            yield WithheldEntry(found, value & SLOT, EVERYBODY)

    def _is_to_be_withheld(self, value: int) -> bool:
        return not value & ALLOW and value & SLOT not in self._confirmed


def _named(lifeline: Lifeline) -> str:
    cidr = lifeline.cidr
    return f"{format_address(cidr.packed) if cidr.length == WIDTH[cidr.version] else cidr}, {lifeline.what}"


def lifelines_of(
    *,
    own: Iterable[Address] = (),
    servers: Mapping[Address, str] | None = None,
    gateways: Iterable[Address] = (),
    peers: Iterable[tuple[Address, str]] = (),
    pods: Iterable[tuple[Cidr, str]] = (),
    known: Iterable[Lifeline] = (),
) -> tuple[Lifeline, ...]:
    """All that a node lives by, what is told first before what else has the same address. peers: addresses of other
    nodes with their names; pods: CIDRs of pods with the names of their nodes. known: the same, made before."""
    found = [Lifeline(Cidr.of(address), "an address of this node") for address in own]
    found += [Lifeline(Cidr.of(address), what) for address, what in (servers or {}).items()]
    found += [Lifeline(Cidr.of(address), "a gateway of this node") for address in gateways]
    found += [of_address(address, name) for address, name in peers]
    found += [of_pods(cidr, name) for cidr, name in pods]
    return (*found, *known, NEIGHBOURS)


def of_address(address: Address, node: str) -> Lifeline:
    """Of another node."""
    return Lifeline(Cidr.of(address), f"an address of node {node}")


def of_pods(cidr: Cidr, node: str) -> Lifeline:
    """Of a node's pods."""
    return Lifeline(cidr, f"of pods on node {node}")
