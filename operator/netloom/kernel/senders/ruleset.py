"""The nftables table of the tunnels' outer packets: what should be in it, what is in it, and whether that is the same.

    table inet netloom-tunnels
        set nodes           addresses that nodes send from
        set pairs4-24       such an address, with the base of a pod CIDR /24 of the same node
        set pods4-24        bases of all pod CIDRs /24 of the cluster
        set strangers4, 6   of late, who sent without being a node; forgers: which nodes, for others' pods
        chain prerouting, priority raw
            a tunnel's packet: to chain arrivals (unchecked: notrack)
        chain arrivals      address and inner source are a pair: notrack, accept; nearly all packets end here
        chain others        on its way to another machine: accept; from a node: to members; else count and drop
        chain members       inner source is some pod's: to forged; else (the node's own address, say) notrack, accept
        chain forged        count and drop
        chain output, priority raw
            a tunnel's packet: notrack

Each datagram passes four hooks on its way from pod to pod, so what the kernel does in place comes first, and what it
has to call for (`meta`, look-ups) last. Sets are looked up by hashing, as what an interval set costs a packet grows
with the cluster, and a rule masks the inner source for each prefix length in use: one or two. A tunnel's packet is
what the device would take, by port and header: the answer to a pod whose connection was masqueraded to that very port
is none, and passes. Geneve's options, which our nodes do not send, would move the inner packet from where it is
looked for, so such packets count as forged.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

import msgspec

from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.transaction import RULES, TABLE, Write
from netloom.kernel.netlink import expressions as e
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.messages import nested
from netloom.kernel.netlink.nftables import SeenChain, SeenRule, SeenSet, SeenTable, request
from netloom.kernel.netlink.nftables_socket import get_all, get_one
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.senders.senders import NODE_SET, NODES, PAIRS, PODS, SetName, TunnelPort

TABLE_NAME = "netloom-tunnels"
TABLE_KEY = f"inet {TABLE_NAME}"
TABLE_ITEM: Item = (TABLE, TABLE_KEY)
RULES_ITEM: Item = (RULES, TABLE_KEY)
REMARK = "Netloom's: it undoes changes"
NEEDS = "is there all of nftables in this kernel? It takes nft_ct, nft_fib_inet and nft_objref"

PREROUTING, OUTPUT = "prerouting", "output"
ARRIVALS, OTHERS, MEMBERS, FORGED = "arrivals", "others", "members", "forged"
STRANGERS = "strangers"
FORGERS = "forgers"

_PRIORITY_RAW, _ACCEPT = -300, 1
_HOOKS = {PREROUTING: 0, OUTPUT: 3}
_BASE = {name: SeenChain("filter", hook, _PRIORITY_RAW, _ACCEPT) for name, hook in _HOOKS.items()}
_PLAIN = SeenChain("", -1, 0, 0)
COUNTERS = (STRANGERS, FORGED)

REMEMBERED = {f"{STRANGERS}4": 4, f"{STRANGERS}6": 16, FORGERS: 4}
"""Sets that rules add addresses to, and bytes of these."""
REMEMBERED_SECONDS = 600
REMEMBERED_AT_MOST = 64

_WORD, _INNER_PROTOCOL = 8, 28
"""Where a tunnel's header begins, and the EtherType of the packet inside, in bytes from the UDP header: 8 bytes of UDP,
8 of VXLAN or Geneve without options, 12 of the inner MACs."""
_INNER_SOURCE = {4: 42, 16: 38}
_INNER_TYPE = {4: b"\x08\x00", 16: b"\x86\xdd"}
_VXLAN = bytes.fromhex("08000000")
"""The flag that there is a VNI, and no other bit: the kernel drops all else."""
_GENEVE, _VERSION_AND_TYPE, _OPTIONS_TOO = (bytes.fromhex(each) for each in ("00006558", "c000ffff", "ff00ffff"))
"""Version 0 and Ethernet; under these masks: whatever the options, and without any."""


class Layout(msgspec.Struct, frozen=True):
    """What the rules depend on. `lengths`: (bytes of an address, prefix length) of the pod CIDRs."""

    ports: tuple[TunnelPort, ...] = ()
    checked: bool = True
    lengths: tuple[tuple[int, int], ...] = ()

    @property
    def chains(self) -> dict[str, SeenChain]:
        """Those that should be there."""
        return _BASE | dict.fromkeys((ARRIVALS, OTHERS, MEMBERS, FORGED) if self.checked else (), _PLAIN)

    @property
    def sets(self) -> dict[str, SetName]:
        """Those whose elements are kept, by their names in the kernel."""
        kinds = [SetName(kind, *each) for each in self.lengths for kind in (PAIRS, PODS)]
        return {str(name): name for name in (NODE_SET, *kinds)} if self.checked else {}

    @property
    def remembered(self) -> dict[str, int]:
        """Those that rules add to, and bytes of a key."""
        return REMEMBERED if self.checked else {}


class SendersRule(msgspec.Struct, frozen=True):
    """A rule as it should be. The comment holds a fingerprint, so that it is known as ours of this version."""

    chain: str
    expressions: bytes

    @property
    def userdata(self) -> bytes:
        """The comment as the kernel holds it."""
        return nftables.comment(f"netloom {hashlib.sha256(self.expressions).hexdigest()[:8]}")


@cache
def rules_of(layout: Layout) -> tuple[SendersRule, ...]:
    """The rules, in their order in each chain."""
    found = [rule for port in layout.ports for rule in _of_port(port, checked=layout.checked)]
    return tuple(found + (_of_senders(layout) if layout.checked else []))


def _of_port(port: TunnelPort, *, checked: bool) -> list[SendersRule]:
    to, vxlan = e.to_port(port.number), port.protocol == "vxlan"
    ours = to + (e.payload_is(_WORD, _VXLAN) if vxlan else e.payload_is(_WORD, _GENEVE, _VERSION_AND_TYPE))
    out = SendersRule(OUTPUT, ours + e.is_udp() + e.untracked())
    if not checked:
        return [SendersRule(PREROUTING, ours + e.is_udp() + e.untracked()), out]
    if vxlan:
        return [SendersRule(PREROUTING, ours + e.verdict(e.GOTO, ARRIVALS)), out]
    bare = to + e.payload_is(_WORD, _GENEVE, _OPTIONS_TOO)
    return [
        SendersRule(PREROUTING, bare + e.verdict(e.GOTO, ARRIVALS)),
        SendersRule(PREROUTING, ours + e.verdict(e.GOTO, OTHERS)),
        out,
    ]


def _of_senders(layout: Layout) -> list[SendersRule]:
    accept, drop, ipv4, ipv6 = e.verdict(e.ACCEPT), e.verdict(e.DROP), e.of_family(4), e.of_family(16)
    plain = e.is_plain_udp4()
    inner = [(family, length, e.netmask(family, length)) for family, length in layout.lengths]
    pairs, pods = (
        [
            e.payload_is(_INNER_PROTOCOL, _INNER_TYPE[family])
            + look_up(_INNER_SOURCE[family], mask, str(SetName(kind, family, length)))
            for family, length, mask in inner
        ]
        for kind, look_up in ((PAIRS, e.source_and_payload_in), (PODS, e.payload_in))
    )
    options = [
        e.to_port(port.number) + e.payload_is(_WORD, b"\0", b"\x3f", other=True)
        for port in layout.ports
        if port.protocol == "geneve"
    ]
    return [
        *(SendersRule(ARRIVALS, plain + pair + e.untracked() + accept) for pair in pairs),
        SendersRule(ARRIVALS, e.verdict(e.GOTO, OTHERS)),
        SendersRule(OTHERS, e.is_udp(other=True) + accept),
        SendersRule(OTHERS, e.on_its_way() + accept),
        SendersRule(OTHERS, ipv4 + e.address_in(4, NODES) + e.verdict(e.GOTO, MEMBERS)),
        SendersRule(OTHERS, ipv4 + e.remember_source(4, f"{STRANGERS}4")),
        SendersRule(OTHERS, ipv6 + e.remember_source(16, f"{STRANGERS}6")),
        SendersRule(OTHERS, e.count(STRANGERS) + drop),
        *(SendersRule(MEMBERS, what + e.verdict(e.GOTO, FORGED)) for what in (*options, *pods)),
        SendersRule(MEMBERS, e.untracked() + accept),
        SendersRule(FORGED, e.remember_source(4, FORGERS)),
        SendersRule(FORGED, e.count(FORGED) + drop),
    ]


class SeenSenders(msgspec.Struct, frozen=True):
    """What is in the table; where there is none, None."""

    table: SeenTable | None = None
    chains: Mapping[str, SeenChain | None] = {}
    sets: Mapping[str, SeenSet] = {}
    counters: Mapping[str, int | None] = {}
    rules: Mapping[str, Sequence[SeenRule]] = {}


def read(commands: CommandSocket) -> SeenSenders:
    """The table, apart from the elements of its sets. Raises RefusedError, OSError."""
    table = get_one(commands, request(nftables.GETTABLE, name=TABLE_NAME), nftables.read_table)
    if table is None:
        return SeenSenders()
    where = {"table": TABLE_NAME}
    chains, rules = {}, {}
    for name in Layout().chains:
        chains[name] = get_one(commands, request(nftables.GETCHAIN, **where, name=name), nftables.read_chain)
        rules[name] = get_all(commands, request(nftables.GETRULE, **where, chain=name), nftables.read_rule)
    sets = get_all(commands, request(nftables.GETSET, **where), nftables.read_set)
    return SeenSenders(table, chains, {found.name: found for found in sets}, read_counters(commands), rules)


def read_counters(commands: CommandSocket) -> dict[str, int | None]:
    """Packets, by counter; None where it is not there."""
    kind = {"table": TABLE_NAME, "type": nftables.COUNTER}
    return {
        name: get_one(commands, request(nftables.GETOBJECT, **kind, name=name), nftables.read_counter)
        for name in COUNTERS
    }


def read_elements(commands: CommandSocket, name: str) -> dict[bytes, bool]:
    """The elements of a set: key to whether it is plain (no comment, no timeout)."""
    parts = get_all(commands, request(nftables.GETSETELEM, table=TABLE_NAME, set=name), nftables.read_elements)
    return {key[:-1]: plain for _name, part in parts for key, plain in part}


def fault_of_table(layout: Layout, seen: SeenSenders) -> str:
    """What is wrong with the table, apart from rules, and the sets that come and go with prefix lengths; "" if nothing
    is."""
    if seen.table is None:
        return "it is not there"
    if seen.table.flags:
        return f"its flags are {seen.table.flags:#x}"
    chains, counters = layout.chains, COUNTERS if layout.checked else ()
    for name, found in seen.chains.items():
        if found != chains.get(name):
            return f"chain {name} is not there" if found is None else f"chain {name} is another: {found}"
    due = {name: _set(name, of.size) for name, of in layout.sets.items()} | {
        name: SeenSet(name, nftables.TIMEOUT | nftables.DYNAMIC, nftables.KEY_TYPES[size], size)
        for name, size in layout.remembered.items()
    }
    odd = [name for name, found in seen.sets.items() if found != due.get(name, _set(name, found.key_size))]
    gone = [name for name in due if name not in seen.sets and layout.sets.get(name, NODE_SET) == NODE_SET]
    gone += [name for name in COUNTERS if (seen.counters.get(name) is None) == (name in counters)]
    if odd or gone:
        return f"{', '.join(sorted(odd + gone))}: not as it was"
    if seen.table.used != len(chains) + len(seen.sets) + len(counters):
        return "something else is in it"
    return ""


def fault_of_rules(layout: Layout, seen: SeenSenders, echoed: Mapping[bytes, bytes]) -> str:
    """What is wrong with the rules, and with the sets of prefix lengths. `echoed`: the expressions that this kernel was
    seen to make of a rule, by the rule's userdata."""
    if seen.sets.keys() != layout.sets.keys() | layout.remembered.keys():
        return "prefix lengths of pod CIDRs have come or gone"
    for chain, found in seen.rules.items():
        due = [rule for rule in rules_of(layout) if rule.chain == chain]
        if len(due) != len(found) or not all(
            seen_rule.userdata == rule.userdata
            and seen_rule.expressions in (rule.expressions, echoed.get(rule.userdata))
            for rule, seen_rule in zip(due, found, strict=True)
        ):
            return f"the rules of chain {chain} are others"
    return ""


