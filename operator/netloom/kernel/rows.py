"""Nexthops, neighbours and routes: their values, and their messages in both directions.

Per peer and family there is one nexthop object and one route per pod CIDR that says no more than "nexthop N". Through
a tunnel, the nexthop says which device, VNI, outer destination and inner gateway, and a permanent neighbour gives that
gateway's MAC. A native nexthop is the peer's own address on a device of the node, whose MAC the kernel asks for.

Routes of one device with 10,000 different gateways cost O(N^2) in the kernel's hash table (3.7 s by `ip -batch`); with
nexthop objects they are linear, and a replaced nexthop moves all its routes at once, without a gap.
"""

import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.lodgers import DirectRoute
from netloom.kernel.mac import Mac
from netloom.kernel.owned import MESH, ROUTE_PROTOCOL, ROUTE_TABLE, TUNNEL_TTL
from netloom.kernel.reach import Hop
from netloom.kernel.wire import (
    CREATE,
    EXCL,
    REPLACE,
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_GETNEXTHOP,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    Stamp,
    attribute,
    attributes,
    be64,
    message,
    nested,
    u8,
    u16,
    u32,
)

_RTN_UNICAST = 1
_SCOPE_UNIVERSE, _SCOPE_NOWHERE = 0, 255
_RTNH_ONLINK = 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = (
    1,
    4,
    5,
    6,
    8,
    15,
    18,
    30,
)
_RTAX_MTU = 2
_NHA_ID, _NHA_OIF, _NHA_GATEWAY, _NHA_ENCAP_TYPE, _NHA_ENCAP = 1, 5, 6, 7, 8
_ENCAP_IP = 2
_ENCAP_ID, _ENCAP_DST, _ENCAP_SRC, _ENCAP_TTL, _ENCAP_TOS, _ENCAP_FLAGS, _ENCAP_OPTIONS = 1, 2, 3, 4, 5, 6, 8
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_FAILED, _NUD_PERMANENT = 0x20, 0x80
_NTF_USE, _NTF_PROXY = 0x01, 0x08

_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=BBBBI")  # family, scope, protocol, reserved, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type

_SIZE: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
_FAMILY: dict[int, int] = {4: socket.AF_INET, 16: socket.AF_INET6}
_METRIC: dict[int, int] = {socket.AF_INET: 0, socket.AF_INET6: 1024}
_DEFAULT_METRIC: dict[int, int] = {4: 0, 6: 1024}
"""What the kernel makes of a metric of 0."""


class Via(msgspec.Struct, frozen=True, gc=False):
    """A route's content: the id of its nexthop object, and its MTU in bytes where that is not its device's (0)."""

    nexthop: int
    mtu: int = 0


EDITED = Via(0)
"""Value of a route whose content is not one of ours, so that it is repaired."""

EDITED_MAC = b""
"""Value of a neighbour that is no longer a permanent one with a MAC."""


class OddRoute(msgspec.Struct, frozen=True, gc=False):
    """The key of a route with our protocol, but with a metric or TOS that we never write: somebody's work, or an
    older version's. It is ours, and is removed."""

    prefix: Cidr
    metric: int
    tos: int

    def __str__(self) -> str:
        return f"{self.prefix} metric {self.metric} tos {self.tos}"


RouteKey = Cidr | OddRoute
"""What makes two routes of the main table the same to the kernel. Ours have the default metric and no TOS."""


NeighbourKey = tuple[int, Address]
"""ifindex and address."""


class Nexthop(msgspec.Struct, frozen=True, gc=False):
    """A nexthop object's content. `remote` is the outer destination, empty in a native one, whose `vni` and `ttl` are
    0; `extra` is what we never write: an edit."""

    ifindex: int
    gateway: Address
    remote: Address
    vni: int
    ttl: int = TUNNEL_TTL
    extra: bytes = b""

    @classmethod
    def native(cls, ifindex: int, gateway: Address) -> "Nexthop":
        """Without encapsulation."""
        return cls(ifindex, gateway, b"", 0, 0)


# ---------------------------------------------------------------------------------------------- to the kernel

Writes = Iterable[tuple[Any, Any, Any]]
"""(key, value, what the kernel holds under the key now). A value of None deletes."""


def _marker(letter: bytes, size: int) -> bytes:
    return bytes([0xA5]) + letter * (size - 2) + bytes([0x5A])


