"""Our nftables table as it should be and as it is known to be, and the transaction between the two. Pure.

Only `read_state` speaks with the kernel.
"""

import errno
from collections.abc import Hashable, Iterable, Sequence, Set

import msgspec

from netloom.cidr import Address, format_address
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item
from netloom.kernel.masquerade import ruleset
from netloom.kernel.masquerade.ruleset import RULE_KEY, TABLE_KEY, Seen, Step, Wanted
from netloom.kernel.masquerade.sets import Element, ElementWrite, Masquerading, Sets
from netloom.kernel.netlink.nftables import START
from netloom.kernel.netlink.sockets import CommandSocket, Refusal

ELEMENT = "element"
_TABLE: Item = ("table", TABLE_KEY)
_RULES: Item = ("rules", RULE_KEY)
_TRANSACTION: Item = ("transaction", TABLE_KEY)
STRUCTURE = (_TABLE, _RULES, _TRANSACTION)

Elements = dict[str, dict[bytes, bool]]
"""By set: key, and whether the element is plain."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """One request: by what it is known when it fails, how it is called, and the elements it is about."""

    item: Item
    what: str
    message: bytes
    element: ElementWrite | None = None


class Transaction(msgspec.Struct):
    """Requests. `anew`: the table is made or removed, with all that is in it; `rules`: rules are written."""

    writes: Sequence[Write] = ()
    anew: bool = False
    rules: bool = False

    def refused(self, refusals: dict[int, Refusal]) -> dict[Item, tuple[str, int]]:
        """What the kernel would not take, in words, with the errno."""
        found: dict[Item, tuple[str, int]] = {}
        for i, refusal in sorted(refusals.items()):
            if i < len(self.writes):
                write = self.writes[i]
                found.setdefault(write.item, (f"{write.what}: {refusal}{_hint(write, refusal)}", refusal.errno))
        if not found:
            refusal = next(iter(refusals.values()))
            found[_TRANSACTION] = (str(refusal), refusal.errno)
        return found

    def drop(self, items: Set[Item]) -> bool:
        """Leave these out. Whether there is anything left that can be done without them."""
        if not items.isdisjoint({_TABLE, _TRANSACTION}):
            return False
        self.rules = self.rules and _RULES not in items
        self.writes = [write for write in self.writes if write.item not in items]
        return bool(self.writes)


def _hint(write: Write, refusal: Refusal) -> str:
    if refusal.errno == errno.ENOENT and write.element is None and write.what.startswith(("create chain", "add rule")):
        return " (is there NAT for nftables in this kernel? It takes nft_chain_nat and nft_masq, and Linux 5.2)"
    return ""


def read_state(commands: CommandSocket, *, whole: bool) -> tuple[Seen, Elements | None]:
    """What is in the table; with the elements of its sets if the `whole` is asked for. Raises RefusedError, OSError."""
    seen = ruleset.read(commands)
    if not whole:
        return seen, None
    return seen, {name: ruleset.read_elements(commands, name) for name in ruleset.SETS if name in seen.names}


class State:
    """See the module."""

    def __init__(self) -> None:
        self.sets = Sets()
        self.seen = Seen()
        self._settled: Wanted | None = None
        self._echoed: dict[bytes, bytes] = {}
        self._rules_written = False

    def load(self, seen: Seen, elements: Elements | None) -> list[tuple[Item, bool]]:
        """The kernel holds this (`elements` None: as far as is known, the same as before). Returns what somebody
        changed, and whether by itself."""
        self.seen = seen
        wanted, tables = self.sets.wanted, self.sets.tables
        if self._rules_written:
            self._rules_written = False
            self._echoed |= ruleset.echoes(wanted, seen)
        expected = self._settled == wanted
        known = {(name, key) for name in wanted.sets for key in tables[name].pending} if expected else set()
        for name, table in tables.items():
            if elements is not None:
                table.load(elements.get(name, {}))
            elif name not in seen.names:
                table.load({})
        faults = self.faults()
        drifted: list[tuple[Item, bool]] = []
        if expected:
            drifted += [(item, True) for item in faults]
            if _TABLE not in faults:
                pending = {(name, key) for name in wanted.sets for key in tables[name].pending}
                drifted += [(item, False) for item in self.strange(pending - known)]
        if not faults:
            self._settled = wanted
        return drifted

    def hear(self, name: str, elements: list[tuple[bytes, bool]], *, added: bool) -> Iterable[tuple[str, bytes]]:
        """Somebody added these elements, or deleted them. Returns what is touched."""
        table = self.sets.tables.get(name)
        for key, plain in elements if table is not None else ():
            if added:
                table.saw(key, plain)  # type: ignore[union-attr]
            else:
                table.gone(key)  # type: ignore[union-attr]
            yield name, key

    def strange(self, touched: Iterable[tuple[str, bytes]]) -> list[Item]:
        """Those of the touched elements that are not as desired; an interval counts once."""
        found: dict[Item, None] = {}
        for name, key in touched:
            if name in self.sets.wanted.sets and key in self.sets.tables[name].pending:
                start = self.sets.start_of(name, key)
                if start is not None:
                    found[ELEMENT, Element(name, start)] = None
        return list(found)

    def faults(self) -> list[Item]:
        """What of the table is not as it should be, apart from elements."""
        wanted = self.sets.wanted
        if not wanted.families:
            return [_TABLE] if self.seen.table is not None else []
        if ruleset.fault_of_table(wanted, self.seen):
            return [_TABLE]
        return [] if ruleset.same_rules(wanted, self.seen, self._echoed) else [_RULES]

    def unsettled(self) -> Iterable[Item]:
        """All that is not as it should be."""
        faults = self.faults()
        yield from faults
        if faults or self.sets.pending:
            yield _TRANSACTION
        for name in self.sets.wanted.sets:
            for key in self.sets.tables[name].pending:
                yield ELEMENT, Element(name, key)

    def due(self, held: Set[Hashable]) -> Transaction:
        """The transaction that makes all right that may be tried now."""
        wanted, faults = self.sets.wanted, self.faults()
        if _TRANSACTION in held or (_TABLE in faults and _TABLE in held):
            return Transaction()
        if not wanted.families:
            return Transaction(_steps(_TABLE, ruleset.removal()) if faults else (), anew=True)
        anew = _TABLE in faults
        writes = [
            Write((ELEMENT, element.head), "add" if element.added else "delete", element.message, element)
            for element in self.sets.writes(anew=anew)
        ]
        if held:
            writes = [write for write in writes if write.item not in held]
        if anew:
            first, last = ruleset.creation(wanted, replace=self.seen.table is not None)
            return Transaction([*_steps(_TABLE, first), *writes, *_steps(_TABLE, last)], anew=True, rules=True)
        if _RULES in faults and _RULES not in held:
            return Transaction([*writes, *_steps(_RULES, ruleset.replacement(wanted, self.seen))], rules=True)
        return Transaction(writes)

    def wrote(self, done: Transaction) -> list[tuple[str, Sequence[Hashable]]]:
        """The kernel has done this. Returns what is as it should be, by kind."""
        elements = [write.element for write in done.writes if write.element is not None]
        self.sets.wrote(elements, anew=done.anew)
        self._rules_written = done.rules
        structure = dict.fromkeys(write.item for write in done.writes if write.element is None)
        result: list[tuple[str, Sequence[Hashable]]] = [(kind, [key]) for kind, key in [*structure, _TRANSACTION]]
        result.append((ELEMENT, [Element(write.name, key) for write in elements for key in write.keys]))
        return result


def _steps(item: Item, steps: Iterable[Step]) -> list[Write]:
    return [Write(item, what, message) for what, message in steps]


def planned_changes(commands: CommandSocket, desired: Masquerading) -> list[PlannedChange]:
    """All changes, in the order in which they would be made, as `nft` would say them. Raises RefusedError, OSError."""
    state = State()
    state.sets.replace(desired)
    seen, elements = read_state(commands, whole=True)
    state.load(seen, elements)
    due = state.due(frozenset())
    why = ruleset.fault_of_table(state.sets.wanted, seen) if due.anew and state.sets.wanted.families else ""
    changes: list[PlannedChange] = []
    if due.anew and due.writes and seen.table is not None:
        changes.append(PlannedChange(f"nft delete table {TABLE_KEY}", why or "nothing is to be masqueraded"))
    if due.anew and due.rules:
        changes.append(PlannedChange(f"nft add table {TABLE_KEY}", why))
    changes += [
        PlannedChange(f"nft {write.what} element {TABLE_KEY} {write.element.name} {{ {_range(write.element.keys)} }}")
        for write in due.writes
        if write.element is not None
    ]
    if due.rules:
        changes += [
            PlannedChange(f"nft {write.what.replace(' rule', f' rule {RULE_KEY}', 1)}", why)
            for write in due.writes
            if write.element is None and " rule " in write.what
        ]
    return changes


def _range(keys: Sequence[bytes]) -> str:
    """First and last address, or the CIDR that they are."""
    first = keys[0][:-1]
    behind = int.from_bytes(keys[1][:-1], "big") if len(keys) > 1 else 1 << len(first) * 8
    size = behind - int.from_bytes(first, "big")
    if size & (size - 1) or not keys[0].endswith(START):
        last: Address = (behind - 1).to_bytes(len(first), "big")
        return f"{format_address(first)}-{format_address(last)}"
    return f"{format_address(first)}/{len(first) * 8 - size.bit_length() + 1}"
