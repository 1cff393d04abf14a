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

import hashlib
from functools import cache

import msgspec

from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.transaction import Write
from netloom.kernel.netlink import expressions as e
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.messages import nested
from netloom.kernel.netlink.nftables import SeenChain, SeenRule, SeenSet, SeenTable, request
from netloom.kernel.netlink.nftables_socket import get_all, get_one
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import DEVICE_PREFIX

TABLE, CHAIN = "netloom", "postrouting"
TABLE_KEY = f"inet {TABLE}"
RULE_KEY = f"{TABLE_KEY} {CHAIN}"
TABLE_ITEM: Item = ("table", TABLE_KEY)
RULES_ITEM: Item = ("rules", RULE_KEY)
_IN_CHAIN = {"table": TABLE, "chain": CHAIN}
REMARK = "Netloom's: it undoes changes"

_HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT = 4, 100, 1
_CHAIN = SeenChain("nat", _HOOK_POSTROUTING, _PRIORITY_SRCNAT, _ACCEPT)

SIZES = {"4": 4, "6": 16}
"""Bytes of an address, by the last character of a set's name."""

NEEDS_NAT = "is there NAT for nftables in this kernel? It takes nft_chain_nat and nft_masq, and Linux 5.2"

Families = tuple[str, ...]
"""Of "4" and "6", those whose packets are masqueraded."""

SETS = tuple(kind + family for family in SIZES for kind in ("pods", "known", "excluded"))
"""Those of both families, as soon as there is a table. Switching one off or on then changes rules only; a table that is
made anew in one transaction still has a moment without a hook for new connections."""


def size_of(name: str) -> int:
    """Bytes of an address of this set."""
    return SIZES[name[-1]]


class MasqueradeRule(msgspec.Struct, frozen=True):
    """A rule as it should be. The comment holds a fingerprint, so that it is known as ours of this version."""

    remark: str
    expressions: bytes

    @property
    def userdata(self) -> bytes:
        """The comment as the kernel holds it."""
        return nftables.comment(self.remark)


@cache
def rule_of(family: str) -> MasqueradeRule:
    """The rule of a family."""
    size = SIZES[family]
    found = (
        e.of_family(size)
        + e.address_in(size, f"pods{family}")
        + e.address_in(size, f"known{family}", destination=True, inside=False)
        + e.address_in(size, f"excluded{family}", destination=True, inside=False)
        + e.not_out_of(DEVICE_PREFIX)
        + e.masquerade()
    )
    return MasqueradeRule(f"netloom {hashlib.sha256(found).hexdigest()[:8]}", found)


class SeenMasquerade(msgspec.Struct, frozen=True):
    """What is in the table; no table, no chain: None."""

    table: SeenTable | None = None
    chain: SeenChain | None = None
    sets: tuple[SeenSet, ...] = ()
    rules: tuple[SeenRule, ...] = ()

    @property
    def names(self) -> set[str]:
        """Of the sets."""
        return {found.name for found in self.sets}


def fault_of_table(seen: SeenMasquerade) -> str:
    """What is wrong with the table, apart from rules and elements; empty if nothing is."""
    if seen.table is None:
        return "it is not there"
    if seen.table.flags:
        return f"its flags are {seen.table.flags:#x}"
    if seen.chain != _CHAIN:
        return f"chain {CHAIN} is not there" if seen.chain is None else f"chain {CHAIN} is another: {seen.chain}"
    due = {SeenSet(name, nftables.INTERVAL, nftables.KEY_TYPES[size_of(name)], size_of(name)) for name in SETS}
    if set(seen.sets) != due:
        return f"its sets are {', '.join(sorted(found.name for found in seen.sets)) or 'gone'}, or not as they were"
    if seen.table.used != 1 + len(seen.sets):
        return "something else is in it"
    return ""


