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
from typing import TypeVar

import msgspec

from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.messages import nested
from netloom.kernel.netlink.nftables import SeenChain, SeenRule, SeenSet, SeenTable, request
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all
from netloom.kernel.ownership import DEVICE_PREFIX

T = TypeVar("T")

TABLE, CHAIN = "netloom", "postrouting"
TABLE_KEY = f"inet {TABLE}"
RULE_KEY = f"{TABLE_KEY} {CHAIN}"
_IN_CHAIN = {"table": TABLE, "chain": CHAIN}
REMARK = "Netloom's: it undoes changes"

_HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT = 4, 100, 1
_CHAIN = SeenChain("nat", _HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT)

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
    expressions = (
        nftables.of_family(size)
        + nftables.address_in(size, f"pods{family}")
        + nftables.address_in(size, f"known{family}", destination=True, inside=False)
        + nftables.address_in(size, f"excluded{family}", destination=True, inside=False)
        + nftables.not_out_of(DEVICE_PREFIX)
        + nftables.masquerade()
    )
    return Rule(nftables.as_bytes(expressions))


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
    due = {(name, nftables.INTERVAL, nftables.KEY_TYPES[size_of(name)], size_of(name)) for name in wanted.sets}
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
    first.append(("create the table", request(nftables.NEWTABLE, name=TABLE, flags=0, userdata=REMARK)))
    for i, name in enumerate(wanted.sets, 1):
        size = size_of(name)
        key = {"flags": nftables.INTERVAL, "key_type": nftables.KEY_TYPES[size], "key_len": size}
        first.append((f"create set {name}", request(nftables.NEWSET, table=TABLE, name=name, **key, id=i)))
    hook = nested(NFTA_HOOK_HOOKNUM=_CHAIN.hook, NFTA_HOOK_PRIORITY=_CHAIN.priority)
    base = {"hook": hook, "policy": _CHAIN.policy, "type": _CHAIN.kind}
    chain = request(nftables.NEWCHAIN, table=TABLE, name=CHAIN, **base)
    return first, [(f"create chain {CHAIN}", chain), *_new_rules(wanted)]


def removal() -> list[Step]:
    """Requests that remove the table with all that is in it."""
    return [("delete the table", request(nftables.DELTABLE, name=TABLE))]


def replacement(wanted: Wanted, seen: Seen) -> list[Step]:
    """Requests that put the wanted rules in the place of those in the chain. In one transaction: no packet goes by
    without a rule."""
    gone = [
        (f"delete rule handle {rule.handle}", request(nftables.DELRULE, **_IN_CHAIN, handle=rule.handle))
        for rule in seen.rules
    ]
    return gone + _new_rules(wanted)


def _new_rules(wanted: Wanted) -> list[Step]:
    return [
        (
            f"add rule (IPv{family})",
            request(nftables.NEWRULE, **_IN_CHAIN, expressions=rule.expressions, userdata=rule.userdata),
        )
        for family, rule in zip(wanted.families, wanted.rules, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ reading


def read(commands: CommandSocket) -> Seen:
    """The table, apart from the elements of its sets. Raises RefusedError, OSError."""
    table = _get(commands, request(nftables.GETTABLE, name=TABLE), nftables.read_table)
    if table is None:
        return Seen()
    chain = _get(commands, request(nftables.GETCHAIN, table=TABLE, name=CHAIN), nftables.read_chain)
    rules = _all(commands, request(nftables.GETRULE, **_IN_CHAIN), nftables.read_rule) if chain else []
    sets = _all(commands, request(nftables.GETSET, table=TABLE), nftables.read_set)
    return Seen(table, chain, tuple(sets), tuple(rules))


def read_elements(commands: CommandSocket, name: str) -> dict[bytes, bool]:
    """The elements of a set: key to whether it is plain (no comment, no timeout)."""
    parts = _all(commands, request(nftables.GETSETELEM, table=TABLE, set=name), nftables.read_elements)
    return {key: plain for _name, part in parts for key, plain in part}


def _get(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], T]) -> T | None:
    found: list[T] = []
    try:
        commands.get(request, lambda _kind, *place: found.append(read(*place)))
    except RefusedError as error:
        _may_be_gone(error)
    return found[0] if found else None


def _all(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], T]) -> list[T]:
    try:
        return read_all(commands, request, read)
    except RefusedError as error:
        _may_be_gone(error)
        return []


def _may_be_gone(error: RefusedError) -> None:
    """The table, or what is in it, may not be there, or go in this moment, which an event will tell."""
    if error.errno != errno.ENOENT:
        raise error
