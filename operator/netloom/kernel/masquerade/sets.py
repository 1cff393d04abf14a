"""What is to be masqueraded, as values, and as elements of sets with their difference to the kernel. Pure.

As with the mesh, a caller describes the whole of it every time, and `Masquerading` writes down which sources of known
CIDRs were touched, so that a change of one node of 10,000 costs one look-up and one element.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from netloom.cidr import LINK_LOCAL, MULTICAST, VERSIONS, Cidr, format_address
from netloom.cidr.counted_cidrs import Change, CountedCidrs
from netloom.kernel.keeper.table import Table
from netloom.kernel.keeper.transaction import ELEMENT, Write
from netloom.kernel.masquerade.outermost import cidr_of, interval_of, keys
from netloom.kernel.masquerade.ruleset import SETS, SIZES, TABLE, Families, size_of
from netloom.kernel.netlink.nftables import DELSETELEM, END, NEWSETELEM, START, ElementMessages

NEVER_MASQUERADED = (MULTICAST[4], LINK_LOCAL[6], MULTICAST[6])
"""Multicast, whose receivers have to see who sends, and what no node forwards.

Not 169.254.0.0/16: clouds' metadata, name and time servers have addresses of it (169.254.169.254), and answer no pod by
its own, of which their networks know nothing.
"""

_OWN = ""
"""Name of the source of this node's own pod CIDRs; a Kubernetes name is never empty."""

UNKNOWN = "?"
"""The same for what an earlier life has left in the sets, and no node explains."""


class MasqueradeRules(msgspec.Struct, frozen=True, kw_only=True):
    """What this node masquerades: packets from its `pods` that leave the cluster, per family where it is switched on.

    pods:     this node's own pod CIDRs.
    excluded: destinations besides pod CIDRs that see a pod's own address: native routing and non-masquerade CIDRs.
    """

    pods: tuple[Cidr, ...] = ()
    ipv4: bool = True
    ipv6: bool = True
    excluded: tuple[Cidr, ...] = ()

    @property
    def families(self) -> Families:
        """ "4" and "6", where there is something to masquerade."""
        versions = {str(prefix.version) for prefix in self.pods}
        switched_on = {"4": self.ipv4, "6": self.ipv6}
        return tuple(family for family in SIZES if switched_on[family] and family in versions)


