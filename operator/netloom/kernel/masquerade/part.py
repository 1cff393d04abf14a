"""The masquerading table as a part: as it should be, as it is known to be, and the transaction between the two."""

from collections.abc import Hashable, Iterable, Set

import structlog

from netloom.cidr import format_address
from netloom.kernel.keeper.owned_table import OwnedTable
from netloom.kernel.keeper.part import Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.keeper.transaction import ELEMENT, Transaction
from netloom.kernel.masquerade import begun_flows, ruleset
from netloom.kernel.masquerade.outermost import cidr_of
from netloom.kernel.masquerade.ruleset import RULES_ITEM, SETS, TABLE, TABLE_ITEM, TABLE_KEY, Families, SeenMasquerade
from netloom.kernel.masquerade.sets import UNKNOWN, IntervalElement, Masquerading, Sets
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import MASQUERADE

log = structlog.get_logger(__name__)

_OWN_PODS = {f"pods{family}" for family in ruleset.SIZES}

LOSS = "nothing can be masqueraded"
"""Where the kernel has no nftables."""

Elements = dict[str, dict[bytes, bool]]
"""By set: key, and whether the element is plain."""


def _read_state(commands: CommandSocket, *, whole: bool) -> tuple[SeenMasquerade, Elements | None]:
    """What is in the table; with the elements of its sets if the `whole` is asked for. Raises RefusedError, OSError."""
    seen = ruleset.read(commands)
    if not whole:
        return seen, None
    return seen, {name: ruleset.read_elements(commands, name) for name in SETS if name in seen.names}