def same_rules(families: Families, seen: SeenMasquerade, echoed: dict[bytes, bytes]) -> bool:
    """Whether the chain holds exactly the rules of these families.

    `echoed`: the expressions that this kernel was seen to make of a rule, by the rule's userdata.
    """
    return len(families) == len(seen.rules) and all(
        found.userdata == rule.userdata and found.expressions in (rule.expressions, echoed.get(rule.userdata))
        for rule, found in zip(map(rule_of, families), seen.rules, strict=True)
    )


def creation(families: Families, *, replace: bool) -> tuple[list[Write], list[Write]]:
    """Requests for the table and its sets, and those for chain and rules, which come after the elements."""
    table = request(nftables.NEWTABLE, name=TABLE, flags=0, userdata=REMARK)
    first = [*(removal() if replace else ()), Write(TABLE_ITEM, "create the table", table, f"add table {TABLE_KEY}")]
    for i, name in enumerate(SETS, 1):
        size = size_of(name)
        key = {"flags": nftables.INTERVAL, "key_type": nftables.KEY_TYPES[size], "key_len": size}
        message = request(nftables.NEWSET, table=TABLE, name=name, **key, id=i)
        first.append(Write(TABLE_ITEM, f"create set {name}", message))
    hook = nested(NFTA_HOOK_HOOKNUM=_CHAIN.hook, NFTA_HOOK_PRIORITY=_CHAIN.priority)
    base = {"hook": hook, "policy": _CHAIN.policy, "type": _CHAIN.kind}
    chain = request(nftables.NEWCHAIN, table=TABLE, name=CHAIN, **base)
    return first, [
        Write(TABLE_ITEM, f"create chain {CHAIN}", chain, needs=NEEDS_NAT),
        *_new_rules(families, TABLE_ITEM),
    ]


def removal() -> list[Write]:
    """Requests that remove the table with all that is in it."""
    message = request(nftables.DELTABLE, name=TABLE)
    return [Write(TABLE_ITEM, "delete the table", message, f"delete table {TABLE_KEY}", deletes=True)]


def replacement(families: Families, seen: SeenMasquerade) -> list[Write]:
    """Requests that put the rules of these families in the place of those in the chain. In one transaction: no packet
    goes by without a rule."""
    gone = []
    for handle in (rule.handle for rule in seen.rules):
        message = request(nftables.DELRULE, **_IN_CHAIN, handle=handle)
        planned = f"delete rule {RULE_KEY} handle {handle}"
        gone.append(Write(RULES_ITEM, f"delete rule handle {handle}", message, planned))
    return gone + _new_rules(families, RULES_ITEM)


def _new_rules(families: Families, item: Item) -> list[Write]:
    writes = []
    for family in families:
        rule = rule_of(family)
        message = request(nftables.NEWRULE, **_IN_CHAIN, expressions=rule.expressions, userdata=rule.userdata)
        planned = f"add rule {RULE_KEY} (IPv{family})"
        writes.append(Write(item, f"add rule (IPv{family})", message, planned, needs=NEEDS_NAT))
    return writes


# ------------------------------------------------------------------------------------------------------ reading


def read(commands: CommandSocket) -> SeenMasquerade:
    """The table, apart from the elements of its sets. Raises RefusedError, OSError."""
    table = get_one(commands, request(nftables.GETTABLE, name=TABLE), nftables.read_table)
    if table is None:
        return SeenMasquerade()
    chain = get_one(commands, request(nftables.GETCHAIN, table=TABLE, name=CHAIN), nftables.read_chain)
    rules = get_all(commands, request(nftables.GETRULE, **_IN_CHAIN), nftables.read_rule) if chain else []
    sets = get_all(commands, request(nftables.GETSET, table=TABLE), nftables.read_set)
    return SeenMasquerade(table, chain, tuple(sets), tuple(rules))


def read_elements(commands: CommandSocket, name: str) -> dict[bytes, bool]:
    """The elements of a set: key to whether it is plain (no comment, no timeout)."""
    parts = get_all(commands, request(nftables.GETSETELEM, table=TABLE, set=name), nftables.read_elements)
    return {key: plain for _name, part in parts for key, plain in part}
