"""Packets of pods that a policy rule leads past their route, as the kernel itself routes them.

Rules are common, and most of them mean no harm: they match packets with a mark, or a table behind them has nothing for
pods. Instead of working out what they do, packets are made up that each suspicious rule could match, from a pod of this
node to each other node's CIDR and back, and the kernel is asked where they would go. On a node with no rules but its
own nothing is asked. That the main table is asked at all is a rule, too, which somebody may have taken away.
"""

import errno
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.row_readers import read_hops
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import RouteMessage, RuleMessage, encode
from netloom.kernel.netlink.sockets import BATCH, CommandSocket, RefusedError, read_all
from netloom.kernel.netlink.template import marker, message_template
from netloom.kernel.netlink.wire import attributes
from netloom.kernel.ownership import MESH, ROUTE_TABLE
from netloom.kernel.surroundings.rules import REFUSING, PolicyRule, before_main, read_rule

_VERSIONS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}


class PodRoute(msgspec.Struct, frozen=True):
    """Where pods of this node are: a route inside its CIDRs, to a device. `bridge`: of that kind."""

    destination: Cidr
    ifindex: int
    device: str
    bridge: bool = False


class Remote(msgspec.Struct, frozen=True):
    """A CIDR of another node, and that one's own addresses."""

    node: str
    cidr: Cidr
    addresses: tuple[Address, ...] = ()


class RulePacket(msgspec.Struct, frozen=True):
    """A packet made up for a rule, between a pod of this node and another node's: as it comes in by the device `iif`,
    or (0) as this node would send it itself. inward: it comes for the pod."""

    rule: PolicyRule
    remote: Remote
    pod: PodRoute
    destination: Address
    source: Address = b""
    iif: int = 0
    inward: bool = False

    def is_detoured(self, way: "RouteAnswer", ours: Collection[int]) -> bool:
        """Whether it does not get where it should, and a rule has decided so, and not the main table. An error does not
        say which of them it was, unless it is a rule that refuses."""
        if way.error:
            return self.rule.action in REFUSING or way.error == errno.EACCES
        if way.table in (ROUTE_TABLE, wire.RT_TABLE_LOCAL):
            return False
        return (
            way.oif != self.pod.ifindex
            if self.inward
            else way.oif not in ours and way.gateway not in self.remote.addresses
        )


class RouteAnswer(msgspec.Struct, frozen=True):
    """The kernel's answer for a packet: which table sends it, by which device and gateway, or with which error."""

    table: int = 0
    oif: int = 0
    gateway: Address = b""
    error: int = 0


class Detour(msgspec.Struct, frozen=True):
    """What a rule does to packets from this node's pods to other nodes' (`inward`: to them): to `cidr`, one of `count`,
    which is of `node`. device: by which they leave, in vain; "": they are dropped."""

    rule: PolicyRule
    cidr: Cidr
    node: str
    count: int
    device: str = ""
    inward: bool = False


def suspicious_rules(commands: CommandSocket) -> list[PolicyRule]:
    """Those that may lead pods' packets past the main table. Raises OSError."""
    return [rule for family in _VERSIONS for rule in _suspicious(commands, family)]


def find_detours(
    commands: CommandSocket,
    rules: Sequence[PolicyRule],
    pods: Sequence[PodRoute],
    remotes: Iterable[Remote],
    names: Mapping[int, str],
) -> list[Detour]:
    """What these rules do, to CIDRs to which this node has a route. names: of devices, by ifindex. Raises OSError."""
    ours = [ifindex for ifindex, name in names.items() if MESH.link(name)]
    routed = {seen.key for seen in reader.routes(commands).ours}
    remotes = [remote for remote in remotes if remote.cidr in routed]
    packets = [packet for rule in rules for packet in _outward(rule, pods, remotes)]
    packets += [packet for rule in rules for packet in _inward(commands, rule, pods, remotes, names, ours)]
    astray: dict[tuple[PolicyRule, bool], list[tuple[RulePacket, RouteAnswer]]] = {}
    for packet, way in zip(packets, _ask(commands, packets), strict=True):
        if packet.is_detoured(way, ours):
            by = [rule for rule in rules if way.table and (rule.family, rule.table) == (packet.rule.family, way.table)]
            astray.setdefault((by[0] if by else packet.rule, packet.inward), []).append((packet, way))
    return [_detour(rule, inward, found, names) for (rule, inward), found in astray.items()]


def _detour(
    rule: PolicyRule, inward: bool, found: Sequence[tuple[RulePacket, RouteAnswer]], names: Mapping[int, str]
) -> Detour:
    cidrs = dict.fromkeys(packet.pod.destination if inward else packet.remote.cidr for packet, _ in found)
    packet, way = found[0]
    return Detour(
        rule, next(iter(cidrs)), "" if inward else packet.remote.node, len(cidrs), names.get(way.oif, ""), inward
    )


