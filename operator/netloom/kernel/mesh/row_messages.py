"""Messages of nexthops, neighbours and routes, and of the question which way packets to an address go.

There may be 10,000 of each, and a foreign routing daemon's million besides. So what is written is encoded once by
pyroute2's classes, as a template for each form that it can have, and then filled in: 0.5 us instead of 65 (a route) or
136 (a nexthop). What is read is taken apart by hand: attribute by attribute a nexthop takes 4.3 us, a route 1.6, a
neighbour 1.0, and in a dump no more than 1.0 each (see `template`), where pyroute2's classes take 62, 26 and 21
(`make bench-codec`).
"""

import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from netloom.cidr import WIDTH, Address, Cidr, Version
from netloom.kernel.mesh.encapsulation import TUNNEL_TTL
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.lifelines import WIDEST
from netloom.kernel.mesh.rivals import ForeignRoute
from netloom.kernel.mesh.rows import (
    BEHIND,
    DEFAULT_METRIC,
    EDITED,
    EDITED_MAC,
    UNREACHABLE,
    DirectRoute,
    Nexthop,
    OddRoute,
    RouteContent,
    SeenNeighbour,
    SeenNexthop,
    SeenRoute,
)
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import (
    LWTUNNEL_ENCAP_IP,
    NeighbourMessage,
    NexthopMessage,
    RouteMessage,
    encode,
    nested,
)
from netloom.kernel.netlink.template import Place, TemplateReader, marker, message_template
from netloom.kernel.netlink.wire import attribute, attributes, places
from netloom.kernel.ownership import ENDPOINTS, ROUTE_PROTOCOL, ROUTE_TABLE

_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RTNH_ONLINK = 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_VIA, _RTA_NH_ID = 9, 12, 18, 30
_RTM_F_FIB_MATCH = 0x2000
_RTAX_MTU = 2
_NHA_ID, _NHA_OIF, _NHA_GATEWAY, _NHA_ENCAP_TYPE, _NHA_ENCAP = 1, 5, 6, 7, 8
_ENCAP_IP = 2
_ENCAP_ID, _ENCAP_DST, _ENCAP_SRC, _ENCAP_TTL, _ENCAP_TOS, _ENCAP_FLAGS, _ENCAP_OPTIONS = 1, 2, 3, 4, 5, 6, 8
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_FAILED, _NUD_PERMANENT = 0x20, 0x80
_NTF_USE, _NTF_PROXY = 0x01, 0x08
_SCOPE_NOWHERE = 255
_RTPROT_KERNEL = 2

_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=BBBBI")  # family, scope, protocol, reserved, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type

_SIZE: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
_FAMILY: dict[int, int] = {size: family for family, size in _SIZE.items()}

_CACHEINFO = struct.pack("=HH", 36, _RTA_CACHEINFO)
_CACHEINFO_TO_END = 36 + 8
"""The head of that attribute, and the bytes from there to the end, RTA_PREF being the last."""

_KEY = marker(b"k", 4)
_NUMBER = int.from_bytes(_KEY, sys.byteorder)
_MAC = marker(b"m", 6)
_REMOTE = marker(b"r", 4)
_ADDRESS: dict[int, bytes] = {size: marker(b"a", size) for size in _FAMILY}
"""Markers, by the size of the field where it varies. _NUMBER is _KEY's as an integer."""

Writes = Sequence[tuple[Any, Any, Any]]
"""(key, value, what the kernel holds under the key now). A value of None deletes."""


# ----------------------------------------------------------------------------------------------- to the kernel