def creation(layout: Layout, *, replace: bool) -> tuple[list[Write], list[Write]]:
    """Requests for the table with its sets, and those for its chains and rules, which come after the elements."""
    table = request(nftables.NEWTABLE, name=TABLE_NAME, flags=0, userdata=REMARK)
    first = [*(removal() if replace else ()), _write(TABLE_ITEM, "create the table", table, f"add table {TABLE_KEY}")]
    first += [_new_set(name, of.size, TABLE_ITEM) for name, of in layout.sets.items()]
    first += [_new_set(name, size, TABLE_ITEM, remembers=True) for name, size in layout.remembered.items()]
    for name in COUNTERS if layout.checked else ():
        about = {"table": TABLE_NAME, "name": name, "type": nftables.COUNTER, "data": nested()}
        first.append(_write(TABLE_ITEM, f"create counter {name}", request(nftables.NEWOBJECT, **about)))
    last = []
    for name, chain in sorted(layout.chains.items(), key=lambda each: each[0] in _BASE):
        about = {"table": TABLE_NAME, "name": name}
        if chain is not _PLAIN:
            hook = nested(NFTA_HOOK_HOOKNUM=chain.hook, NFTA_HOOK_PRIORITY=chain.priority)
            about |= {"hook": hook, "policy": chain.policy, "type": chain.kind}
        last.append(_write(TABLE_ITEM, f"create chain {name}", request(nftables.NEWCHAIN, **about)))
    return first, last + _new_rules(layout, TABLE_ITEM)


