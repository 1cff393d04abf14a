"""The nftables table that masquerades: what should be in it, what is in it, and whether that is the same.

    table inet netloom
        set pods4       this node's pod CIDRs: sources
        set known4      all pod CIDRs of the cluster: destinations that see a pod's own address
        set excluded4   what the configuration adds to them
        chain postrouting, type nat, hook postrouting, priority srcnat
            from @pods4, to neither @known4 nor @excluded4, not out of our own devices: masquerade

and the same with 6. Known and excluded are two sets, so that a native routing CIDR that contains 10,000 pod CIDRs
comes and goes for the price of one element. Only the first packet of a connection passes the chain.
"""

import errno
import hashlib
from collections.abc import Callable
from functools import cache

import msgspec

from netloom.kernel import nftables
from netloom.kernel.netlink import DUMP_ATTEMPTS, Commands, RefusedError, Visit
from netloom.kernel.nftables import Lookup, SeenChain, SeenRule, SeenSet, SeenTable
from netloom.kernel.owned import DEVICE_PREFIX

TABLE, CHAIN = "netloom", "postrouting"
TABLE_KEY = f"inet {TABLE}"
RULE_KEY = f"{TABLE_KEY} {CHAIN}"
REMARK = "Netloom's: it undoes changes"

_HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT = 4, 100, 1
_CHAIN = SeenChain("nat", _HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT)
_KEY_TYPES = {4: 7, 16: 8}


SIZES = {"4": 4, "6": 16}
"""Bytes of an address, by the last character of a set's name."""

SETS = tuple(kind + family for family in SIZES for kind in ("pods", "known", "excluded"))


def size_of(name: str) -> int:
    """Bytes of an address of this set."""
    return SIZES[name[-1]]


class Rule(msgspec.Struct, frozen=True):
    """A rule as it should be: the comment holds a fingerprint, so that a rule is known as ours of this version."""

    expressions: bytes

    @property
    def remark(self) -> str:
        """The comment."""
        return f"netloom {hashlib.sha256(self.expressions).hexdigest()[:8]}"

    @property
    def userdata(self) -> bytes:
        """The comment as the kernel holds it."""
        return nftables.comment(self.remark)


