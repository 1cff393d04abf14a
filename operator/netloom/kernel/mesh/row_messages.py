"""Messages to the kernel about nexthops, neighbours and routes, and the question which way packets to an address go.

There may be 10,000 of each, so what is written is encoded once by pyroute2's classes, as a template for each form that
it can have, and then filled in: 0.5 us instead of 65 (a route) or 136 (a nexthop); see `make bench-codec`.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from netloom.cidr import WIDTH, Address, Version
from netloom.kernel.mesh.encapsulation import TUNNEL_TTL
from netloom.kernel.mesh.rows import (
    BEHIND,
    DEFAULT_METRIC,
    EDITED,
    OddRoute,
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
from netloom.kernel.netlink.template import marker, message_template
from netloom.kernel.netlink.wire import (
    FAMILIES,
    NTF_USE,
    RT_SCOPE_NOWHERE,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_ONLINK,
    RTPROT_KERNEL,
)
from netloom.kernel.ownership import ROUTE_PROTOCOL, ROUTE_TABLE

_KEY = marker(b"k", 4)
_NUMBER = int.from_bytes(_KEY, sys.byteorder)
_REMOTE = marker(b"r", 4)
_ADDRESS: dict[int, bytes] = {size: marker(b"a", size) for size in FAMILIES}
"""Markers, by the size of the field where it varies. _NUMBER is _KEY's as an integer."""

Writes = Sequence[tuple[Any, Any, Any]]
"""(key, value, what the kernel holds under the key now). A value of None deletes."""


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
    fields = {"dst_len": length, "type": RTN_UNICAST, **_our_routes(FAMILIES[size])}
    metrics = {"metrics": nested(RTAX_MTU=mtu)} if mtu or said else {}
    # Where no route of ours is, a foreign one may be: EXCL makes the kernel refuse instead of replacing it.
    attributes = {"dst": _ADDRESS[size], "nh_id": _NUMBER, **metrics}
    return message_template(RouteMessage, wire.RTM_NEWROUTE, wire.CREATE | flags, fields, **attributes)


@lru_cache
def _deleted_route(version: Version, length: int, tos: int, metric: int | None) -> bytes:
    """The kernel compares the protocol, so this never hits anybody else's route."""
    size = WIDTH[version] // 8
    fields = {"dst_len": length, "tos": tos, "scope": RT_SCOPE_NOWHERE, **_our_routes(FAMILIES[size])}
    priority = DEFAULT_METRIC[version] if metric is None else metric
    return message_template(RouteMessage, wire.RTM_DELROUTE, 0, fields, dst=_ADDRESS[size], priority=priority)


def _deleted_second(number: bytes, key: OddRoute) -> bytes:
    """Of several routes under one key the kernel deletes the first that has these ways. In IPv6 it takes one that
    stands on a nexthop object for any: what is left there has to be read."""
    prefix, address, kind = key.prefix, key.prefix.packed, key.beside[0]
    fields = {"dst_len": prefix.length, "tos": key.tos, "scope": RT_SCOPE_NOWHERE, "type": kind}
    fields |= _our_routes(FAMILIES[len(address)])
    message = encode(RouteMessage, wire.RTM_DELROUTE, 0, fields, dst=address, priority=key.metric)
    message += key.beside[1:] if prefix.version == 4 else b""
    return len(message).to_bytes(4, sys.byteorder) + message[4:8] + number + message[12:]


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
    fields = {"dst_len": length, "type": RTN_UNREACHABLE, **_our_routes(FAMILIES[size])}
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
    fields = {"family": FAMILIES[size], "protocol": ROUTE_PROTOCOL, "flags": RTNH_ONLINK}
    attributes: dict[str, Any] = {"id": _NUMBER, "oif": ifindex, "gateway": _ADDRESS[size]}
    if vni is not None:
        outer = nested(LWTUNNEL_IP_ID=vni, LWTUNNEL_IP_TTL=TUNNEL_TTL, LWTUNNEL_IP_DST=_REMOTE)
        attributes |= {"encap_type": LWTUNNEL_ENCAP_IP, "encap": outer}
    flags = wire.CREATE | (wire.REPLACE if replace else wire.EXCL)
    return message_template(NexthopMessage, wire.RTM_NEWNEXTHOP, flags, fields, **attributes)


@lru_cache
def _deleted_nexthop() -> bytes:
    return message_template(NexthopMessage, wire.RTM_DELNEXTHOP, 0, {}, id=_NUMBER)


def probe_neighbour(sequence: int, ifindex: int, address: Address) -> bytes:
    """Request: ask on the device's network whether the address answers, as sending to it would. Changes nothing else,
    and makes no entry where there is none."""
    return _probe(len(address), ifindex) % (sequence.to_bytes(4, sys.byteorder), address)


@lru_cache
def _probe(size: int, ifindex: int) -> bytes:
    fields = {"family": FAMILIES[size], "ifindex": ifindex, "flags": NTF_USE}
    return message_template(NeighbourMessage, wire.RTM_NEWNEIGH, 0, fields, dst=_ADDRESS[size])


def dump_routes(family: int) -> bytes:
    """Request: all routes of the main table; the kernel filters."""
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, {"family": family, "table": ROUTE_TABLE}, table=ROUTE_TABLE)


def dump_connected_routes(family: int) -> bytes:
    """Request: those of the main table that the kernel made for addresses; the kernel filters."""
    fields = {"family": family, "table": ROUTE_TABLE, "proto": RTPROT_KERNEL}
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, fields, table=ROUTE_TABLE)


def dump_all_routes(family: int) -> bytes:
    """Request: everybody's routes, of all tables."""
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, {"family": family})


def dump_nexthops() -> bytes:
    """Request: all nexthop objects. (The kernel can filter by device, but not by id range or protocol.)"""
    return encode(NexthopMessage, wire.RTM_GETNEXTHOP, 0, {})
