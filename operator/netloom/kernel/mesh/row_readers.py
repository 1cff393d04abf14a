"""What the kernel says of nexthops, neighbours and routes, and of the way that packets to an address go.

There may be 10,000 of each, and a foreign routing daemon's million besides. So it is taken apart by hand: attribute by
attribute a nexthop takes 4.3 us, a route 1.6, a neighbour 1.0, and in a dump no more than 1.0 each (see `template`),
where pyroute2's classes take 62, 26 and 21 (`make bench-codec`).
"""

import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from netloom.cidr import Address, Cidr
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.lifelines import WIDEST
from netloom.kernel.mesh.rivals import ForeignRoute
from netloom.kernel.mesh.rows import (
    DEFAULT_METRIC,
    EDITED,
    UNREACHABLE,
    DirectRoute,
    Nexthop,
    OddRoute,
    RouteContent,
    SeenNexthop,
    SeenRoute,
)
from netloom.kernel.netlink.neighbours import SeenNeighbour, read_neighbour
from netloom.kernel.netlink.template import Place, TemplateReader
from netloom.kernel.netlink.wire import (
    CACHEINFO_EXPIRES,
    NDA_DST,
    NDA_LLADDR,
    ROUTE,
    RTA_CACHEINFO,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_VIA,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_ONLINK,
    RTPROT_KERNEL,
    SIZES,
    attribute,
    attributes,
    places,
)
from netloom.kernel.ownership import ENDPOINTS, ROUTE_PROTOCOL, ROUTE_TABLE

_RTAX_MTU = 2
_NHA_ID, _NHA_OIF, _NHA_GATEWAY, _NHA_ENCAP_TYPE, _NHA_ENCAP = 1, 5, 6, 7, 8
_ENCAP_IP = 2
_ENCAP_ID, _ENCAP_DST, _ENCAP_SRC, _ENCAP_TTL, _ENCAP_TOS, _ENCAP_FLAGS, _ENCAP_OPTIONS = 1, 2, 3, 4, 5, 6, 8

_NEXTHOP = struct.Struct("=BBBBI")  # family, scope, protocol, reserved, flags

_CACHEINFO = struct.pack("=HH", 36, RTA_CACHEINFO)
_CACHEINFO_TO_END = 36 + 8
"""The head of that attribute, and the bytes from there to the end, RTA_PREF being the last."""


def route_is_ours(buffer: bytes, start: int) -> bool:
    """By its protocol alone."""
    return buffer[start + 5] == ROUTE_PROTOCOL


def read_route(buffer: bytes, start: int, end: int) -> SeenRoute | None:
    """An RTM_NEWROUTE or RTM_DELROUTE, or None if it is of another table or family."""
    family, length, _source, tos, table, protocol, _scope, kind, _flags = ROUTE.unpack_from(buffer, start)
    if table != ROUTE_TABLE or family not in SIZES:
        return None
    # What follows the nexthop's id is the nexthop's content once more.
    found = attributes(buffer, start + 12, end, RTA_NH_ID)
    metric = int.from_bytes(found.get(RTA_PRIORITY, b""), sys.byteorder)
    prefix = Cidr.of(found.get(RTA_DST) or bytes(SIZES[family]), length)
    key = prefix if metric == DEFAULT_METRIC[prefix.version] and not tos else OddRoute(prefix, metric, tos)
    nexthop = int.from_bytes(found.get(RTA_NH_ID, b""), sys.byteorder)
    edited = RTA_PREFSRC in found or (family == socket.AF_INET6 and _expires(buffer, start, end))
    if kind != RTN_UNICAST or not nexthop or edited:
        return SeenRoute(key, UNREACHABLE if kind == RTN_UNREACHABLE else EDITED, protocol)
    metrics = found.get(RTA_METRICS)
    return SeenRoute(key, RouteContent(nexthop, _mtu(metrics)) if metrics else RouteContent(nexthop), protocol)