class Wanted(msgspec.Struct, frozen=True):
    """What is in the table for these families ("4", "6"): nothing for none."""

    families: tuple[str, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        """Names: those of both families, as soon as there is a table. Switching one off or on then changes rules only;
        a table that is made anew in one transaction still has a moment without a hook for new connections."""
        return SETS if self.families else ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In their order."""
        return tuple(map(_rule, self.families))


@cache
def _rule(family: str) -> Rule:
    size = SIZES[family]
    return Rule(
        nftables.of_family(size)
        + nftables.address_in(size, False, Lookup(f"pods{family}", True))
        + nftables.address_in(size, True, Lookup(f"known{family}", False))
        + nftables.address_in(size, True, Lookup(f"excluded{family}", False))
        + nftables.not_out_of(DEVICE_PREFIX)
        + nftables.masquerade()
    )


class Seen(msgspec.Struct, frozen=True):
    """What is in the table; no table, no chain: None."""

    table: SeenTable | None = None
    chain: SeenChain | None = None
    sets: tuple[SeenSet, ...] = ()
    rules: tuple[SeenRule, ...] = ()

    @property
    def names(self) -> set[str]:
        """Of the sets."""
        return {found.name for found in self.sets}


def fault_of_table(wanted: Wanted, seen: Seen) -> str:
    """What is wrong with the table, apart from rules and elements; empty if nothing is."""
    if seen.table is None:
        return "it is not there"
    if seen.table.flags:
        return f"its flags are {seen.table.flags:#x}"
    if seen.chain != _CHAIN:
        return f"chain {CHAIN} is not there" if seen.chain is None else f"chain {CHAIN} is another: {seen.chain}"
    sets = {(found.name, found.flags, found.key_type, found.key_size) for found in seen.sets}
    due = {(name, nftables.INTERVAL, _KEY_TYPES[size_of(name)], size_of(name)) for name in wanted.sets}
    if sets != due:
        return f"its sets are {', '.join(sorted(found.name for found in seen.sets)) or 'gone'}, or not as they were"
    if seen.table.used != 1 + len(due):
        return "something else is in it"
    return ""


def same_rules(wanted: Wanted, seen: Seen, echoed: dict[bytes, bytes]) -> bool:
    """Whether the chain holds exactly these rules.

    `echoed`: what this kernel has been seen to make of expressions, where that is not what it was given.
    """
    rules = wanted.rules
    return len(rules) == len(seen.rules) and all(
        found.userdata == rule.userdata
        and found.expressions in (rule.expressions, echoed.get(rule.expressions, rule.expressions))
        for rule, found in zip(rules, seen.rules, strict=True)
    )


def echoes(wanted: Wanted, seen: Seen) -> dict[bytes, bytes]:
    """What the kernel made of rules that were just written, where that is not what it was given."""
    if len(wanted.rules) != len(seen.rules):
        return {}
    return {
        rule.expressions: found.expressions
        for rule, found in zip(wanted.rules, seen.rules, strict=True)
        if found.userdata == rule.userdata and found.expressions != rule.expressions
    }


Step = tuple[str, bytes]
"""A request, and how it is called."""


def creation(wanted: Wanted, *, replace: bool) -> tuple[list[Step], list[Step]]:
    """Requests for the table and its sets, and those for chain and rules, which come after the elements."""
    first = removal() if replace else []
    first.append(("create the table", nftables.new_table(TABLE, REMARK)))
    for i, name in enumerate(wanted.sets, 1):
        first.append((f"create set {name}", nftables.new_set(TABLE, name, size_of(name), i)))
    chain = nftables.new_chain(TABLE, CHAIN, _CHAIN.kind, _CHAIN.hook, _CHAIN.priority)
    return first, [(f"create chain {CHAIN}", chain), *_new_rules(wanted)]


def removal() -> list[Step]:
    """Requests that remove the table with all that is in it."""
    return [("delete the table", nftables.delete_table(TABLE))]


def replacement(wanted: Wanted, seen: Seen) -> list[Step]:
    """Requests that put the wanted rules in the place of those in the chain. In one transaction: no packet goes by
    without a rule."""
    gone = [
        (f"delete rule handle {rule.handle}", nftables.delete_rule(TABLE, CHAIN, rule.handle)) for rule in seen.rules
    ]
    return gone + _new_rules(wanted)


def _new_rules(wanted: Wanted) -> list[Step]:
    return [
        (f"add rule (IPv{family})", nftables.new_rule(TABLE, CHAIN, rule.expressions, rule.remark))
        for family, rule in zip(wanted.families, wanted.rules, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ reading


def read(commands: Commands) -> Seen:
    """The table, apart from the elements of its sets. Raises RefusedError, OSError."""
    tables: list[SeenTable] = []
    chains: list[SeenChain] = []
    rules: list[SeenRule] = []
    sets: list[SeenSet] = []
    _get(commands, nftables.get_table(TABLE), lambda _k, *place: tables.append(nftables.read_table(*place)))
    if not tables:
        return Seen()
    _get(commands, nftables.get_chain(TABLE, CHAIN), lambda _k, *place: chains.append(nftables.read_chain(*place)))
    if chains:
        _dump(commands, nftables.dump_rules(TABLE, CHAIN), rules, lambda *place: nftables.read_rule(*place))
    _dump(commands, nftables.dump_sets(TABLE), sets, lambda *place: nftables.read_set(*place))
    return Seen(tables[0], chains[0] if chains else None, tuple(sets), tuple(rules))


def read_elements(commands: Commands, name: str) -> dict[bytes, bool]:
    """The elements of a set: key to whether it is plain (no comment, no timeout)."""
    parts: list[list[tuple[bytes, bool]]] = []
    _dump(commands, nftables.dump_elements(TABLE, name), parts, lambda *place: nftables.read_elements(*place)[1])
    return {key: plain for part in parts for key, plain in part}


def _get(commands: Commands, request: bytes, visit: Visit) -> None:
    try:
        commands.get(request, visit)
    except RefusedError as error:
        if error.errno != errno.ENOENT:
            raise


def _dump(commands: Commands, request: bytes, found: list, read: Callable[[bytes, int, int], object]) -> None:  # type: ignore[type-arg]
    """Read, and again while the kernel says that the state changed meanwhile; the last reading stands."""
    for _ in range(DUMP_ATTEMPTS):
        found.clear()
        try:
            whole = commands.dump(request, lambda _kind, *place: found.append(read(*place)))
        except RefusedError as error:
            if error.errno != errno.ENOENT:
                raise
            # The table or set went away in this moment, which an event will tell.
            return
        if whole:
            return