def encode_routes(writes: Writes) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ..."""
    messages, order = [], sys.byteorder
    # An IPv4 route that names a nexthop object and no metrics takes over those of another route with that object,
    # even of the one that it replaces (fib_find_info_nh of fib_semantics.c). So an MTU that goes is written as 0, and
    # one that may be there: of what somebody edited no more is known than that.
    said = any(
        content is not None and before is not None and (before.mtu or before == EDITED) for _, content, before in writes
    )
    for sequence, (key, content, before) in enumerate(writes):
        number = sequence.to_bytes(4, order)
        if content is None and isinstance(key, OddRoute) and key.beside:
            messages.append(_deleted_second(number, key))
        elif content is None:
            prefix, tos, metric = (key.prefix, key.tos, key.metric) if isinstance(key, OddRoute) else (key, 0, None)
            template = _deleted_route(prefix.version, prefix.length, tos, metric)
            messages.append(template % (number, prefix.packed))
        else:
            flags = wire.EXCL if before is None else wire.APPEND if before == BEHIND else wire.REPLACE
            template = _route(key.version, key.length, content.mtu, said, flags)
            messages.append(template % (number, key.packed, content.nexthop.to_bytes(4, order)))
    return messages


@lru_cache
def _route(version: Version, length: int, mtu: int, said: bool, flags: int) -> bytes:
    size = WIDTH[version] // 8
    fields = {"dst_len": length, "type": _RTN_UNICAST, **_our_routes(_FAMILY[size])}
    metrics = {"metrics": nested(RTAX_MTU=mtu)} if mtu or said else {}
    # Where no route of ours is, a foreign one may be: EXCL makes the kernel refuse instead of replacing it.
    attributes = {"dst": _ADDRESS[size], "nh_id": _NUMBER, **metrics}
    return message_template(RouteMessage, wire.RTM_NEWROUTE, wire.CREATE | flags, fields, **attributes)


@lru_cache
def _deleted_route(version: Version, length: int, tos: int, metric: int | None) -> bytes:
    """The kernel compares the protocol, so this never hits anybody else's route."""
    size = WIDTH[version] // 8
    fields = {"dst_len": length, "tos": tos, "scope": _SCOPE_NOWHERE, **_our_routes(_FAMILY[size])}
    priority = DEFAULT_METRIC[version] if metric is None else metric
    return message_template(RouteMessage, wire.RTM_DELROUTE, 0, fields, dst=_ADDRESS[size], priority=priority)