def _expires(buffer: bytes, start: int, end: int) -> bool:
    """Whether an IPv6 route has a lifetime: the third number of its rta_cacheinfo, which is the last but one attribute;
    all are looked at only where it is not."""
    at = end - _CACHEINFO_TO_END
    if buffer[at : at + 4] != _CACHEINFO:
        return any(attributes(buffer, start + 12, end).get(RTA_CACHEINFO, b"")[CACHEINFO_EXPIRES])
    at += 4
    return buffer[at + CACHEINFO_EXPIRES.start : at + CACHEINFO_EXPIRES.stop] != bytes(4)


def read_whole_route(buffer: bytes, start: int, end: int) -> SeenRoute | None:
    """As `read_route`, with what tells the route apart from another of its key."""
    seen = read_route(buffer, start, end)
    return replace(seen, body=read_body(buffer, start, end)) if seen is not None else None


def read_rival_prefix(buffer: bytes, start: int, end: int) -> Cidr | None:
    """The destination of a foreign route; None of one that the kernel made for an address: that is no rival."""
    family, length, _source, _tos, _table, protocol = ROUTE.unpack_from(buffer, start)[:6]
    if protocol == RTPROT_KERNEL or family not in SIZES:
        return None
    return Cidr.of(attributes(buffer, start + 12, end, RTA_DST).get(RTA_DST) or bytes(SIZES[family]), length)


def read_foreign_route(buffer: bytes, start: int, end: int, *, behind: bool = False) -> ForeignRoute:
    """A route of the main table as others see it."""
    family, length, _source, tos, _table, protocol = ROUTE.unpack_from(buffer, start)[:6]
    found = attributes(buffer, start + 12, end)
    metric = int.from_bytes(found.get(RTA_PRIORITY, b""), sys.byteorder)
    prefix = Cidr.of(found.get(RTA_DST) or bytes(SIZES[family]), length)
    return ForeignRoute(prefix, metric, tos, protocol, read_body(buffer, start, end), behind)


def read_body(buffer: bytes, start: int, end: int) -> bytes:
    """Type and ways of a route. A nexthop object stands for all of its ways, which the kernel repeats behind its id."""
    found = attributes(buffer, start + 12, end)
    ways = [RTA_NH_ID] if RTA_NH_ID in found else [RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA]
    parts = [attribute(kind, found[kind]) for kind in (RTA_METRICS, RTA_PREFSRC, *ways) if kind in found]
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
    if not flags & RTNH_ONLINK:
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


def read_fib_result(buffer: bytes, start: int, end: int) -> FibResult:
    """The answer to that question. Of several ways at once, the first."""
    family, length, _source, _tos, _table, _protocol, _scope, kind, _flags = ROUTE.unpack_from(buffer, start)
    if kind != RTN_UNICAST:
        return FibResult()
    found = attributes(buffer, start + 12, end)
    (outgoing, gateway), *_ = read_hops(found)
    size = SIZES[family]
    direct = not gateway and length >= WIDEST[4 if size == 4 else 6]
    return FibResult(outgoing, direct, direct and length == size * 8, found.get(RTA_PREFSRC, b""))


def read_hops(found: Mapping[int, bytes]) -> list[tuple[int, Address]]:
    """(ifindex, gateway) of each way of a route, by its attributes; no gateway: empty."""
    ways = [(found.get(RTA_OIF, b""), found)]
    if several := found.get(RTA_MULTIPATH):
        ways, at = [], 0
        while at + 8 <= len(several):
            length = max(8, int.from_bytes(several[at : at + 2], sys.byteorder))
            ways.append((several[at + 4 : at + 8], attributes(several, at + 8, at + length)))
            at += (length + 3) & ~3
    return [
        # RTA_VIA, the gateway of another family, has that family in front.
        (int.from_bytes(oif, sys.byteorder), each.get(RTA_GATEWAY) or each.get(RTA_VIA, b"")[2:])
        for oif, each in ways
    ]