class RouteMessages:
    """Encoders of routes; one template per (family, prefix length, MTU, whether none is said, replace or create)."""

    def __init__(self) -> None:
        self._encoders: dict[tuple[int, int, int, bool, bool], Callable[[int, bytes, bytes], bytes]] = {}

    def encode(self, updates: Writes) -> list[bytes]:
        """Requests with the sequence numbers 0, 1, ..."""
        messages, encoders, order = [], self._encoders, sys.byteorder
        # An IPv4 route that names a nexthop object and no metrics takes over those of another route with that object,
        # even of the one that it replaces (fib_find_info_nh of fib_semantics.c). So an MTU that goes is written as 0.
        said = any(via is not None and before is not None and before.mtu for _, via, before in updates)
        for sequence, (key, via, before) in enumerate(updates):
            if via is None:
                messages.append(self._delete(sequence, key))
                continue
            address = key.packed
            shape = (len(address), key.length, via.mtu, said, before is not None)
            encoder = encoders.get(shape) or self._encoder(shape)
            messages.append(encoder(sequence, address, via.nexthop.to_bytes(4, order)))
        return messages

    def _delete(self, sequence: int, key: RouteKey) -> bytes:
        """The kernel compares the protocol, so this never hits anybody else's route."""
        prefix, tos = (key.prefix, key.tos) if isinstance(key, OddRoute) else (key, 0)
        destination = prefix.packed
        family = _FAMILY[len(destination)]
        metric = key.metric if isinstance(key, OddRoute) else _METRIC[family]
        body = _ROUTE.pack(family, prefix.length, 0, tos, ROUTE_TABLE, ROUTE_PROTOCOL, _SCOPE_NOWHERE, 0, 0)
        parts = [attribute(_RTA_DST, destination), attribute(_RTA_PRIORITY, u32(metric))]
        return message(RTM_DELROUTE, 0, body, *parts, sequence=sequence)

    def _encoder(self, shape: tuple[int, int, int, bool, bool]) -> Callable[[int, bytes, bytes], bytes]:
        size, length, mtu, said, replace = shape
        # Where no route of ours is, a foreign one may be: EXCL makes the kernel refuse instead of replacing it.
        flags = CREATE | (REPLACE if replace else EXCL)
        body = _ROUTE.pack(_FAMILY[size], length, 0, 0, ROUTE_TABLE, ROUTE_PROTOCOL, _SCOPE_UNIVERSE, _RTN_UNICAST, 0)
        destination, nexthop = _marker(b"d", size), _marker(b"n", 4)
        parts = [attribute(_RTA_DST, destination), attribute(_RTA_NH_ID, nexthop)]
        if mtu or said:
            parts.append(nested(_RTA_METRICS, attribute(_RTAX_MTU, u32(mtu))))
        template = message(RTM_NEWROUTE, flags, body, *parts)
        encoder = self._encoders[shape] = Stamp(template, destination, nexthop).two()
        return encoder


class NexthopMessages:
    """Encoders of nexthops; one template per (family, device, VNI, replace or create)."""

    def __init__(self) -> None:
        self._tunnels: dict[tuple[int, int, int, bool], Callable[[int, bytes, bytes, bytes], bytes]] = {}
        self._natives: dict[tuple[int, int, bool], Callable[[int, bytes, bytes], bytes]] = {}

    def encode(self, updates: Writes) -> list[bytes]:
        """Requests with the sequence numbers 0, 1, ... A replaced nexthop takes all its routes along; a deleted one
        deletes them."""
        messages, tunnels, order = [], self._tunnels, sys.byteorder
        for sequence, (key, value, before) in enumerate(updates):
            if value is None:
                body = _NEXTHOP.pack(0, 0, 0, 0, 0)
                messages.append(message(RTM_DELNEXTHOP, 0, body, attribute(_NHA_ID, u32(key)), sequence=sequence))
                continue
            gateway, replace, identity = value.gateway, before is not None, key.to_bytes(4, order)
            if value.remote:
                shape = (len(gateway), value.ifindex, value.vni, replace)
                tunnel = tunnels.get(shape) or self._tunnel(shape)
                messages.append(tunnel(sequence, identity, gateway, value.remote))
            else:
                plain = (len(gateway), value.ifindex, replace)
                native = self._natives.get(plain) or self._native(plain)
                messages.append(native(sequence, identity, gateway))
        return messages

    def _tunnel(self, shape: tuple[int, int, int, bool]) -> Callable[[int, bytes, bytes, bytes], bytes]:
        size, ifindex, vni, replace = shape
        key, gateway, remote = _marker(b"k", 4), _marker(b"g", size), _marker(b"r", 4)
        encapsulation = nested(
            _NHA_ENCAP,
            attribute(_ENCAP_ID, be64(vni)),
            attribute(_ENCAP_TTL, u8(TUNNEL_TTL)),
            attribute(_ENCAP_DST, remote),
        )
        parts = [attribute(_NHA_ENCAP_TYPE, u16(_ENCAP_IP)), encapsulation]
        template = _new_nexthop(size, ifindex, replace, key, gateway, *parts)
        encoder = self._tunnels[shape] = Stamp(template, key, gateway, remote).three()
        return encoder

    def _native(self, shape: tuple[int, int, bool]) -> Callable[[int, bytes, bytes], bytes]:
        size, ifindex, replace = shape
        key, gateway = _marker(b"k", 4), _marker(b"g", size)
        encoder = self._natives[shape] = Stamp(_new_nexthop(size, ifindex, replace, key, gateway), key, gateway).two()
        return encoder