def _suspicious(commands: CommandSocket, family: int) -> list[PolicyRule]:
    try:
        seen = read_all(commands, encode(RuleMessage, wire.RTM_GETRULE, 0, {"family": family}), read_rule)
    except RefusedError:
        return []  # a kernel without policy rules, or without the family
    return before_main([rule for rule in seen if rule.family == family])


def _outward(rule: PolicyRule, pods: Sequence[PodRoute], remotes: Sequence[Remote]) -> Iterator[RulePacket]:
    """From a pod that the rule matches, if there is one, to every other node's CIDR that it matches."""
    version, source, target = _VERSIONS[rule.family], rule.matched_source, rule.matched_destination
    for pod in pods:
        if (
            pod.destination.version == version
            and rule.matched_incoming in ("", pod.device)
            and _meet(source, pod.destination)
        ):
            break
    else:
        return
    sender = _both(pod.destination, source)
    for remote in remotes:
        if remote.cidr.version == version and _meet(target, remote.cidr):
            yield RulePacket(rule, remote, pod, _both(remote.cidr, target), sender, pod.ifindex)


def _inward(
    commands: CommandSocket,
    rule: PolicyRule,
    pods: Sequence[PodRoute],
    remotes: Sequence[Remote],
    names: Mapping[int, str],
    ours: Sequence[int],
) -> Iterator[RulePacket]:
    """From some other node that the rule matches, by the device that leads there, to every pod that it matches."""
    version, source, target = _VERSIONS[rule.family], rule.matched_source, rule.matched_destination
    remote = next((each for each in remotes if each.cidr.version == version and _meet(source, each.cidr)), None)
    if remote is None:
        return
    sender = _both(remote.cidr, source)
    iif = ours[0] if ours else _ask(commands, [RulePacket(rule, remote, pods[0], sender)])[0].oif
    if not iif or rule.matched_incoming not in ("", names.get(iif)):
        return
    for pod in pods:
        if pod.destination.version == version and _meet(target, pod.destination):
            yield RulePacket(rule, remote, pod, _both(pod.destination, target), sender, iif, inward=True)


def _meet(matched: Cidr | None, cidr: Cidr) -> bool:
    return matched is None or matched.overlaps(cidr)


def _both(cidr: Cidr, matched: Cidr | None) -> Address:
    """An address that lies in both, which overlap; not the first or the last of a network, where there is another."""
    within = matched if matched is not None and cidr.contains(matched) else cidr
    return max(within.base, within.last - 1).to_bytes(len(within.packed), "big")


def _ask(commands: CommandSocket, packets: Sequence[RulePacket]) -> list[RouteAnswer]:
    answers = [RouteAnswer()] * len(packets)
    for at in range(0, len(packets), BATCH):

        def visit(number: int, kind: int, buffer: bytes, start: int, end: int, at: int = at) -> None:
            answers[at + number] = _read_answer(kind, buffer, start, end)

        commands.ask([_question(number, packet) for number, packet in enumerate(packets[at : at + BATCH])], visit)
    return answers


def _question(sequence: int, packet: RulePacket) -> bytes:
    template = _template(packet.rule, len(packet.destination), packet.iif, bool(packet.source))
    source = (packet.source,) if packet.source else ()
    return template % (sequence.to_bytes(4, sys.byteorder), packet.destination, *source)


@lru_cache
def _template(rule: PolicyRule, size: int, iif: int, has_source: bool) -> bytes:
    """Of the questions about one rule: there may be one for each node."""
    bits, address = size * 8, marker(b"a", size)
    fields = {"family": rule.family, "dst_len": bits, "src_len": bits if has_source else 0, "tos": rule.tos}
    fields |= {"flags": wire.RTM_F_LOOKUP_TABLE} if size == 4 else {}  # IPv6 always says it, and knows no such flag
    asked = {"dst": address, "src": address if has_source else None, "iif": iif}
    if rule.protocol and not rule.inverted:
        asked |= {"ip_proto": rule.protocol, "sport": rule.source_port, "dport": rule.port}
    given = {name: value for name, value in asked.items() if value}
    return message_template(RouteMessage, wire.RTM_GETROUTE, 0, fields, **given)


def _read_answer(kind: int, buffer: bytes, start: int, end: int) -> RouteAnswer:
    if kind == wire.NLMSG_ERROR:
        return RouteAnswer(error=-int.from_bytes(buffer[start : start + 4], sys.byteorder, signed=True))
    found = attributes(buffer, start + wire.ROUTE.size, end)
    table = wire.number(found[wire.RTA_TABLE]) if wire.RTA_TABLE in found else buffer[start + 4]
    ((oif, gateway), *_) = read_hops(found)
    return RouteAnswer(table, oif, gateway)