def read_destination(buffer: bytes, start: int, end: int) -> tuple[Address, int] | None:
    """Destination and prefix length of a route, in whatever table."""
    family, length = buffer[start], buffer[start + 1]
    if family not in SIZES:
        return None
    return attributes(buffer, start + 12, end, RTA_DST).get(RTA_DST) or bytes(SIZES[family]), length


def read_direct_route(buffer: bytes, start: int, end: int) -> DirectRoute | None:
    """An RTM_NEWROUTE that leads to a device and by no gateway, in whatever table; None if it is another's, or ours and
    leads to no local pod."""
    family, length, _source, _tos, _table, protocol, _scope, kind, _flags = ROUTE.unpack_from(buffer, start)
    if family not in SIZES or kind != RTN_UNICAST:
        return None
    found = attributes(buffer, start + 12, end, RTA_NH_ID)
    if RTA_NH_ID in found:
        return None  # as of all peers; the kernel puts what the nexthop is behind it
    if protocol == ROUTE_PROTOCOL:
        metric = int.from_bytes(found.get(RTA_PRIORITY, b""), sys.byteorder)
        if not ENDPOINTS.route(protocol, metric):
            return None
    if RTA_OIF not in found or found.keys() & {RTA_GATEWAY, RTA_VIA}:
        return None
    destination = Cidr.of(found.get(RTA_DST) or bytes(SIZES[family]), length)
    return DirectRoute(destination, int.from_bytes(found[RTA_OIF], sys.byteorder))


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
    """Of RTM_NEWROUTE and RTM_DELROUTE: destination and nexthop vary, and so does all that follows, which says what the
    nexthop is, but for the lifetime."""

    def varying(sample: bytes, seen: SeenRoute | None) -> list[Place | None]:
        if seen is None or not isinstance(seen.key, Cidr) or not seen.content.nexthop:
            return [None]
        fields = _and_the_rest(sample, RTA_DST, RTA_NH_ID)
        cache, rest = places(sample, 12, len(sample)).get(RTA_CACHEINFO), fields[2]
        if cache is not None and rest is not None:
            lifetime = cache[0] + CACHEINFO_EXPIRES.start, cache[0] + CACHEINFO_EXPIRES.stop
            fields[2:] = [(rest[0], lifetime[0]), (lifetime[1], rest[1])]
        return fields

    def like(sample: Any, fields: Sequence[bytes]) -> SeenRoute:
        content = RouteContent(int.from_bytes(fields[1], sys.byteorder), sample.content.mtu)
        return SeenRoute(Cidr.of(fields[0], sample.key.length), content, sample.protocol)

    return TemplateReader(read_route, varying, like)


def neighbour_reader() -> TemplateReader[SeenNeighbour | None]:
    """Of RTM_NEWNEIGH: address and MAC vary, and so does all that follows."""

    def varying(sample: bytes, seen: SeenNeighbour | None) -> list[Place | None]:
        return _and_the_rest(sample, NDA_DST, NDA_LLADDR) if seen is not None and seen.mac else [None]

    def like(sample: Any, fields: Sequence[bytes]) -> SeenNeighbour:
        return SeenNeighbour(sample.ifindex, fields[0], fields[1])

    return TemplateReader(read_neighbour, varying, like)


def fib_result_reader() -> TemplateReader[FibResult]:
    """Of answers: that of a host route has its destination, and reference counts vary; they make no difference."""

    def varying(sample: bytes, _seen: FibResult) -> list[Place | None]:
        found = places(sample, 12, len(sample))
        return [found[kind] for kind in (RTA_DST, RTA_CACHEINFO) if kind in found]

    return TemplateReader(read_fib_result, varying, lambda sample, _fields: sample)


def _and_the_rest(sample: bytes, first: int, second: int) -> list[Place | None]:
    found = places(sample, 12, len(sample))
    last = found.get(second)
    return [found.get(first), last, (last[1], len(sample)) if last else None]