def removal() -> list[Write]:
    """Requests that remove the table with all that is in it."""
    message = request(nftables.DELTABLE, name=TABLE_NAME)
    return [Write(TABLE_ITEM, "delete the table", message, f"delete table {TABLE_KEY}", deletes=True)]


def replacement(layout: Layout, seen: SeenSenders) -> tuple[list[Write], list[Write]]:
    """Requests that put these rules in the place of those in the chains, with the sets that they look up: what comes
    before the elements, and what behind. In one transaction: no packet goes by without a rule."""
    first = []
    for chain, rules in seen.rules.items():
        for rule in rules:
            message = request(nftables.DELRULE, table=TABLE_NAME, chain=chain, handle=rule.handle)
            first.append(_write(RULES_ITEM, f"delete rule handle {rule.handle} of {chain}", message))
    for name in seen.sets.keys() - layout.sets.keys() - layout.remembered.keys():
        message = request(nftables.DELSET, table=TABLE_NAME, name=name)
        first.append(_write(RULES_ITEM, f"delete set {name}", message, f"delete set {TABLE_KEY} {name}"))
    first += [_new_set(name, of.size, RULES_ITEM) for name, of in layout.sets.items() if name not in seen.sets]
    return first, _new_rules(layout, RULES_ITEM)


def _set(name: str, size: int) -> SeenSet:
    kinds = nftables.PAIR_TYPES if name.startswith(PAIRS) else nftables.KEY_TYPES
    return SeenSet(name, 0, kinds.get(size, 0), size)


