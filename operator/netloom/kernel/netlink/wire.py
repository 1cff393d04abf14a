"""Netlink on the wire: numbers of messages and flags, and the walk over attributes.

A message is a header, a fixed part, and attributes (length, type, value, padded to 4). Numbers are from the kernel's
uapi headers linux/{netlink,rtnetlink}.h. Integers are in host order.
"""

import socket
import struct
import sys
from collections.abc import Sequence

# Message types.
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
RTM_NEWNETCONF, RTM_GETNETCONF = 80, 82
RTM_GETNSID = 90
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

_OBJECTS = {
    RTM_NEWLINK: "link",
    RTM_NEWADDR: "addr",
    RTM_NEWROUTE: "route",
    RTM_NEWNEIGH: "neigh",
    RTM_NEWNEXTHOP: "nexthop",
}
NAMES = {kind + i: verb + name for kind, name in _OBJECTS.items() for i, verb in enumerate(("new", "del"))}
"""Types of requests that change the kernel, as metrics and tests name them."""

# Flags of the header. The same bits mean one thing in a "new" request, another in a "get" request.
REQUEST, ACK, DUMP_INTERRUPTED = 0x01, 0x04, 0x10
DUMP = 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800

# Of routes and neighbours.
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
RTPROT_KERNEL, RTPROT_STATIC = 2, 4
RTNH_ONLINK = 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_ENCAP, RTA_NH_ID = 9, 12, 15, 18, 22, 30
CACHEINFO_EXPIRES = slice(8, 12)
"""Of RTA_CACHEINFO, an IPv6 route's lifetime: 0 of one that has none."""
RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000
RT_TABLE_LOCAL = 255
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
NDA_DST, NDA_LLADDR = 1, 2
NUD_FAILED, NUD_PERMANENT = 0x20, 0x80
NTF_USE, NTF_PROXY = 0x01, 0x08

SIZES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
FAMILIES: dict[int, int] = {size: family for family, size in SIZES.items()}
"""Bytes of an address by its family, and the family by them."""

ROUTE = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
LINK = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, ifindex, flags, change."""
NEIGHBOUR = struct.Struct("=BxxxiHBB")
"""ndmsg: family, ifindex, state, flags, type."""

HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port id."""
HEADER_SIZE = 16

ATTRIBUTE = struct.Struct("=HH")
"""nlattr: length, type."""
_TYPE_MASK = 0x3FFF


def attribute(kind: int, value: bytes) -> bytes:
    """One nlattr, with what fills it up to a multiple of four bytes."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def numbered(messages: Sequence[bytes]) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ..."""
    return [message[:8] + at.to_bytes(4, sys.byteorder) + message[12:] for at, message in enumerate(messages)]


def text(value: bytes) -> str:
    """Of an attribute that ends in a zero."""
    return value.rstrip(b"\0").decode(errors="replace")


def number(value: bytes) -> int:
    """Of an attribute, in host order; 0 of none (b"")."""
    return int.from_bytes(value, sys.byteorder)


def attributes(buffer: bytes, start: int, end: int, until: int = 0) -> dict[int, bytes]:
    """The attributes between two offsets, by type, up to the first one of type `until` (0: all of them).

    By hand, because it takes a route apart in 1.6 us; pyroute2's class takes 26 (`make bench-codec`).
    """
    found = {}
    unpack = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(buffer, start)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = buffer[start + 4 : start + length]
        if kind == until:
            break
        start += (length + 3) & ~3
    return found


def places(buffer: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Where the values of the attributes between two offsets start and end, by type."""
    found = {}
    while start + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(buffer, start)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found
