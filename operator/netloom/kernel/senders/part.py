"""The table of the tunnels' outer packets as a part: as it should be, as it is known to be, and the transaction between
the two. What the rules have counted is read now and then, along with who was refused.
"""

import time
from collections.abc import Hashable, Iterable, Set

import msgspec
import structlog

from netloom.cidr import Address, format_address
from netloom.kernel.keeper.owned_table import OwnedTable
from netloom.kernel.keeper.part import Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.keeper.transaction import ELEMENT, Transaction
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import SENDERS
from netloom.kernel.senders import ruleset
from netloom.kernel.senders.differences import Differences, SetElement
from netloom.kernel.senders.ruleset import (
    FORGED,
    FORGERS,
    REMEMBERED,
    RULES_ITEM,
    STRANGERS,
    TABLE_ITEM,
    TABLE_KEY,
    TABLE_NAME,
    Layout,
    SeenSenders,
)
from netloom.kernel.senders.senders import NODES, PAIRS, PODS, Senders, SetName

log = structlog.get_logger(__name__)

LOSS = "nobody is kept from sending through the tunnels, and the connection table holds their packets"
"""Where the kernel has no nftables."""

COUNT_SECONDS = 15.0
"""Between two looks at the counters, 60 us each."""

Elements = dict[str, dict[bytes, bool]]
"""By set: key, and whether the element is plain."""


class Refusals(msgspec.Struct, frozen=True):
    """Packets dropped since the table was made: from strangers, and with another node's pod as inner source. Who sent
    such within REMEMBERED_SECONDS, at most REMEMBERED_AT_MOST of each."""

    strangers: int = 0
    forged: int = 0
    who: tuple[Address, ...] = ()
    forgers: tuple[Address, ...] = ()


def _read_state(commands: CommandSocket, *, whole: bool) -> tuple[SeenSenders, Elements | None]:
    """What is in the table; with the elements of its sets if the `whole` is asked for. Raises RefusedError, OSError."""
    seen = ruleset.read(commands)
    if not whole:
        return seen, None
    return seen, {name: ruleset.read_elements(commands, name) for name in seen.sets if name not in REMEMBERED}


def _read_refusals(commands: CommandSocket, before: Refusals) -> Refusals:
    counters = {name: count or 0 for name, count in ruleset.read_counters(commands).items()}
    now = Refusals(counters[STRANGERS], counters[FORGED], before.who, before.forgers)
    if now == before and not now.who and not now.forgers:
        return before
    found = {name: tuple(sorted(ruleset.read_elements(commands, name))) for name in REMEMBERED}
    who = found[f"{STRANGERS}4"] + found[f"{STRANGERS}6"]
    return msgspec.structs.replace(now, who=who, forgers=found[FORGERS])