def _new_nexthop(size: int, ifindex: int, replace: bool, key: bytes, gateway: bytes, *parts: bytes) -> bytes:
    """`onlink`: that the gateway is on the device has been decided before, and is decided again when it changes."""
    return message(
        RTM_NEWNEXTHOP,
        CREATE | (REPLACE if replace else EXCL),
        _NEXTHOP.pack(_FAMILY[size], 0, ROUTE_PROTOCOL, 0, _RTNH_ONLINK),
        attribute(_NHA_ID, key),
        attribute(_NHA_OIF, u32(ifindex)),
        attribute(_NHA_GATEWAY, gateway),
        *parts,
    )


class NeighbourMessages:
    """Encoders of neighbours; one template per (family, device)."""

    def __init__(self) -> None:
        self._encoders: dict[tuple[int, int], Callable[[int, bytes, bytes], bytes]] = {}

    def encode(self, updates: Writes) -> list[bytes]:
        """Requests with the sequence numbers 0, 1, ..."""
        messages, encoders = [], self._encoders
        for sequence, ((ifindex, address), mac, _before) in enumerate(updates):
            if mac is None:
                body = _NEIGHBOUR.pack(_FAMILY[len(address)], ifindex, 0, 0, 0)
                messages.append(message(RTM_DELNEIGH, 0, body, attribute(_NDA_DST, address), sequence=sequence))
                continue
            shape = (len(address), ifindex)
            encoder = encoders.get(shape) or self._encoder(shape)
            messages.append(encoder(sequence, address, mac))
        return messages

    def _encoder(self, shape: tuple[int, int]) -> Callable[[int, bytes, bytes], bytes]:
        size, ifindex = shape
        body = _NEIGHBOUR.pack(_FAMILY[size], ifindex, _NUD_PERMANENT, 0, _RTN_UNICAST)
        address, mac = _marker(b"a", size), _marker(b"m", 6)
        parts = [attribute(_NDA_DST, address), attribute(_NDA_LLADDR, mac)]
        template = message(RTM_NEWNEIGH, CREATE | REPLACE, body, *parts)
        encoder = self._encoders[shape] = Stamp(template, address, mac).two()
        return encoder


# -------------------------------------------------------------------------------------------- from the kernel


class SeenRoute(msgspec.Struct, frozen=True, gc=False):
    """A route of the main table, whoever owns it. `via` is EDITED unless it is a plain `nhid` route."""

    key: RouteKey
    via: Via
    protocol: int


class SeenNexthop(msgspec.Struct, frozen=True, gc=False):
    """A nexthop object, whoever owns it."""

    id: int
    value: Nexthop
    protocol: int


class SeenNeighbour(msgspec.Struct, frozen=True, gc=False):
    """A neighbour; `mac` is EDITED_MAC unless it is a permanent entry. `failed`: nobody answered there."""

    ifindex: int
    address: Address
    mac: Mac
    failed: bool = False


def read_route(buffer: bytes, start: int, end: int) -> SeenRoute | None:
    """An RTM_NEWROUTE or RTM_DELROUTE, or None if it is of another table or family."""
    family, length, _source, tos, table, protocol, _scope, kind, _flags = _ROUTE.unpack_from(buffer, start)
    if table != ROUTE_TABLE or family not in _SIZE:
        return None
    # What follows the nexthop's id is the nexthop's content once more.
    found = attributes(buffer, start + 12, end, _RTA_NH_ID)
    metric = int.from_bytes(found.get(_RTA_PRIORITY, b""), sys.byteorder)
    prefix = Cidr.of(found.get(_RTA_DST) or bytes(_SIZE[family]), length)
    key = prefix if metric == _METRIC[family] and not tos else OddRoute(prefix, metric, tos)
    nexthop = int.from_bytes(found.get(_RTA_NH_ID, b""), sys.byteorder)
    if kind != _RTN_UNICAST or not nexthop:
        return SeenRoute(key, EDITED, protocol)
    metrics = found.get(_RTA_METRICS)
    return SeenRoute(key, Via(nexthop, _mtu(metrics)) if metrics else Via(nexthop), protocol)


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