def _deleted_second(number: bytes, key: OddRoute) -> bytes:
    """Of several routes under one key the kernel deletes the first that has these ways. In IPv6 it takes one that
    stands on a nexthop object for any: what is left there has to be read."""
    prefix, kind, ways = key.prefix, key.beside[0], key.beside[1:] if key.prefix.version == 4 else b""
    family = _FAMILY[WIDTH[prefix.version] // 8]
    fixed = _ROUTE.pack(family, prefix.length, 0, key.tos, ROUTE_TABLE, ROUTE_PROTOCOL, _SCOPE_NOWHERE, kind, 0)
    rest = fixed + attribute(_RTA_DST, prefix.packed)
    rest += attribute(_RTA_PRIORITY, key.metric.to_bytes(4, sys.byteorder)) + ways
    header = wire.HEADER.pack(wire.HEADER_SIZE + len(rest), wire.RTM_DELROUTE, wire.REQUEST, 0, 0)
    return header[:8] + number + header[12:] + rest


def encode_holes(writes: Writes) -> list[bytes]:
    """Requests for unreachable routes, with the sequence numbers 0, 1, ..."""
    messages, order = [], sys.byteorder
    for sequence, (hole, content, before) in enumerate(writes):
        prefix, number = hole.prefix, sequence.to_bytes(4, order)
        if content is None:
            template = _deleted_route(prefix.version, prefix.length, 0, hole.metric)
        else:
            template = _hole(prefix.version, prefix.length, hole.metric, before is not None)
        messages.append(template % (number, prefix.packed))
    return messages


@lru_cache
def _hole(version: Version, length: int, metric: int, replace: bool) -> bytes:
    size = WIDTH[version] // 8
    fields = {"dst_len": length, "type": _RTN_UNREACHABLE, **_our_routes(_FAMILY[size])}
    flags = wire.CREATE | (wire.REPLACE if replace else wire.EXCL)
    return message_template(RouteMessage, wire.RTM_NEWROUTE, flags, fields, dst=_ADDRESS[size], priority=metric)


def _our_routes(family: int) -> dict[str, int]:
    return {"family": family, "table": ROUTE_TABLE, "proto": ROUTE_PROTOCOL}


def encode_nexthops(writes: Writes) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ... A replaced nexthop takes all its routes along; a deleted one
    deletes them."""
    messages, order = [], sys.byteorder
    for sequence, (key, value, before) in enumerate(writes):
        number, identity = sequence.to_bytes(4, order), key.to_bytes(4, order)
        if value is None:
            messages.append(_deleted_nexthop() % (number, identity))
            continue
        gateway, remote, replace = value.gateway, value.remote, before is not None
        if remote:
            template = _nexthop(len(gateway), value.ifindex, value.vni, replace)
            messages.append(template % (number, identity, gateway, remote))
        else:
            messages.append(_nexthop(len(gateway), value.ifindex, None, replace) % (number, identity, gateway))
    return messages


@lru_cache
def _nexthop(size: int, ifindex: int, vni: int | None, replace: bool) -> bytes:
    """vni: None in a native one. `onlink`: that the gateway is on the device has been decided before, and is decided
    again when it changes."""
    fields = {"family": _FAMILY[size], "protocol": ROUTE_PROTOCOL, "flags": _RTNH_ONLINK}
    attributes: dict[str, Any] = {"id": _NUMBER, "oif": ifindex, "gateway": _ADDRESS[size]}
    if vni is not None:
        outer = nested(LWTUNNEL_IP_ID=vni, LWTUNNEL_IP_TTL=TUNNEL_TTL, LWTUNNEL_IP_DST=_REMOTE)
        attributes |= {"encap_type": LWTUNNEL_ENCAP_IP, "encap": outer}
    flags = wire.CREATE | (wire.REPLACE if replace else wire.EXCL)
    return message_template(NexthopMessage, wire.RTM_NEWNEXTHOP, flags, fields, **attributes)


@lru_cache
def _deleted_nexthop() -> bytes:
    return message_template(NexthopMessage, wire.RTM_DELNEXTHOP, 0, {}, id=_NUMBER)


def encode_neighbours(writes: Writes) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ..."""
    messages, order = [], sys.byteorder
    for sequence, ((ifindex, address), mac, _before) in enumerate(writes):
        number = sequence.to_bytes(4, order)
        if mac is None:
            messages.append(_deleted_neighbour(len(address), ifindex) % (number, address))
        else:
            messages.append(_neighbour(len(address), ifindex) % (number, address, mac))
    return messages


@lru_cache
def _neighbour(size: int, ifindex: int) -> bytes:
    fields = {"family": _FAMILY[size], "ifindex": ifindex, "state": _NUD_PERMANENT, "ndm_type": _RTN_UNICAST}
    flags = wire.CREATE | wire.REPLACE
    return message_template(NeighbourMessage, wire.RTM_NEWNEIGH, flags, fields, dst=_ADDRESS[size], lladdr=_MAC)


@lru_cache
def _deleted_neighbour(size: int, ifindex: int) -> bytes:
    fields = {"family": _FAMILY[size], "ifindex": ifindex}
    return message_template(NeighbourMessage, wire.RTM_DELNEIGH, 0, fields, dst=_ADDRESS[size])


def probe_neighbour(sequence: int, ifindex: int, address: Address) -> bytes:
    """Request: ask on the device's network whether the address answers, as sending to it would. Changes nothing else,
    and makes no entry where there is none."""
    return _probe(len(address), ifindex) % (sequence.to_bytes(4, sys.byteorder), address)


@lru_cache
def _probe(size: int, ifindex: int) -> bytes:
    fields = {"family": _FAMILY[size], "ifindex": ifindex, "flags": _NTF_USE}
    return message_template(NeighbourMessage, wire.RTM_NEWNEIGH, 0, fields, dst=_ADDRESS[size])


def ask_route(sequence: int, address: Address) -> bytes:
    """Request: which way packets to an address go, and by which route: the answer is that route."""
    return _question(len(address)) % (sequence.to_bytes(4, sys.byteorder), address)


@lru_cache
def _question(size: int) -> bytes:
    fields = {"family": _FAMILY[size], "dst_len": size * 8, "flags": _RTM_F_FIB_MATCH}
    return message_template(RouteMessage, wire.RTM_GETROUTE, 0, fields, dst=_ADDRESS[size])


def dump_routes(family: int) -> bytes:
    """Request: all routes of the main table; the kernel filters."""
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, {"family": family, "table": ROUTE_TABLE}, table=ROUTE_TABLE)


def route_is_ours(buffer: bytes, start: int) -> bool:
    """By its protocol alone."""
    return buffer[start + 5] == ROUTE_PROTOCOL


def dump_connected_routes(family: int) -> bytes:
    """Request: those of the main table that the kernel made for addresses; the kernel filters."""
    fields = {"family": family, "table": ROUTE_TABLE, "proto": _RTPROT_KERNEL}
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, fields, table=ROUTE_TABLE)


def dump_all_routes(family: int) -> bytes:
    """Request: everybody's routes, of all tables."""
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, {"family": family})


