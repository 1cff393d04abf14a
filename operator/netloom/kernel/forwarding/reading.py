"""Which nftables chains see packets that are forwarded, and what is in them, read from the kernel.

Only chains at the forward hook are read, and those that they lead to: a ruleset may have ten thousand others. Not even
asked is `iptables`, which makes tables where there are none.
"""

import errno
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import msgspec

from netloom.kernel.forwarding.expressions import Element, elements_of, rules_of
from netloom.kernel.forwarding.packets import Chain, FilterRule
from netloom.kernel.netlink import nftables, wire
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all
from netloom.kernel.netlink.wire import attributes
from netloom.kernel.ownership import FORWARD_CHAIN

T = TypeVar("T")

FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
"""NFPROTO_*, as `nft` calls them. Frames of a bridge and of a device's ingress have hooks of their own."""
NUMBERS = {name: number for number, name in FAMILIES.items()}

_HOOK_FORWARD = 2
_DORMANT = 1
_OURS = FORWARD_CHAIN.encode() + b"\0"
_ANONYMOUS = "__"
"""What sets begin with that are written out in a rule. They never change; what others will hold nobody knows."""

TableKey = tuple[str, str]
"""Family and name."""


class Base(msgspec.Struct, frozen=True):
    """A base chain at the forward hook."""

    family: str
    table: str
    name: str
    priority: int
    kind: str
    policy: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class Ruleset(msgspec.Struct, frozen=True):
    """What was found: base chains in the order in which packets pass them, with our own chain, which is none (it has no
    policy) and is looked for whether anything leads there or not; and by table all chains that they lead to."""

    found: tuple[Base, ...] = ()
    tables: Mapping[TableKey, Mapping[str, Chain]] = {}

    @property
    def bases(self) -> tuple[Base, ...]:
        """The base chains alone."""
        return tuple(base for base in self.found if base.policy)

    def sees(self, family: str, table: str, chain: str) -> bool:
        """Whether what is in this chain matters."""
        return chain in self.tables.get((family, table), ())


def read(commands: CommandSocket, found: tuple[Base, ...] | None = None) -> Ruleset:
    """What there is now. `found`: of an earlier reading, where these chains are known to be the same: of a kube-proxy
    with 5,000 Services there may be 15,000 chains to look through. Raises RefusedError, OSError."""
    if found is None:
        dormant = set(read_all(commands, nftables.request(nftables.GETTABLE, 0), _dormant))
        chains = read_all(commands, nftables.request(nftables.GETCHAIN, 0), chain_of)
        awake = [base for base in chains if (base.family, base.table) not in dormant or not base.policy]
        found = tuple(sorted(awake, key=lambda base: base.priority))
    tables: dict[TableKey, dict[str, Chain]] = {}
    for base in found:
        _follow(commands, base, tables.setdefault((base.family, base.table), {}))
    return Ruleset(found, tables)


def _follow(commands: CommandSocket, base: Base, chains: dict[str, Chain]) -> None:
    """The chain, and all that it leads to."""
    policies, ahead = {base.name: base.policy}, [base.name]
    while ahead:
        name = ahead.pop()
        if name in chains and not policies.get(name):
            continue
        rules = _rules(commands, base, name)
        chains[name] = Chain(rules, policies.pop(name, ""))  # type: ignore[arg-type]
        ahead += {rule.target for rule in rules if rule.target} - chains.keys()


def _rules(commands: CommandSocket, base: Base, name: str) -> tuple[FilterRule, ...]:
    family = NUMBERS[base.family]

    def elements(set_name: str) -> list[Element] | None:
        if not set_name.startswith(_ANONYMOUS):
            return None
        request = nftables.request(nftables.GETSETELEM, family, table=base.table, set=set_name)
        return [element for part in _all(commands, request, _elements) for element in part]

    found = _all(commands, nftables.request(nftables.GETRULE, family, table=base.table, chain=name), _raw)
    return tuple(rule for handle, expressions in found for rule in rules_of(handle, expressions, elements))


def _all(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], T]) -> list[T]:
    """What goes in this moment has nothing in it, and an event will tell."""
    try:
        return read_all(commands, request, read)
    except RefusedError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


def _elements(buffer: bytes, start: int, end: int) -> list[Element]:
    return elements_of(attributes(buffer, start + 4, end).get(3, b""))


def _raw(buffer: bytes, start: int, end: int) -> tuple[int, bytes]:
    """Of a NEWRULE message the handle and the expressions."""
    found = attributes(buffer, start + 4, end)
    return int.from_bytes(found.get(3, b""), "big"), found.get(4, b"")


def place_of(buffer: bytes, start: int, end: int) -> tuple[str, dict[int, bytes]]:
    """Of any message the family ("" for those that matter to nobody here), and the attributes."""
    return FAMILIES.get(buffer[start], ""), attributes(buffer, start + 4, end)


def text(found: Mapping[int, bytes], kind: int) -> str:
    """The attribute as text."""
    return wire.text(found.get(kind, b""))


def chain_of(buffer: bytes, start: int, end: int) -> Base | None:
    """Of a NEWCHAIN or DELCHAIN message the chain, if it is a base chain at the forward hook, or ours: most are not."""
    found = attributes(buffer, start + 4, end)
    if 4 not in found and found.get(3) != _OURS:
        return None
    family = FAMILIES.get(buffer[start], "")
    if not family:
        return None
    if 4 not in found:
        return Base(family, text(found, 1), FORWARD_CHAIN, 0, "", "")
    hook = attributes(found[4], 0, len(found[4]))
    if int.from_bytes(hook.get(1, b""), "big") != _HOOK_FORWARD:
        return None
    priority = int.from_bytes(hook.get(2, b""), "big", signed=True)
    policy = "accept" if int.from_bytes(found.get(5, b"\1"), "big") else "drop"
    return Base(family, text(found, 1), text(found, 3), priority, text(found, 7), policy)


def _dormant(buffer: bytes, start: int, end: int) -> TableKey | None:
    family, found = place_of(buffer, start, end)
    return (family, text(found, 1)) if int.from_bytes(found.get(2, b""), "big") & _DORMANT else None


def changed(ruleset: Ruleset, kind: int, buffer: bytes, start: int, end: int) -> Literal["", "rules", "chains"]:
    """What of the ruleset as read may not be what there is, by an event. There is one for each rule that anybody
    writes, so nothing else is looked at."""
    family, found = place_of(buffer, start, end)
    if not family:
        return ""
    table = text(found, 1)
    if kind in (nftables.NEWRULE, nftables.DELRULE):
        return "rules" if ruleset.sees(family, table, text(found, 2)) else ""
    if kind in (nftables.NEWCHAIN, nftables.DELCHAIN):
        chain = chain_of(buffer, start, end)
        return "chains" if chain is not None and (kind == nftables.DELCHAIN or chain not in ruleset.found) else ""
    return "chains"  # a table that is made dormant, or wakes: its chains may not have been worth reading until now


KINDS = frozenset(
    nftables.SUBSYSTEM | kind
    for kind in (
        nftables.NEWRULE,
        nftables.DELRULE,
        nftables.NEWCHAIN,
        nftables.DELCHAIN,
        nftables.NEWTABLE,
        nftables.DELTABLE,
    )
)
"""Of the events for `changed`."""
