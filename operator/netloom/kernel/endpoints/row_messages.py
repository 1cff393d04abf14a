"""Messages of what stands on a pod's devices: addresses, neighbours and routes, on both sides.

Encoded once by pyroute2's classes, as templates, and then filled in; taken apart by hand (see `mesh.row_messages`).
"""

import contextlib
import socket
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from netloom.cidr import Address, Cidr, version_of
from netloom.kernel.endpoints.endpoint import GATEWAY
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.fib_lookup import ask_route, look_up
from netloom.kernel.netlink.links import NO_DUPLICATE_DETECTION, delete_address, device_name
from netloom.kernel.netlink.messages import AddressMessage, RouteMessage, decode, encode
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all
from netloom.kernel.netlink.template import marker, message_template
from netloom.kernel.netlink.wire import (
    FAMILIES,
    ROUTE,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RTA_CACHEINFO,
    RTA_DST,
    RTA_ENCAP,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_VIA,
    RTN_LOCAL,
    RTN_UNICAST,
    RTNH_ONLINK,
    RTPROT_STATIC,
    SIZES,
    attributes,
)
from netloom.kernel.ownership import ENDPOINTS, ROUTE_PROTOCOL, ROUTE_TABLE

METRIC = ENDPOINTS.routes.start
"""Of all routes to local pods."""

_NEVER_WRITTEN = {RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP, RTA_NH_ID}

_NUMBER = int.from_bytes(marker(b"i", 4), sys.byteorder)
_ADDRESS: dict[int, bytes] = {size: marker(b"a", size) for size in FAMILIES}

Writes = Sequence[tuple[Any, Any, Any]]
"""(key, value, what the kernel holds under the key now). A value of None deletes."""


class RouteKey(msgspec.Struct, frozen=True, gc=False):
    """A route of the endpoints' class; what we write has METRIC and no TOS."""

    prefix: Cidr
    ifindex: int
    metric: int = METRIC
    tos: int = 0

    def __str__(self) -> str:
        odd = "" if (self.metric, self.tos) == (METRIC, 0) else f" metric {self.metric} tos {self.tos}"
        return f"{self.prefix} dev {device_name(self.ifindex)}{odd}"


PLAIN, EDITED = "plain", "edited"
"""Values of routes: as we write them, or not."""


class SeenPodRoute(msgspec.Struct, frozen=True, gc=False):
    """A route of the main table, whoever owns it."""

    key: RouteKey
    content: str
    protocol: int

    @property
    def owned(self) -> bool:
        """By protocol and metric."""
        return ENDPOINTS.route(self.protocol, self.key.metric)


# ---------------------------------------------------------------------------------------------- to the kernel


def number(index: int) -> bytes:
    """A sequence number or an ifindex, as it is on the wire."""
    return index.to_bytes(4, sys.byteorder)


def route(address: Address, ifindex: int, *, replace: bool = False) -> bytes:
    """The route to a pod's address."""
    return _route(len(address), len(address) * 8, replace) % (bytes(4), address, number(ifindex))


def encode_routes(writes: Writes) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ..."""
    messages = []
    for i, (key, content, before) in enumerate(writes):
        address, index = key.prefix.packed, number(key.ifindex)
        if content is None:
            template = _deleted_route(len(address), key.prefix.length, key.metric, key.tos)
        else:
            template = _route(len(address), key.prefix.length, before is not None)
        messages.append(template % (number(i), address, index))
    return messages


@lru_cache
def _route(size: int, length: int, replace: bool) -> bytes:
    fields = {"family": FAMILIES[size], "dst_len": length, "table": ROUTE_TABLE, "proto": ROUTE_PROTOCOL}
    fields |= {"type": RTN_UNICAST, "scope": RT_SCOPE_LINK if size == 4 else RT_SCOPE_UNIVERSE}
    flags = wire.CREATE | (wire.REPLACE if replace else wire.EXCL)
    attributes = {"dst": _ADDRESS[size], "oif": _NUMBER, "priority": METRIC}
    return message_template(RouteMessage, wire.RTM_NEWROUTE, flags, fields, **attributes)


@lru_cache
def _deleted_route(size: int, length: int, metric: int, tos: int) -> bytes:
    """The kernel compares the protocol, so this never hits anybody else's route."""
    fields = {"family": FAMILIES[size], "dst_len": length, "table": ROUTE_TABLE, "proto": ROUTE_PROTOCOL, "tos": tos}
    fields |= {"scope": RT_SCOPE_NOWHERE}
    attributes = {"dst": _ADDRESS[size], "oif": _NUMBER, "priority": metric}
    return message_template(RouteMessage, wire.RTM_DELROUTE, 0, fields, **attributes)