def dump_nexthops() -> bytes:
    """Request: all nexthop objects. (The kernel can filter by device, but not by id range or protocol.)"""
    return encode(NexthopMessage, wire.RTM_GETNEXTHOP, 0, {})


def dump_neighbours(ifindex: int) -> bytes:
    """Request: the neighbours of one device."""
    # NDA_IFINDEX, not ndm_ifindex: the strict check wants the filter as an attribute.
    return encode(NeighbourMessage, wire.RTM_GETNEIGH, 0, {}, ifindex=ifindex)


# ----------------------------------------------------------------------------------------------- from the kernel


def read_route(buffer: bytes, start: int, end: int) -> SeenRoute | None:
    """An RTM_NEWROUTE or RTM_DELROUTE, or None if it is of another table or family."""
    family, length, _source, tos, table, protocol, _scope, kind, _flags = _ROUTE.unpack_from(buffer, start)
    if table != ROUTE_TABLE or family not in _SIZE:
        return None
    # What follows the nexthop's id is the nexthop's content once more.
    found = attributes(buffer, start + 12, end, _RTA_NH_ID)
    metric = int.from_bytes(found.get(_RTA_PRIORITY, b""), sys.byteorder)
    prefix = Cidr.of(found.get(_RTA_DST) or bytes(_SIZE[family]), length)
    key = prefix if metric == DEFAULT_METRIC[prefix.version] and not tos else OddRoute(prefix, metric, tos)
    nexthop = int.from_bytes(found.get(_RTA_NH_ID, b""), sys.byteorder)
    edited = _RTA_PREFSRC in found or (family == socket.AF_INET6 and _expires(buffer, start, end))
    if kind != _RTN_UNICAST or not nexthop or edited:
        return SeenRoute(key, UNREACHABLE if kind == _RTN_UNREACHABLE else EDITED, protocol)
    metrics = found.get(_RTA_METRICS)
    return SeenRoute(key, RouteContent(nexthop, _mtu(metrics)) if metrics else RouteContent(nexthop), protocol)


def _expires(buffer: bytes, start: int, end: int) -> bool:
    """Whether an IPv6 route has a lifetime: the third number of its rta_cacheinfo, which is the last but one attribute;
    all are looked at only where it is not."""
    at = end - _CACHEINFO_TO_END
    if buffer[at : at + 4] != _CACHEINFO:
        return any(attributes(buffer, start + 12, end).get(_RTA_CACHEINFO, b"")[8:12])
    return buffer[at + 12 : at + 16] != bytes(4)


def read_whole_route(buffer: bytes, start: int, end: int) -> SeenRoute | None:
    """As `read_route`, with what tells the route apart from another of its key."""
    seen = read_route(buffer, start, end)
    return replace(seen, body=read_body(buffer, start, end)) if seen is not None else None


def read_rival_prefix(buffer: bytes, start: int, end: int) -> Cidr | None:
    """The destination of a foreign route; None of one that the kernel made for an address: that is no rival."""
    family, length, _source, _tos, _table, protocol = _ROUTE.unpack_from(buffer, start)[:6]
    if protocol == _RTPROT_KERNEL or family not in _SIZE:
        return None
    return Cidr.of(attributes(buffer, start + 12, end, _RTA_DST).get(_RTA_DST) or bytes(_SIZE[family]), length)


def read_foreign_route(buffer: bytes, start: int, end: int, *, behind: bool = False) -> ForeignRoute:
    """A route of the main table as others see it."""
    family, length, _source, tos, _table, protocol = _ROUTE.unpack_from(buffer, start)[:6]
    found = attributes(buffer, start + 12, end)
    metric = int.from_bytes(found.get(_RTA_PRIORITY, b""), sys.byteorder)
    prefix = Cidr.of(found.get(_RTA_DST) or bytes(_SIZE[family]), length)
    return ForeignRoute(prefix, metric, tos, protocol, read_body(buffer, start, end), behind)


def read_body(buffer: bytes, start: int, end: int) -> bytes:
    """Type and ways of a route. A nexthop object stands for all of its ways, which the kernel repeats behind its id."""
    found = attributes(buffer, start + 12, end)
    ways = [_RTA_NH_ID] if _RTA_NH_ID in found else [_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA]
    parts = [attribute(kind, found[kind]) for kind in (_RTA_METRICS, _RTA_PREFSRC, *ways) if kind in found]
    return bytes([buffer[start + 7]]) + b"".join(parts)