class Masquerading(msgspec.Struct):
    """The whole desired state: the rules, and the pod CIDRs of all nodes, with a journal of those that were
    touched. One `MasqueradeTable` reads it."""

    rules: MasqueradeRules = MasqueradeRules()
    _known: dict[str, tuple[Cidr, ...]] = msgspec.field(default_factory=dict)
    _touched: set[str] = msgspec.field(default_factory=set)

    @property
    def known(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Pod CIDRs by the name of their node."""
        return MappingProxyType(self._known)

    def set_known(self, name: str, cidrs: tuple[Cidr, ...]) -> None:
        """These are the pod CIDRs of this node, and no others."""
        if self._known.get(name, ()) != cidrs:
            self._touched.add(name)
            if cidrs:
                self._known[name] = cidrs
            else:
                del self._known[name]

    def take_touched(self) -> set[str]:
        """Names changed since the last call."""
        touched, self._touched = self._touched, set()
        return touched


class IntervalElement(msgspec.Struct, frozen=True, gc=False):
    """One end of an interval, as it is named to people."""

    name: str
    key: bytes

    def __str__(self) -> str:
        behind = "" if self.key.endswith(START) else " (end)"
        return f"{self.name} {format_address(self.key[:-1])}{behind}"


class Sets:
    """The sets' elements: desired, in the kernel, pending. Values say whether an element is plain; ours all are."""

    def __init__(self) -> None:
        self.rules = MasqueradeRules(ipv4=False, ipv6=False)
        self.tables: dict[str, Table[bytes, bool]] = {name: Table() for name in SETS}
        self._cidrs = {name: CountedCidrs() for name in SETS}
        self._messages = {name: ElementMessages(TABLE, name, size_of(name)) for name in SETS}
        self._open: dict[str, tuple[bytes, ...]] = {}
        self.known: dict[str, tuple[Cidr, ...]] = {}
        self._change("excluded", (), NEVER_MASQUERADED)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sets that should be there."""
        return SETS if self.rules.families else ()

    @property
    def pending(self) -> int:
        """Elements of sets that should be there, which are not as desired."""
        return sum(len(self.tables[name].pending) for name in self.names)

    def set_rules(self, rules: MasqueradeRules) -> list[IntervalElement]:
        """As `set_known`, for the sets of pods and excluded CIDRs."""
        before, self.rules = self.rules, rules
        changed = self._change("pods", before.pods, rules.pods)
        changed += self.set_known(_OWN, rules.pods)
        return changed + self._change("excluded", before.excluded, rules.excluded)

    def set_known(self, source: str, cidrs: tuple[Cidr, ...]) -> list[IntervalElement]:
        """These are the source's CIDRs now. Returns the elements that are to come or go."""
        before = self.known.pop(source, ())
        if cidrs:
            self.known[source] = cidrs
        return self._change("known", before, cidrs)

    def replace(self, desired: Masquerading) -> None:
        """Take over all of it."""
        self.set_rules(desired.rules)
        for gone in self.known.keys() - desired.known.keys() - {_OWN, UNKNOWN}:
            self.set_known(gone, ())
        new = {source: cidrs for source, cidrs in desired.known.items() if source not in self.known}
        for source in desired.known.keys() - new.keys():
            self.set_known(source, desired.known[source])
        self.known.update(new)
        for version in VERSIONS:
            added = [cidr for cidrs in new.values() for cidr in set(cidrs) if cidr.version == version]
            if added:
                self._want(f"known{version}", self._cidrs[f"known{version}"].add_all(added))

    def retain_unknown(self) -> None:
        """Desire, too, what the kernel has as known CIDRs and no node explains."""
        found: list[Cidr] = []
        for name in (name for name in SETS if name.startswith("known")):
            table = self.tables[name]
            if table.kernel.keys() - table.desired.keys():
                starts = {pair[0]: pair for pair in intervals(table.kernel)}
                found += filter(None, [cidr_of(pair) for key, pair in starts.items() if key not in table.desired])
        self.set_known(UNKNOWN, tuple(found))

    def _change(self, kind: str, before: Iterable[Cidr], now: Iterable[Cidr]) -> list[IntervalElement]:
        # First in, then out: what is in both stays an element, and changes nothing.
        changed: list[IntervalElement] = []
        for prefix in set(now) - set(before):
            name = f"{kind}{prefix.version}"
            changed += self._named(name, self._want(name, self._cidrs[name].add(prefix)))
        for prefix in set(before) - set(now):
            name = f"{kind}{prefix.version}"
            changed += self._named(name, self._want(name, self._cidrs[name].remove(prefix)))
        return changed

    def _named(self, name: str, changed: Iterable[bytes]) -> Iterable[IntervalElement]:
        return (IntervalElement(name, key) for key in changed)

    def _want(self, name: str, change: Change | None) -> list[bytes]:
        """The set needs exactly the CIDRs that no other contains. Returns the elements that are to come or go."""
        if change is None:
            return []
        (appeared, disappeared), table, changed = change, self.tables[name], list[bytes]()
        # Out first: a CIDR that takes another's place may begin, or end, where that one does.
        for interval in map(keys, disappeared):
            for key in interval:
                table.unwant(key)
            changed += interval
            if len(interval) == 1:
                del self._open[name]
        wanted: dict[bytes, bool] = {}
        for interval in map(keys, appeared):
            wanted |= dict.fromkeys(interval, True)
            if len(interval) == 1:
                self._open[name] = interval
        table.want_all(wanted)
        changed += wanted
        return changed

    def start_of(self, name: str, key: bytes) -> bytes | None:
        """The start of the interval that this is the start or the end of; None for an end that is not desired."""
        interval = interval_of(key, self._cidrs[name])
        return interval[0] if interval else key if key.endswith(START) else None

    def writes(self, *, anew: bool) -> list[Write]:
        """Requests for what is pending; `anew`: the sets are being made, and hold nothing yet."""
        deletions, additions = [], []
        for name in self.names:
            if anew:
                additions += self._encode(name, self.tables[name].desired, added=True)
                continue
            surplus, missing = self._difference(name)
            deletions += self._encode(name, surplus, added=False)
            additions += self._encode(name, missing, added=True)
        return deletions + additions

    def _difference(self, name: str) -> tuple[set[bytes], set[bytes]]:
        """Elements to delete and to add. Of an interval that is there in part, all is deleted and added: kernels
        refuse an end that another interval's start is to take over."""
        table = self.tables[name]
        surplus = {key for key in table.pending if key in table.kernel}
        missing = {key for key in table.pending if key in table.desired}
        whole = {key for found in missing for key in interval_of(found, self._cidrs[name])}
        if any(key.endswith(END) for key in surplus):
            # The end may be one that an interval without end has in the kernel.
            whole.update(self._open.get(name, ()))
        return surplus | (whole & table.kernel.keys()), missing | whole

    def _encode(self, name: str, pending: Iterable[bytes], *, added: bool) -> list[Write]:
        encode, kind = self._messages[name].encode, NEWSETELEM if added else DELSETELEM
        what = "add" if added else "delete"
        return [
            Write(
                (ELEMENT, IntervalElement(name, pair[0])),
                what,
                encode(kind, pair),
                name=name,
                keys=pair,
                deletes=not added,
            )
            for pair in intervals(pending)
        ]

    def wrote(self, writes: Iterable[Write], *, anew: bool) -> None:
        """The kernel has done these."""
        if anew:
            for table in self.tables.values():
                table.load({})
        for write in writes:
            for key in write.keys:
                if write.deletes:
                    self.tables[write.name].gone(key)
                else:
                    self.tables[write.name].saw(key, True)
        for table in self.tables.values():
            table.give_back()


def intervals(pending: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    """Keys, each start with the end that belongs to it, if that is among them."""
    result: list[tuple[bytes, ...]] = []
    for key in sorted(pending):
        if key.endswith(END) and result and result[-1][-1].endswith(START):
            result[-1] = (*result[-1], key)
        else:
            result.append((key,))
    return result
