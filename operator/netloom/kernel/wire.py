"""Rtnetlink messages: how they are built, and how they are taken apart.

A message is a header, a fixed part, and attributes (length, type, value, padded to 4). `message` builds any of them,
slowly and readably. For the three kinds that come by the ten thousand, `Stamp` takes one such message, with markers
in the places that vary, and afterwards only fills in those places: 0.4 us instead of 8.

Numbers are from the kernel's uapi headers linux/{netlink,rtnetlink,if_link,if_addr,neighbour,nexthop,lwtunnel}.h.
Integers are in host order, except where a comment says network order.
"""

import struct
from collections.abc import Callable, Iterable

# Message types.
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE = 32, 33
RTM_NEWNETCONF = 80
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

NAMES = {
    RTM_NEWLINK: "newlink",
    RTM_DELLINK: "dellink",
    RTM_NEWADDR: "newaddr",
    RTM_DELADDR: "deladdr",
    RTM_NEWROUTE: "newroute",
    RTM_DELROUTE: "delroute",
    RTM_NEWNEIGH: "newneigh",
    RTM_DELNEIGH: "delneigh",
    RTM_NEWNEXTHOP: "newnexthop",
    RTM_DELNEXTHOP: "delnexthop",
}
"""Types of requests that change the kernel, as metrics and tests name them."""

# Flags of the header. The same bits mean one thing in a "new" request, another in a "get" request.
REQUEST, MULTI, ACK, DUMP_INTERRUPTED = 0x01, 0x02, 0x04, 0x10
DUMP = 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port id."""
HEADER_SIZE = 16

_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = len(value) + 4
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def u8(value: int) -> bytes:
    """One byte."""
    return struct.pack("=B", value)


def u16(value: int) -> bytes:
    """Host order."""
    return struct.pack("=H", value)


def be16(value: int) -> bytes:
    """Network order."""
    return struct.pack(">H", value)


def u32(value: int) -> bytes:
    """Host order."""
    return struct.pack("=I", value)


def be64(value: int) -> bytes:
    """Network order."""
    return struct.pack(">Q", value)


def message(kind: int, flags: int, body: bytes, *attributes: bytes, sequence: int = 0) -> bytes:
    """A whole request: header, fixed part, attributes."""
    payload = body + b"".join(attributes)
    return HEADER.pack(HEADER_SIZE + len(payload), kind, flags | REQUEST, sequence, 0) + payload


def attributes(buffer: bytes, start: int, end: int, until: int = 0) -> dict[int, bytes]:
    """The attributes between two offsets, by type, up to the first one of type `until` (0: all of them)."""
    found = {}
    unpack = _ATTRIBUTE.unpack_from
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
        length, kind = _ATTRIBUTE.unpack_from(buffer, start)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found


class Stencil:
    """The inverse of a `Stamp`: takes the varying fields out of a payload that is otherwise like `sample`.

    The kernel writes all objects of one kind in one way; which way depends on its version. So the first one is taken
    apart attribute by attribute, and serves as the sample for the 9,999 that follow: 1 us instead of 7.
    """

    def __init__(self, sample: bytes, places: Iterable[tuple[int, int]]) -> None:
        """`places`: (start, end) of the fields in the sample, from left to right."""
        layout, at = "=", 0
        self._constants: list[bytes] = []
        for start, end in places:
            self._constants.append(sample[at:start])
            layout += f"{start - at}s{end - start}s"
            at = end
        self._constants.append(sample[at:])
        self._struct = struct.Struct(layout + f"{len(sample) - at}s")

    def match(self, buffer: bytes, start: int, end: int) -> tuple[bytes, ...] | None:
        """The fields of a payload, or None if it differs from the sample elsewhere, too."""
        if end - start != self._struct.size:
            return None
        parts = self._struct.unpack_from(buffer, start)
        return parts[1::2] if list(parts[::2]) == self._constants else None


class Stamp:
    """A message whose varying fields are filled in at the price of one `struct.pack`.

    `template` is a whole message that holds, once each and in this order, the `fields`: byte strings that occur
    nowhere else in it. The sequence number, in the header, is always the first to be filled in.
    """

    def __init__(self, template: bytes, *fields: bytes) -> None:
        constants, layout, at = [template[:8]], "=8sI", 12
        for field in fields:
            place = template.index(field, at)
            if template.count(field, HEADER_SIZE) != 1:
                raise ValueError("a marker has to occur exactly once")
            constants.append(template[at:place])
            layout += f"{place - at}s{len(field)}s"
            at = place + len(field)
        constants.append(template[at:])
        layout += f"{len(template) - at}s"
        self._constants = constants
        self._pack = struct.Struct(layout).pack

    def one(self) -> Callable[[int, bytes], bytes]:
        """The encoder of a message with one field: (sequence, field)."""
        pack, (head, a, tail) = self._pack, self._constants

        def encode(sequence: int, field: bytes) -> bytes:
            return pack(head, sequence, a, field, tail)

        return encode

    def two(self) -> Callable[[int, bytes, bytes], bytes]:
        """The encoder of a message with two fields: (sequence, first, second)."""
        pack, (head, a, b, tail) = self._pack, self._constants

        def encode(sequence: int, first: bytes, second: bytes) -> bytes:
            return pack(head, sequence, a, first, b, second, tail)

        return encode

    def three(self) -> Callable[[int, bytes, bytes, bytes], bytes]:
        """The encoder of a message with three fields."""
        pack, (head, a, b, c, tail) = self._pack, self._constants

        def encode(sequence: int, first: bytes, second: bytes, third: bytes) -> bytes:
            return pack(head, sequence, a, first, b, second, c, third, tail)

        return encode