def _mtu(metrics: bytes) -> int:
    """The MTU in a route's metrics; -1 if there is anything else in them, which we never write."""
    found = attributes(metrics, 0, len(metrics))
    mtu = int.from_bytes(found.pop(_RTAX_MTU, b""), sys.byteorder)
    return -1 if found else mtu


def read_nexthop(buffer: bytes, start: int, end: int) -> SeenNexthop:
    """An RTM_NEWNEXTHOP or RTM_DELNEXTHOP."""
    _family, _scope, protocol, _reserved, flags = _NEXTHOP.unpack_from(buffer, start)
    found = attributes(buffer, start + 8, end)
    identity = int.from_bytes(found[_NHA_ID], sys.byteorder)
    encap = found.get(_NHA_ENCAP, b"")
    tunnel = attributes(encap, 0, len(encap))
    # Whatever we never write makes the value differ from every desired one.
    odd = b"".join(
        tunnel.get(kind, b"").strip(b"\0") for kind in (_ENCAP_SRC, _ENCAP_TOS, _ENCAP_FLAGS, _ENCAP_OPTIONS)
    )
    if not flags & _RTNH_ONLINK:
        odd += b"not onlink"
    kind = int.from_bytes(found.get(_NHA_ENCAP_TYPE, b""), sys.byteorder)
    if kind not in (0, _ENCAP_IP):
        odd += b"not encap ip"
    value = Nexthop(
        int.from_bytes(found.get(_NHA_OIF, b""), sys.byteorder),
        found.get(_NHA_GATEWAY, b""),
        tunnel.get(_ENCAP_DST, b""),
        int.from_bytes(tunnel.get(_ENCAP_ID, b""), "big"),
        int.from_bytes(tunnel.get(_ENCAP_TTL, b""), sys.byteorder),
        odd,
    )
    return SeenNexthop(identity, value, protocol)


def read_neighbour(buffer: bytes, start: int, end: int) -> SeenNeighbour | None:
    """An RTM_NEWNEIGH or RTM_DELNEIGH, or None if it is a bridge's or a proxy entry."""
    family, ifindex, state, flags, _kind = _NEIGHBOUR.unpack_from(buffer, start)
    if family not in _SIZE or flags & _NTF_PROXY:
        return None
    found = attributes(buffer, start + 12, end, _NDA_LLADDR)
    mac = found.get(_NDA_LLADDR, EDITED_MAC) if state == _NUD_PERMANENT else EDITED_MAC
    return SeenNeighbour(ifindex, found.get(_NDA_DST, b""), mac, bool(state & _NUD_FAILED))


def read_fib_result(buffer: bytes, start: int, end: int) -> FibResult:
    """The answer to that question. Of several ways at once, the first."""
    family, length, _source, _tos, _table, _protocol, _scope, kind, _flags = _ROUTE.unpack_from(buffer, start)
    if kind != _RTN_UNICAST:
        return FibResult()
    found = attributes(buffer, start + 12, end)
    (outgoing, gateway), *_ = read_hops(found)
    size = _SIZE[family]
    direct = not gateway and length >= WIDEST[4 if size == 4 else 6]
    return FibResult(outgoing, direct, direct and length == size * 8, found.get(_RTA_PREFSRC, b""))


def read_hops(found: Mapping[int, bytes]) -> list[tuple[int, Address]]:
    """(ifindex, gateway) of each way of a route, by its attributes; no gateway: empty."""
    ways = [(found.get(_RTA_OIF, b""), found)]
    if several := found.get(_RTA_MULTIPATH):
        ways, at = [], 0
        while at + 8 <= len(several):
            length = max(8, int.from_bytes(several[at : at + 2], sys.byteorder))
            ways.append((several[at + 4 : at + 8], attributes(several, at + 8, at + length)))
            at += (length + 3) & ~3
    return [
        # RTA_VIA, the gateway of another family, has that family in front.
        (int.from_bytes(oif, sys.byteorder), each.get(_RTA_GATEWAY) or each.get(_RTA_VIA, b"")[2:])
        for oif, each in ways
    ]


def read_destination(buffer: bytes, start: int, end: int) -> tuple[Address, int] | None:
    """Destination and prefix length of somebody else's route, in whatever table."""
    family, length, _source, _tos, _table, protocol = _ROUTE.unpack_from(buffer, start)[:6]
    if family not in _SIZE or protocol == ROUTE_PROTOCOL:
        return None
    return attributes(buffer, start + 12, end, _RTA_DST).get(_RTA_DST) or bytes(_SIZE[family]), length