def _new_set(name: str, size: int, item: Item, *, remembers: bool = False) -> Write:
    due = _set(name, size)
    about = {"table": TABLE_NAME, "name": name, "key_type": due.key_type, "key_len": size, "flags": 0, "id": 1}
    if remembers:
        about |= {"flags": nftables.TIMEOUT | nftables.DYNAMIC, "timeout": REMEMBERED_SECONDS * 1000}
        about |= {"desc": nested(NFTA_SET_DESC_SIZE=REMEMBERED_AT_MOST)}
    planned = "" if item == TABLE_ITEM else f"add set {TABLE_KEY} {name}"
    return _write(item, f"create set {name}", request(nftables.NEWSET, **about), planned)


def _new_rules(layout: Layout, item: Item) -> list[Write]:
    writes = []
    for rule in rules_of(layout):
        about = {"table": TABLE_NAME, "chain": rule.chain}
        message = request(nftables.NEWRULE, **about, expressions=rule.expressions, userdata=rule.userdata)
        writes.append(_write(item, f"add a rule to {rule.chain}", message))
    ports = ", ".join(map(str, layout.ports))
    summary = f"add rules to {TABLE_KEY} ({ports}; senders: {'nodes' if layout.checked else 'any'})"
    return [msgspec.structs.replace(writes[0], planned=summary), *writes[1:]] if writes else []


def _write(item: Item, what: str, message: bytes, planned: str = "") -> Write:
    return Write(item, what, message, planned, needs=NEEDS)