class SendersTable(OwnedTable[Senders]):
    """See the module."""

    owns = SENDERS
    state = ("dump", f"table {TABLE_KEY}")
    table = TABLE_NAME
    loss = LOSS

    def __init__(self, *, retain_unknown: bool = False, count_seconds: float = COUNT_SECONDS) -> None:
        super().__init__()
        self.differences = Differences()
        self.refusals = Refusals()
        self._seen = SeenSenders()
        self._desired = Senders()
        self._retaining = retain_unknown
        self._retained: set[SetName] = set()
        self._touched: set[SetElement] = set()
        self._in_place: Layout | None = None
        """What the table was last found to be right for; None: not known."""
        self._count_seconds = count_seconds
        self._count_at = 0.0

    # ------------------------------------------------------------------------------------------- what is wanted

    def want(self, desired: Senders, retries: Retries) -> None:
        """Take over what its journal names; of another object than before, all."""
        before = self.layout
        changes = desired.take_journal()
        if desired is not self._desired:
            self._desired = desired
            self._resync_due = True
            retries.clear()
            return
        changed = self.differences.changed(changes)
        if not self._is_checked:
            self.refusals = Refusals()
        if self.layout != before:
            retries.forget((TABLE_ITEM, RULES_ITEM, self._whole))
        retries.forget((ELEMENT, element) for element in changed)

    @property
    def layout(self) -> Layout:
        """What the table is to be like; without ports there is to be none."""
        desired = self._desired
        names = {*desired.keys, *self._retained} if desired.checked else ()
        lengths = tuple(sorted({(name.family, name.length) for name in names if name.kind != NODES}))
        return Layout(desired.ports, desired.checked, lengths)

    @property
    def retained(self) -> int:
        """Pod CIDRs from an earlier life, or senders for them, that no node explains, and that are retained."""
        return max((len(each.retained) for each in self.differences.of.values()), default=0)

    def release_retained(self) -> None:
        """All nodes are known: what none of them explains goes."""
        self._retained.clear()
        for each in self.differences.of.values():
            each.retained.clear()

    def pending(self) -> Iterable[Item]:
        """All that is not as it should be."""
        faults = self._faults()
        yield from faults
        elements = [*self._pending()]
        if faults or elements:
            yield self._whole
        yield from ((ELEMENT, element) for element in elements)

    def count_pending(self) -> int:
        """Without naming the elements."""
        faults, elements = len(self._faults()), self.differences.count() if self._is_checked else 0
        return faults + bool(faults or elements) + elements

    @property
    def _is_wanted(self) -> bool:
        return bool(self._desired.ports)

    @property
    def _is_checked(self) -> bool:
        return self._is_wanted and self._desired.checked

    def _pending(self) -> Iterable[SetElement]:
        return self.differences.pending() if self._is_checked else ()

    def _faults(self) -> list[Item]:
        """What of the table is not as it should be, apart from elements."""
        layout = self.layout
        if not layout.ports:
            return [TABLE_ITEM] if self._seen.table is not None else []
        if ruleset.fault_of_table(layout, self._seen):
            return [TABLE_ITEM]
        return [RULES_ITEM] if ruleset.fault_of_rules(layout, self._seen, self._echoed) else []

    # -------------------------------------------------------------------------------------------------- reading

    def later(self) -> float:
        """When the counters are to be looked at."""
        return self._count_at if self._is_checked and self._in_place is not None else float("inf")

    async def read(self, worker: Worker) -> bool:
        """Read the table, and its elements where these are due; note what is not as it was left."""
        whole = self._resync_due
        if self.due:
            self._resync_due = self._table_due = False
            self._load(*await worker.call(lambda commands: _read_state(commands, whole=whole)))
            if whole and self._retaining:
                self._retaining = False
                self._retain_unknown()
        if self._count_at <= time.monotonic() and self.later() < float("inf"):
            self._count_at = time.monotonic() + self._count_seconds
            self._count(await worker.call(lambda commands: _read_refusals(commands, self.refusals)))
        return whole

    def _count(self, refusals: Refusals) -> None:
        for about, before, now in (
            ("is no node's", self.refusals.who, refusals.who),
            ("is a node's that has not the pod", self.refusals.forgers, refusals.forgers),
        ):
            if new := [format_address(address) for address in now if address not in before]:
                log.warning("packets to the tunnels were dropped", sources=new, why=f"the address {about}")
        self.refusals = refusals

    def _retain_unknown(self) -> None:
        """Keep what the kernel has and no node explains."""
        for name, each in self.differences.of.items():
            each.retained = set(each.surplus)
            if each.retained:
                self._retained.add(name)

    def _load(self, seen: SeenSenders, elements: Elements | None) -> None:
        """The kernel holds this (`elements` None: as far as is known, the same as before)."""
        self._seen = seen
        if self._rules_written:
            self._rules_written = False
            due = ruleset.rules_of(self.layout)
            found = [rule for chain in dict.fromkeys(rule.chain for rule in due) for rule in seen.rules.get(chain, ())]
            if len(due) == len(found):
                self._echoed = {rule.userdata: rule.expressions for rule in found}
        expected = self._in_place == self.layout
        known = set(self._pending()) if expected else set()
        self._load_elements(seen, elements)
        faults = self._faults()
        if expected:
            self._found += [(item, True) for item in faults]
            if TABLE_ITEM not in faults:
                self._found += [((ELEMENT, element), False) for element in {*self._pending()} - known]
        if not faults:
            self._in_place = self.layout

    def _load_elements(self, seen: SeenSenders, elements: Elements | None) -> None:
        wanted = self._desired.keys
        names = {*wanted, *self.differences.of, *filter(None, map(_named, seen.sets))}
        for name in names:
            if elements is not None:
                self.differences.load(name, wanted.get(name, ()), elements.get(str(name), {}))
            elif str(name) not in seen.sets:
                self.differences.load(name, wanted.get(name, ()), {})

    # -------------------------------------------------------------------------------------------------- writing

    def _transaction(self, delayed: Set[Hashable]) -> Transaction:
        """What makes all right that may be tried now."""
        faults, layout = self._faults(), self.layout
        anew = TABLE_ITEM in faults
        if self._whole in delayed or (anew and TABLE_ITEM in delayed):
            return Transaction(TABLE_KEY)
        if not layout.ports:
            return Transaction(TABLE_KEY, ruleset.removal() if faults else (), anew=True)
        if anew:
            for name in self.differences.of.keys() | self._desired.keys:
                self.differences.load(name, self._desired.keys.get(name, ()), {})
        gone = [name for name in self.differences.of if str(name) not in layout.sets]
        due = self.differences.writes(gone=gone, anew=anew) if layout.checked else ()
        writes = [each for each in due if each.item not in delayed]
        if anew:
            first, last = ruleset.creation(layout, replace=self._seen.table is not None)
            return Transaction(TABLE_KEY, [*first, *writes, *last], anew=True, rules=True)
        if RULES_ITEM in faults and RULES_ITEM not in delayed:
            first, last = ruleset.replacement(layout, self._seen)
            return Transaction(TABLE_KEY, [*first, *writes, *last], rules=True)
        return Transaction(TABLE_KEY, writes)

    def _wrote_elements(self, done: Transaction) -> list[SetElement]:
        elements = [write for write in done.writes if write.keys]
        self.differences.wrote(elements)
        return [write.item[1] for write in elements]  # type: ignore[misc]

    # --------------------------------------------------------------------------------------------------- events

    def _heard(self, name: str, key: bytes, *, plain: bool, came: bool) -> None:
        found = _named(name)
        if found is None:
            return
        element = SetElement(found, key[:-1])
        keys, difference = self._desired.keys.get(found), self.differences[found]
        wanted = keys is not None and len(element.key) == keys.size and element.key in keys
        if came:
            difference.saw(element.key, wanted=wanted, plain=plain)
        else:
            difference.gone(element.key, wanted=wanted)
        self._touched.add(element)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """What is not as it should be, though nobody here changed it."""
        touched, self._touched = self._touched, set()
        found, self._found = self._found, []
        alone = not self._resync_due
        pending = {*self._pending()} if touched else ()
        strange = [each for each in touched if each in pending]
        return [*(((ELEMENT, element), alone) for element in strange), *found]

    # ----------------------------------------------------------------------------------------------------- plan

    def plan(self, commands: CommandSocket, desired: Senders) -> list[PlannedChange]:
        """All changes, in the order in which they would be made, as `nft` would say them; for a part that is asked
        nothing else. Raises RefusedError, OSError."""
        self._desired = desired
        self._load(*_read_state(commands, whole=True))
        due = self._transaction(frozenset())
        why = ruleset.fault_of_table(self.layout, self._seen) if due.anew and self.layout.ports else ""
        changes = []
        for write in due.writes:
            if write.keys:
                name = write.item[1].name  # type: ignore[attr-defined]
                about = f"nft {write.what} element {TABLE_KEY} {name}"
                changes += [PlannedChange(f"{about} {{ {SetElement(name, key).text} }}") for key in write.keys]
            elif write.planned:
                reason = why or ("no tunnel is in use" if write.item == TABLE_ITEM else "")
                changes.append(PlannedChange(f"nft {write.planned}", reason))
        return changes


def _named(text: str) -> SetName | None:
    """The set of this name, if it is one of those whose elements are kept."""
    if text == NODES:
        return SetName(NODES)
    kind, _, length = text.partition("-")
    family = {"4": 4, "6": 16}.get(kind[-1:])
    if family is None or kind[:-1] not in (PAIRS, PODS) or not length.isdigit() or int(length) > family * 8:
        return None
    name = SetName(kind[:-1], family, int(length))
    return name if str(name) == text else None