class MasqueradeTable(OwnedTable[Masquerading]):
    """See the module."""

    owns = MASQUERADE
    state = ("dump", f"table {TABLE_KEY}")
    table = TABLE
    loss = LOSS

    def __init__(self, *, retain_unknown: bool = False) -> None:
        super().__init__()
        self.sets = Sets()
        self._seen = SeenMasquerade()
        self._retaining = retain_unknown
        self._desired: Masquerading | None = None
        self._touched: set[tuple[str, bytes]] = set()
        self._in_place: Families | None = None
        """What the table was last found to be right for; None: not known."""

    # ------------------------------------------------------------------------------------------- what is wanted

    def want(self, desired: Masquerading, retries: Retries) -> None:
        """Take over the rules, and the CIDRs: of the same object as before, those that its journal names."""
        touched, sets = desired.take_touched(), self.sets
        if desired is not self._desired:
            self._desired = desired
            sets.replace(desired)
            retries.clear()
            return
        changed = [element for name in touched for element in sets.set_known(name, desired.known.get(name, ()))]
        if desired.rules != sets.rules:
            changed += sets.set_rules(desired.rules)
            retries.forget((TABLE_ITEM, RULES_ITEM, self._whole))
        retries.forget((ELEMENT, element) for element in changed)

    @property
    def families(self) -> Families:
        """Those whose packets are to be masqueraded; with none there is to be no table."""
        return self.sets.rules.families

    @property
    def _is_wanted(self) -> bool:
        return bool(self.families)

    @property
    def retained(self) -> int:
        """Known CIDRs from an earlier life that no node explains, and that are retained."""
        return len(self.sets.known.get(UNKNOWN, ()))

    def release_retained(self) -> None:
        """All nodes are known: what none of them explains goes."""
        self.sets.set_known(UNKNOWN, ())

    def pending(self) -> Iterable[Item]:
        """All that is not as it should be."""
        faults = self._faults()
        yield from faults
        if faults or self.sets.pending:
            yield self._whole
        for name, key in self._different():
            yield ELEMENT, IntervalElement(name, key)

    def count_pending(self) -> int:
        """Without a walk over the elements."""
        faults = len(self._faults())
        return faults + bool(faults or self.sets.pending) + self.sets.pending

    def _different(self) -> Iterable[tuple[str, bytes]]:
        """Elements of sets that should be there, which are not as desired."""
        return ((name, key) for name in self.sets.names for key in self.sets.tables[name].pending)

    def _faults(self) -> list[Item]:
        """What of the table is not as it should be, apart from elements."""
        if not self.families:
            return [TABLE_ITEM] if self._seen.table is not None else []
        if ruleset.fault_of_table(self._seen):
            return [TABLE_ITEM]
        return [] if ruleset.same_rules(self.families, self._seen, self._echoed) else [RULES_ITEM]

    # -------------------------------------------------------------------------------------------------- reading

    async def read(self, worker: Worker) -> bool:
        """Read the table, and its elements where these are due; note what is not as it was left."""
        if not self.due:
            return False
        whole, self._resync_due, self._table_due = self._resync_due, False, False
        self._load(*await worker.call(lambda commands: _read_state(commands, whole=whole)))
        if whole and self._retaining:
            self._retaining = False
            self.sets.retain_unknown()
        return whole

    def _load(self, seen: SeenMasquerade, elements: Elements | None) -> None:
        """The kernel holds this (`elements` None: as far as is known, the same as before)."""
        self._seen = seen
        if self._rules_written:
            self._rules_written = False
            if len(seen.rules) == len(self.families):
                self._echoed |= {rule.userdata: rule.expressions for rule in seen.rules}
        expected = self._in_place == self.families
        known = set(self._different()) if expected else set()
        for name, table in self.sets.tables.items():
            if elements is not None:
                table.load(elements.get(name, {}))
            elif name not in seen.names:
                table.load({})
        faults = self._faults()
        if expected:
            self._found += [(item, True) for item in faults]
            if TABLE_ITEM not in faults:
                self._found += [(item, False) for item in self._strange({*self._different()} - known)]
        if not faults:
            self._in_place = self.families

    # -------------------------------------------------------------------------------------------------- writing

    async def _follow_up(self, done: Transaction, worker: Worker) -> None:
        """Flows that began before there was this table, or before this node had these pods, begin anew."""
        if not done.rules and not any(write.name in _OWN_PODS and not write.deletes for write in done.writes):
            return
        sets, families = self.sets, self.families
        forgotten = await worker.call(lambda _commands: begun_flows.forget(sets, families))
        if forgotten:
            log.info("flows that began before masquerading begin anew", count=forgotten)

    def _transaction(self, delayed: Set[Hashable]) -> Transaction:
        """What makes all right that may be tried now."""
        faults = self._faults()
        anew = TABLE_ITEM in faults
        if self._whole in delayed or (anew and TABLE_ITEM in delayed):
            return Transaction(TABLE_KEY)
        if not self.families:
            return Transaction(TABLE_KEY, ruleset.removal() if faults else (), anew=True)
        writes = [write for write in self.sets.writes(anew=anew) if write.item not in delayed]
        if anew:
            first, last = ruleset.creation(self.families, replace=self._seen.table is not None)
            return Transaction(TABLE_KEY, [*first, *writes, *last], anew=True, rules=True)
        if RULES_ITEM in faults and RULES_ITEM not in delayed:
            return Transaction(TABLE_KEY, [*writes, *ruleset.replacement(self.families, self._seen)], rules=True)
        return Transaction(TABLE_KEY, writes)

    def _wrote_elements(self, done: Transaction) -> list[IntervalElement]:
        self.sets.wrote(done.writes, anew=done.anew)
        return [IntervalElement(write.name, key) for write in done.writes for key in write.keys]

    # --------------------------------------------------------------------------------------------------- events

    def _heard(self, name: str, key: bytes, *, plain: bool, came: bool) -> None:
        table = self.sets.tables.get(name)
        if table is None:
            return
        if came:
            table.saw(key, plain)
        else:
            table.gone(key)
        self._touched.add((name, key))

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """What is not as it should be, though nobody here changed it."""
        touched, self._touched = self._touched, set()
        found, self._found = self._found, []
        return [*((item, not self._resync_due) for item in self._strange(touched)), *found]

    def _strange(self, touched: Iterable[tuple[str, bytes]]) -> list[Item]:
        """Those of the touched elements that are not as desired; an interval counts once."""
        found: dict[Item, None] = {}
        for name, key in touched:
            if name in self.sets.names and key in self.sets.tables[name].pending:
                start = self.sets.start_of(name, key)
                if start is not None:
                    found[ELEMENT, IntervalElement(name, start)] = None
        return list(found)

    # ----------------------------------------------------------------------------------------------------- plan

    def plan(self, commands: CommandSocket, desired: Masquerading) -> list[PlannedChange]:
        """All changes, in the order in which they would be made, as `nft` would say them; for a part that is asked
        nothing else. Raises RefusedError, OSError."""
        self.sets.replace(desired)
        self._load(*_read_state(commands, whole=True))
        due = self._transaction(frozenset())
        why = ruleset.fault_of_table(self._seen) if due.anew and self.families else ""
        changes = []
        for write in due.writes:
            if write.keys:
                verb = "delete" if write.deletes else "add"
                text = f"{verb} element {TABLE_KEY} {write.name} {{ {_range(write.keys)} }}"
                changes.append(PlannedChange(f"nft {text}"))
            elif write.planned:
                reason = why or ("nothing is to be masqueraded" if write.item == TABLE_ITEM else "")
                changes.append(PlannedChange(f"nft {write.planned}", reason))
        return changes


def _range(keys: tuple[bytes, ...]) -> str:
    """The CIDR that these are the elements of, or first and last address."""
    cidr = cidr_of(keys)
    if cidr is not None and keys[0].endswith(nftables.START):
        return str(cidr)
    size = len(keys[0]) - 1
    behind = int.from_bytes(keys[1][:-1], "big") if len(keys) > 1 else 1 << size * 8
    return f"{format_address(keys[0][:-1])}-{format_address((behind - 1).to_bytes(size, 'big'))}"