def remove_route(address: Address) -> bytes:
    """The route to a pod's address goes, by whatever device somebody has led it."""
    return _removed_route(len(address)) % (bytes(4), address)


@lru_cache
def _removed_route(size: int) -> bytes:
    fields = {"family": FAMILIES[size], "dst_len": size * 8, "table": ROUTE_TABLE, "proto": ROUTE_PROTOCOL}
    fields |= {"scope": RT_SCOPE_NOWHERE}
    return message_template(RouteMessage, wire.RTM_DELROUTE, 0, fields, dst=_ADDRESS[size], priority=METRIC)


def default_route(gateway: Address, ifindex: int) -> bytes:
    """In the pod: all by the gateway, of which nobody asks on what network it is."""
    return _default_route(len(gateway)) % (bytes(4), gateway, number(ifindex))


@lru_cache
def _default_route(size: int) -> bytes:
    fields = {"family": FAMILIES[size], "table": ROUTE_TABLE, "proto": RTPROT_STATIC, "type": RTN_UNICAST}
    fields |= {"flags": RTNH_ONLINK}
    flags = wire.CREATE | wire.EXCL
    attributes = {"gateway": _ADDRESS[size], "oif": _NUMBER}
    return message_template(RouteMessage, wire.RTM_NEWROUTE, flags, fields, **attributes)


def address(address: Address, ifindex: int, length: int = 0) -> bytes:
    """In the pod: an address, IPv6 without the second that duplicate detection takes. length: 0: of a host."""
    template = _address(len(address), length or len(address) * 8)
    return template % (bytes(4), number(ifindex), *([address] * (2 if len(address) == 4 else 1)))


@lru_cache
def _address(size: int, length: int) -> bytes:
    link_local = length < size * 8
    fields = {"family": FAMILIES[size], "prefixlen": length, "index": _NUMBER}
    fields |= {"scope": RT_SCOPE_LINK if link_local else RT_SCOPE_UNIVERSE}
    flags = wire.CREATE | wire.EXCL
    if size == 4:
        attributes: dict[str, Any] = {"local": _ADDRESS[size], "address": _ADDRESS[size]}
    else:
        attributes = {"local": _ADDRESS[size], "flags": NO_DUPLICATE_DETECTION}
    return message_template(AddressMessage, wire.RTM_NEWADDR, flags, fields, **attributes)


def encode_addresses(writes: Writes) -> list[bytes]:
    """Requests that delete addresses of host ends, which have none, with the sequence numbers 0, 1, ..."""
    return wire.numbered([delete_address(key.ifindex, key.local) for key, _content, _before in writes])


def dump_routes(family: int, protocol: int = ROUTE_PROTOCOL) -> bytes:
    """The routes of the main table that one protocol made; the kernel filters."""
    fields = {"family": family, "table": ROUTE_TABLE, "proto": protocol}
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, fields, table=ROUTE_TABLE)


def dump_addresses(ifindex: int = 0) -> bytes:
    """The addresses of one device, or of all."""
    return encode(AddressMessage, wire.RTM_GETADDR, 0, {"index": ifindex} if ifindex else {})


# -------------------------------------------------------------------------------------------- from the kernel