def read_direct_route(buffer: bytes, start: int, end: int) -> DirectRoute | None:
    """An RTM_NEWROUTE that leads to a device and by no gateway, in whatever table; None if it is another's, or ours and
    leads to no local pod."""
    family, length, _source, _tos, _table, protocol, _scope, kind, _flags = _ROUTE.unpack_from(buffer, start)
    if family not in _SIZE or kind != _RTN_UNICAST:
        return None
    found = attributes(buffer, start + 12, end, _RTA_NH_ID)
    if _RTA_NH_ID in found:
        return None  # as of all peers; the kernel puts what the nexthop is behind it
    if protocol == ROUTE_PROTOCOL:
        metric = int.from_bytes(found.get(_RTA_PRIORITY, b""), sys.byteorder)
        if not ENDPOINTS.route(protocol, metric):
            return None
    if _RTA_OIF not in found or found.keys() & {_RTA_GATEWAY, _RTA_VIA}:
        return None
    destination = Cidr.of(found.get(_RTA_DST) or bytes(_SIZE[family]), length)
    return DirectRoute(destination, int.from_bytes(found[_RTA_OIF], sys.byteorder))


# ------------------------------------------------------------------------------------------------------- dumps


def nexthop_reader() -> TemplateReader[SeenNexthop]:
    """Of RTM_NEWNEXTHOP: id, gateway and remote vary."""

    def varying(sample: bytes, _seen: SeenNexthop) -> list[Place | None]:
        outer = places(sample, 8, len(sample))
        fields = [outer.get(_NHA_ID), outer.get(_NHA_GATEWAY)]
        if _NHA_ENCAP in outer:
            fields.append(places(sample, *outer[_NHA_ENCAP]).get(_ENCAP_DST))
        return fields

    def like(sample: SeenNexthop, fields: Sequence[bytes]) -> SeenNexthop:
        common, remote = sample.value, fields[2] if len(fields) > 2 else b""
        value = Nexthop(common.ifindex, fields[1], remote, common.vni, common.ttl, common.extra)
        return SeenNexthop(int.from_bytes(fields[0], sys.byteorder), value, sample.protocol)

    return TemplateReader(read_nexthop, varying, like)


def route_reader() -> TemplateReader[SeenRoute | None]:
    """Of RTM_NEWROUTE: destination and nexthop vary, and so does all that follows, which says what the nexthop is."""

    def varying(sample: bytes, seen: SeenRoute | None) -> list[Place | None]:
        ours = seen is not None and isinstance(seen.key, Cidr) and seen.content.nexthop
        return _and_the_rest(sample, _RTA_DST, _RTA_NH_ID) if ours else [None]

    def like(sample: Any, fields: Sequence[bytes]) -> SeenRoute:
        content = RouteContent(int.from_bytes(fields[1], sys.byteorder), sample.content.mtu)
        return SeenRoute(Cidr.of(fields[0], sample.key.length), content, sample.protocol)

    return TemplateReader(read_route, varying, like)


def neighbour_reader() -> TemplateReader[SeenNeighbour | None]:
    """Of RTM_NEWNEIGH: address and MAC vary, and so does all that follows."""

    def varying(sample: bytes, seen: SeenNeighbour | None) -> list[Place | None]:
        return _and_the_rest(sample, _NDA_DST, _NDA_LLADDR) if seen is not None and seen.mac else [None]

    def like(sample: Any, fields: Sequence[bytes]) -> SeenNeighbour:
        return SeenNeighbour(sample.ifindex, fields[0], fields[1])

    return TemplateReader(read_neighbour, varying, like)


def fib_result_reader() -> TemplateReader[FibResult]:
    """Of answers: that of a host route has its destination, and reference counts vary; they make no difference."""

    def varying(sample: bytes, _seen: FibResult) -> list[Place | None]:
        found = places(sample, 12, len(sample))
        return [found[kind] for kind in (_RTA_DST, _RTA_CACHEINFO) if kind in found]

    return TemplateReader(read_fib_result, varying, lambda sample, _fields: sample)


def _and_the_rest(sample: bytes, first: int, second: int) -> list[Place | None]:
    found = places(sample, 12, len(sample))
    last = found.get(second)
    return [found.get(first), last, (last[1], len(sample)) if last else None]
