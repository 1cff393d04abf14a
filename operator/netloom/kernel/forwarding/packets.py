"""What a filter does with pods' packets, as far as its rules tell. Pure; the same for nftables and iptables.

A rule is what it asks of a packet, and what it does then. Of a packet only some things are known, its source perhaps
and nothing of its port, so a condition holds, does not hold, or *may* hold. A filter drops for sure what it drops
whatever is unknown; where an accept that may hold comes before the drop, that is told apart. A drop that may hold
decides nothing: it is somebody's rule about certain packets, and every node with kube-proxy has some.

Every field of a packet is a number, and what is known of it, as what a condition asks for, are ranges of numbers:
addresses, names of devices (their 16 bytes), the state of the connection.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from netloom.cidr import Cidr

Range = tuple[int, int]
"""First and last."""

Verdict = Literal["accept", "drop", "return", "jump", "goto", "unknown", ""]
"""unknown: it ends, and nobody here can tell how (a queue to a program). "": the packet goes on to the next rule."""

Policy = Literal["accept", "drop", ""]

UNKNOWN = "unknown"
"""The field of a condition that is not understood: it may hold."""

NAME_SIZE = 16
"""Bytes of a device's name."""

STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1, 2, 4, 8
"""NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h, as nftables' `ct state` has them."""

PROTOCOL_FAMILY = {"ip": 2, "ip6": 10}
"""NFPROTO_*, by what `nft` calls the family."""
_ETHERTYPE = {"ip": 0x0800, "ip6": 0x86DD}


class RuleCondition(msgspec.Struct, frozen=True):
    """The field has one of these numbers; `inverted`: it has none of them."""

    field: str
    ranges: tuple[Range, ...] = ()
    inverted: bool = False


class FilterRule(msgspec.Struct, frozen=True):
    """What it asks, all of which must hold, and what it does then. target: the chain to `jump` or `goto`.

    handle: by which nftables knows it; of no other meaning, and 0 elsewhere.
    """

    conditions: tuple[RuleCondition, ...] = ()
    verdict: Verdict = ""
    target: str = ""
    handle: int = 0

    @property
    def meaning(self) -> tuple[object, ...]:
        """All but the handle."""
        return self.conditions, self.verdict, self.target


class Chain(msgspec.Struct, frozen=True):
    """A chain. policy: of a base chain, what becomes of a packet that gets to its end; "" otherwise."""

    rules: tuple[FilterRule, ...] = ()
    policy: Policy = ""


class FilterPacket(msgspec.Struct, frozen=True):
    """The first packet of a connection, by what is known of it: fields to the ranges in which they lie, and to those in
    which they do not lie."""

    known: Mapping[str, tuple[Range, ...]]
    excluded: Mapping[str, tuple[Range, ...]] = {}

    def meets(self, condition: RuleCondition) -> bool | None:
        """Whether it does; None: it may."""
        known = self.known.get(condition.field)
        if known is None:
            excluded = self.excluded.get(condition.field, ())
            return condition.inverted if condition.ranges and _within(condition.ranges, excluded) else None
        inside = _within(known, condition.ranges)
        if not inside and any(low <= last and first <= high for low, high in condition.ranges for first, last in known):
            return None
        return inside is not condition.inverted

    def meets_all(self, conditions: Iterable[RuleCondition]) -> bool | None:
        """Whether it meets all of them; None: it may."""
        answers = [self.meets(condition) for condition in conditions]
        return False if False in answers else None if None in answers else True


def range_of(cidr: Cidr) -> Range:
    """The addresses of a CIDR."""
    return int.from_bytes(cidr.packed, "big"), cidr.last


def name_range(name: str) -> Range:
    """A device's name; or, with `*` at its end, all that begin so."""
    start, fill = name.removesuffix("*").encode()[:NAME_SIZE], b"\xff" if name.endswith("*") else b"\0"
    return int.from_bytes(start.ljust(NAME_SIZE, b"\0"), "big"), int.from_bytes(start.ljust(NAME_SIZE, fill), "big")


def packet(
    family: str,
    *,
    source: Cidr | None = None,
    destination: Cidr | None = None,
    into: str = "",
    out_of: str = "",
    foreign: Iterable[str] = (),
) -> FilterPacket:
    """A new connection's first packet between these, forwarded from device to device; `into` and `out_of`: the
    device by which it comes, and leaves; foreign: devices that it does not otherwise pass. As for `name_range`."""
    known: dict[str, tuple[Range, ...]] = {
        "state": ((STATE_NEW, STATE_NEW),),
        "status": ((0, 0),),
        "nfproto": ((PROTOCOL_FAMILY[family],) * 2,),
        "protocol": ((_ETHERTYPE[family],) * 2,),
    }
    addresses = (("saddr", source), ("daddr", destination))
    known |= {f"{family} {field}": (range_of(cidr),) for field, cidr in addresses if cidr is not None}
    known |= {field: (name_range(name),) for field, name in (("iif", into), ("oif", out_of)) if name}
    elsewhere = (name_range("lo"), *map(name_range, foreign))
    return FilterPacket(known, {"iif": elsewhere, "oif": elsewhere})


def _within(inner: Iterable[Range], outer: Iterable[Range]) -> bool:
    return all(any(low <= first and last <= high for low, high in outer) for first, last in inner)


class Fate(msgspec.Struct, frozen=True):
    """What becomes of a packet.

    verdict: accept or drop, or return where a chain that is jumped to lets it go on. perhaps: if it is dropped: a rule
    before may accept it. chain, rule: where it was decided; rule None: by the policy. index: of the base chain's rule
    that led there, the number of rules for its policy.
    """

    verdict: Literal["accept", "drop", "return"]
    perhaps: bool = False
    chain: str = ""
    rule: FilterRule | None = None
    index: int = 0


class PacketFilter:
    """The chains of one table, and what they do with one packet."""

    def __init__(self, chains: Mapping[str, Chain], packet: FilterPacket) -> None:
        self._chains = chains
        self._packet = packet
        self._fates: dict[str, Fate] = {}

    def fate(self, chain: str) -> Fate:
        """What becomes of the packet in this chain. Each chain is looked at once, however many lead to it."""
        if chain not in self._fates:
            self._fates[chain] = Fate("return", perhaps=True)  # of a chain that would lead to itself
            self._fates[chain] = self._walk(chain)
        return self._fates[chain]

    def _walk(self, name: str) -> Fate:
        chain = self._chains.get(name)
        if chain is None:
            return Fate("return", perhaps=True)
        perhaps = False
        for index, rule in enumerate(chain.rules):
            met = self._packet.meets_all(rule.conditions)
            if met is False or not rule.verdict:
                continue
            fate = self._of_rule(name, rule)
            perhaps = perhaps or fate.perhaps or (fate.verdict == "accept" and not met)
            if met and (fate.verdict != "return" or rule.verdict in ("return", "goto")):
                if fate.verdict == "return" and chain.policy:
                    break  # a base chain's end
                return msgspec.structs.replace(fate, perhaps=perhaps, index=index)
        if not chain.policy:
            return Fate("return", perhaps)
        return Fate(chain.policy, perhaps, name, index=len(chain.rules))

    def _of_rule(self, name: str, rule: FilterRule) -> Fate:
        """What becomes of a packet that meets the rule."""
        if rule.verdict in ("jump", "goto"):
            return self.fate(rule.target)
        if rule.verdict == "unknown":
            return Fate("return", perhaps=True)
        return Fate(rule.verdict, chain=name, rule=rule)  # type: ignore[arg-type]