def probe_neighbour(sequence: int, ifindex: int, address: Address) -> bytes:
    """Request: ask on the device's network whether the address answers, as sending to it would. Changes nothing else,
    and makes no entry where there is none."""
    body = _NEIGHBOUR.pack(_FAMILY[len(address)], ifindex, 0, _NTF_USE, 0)
    return message(RTM_NEWNEIGH, 0, body, attribute(_NDA_DST, address), sequence=sequence)


def ask_route(size: int) -> Callable[[int, bytes], bytes]:
    """The encoder of the question which way packets to an address (of 4 or 16 bytes) go."""
    body = _ROUTE.pack(_FAMILY[size], size * 8, 0, 0, 0, 0, 0, 0, 0)
    address = _marker(b"a", size)
    return Stamp(message(RTM_GETROUTE, 0, body, attribute(_RTA_DST, address)), address).one()


def read_hop(buffer: bytes, start: int, end: int) -> Hop:
    """The answer to that question."""
    if buffer[start + 7] != _RTN_UNICAST:
        return Hop()
    found = attributes(buffer, start + 12, end)
    outgoing = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
    return Hop(outgoing, _RTA_GATEWAY not in found and _RTA_VIA not in found)


def read_destination(buffer: bytes, start: int, end: int) -> tuple[Address, int] | None:
    """Destination and prefix length of somebody else's route, in whatever table."""
    family, length, _source, _tos, _table, protocol = _ROUTE.unpack_from(buffer, start)[:6]
    if family not in _SIZE or protocol == ROUTE_PROTOCOL:
        return None
    return attributes(buffer, start + 12, end, _RTA_DST).get(_RTA_DST) or bytes(_SIZE[family]), length


def read_direct_route(buffer: bytes, start: int, end: int) -> DirectRoute | None:
    """An RTM_NEWROUTE that leads to a device and by no gateway, in whatever table; None if it is another's, or ours."""
    family, length, _source, _tos, _table, protocol, _scope, kind, _flags = _ROUTE.unpack_from(buffer, start)
    if family not in _SIZE or protocol == ROUTE_PROTOCOL or kind != _RTN_UNICAST:
        return None
    found = attributes(buffer, start + 12, end)
    if _RTA_OIF not in found or found.keys() & {_RTA_GATEWAY, _RTA_VIA, _RTA_NH_ID}:
        return None
    destination = Cidr.of(found.get(_RTA_DST) or bytes(_SIZE[family]), length)
    return DirectRoute(destination, int.from_bytes(found[_RTA_OIF], sys.byteorder))


def owned_nexthop(seen: SeenNexthop) -> bool:
    """The mesh's by id and protocol."""
    return MESH.nexthop(seen.protocol, seen.id)


def owned_route(seen: SeenRoute) -> bool:
    """The mesh's by protocol and metric."""
    key = seen.key
    return MESH.route(seen.protocol, key.metric if isinstance(key, OddRoute) else _DEFAULT_METRIC[key.version])


def dump_routes(family: int) -> bytes:
    """Request: our routes of the main table; the kernel filters."""
    body = _ROUTE.pack(family, 0, 0, 0, ROUTE_TABLE, ROUTE_PROTOCOL, 0, 0, 0)
    return message(RTM_GETROUTE, 0, body, attribute(_RTA_TABLE, u32(ROUTE_TABLE)))


def dump_all_routes(family: int) -> bytes:
    """Request: everybody's routes, of all tables."""
    return message(RTM_GETROUTE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def dump_nexthops() -> bytes:
    """Request: all nexthop objects. (The kernel can filter by device, but not by id range or protocol.)"""
    return message(RTM_GETNEXTHOP, 0, _NEXTHOP.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def dump_neighbours(ifindex: int) -> bytes:
    """Request: the neighbours of one device."""
    # NDA_IFINDEX, not ndm_ifindex: the strict check wants the filter as an attribute.
    return message(RTM_GETNEIGH, 0, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0), attribute(8, u32(ifindex)))
