"""Messages of nf_tables: the few that one table with interval sets, a chain and rules takes.

Attributes are written in the order and form in which the kernel writes them back (no NLA_F_NESTED, registers by their
16-byte names), so a dumped rule can be compared byte by byte.

Why not libnftables or `nft`: to change one element of an interval set they read the whole set first. Numbers are from
linux/netfilter/{nf_tables,nfnetlink}.h. Integers inside attributes are in network order.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Sequence

import msgspec

from netloom.kernel.cover import END, START
from netloom.kernel.wire import CREATE, HEADER, HEADER_SIZE, REQUEST, attribute, attributes, be64, message

SUBSYSTEM = 10 << 8
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN = 3, 4
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14

NAMES = {
    NEWTABLE: "newtable",
    DELTABLE: "deltable",
    NEWCHAIN: "newchain",
    NEWRULE: "newrule",
    DELRULE: "delrule",
    NEWSET: "newset",
    NEWSETELEM: "newsetelem",
    DELSETELEM: "delsetelem",
}
"""Requests that change the kernel, by the low byte of their type, as metrics and tests name them."""

FAMILY_INET = 1
APPEND = 0x800
INTERVAL = 4
"""NFT_SET_INTERVAL."""

_GENERAL = struct.Struct(">BBH")
"""nfgenmsg: family, version, resource id."""
_ATTRIBUTE = struct.Struct("=HH")
_INET = _GENERAL.pack(FAMILY_INET, 0, 0)
_KEY_TYPES = {4: 7, 16: 8}
"""What `nft` calls ipv4_addr and ipv6_addr, by bytes."""

_TABLE, _NAME = 1, 2


def be32(value: int) -> bytes:
    """Network order."""
    return struct.pack(">I", value)


def text(value: str) -> bytes:
    """A name, with its zero byte."""
    return value.encode() + b"\0"


def word(value: bytes) -> str:
    """The inverse of `text`."""
    return value.rstrip(b"\0").decode(errors="replace")


def comment(value: str) -> bytes:
    """Userdata that `nft` prints as a comment (libnftnl's NFTNL_UDATA_*_COMMENT, type 0)."""
    data = text(value)
    return bytes([0, len(data)]) + data


def _request(kind: int, flags: int, *parts: bytes) -> bytes:
    return message(SUBSYSTEM | kind, flags, _INET, *parts)


def frame(messages: Sequence[bytes]) -> bytes:
    """The requests as one transaction: all of them, or none."""
    resource = _GENERAL.pack(0, 0, SUBSYSTEM >> 8)
    begin = HEADER.pack(HEADER_SIZE + 4, BATCH_BEGIN, REQUEST, BEGIN_SEQUENCE, 0) + resource
    end = HEADER.pack(HEADER_SIZE + 4, BATCH_END, REQUEST, BEGIN_SEQUENCE, 0) + resource
    numbered = [part[:8] + i.to_bytes(4, sys.byteorder) + part[12:] for i, part in enumerate(messages)]
    return b"".join([begin, *numbered, end])


BEGIN_SEQUENCE = 0xFFFF_FFFF
"""Sequence number of what the kernel says about a transaction as a whole."""


# ----------------------------------------------------------------------------------------------------- requests


def new_table(table: str, remark: str) -> bytes:
    """Create; `remark` is shown as the table's comment since Linux 5.10."""
    return _request(NEWTABLE, CREATE, attribute(1, text(table)), attribute(2, be32(0)), attribute(6, comment(remark)))


def delete_table(table: str) -> bytes:
    """Delete, with all that is in it."""
    return _request(DELTABLE, 0, attribute(1, text(table)))


def new_set(table: str, name: str, size: int, identity: int) -> bytes:
    """An interval set of addresses of `size` bytes; `identity` is any number of its own within the transaction."""
    return _request(
        NEWSET,
        CREATE,
        attribute(1, text(table)),
        attribute(2, text(name)),
        attribute(3, be32(INTERVAL)),
        attribute(4, be32(_KEY_TYPES[size])),
        attribute(5, be32(size)),
        attribute(10, be32(identity)),
    )


def new_chain(table: str, name: str, kind: str, hook: int, priority: int) -> bytes:
    """A base chain with policy accept."""
    where = attribute(1, be32(hook)) + attribute(2, struct.pack(">i", priority))
    return _request(
        NEWCHAIN,
        CREATE,
        attribute(1, text(table)),
        attribute(3, text(name)),
        attribute(4, where),
        attribute(5, be32(1)),
        attribute(7, text(kind)),
    )


def new_rule(table: str, chain: str, expressions: bytes, remark: str) -> bytes:
    """A rule at the end of the chain."""
    return _request(
        NEWRULE,
        CREATE | APPEND,
        attribute(1, text(table)),
        attribute(2, text(chain)),
        attribute(4, expressions),
        attribute(7, comment(remark)),
    )


def delete_rule(table: str, chain: str, handle: int) -> bytes:
    """Delete the rule of this handle."""
    return _request(DELRULE, 0, attribute(1, text(table)), attribute(2, text(chain)), attribute(3, be64(handle)))


class ElementMessages:
    """Requests that add to, or delete from, one set: 1.5 us each, for there may be 10,000."""

    def __init__(self, table: str, name: str, size: int) -> None:
        self._where = _INET + attribute(_TABLE, text(table)) + attribute(_NAME, text(name))
        self._start, self._end = _element_heads(size)

    def encode(self, kind: int, keys: Iterable[bytes]) -> bytes:
        """NEWSETELEM or DELSETELEM for the elements of one CIDR (see cover.keys)."""
        elements = b"".join(
            [self._start + key[:-1] if key[-1:] == START else self._end + key[:-1] + _END_FLAG for key in keys]
        )
        length = HEADER_SIZE + len(self._where) + 4 + len(elements)
        flags = REQUEST | (CREATE if kind == NEWSETELEM else 0)
        header = HEADER.pack(length, SUBSYSTEM | kind, flags, 0, 0)
        return header + self._where + _ATTRIBUTE.pack(4 + len(elements), 3) + elements


_END_FLAG = attribute(3, be32(1))


def _element_heads(size: int) -> tuple[bytes, bytes]:
    """What is before the address in a start element, and in an end element."""
    key = _ATTRIBUTE.pack(size + 8, 1) + _ATTRIBUTE.pack(size + 4, 1)
    return _ATTRIBUTE.pack(size + 12, 1) + key, _ATTRIBUTE.pack(size + 20, 1) + key


# ------------------------------------------------------------------------------------------------------ reading


def get_table(table: str) -> bytes:
    """Ask for one table."""
    return _request(GETTABLE, 0, attribute(1, text(table)))


def get_chain(table: str, chain: str) -> bytes:
    """Ask for one chain."""
    return _request(GETCHAIN, 0, attribute(1, text(table)), attribute(3, text(chain)))


def dump_rules(table: str, chain: str) -> bytes:
    """Ask for the rules of a chain, in their order."""
    return _request(GETRULE, 0, attribute(1, text(table)), attribute(2, text(chain)))


def dump_sets(table: str) -> bytes:
    """Ask for the sets of a table, without their elements."""
    return _request(GETSET, 0, attribute(1, text(table)))


def dump_elements(table: str, name: str) -> bytes:
    """Ask for the elements of a set."""
    return _request(GETSETELEM, 0, attribute(_TABLE, text(table)), attribute(_NAME, text(name)))


class SeenTable(msgspec.Struct, frozen=True):
    """A table. `flags`: 1 is dormant. `used`: how many chains, sets and other objects are in it."""

    flags: int
    used: int


class SeenChain(msgspec.Struct, frozen=True):
    """A chain; an ordinary one has no hook (-1)."""

    kind: str
    hook: int
    priority: int
    policy: int


class SeenSet(msgspec.Struct, frozen=True):
    """A set."""

    name: str
    flags: int
    key_type: int
    key_size: int


class SeenRule(msgspec.Struct, frozen=True):
    """A rule: its handle, its userdata and its expressions as bytes."""

    handle: int
    userdata: bytes
    expressions: bytes


def read_table(buffer: bytes, start: int, end: int) -> SeenTable:
    """A NEWTABLE message."""
    found = attributes(buffer, start + 4, end)
    return SeenTable(_number(found.get(2, b"")), _number(found.get(3, b"")))


def read_chain(buffer: bytes, start: int, end: int) -> SeenChain:
    """A NEWCHAIN message."""
    found = attributes(buffer, start + 4, end)
    hook = attributes(found.get(4, b""), 0, len(found.get(4, b"")))
    priority = int.from_bytes(hook.get(2, b""), "big", signed=True)
    return SeenChain(
        word(found.get(7, b"")), _number(hook[1]) if 1 in hook else -1, priority, _number(found.get(5, b""))
    )


def read_set(buffer: bytes, start: int, end: int) -> SeenSet:
    """A NEWSET message."""
    found = attributes(buffer, start + 4, end)
    flags, kind, size = (_number(found.get(i, b"")) for i in (3, 4, 5))
    return SeenSet(word(found.get(2, b"")), flags, kind, size)


def read_rule(buffer: bytes, start: int, end: int) -> SeenRule:
    """A NEWRULE message."""
    found = attributes(buffer, start + 4, end)
    return SeenRule(_number(found.get(3, b"")), found.get(7, b""), found.get(4, b""))


def belongs_to(table: str, buffer: bytes, start: int, end: int) -> bool:
    """Whether a message is about this table, or about what is in it: attribute 1 in all kinds."""
    return buffer[start] == FAMILY_INET and attributes(buffer, start + 4, end, 1).get(1) == text(table)


def read_elements(buffer: bytes, start: int, end: int) -> tuple[str, list[tuple[bytes, bool]]]:
    """A NEWSETELEM or DELSETELEM message: the set's name, and (key, whether it is plain) of the elements."""
    found = attributes(buffer, start + 4, end)
    inner = found.get(3, b"")
    result, at = [], 0
    while at + 4 <= len(inner):
        length, _kind = _ATTRIBUTE.unpack_from(inner, at)
        if length < 4:
            break
        result.append(_read_element(inner[at : at + length]))
        at += (length + 3) & ~3
    return word(found.get(2, b"")), result


def _read_element(element: bytes) -> tuple[bytes, bool]:
    """The two common forms at once; any other one attribute by attribute."""
    heads = _HEADS.get(len(element))
    if heads is not None:
        size, start, end = heads
        if element[:12] == start:
            return element[12:] + START, True
        if element[:12] == end and element[12 + size :] == _END_FLAG:
            return element[12 : 12 + size] + END, True
    found = attributes(element, 4, len(element))
    value = found.get(1, b"")
    key = attributes(value, 0, len(value)).get(1, b"")
    flags = _number(found.get(3, b""))
    return key + (END if flags & 1 else START), not flags & ~1 and not found.keys() - {1, 3, 8}


_HEADS = {size + 12 + more: (size, *_element_heads(size)) for size in _KEY_TYPES for more in (0, 8)}


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


# -------------------------------------------------------------------------------------------------- expressions


class Lookup(msgspec.Struct, frozen=True):
    """`ip saddr @pods4`, or with `inside` False `ip saddr != @pods4`."""

    name: str
    inside: bool


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, attribute(1, text(name)) + attribute(2, b"".join(parts)))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", attribute(1, be32(1)), attribute(2, be32(operation)), attribute(3, attribute(1, value)))


def _load(key: int) -> bytes:
    return _expression("meta", attribute(2, be32(key)), attribute(1, be32(1)))


def of_family(size: int) -> bytes:
    """`meta nfproto ipv4`, or ipv6."""
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    return _load(15) + _compare(0, bytes([family]))


def address_in(size: int, destination: bool, lookup: Lookup) -> bytes:
    """`ip saddr @set` and its like."""
    offset = {4: (12, 16), 16: (8, 24)}[size][destination]
    fields = (1, 1, offset, size)  # register, network header, offset, bytes
    payload = _expression("payload", *[attribute(i, be32(value)) for i, value in enumerate(fields, 1)])
    parts = [attribute(1, text(lookup.name)), attribute(2, be32(1)), attribute(5, be32(0 if lookup.inside else 1))]
    return payload + _expression("lookup", *parts)


def not_out_of(device_prefix: str) -> bytes:
    """`oifname != "prefix*"`."""
    return _load(7) + _compare(1, device_prefix.encode())


def masquerade() -> bytes:
    """`masquerade fully-random`: without it, two connections that start at once may be given the same port."""
    return _expression("masq", attribute(1, be32(1 << 4)))