def read_route(buffer: bytes, start: int, end: int) -> SeenPodRoute | None:
    """An RTM_NEWROUTE or RTM_DELROUTE, or None if it is of another table or family."""
    family, length, _source, tos, table, protocol, scope, kind, _flags = ROUTE.unpack_from(buffer, start)
    if table != ROUTE_TABLE or family not in SIZES:
        return None
    found = attributes(buffer, start + 12, end)
    metric = wire.number(found.get(RTA_PRIORITY, b""))
    prefix = Cidr.of(found.get(RTA_DST) or bytes(SIZES[family]), length)
    ifindex = wire.number(found.get(RTA_OIF, b""))
    expires = family == socket.AF_INET6 and any(found.get(RTA_CACHEINFO, b"")[wire.CACHEINFO_EXPIRES])
    usual = RT_SCOPE_LINK if family == socket.AF_INET else RT_SCOPE_UNIVERSE
    odd = kind != RTN_UNICAST or scope != usual or expires or not _NEVER_WRITTEN.isdisjoint(found)
    return SeenPodRoute(RouteKey(prefix, ifindex, metric, tos), EDITED if odd else PLAIN, protocol)


def default_route_links(commands: CommandSocket, size: int) -> list[int]:
    """The ifindexes of default routes of the family of addresses of this size. Raises RefusedError."""
    family = FAMILIES[size]

    def read(buffer: bytes, start: int, end: int) -> int | None:
        seen = read_route(buffer, start, end) if buffer[start] == family else None
        return seen.key.ifindex if seen is not None and not seen.key.prefix.length else None

    return read_all(commands, dump_routes(family, 0), read)


def own_route_links(commands: CommandSocket, address: Address) -> list[int]:
    """The ifindexes that routes of ours lead this address to, as they are written: with METRIC. Raises RefusedError."""
    family, prefix = FAMILIES[len(address)], Cidr.of(address)

    def read(buffer: bytes, start: int, end: int) -> int | None:
        seen = read_route(buffer, start, end) if buffer[start] == family else None
        if seen is None or not seen.owned or (seen.key.prefix, seen.key.metric) != (prefix, METRIC):
            return None
        return seen.key.ifindex

    return read_all(commands, dump_routes(family), read)


def read_fib_result(buffer: bytes, start: int, end: int) -> tuple[int, bool]:
    """Where packets go: the ifindex, and whether the address is the namespace's own."""
    kind = ROUTE.unpack_from(buffer, start)[7]
    found = attributes(buffer, start + 12, end)
    return wire.number(found.get(RTA_OIF, b"")), kind == RTN_LOCAL


def fib_lookups(commands: CommandSocket, addresses: Sequence[Address]) -> list[tuple[Address, int, bool]]:
    """Where packets to these go: ifindex (0: nowhere), and whether it is the namespace's own. Raises OSError."""
    return [(address, *found) for address, found in look_up(commands, addresses, read_fib_result, (0, False))]


def route_taken(commands: CommandSocket, address: Address) -> str:
    """The route by which packets to the address go, as `ip` names it (`10.1.0.2/32 dev lo metric 0 table 254 proto 4`);
    "" where none is told. Raises OSError."""
    found: list[str] = []

    def visit(_kind: int, buffer: bytes, start: int, _end: int) -> None:
        seen = decode(RouteMessage, buffer, start)
        prefix = Cidr.of(seen.get_attr("RTA_DST") or bytes(len(address)), seen["dst_len"])
        metric, ifindex = (seen.get_attr(name, 0) for name in ("RTA_PRIORITY", "RTA_OIF"))
        table = seen.get_attr("RTA_TABLE", seen["table"])
        by = f"dev {device_name(ifindex)} " if ifindex else ""
        found.append(f"{prefix} {by}metric {metric} table {table} proto {seen['proto']}")

    with contextlib.suppress(RefusedError):  # a route that refuses is told as its error alone
        commands.get(ask_route(0, address, wire.RTM_F_FIB_MATCH), visit)
    return found[0] if found else ""


def gateway_of(address: Address) -> Address:
    """In the pod, of this family."""
    return GATEWAY[version_of(address)]
