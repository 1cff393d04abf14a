"""Messages of nf_tables: the few that one table with interval sets, a chain and rules takes.

Encoded and decoded by pyroute2's classes, which write attributes in the order and form in which the kernel writes them
back (no NLA_F_NESTED, registers by their 16-byte names), so a dumped rule can be compared byte by byte. By hand is what
there are 10,000 of, the sets' elements: those of a CIDR take 1.3 us to encode and 2.6 to decode, pyroute2's class 145
and 90 (`make bench-codec`), and it loses the flag that marks the end of an interval.

Numbers are from linux/netfilter/{nf_tables,nfnetlink}.h.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec

from netloom.kernel.netlink.messages import decode, encode, nftsocket
from netloom.kernel.netlink.wire import (
    APPEND,
    ATTRIBUTE,
    CREATE,
    HEADER,
    HEADER_SIZE,
    REQUEST,
    attribute,
    attributes,
    text,
)

S = TypeVar("S")

SUBSYSTEM = 10 << 8
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWOBJECT, GETOBJECT, DELOBJECT = 18, 19, 20

_OBJECTS = ("table", "chain", "rule", "set", "setelem")
NAMES = {3 * i + change: verb + name for i, name in enumerate(_OBJECTS) for change, verb in ((0, "new"), (2, "del"))}
NAMES |= {NEWOBJECT: "newobj", DELOBJECT: "delobj"}
"""Requests that change the kernel, by the low byte of their type, as metrics and tests name them."""

FAMILY_INET = 1
INTERVAL, TIMEOUT, DYNAMIC = 4, 0x10, 0x20
"""NFT_SET_INTERVAL; NFT_SET_TIMEOUT: elements go by themselves; NFT_SET_EVAL: rules add some."""

COUNTER = 1
"""NFT_OBJECT_COUNTER."""

KEY_TYPES = {4: nftsocket.DATA_TYPE_IPADDR, 16: nftsocket.DATA_TYPE_IP6ADDR}
"""What `nft` calls ipv4_addr and ipv6_addr, by bytes."""

PAIR_TYPES = {4 + size: KEY_TYPES[4] << 6 | kind for size, kind in KEY_TYPES.items()}
"""`ipv4_addr . ipv4_addr` and `ipv4_addr . ipv6_addr`, by bytes."""

START, END = b"\1", b"\0"
"""Last byte of an element's key, behind its address: whether an interval starts or ends there. END sorts first: where
one ends and the next begins, both are at the same address."""


def as_kinds(layout: Any, **kinds: str) -> tuple[tuple[str, str], ...]:
    """The attributes of a class of pyroute2's, some of them of other kinds: for the `nla_map` of an heir."""
    return tuple((name, kinds.get(name, kind)) for name, kind in layout.nla_map)


class _Set(nftsocket.nft_set_msg):  # type: ignore[misc]
    """Flags as a number: pyroute2 passes over those it does not know."""

    nla_map = as_kinds(nftsocket.nft_set_msg, NFTA_SET_FLAGS="be32")


class _Rule(nftsocket.nft_rule_msg):  # type: ignore[misc]
    """Expressions and comment as bytes, to be compared."""

    nla_map = as_kinds(nftsocket.nft_rule_msg, NFTA_RULE_EXPRESSIONS="cdata", NFTA_RULE_USERDATA="cdata")


class _Object(nftsocket.nfgen_msg):  # type: ignore[misc]
    """A named counter."""

    prefix = "NFTA_OBJ_"
    nla_map = (
        ("NFTA_OBJ_UNSPEC", "none"),
        ("NFTA_OBJ_TABLE", "asciiz"),
        ("NFTA_OBJ_NAME", "asciiz"),
        ("NFTA_OBJ_TYPE", "be32"),
        ("NFTA_OBJ_DATA", "counter"),
    )

    class counter(nftsocket.nla):  # type: ignore[misc]
        nla_map = (("NFTA_COUNTER_UNSPEC", "none"), ("NFTA_COUNTER_BYTES", "be64"), ("NFTA_COUNTER_PACKETS", "be64"))


_Table, _Chain, _Elements = nftsocket.nft_table_msg, nftsocket.nft_chain_msg, nftsocket.nft_set_elem_list_msg
_LAYOUTS = (_Table, _Chain, _Rule, _Set, _Elements, None, _Object)
"""Each of three kinds of message: new, get, delete."""


def request(kind: int, family: int = FAMILY_INET, /, **attributes: Any) -> bytes:
    """A request; attributes go by their names without the prefix of all. What is new is created, a rule behind those
    that are there, or before the one whose handle is its `position`."""
    flags = 0 if kind % 3 else CREATE if kind != NEWRULE or "position" in attributes else CREATE | APPEND
    return encode(_LAYOUTS[kind // 3], SUBSYSTEM | kind, flags, {"nfgen_family": family}, **attributes)


def comment(value: str) -> bytes:
    """Userdata that `nft` prints as a rule's comment (libnftnl's NFTNL_UDATA_RULE_COMMENT, type 0)."""
    data = value.encode() + b"\0"
    return bytes([0, len(data)]) + data


# ------------------------------------------------------------------------------------------------------ reading


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


def _reader(layout: Any, seen: Callable[..., S], *attributes: tuple[Any, Any]) -> Callable[[bytes, int, int], S]:
    """attributes: name, or path of names, and what stands for one that is missing, for each field of what is seen."""

    def read(buffer: bytes, start: int, end: int) -> S:
        found = decode(layout, buffer, start)
        return seen(*[found.get(name, missing) for name, missing in attributes])

    return read


read_table = _reader(_Table, SeenTable, ("flags", 0), ("use", 0))
read_chain = _reader(
    _Chain,
    SeenChain,
    ("type", ""),
    (("hook", "NFTA_HOOK_HOOKNUM"), -1),
    (("hook", "NFTA_HOOK_PRIORITY"), 0),
    ("policy", 0),
)
read_set = _reader(_Set, SeenSet, ("name", ""), ("flags", 0), ("key_type", 0), ("key_len", 0))
read_rule = _reader(_Rule, SeenRule, ("handle", 0), ("userdata", b""), ("expressions", b""))
"""Of NEWTABLE, NEWCHAIN, NEWSET and NEWRULE messages."""

read_counter = _reader(_Object, int, (("data", "NFTA_COUNTER_PACKETS"), 0))
"""Packets; of a NEWOBJECT message."""


# ---------------------------------------------------------------------------------------------------- elements


class ElementMessages:
    """Requests that add to, or delete from, one set: 1.5 us each, for there may be 10,000."""

    def __init__(self, table: str, name: str, size: int) -> None:
        self._where = request(NEWSETELEM, table=table, set=name)[HEADER_SIZE:]
        self._start, self._end = _element_heads(size)

    def encode(self, kind: int, keys: Iterable[bytes]) -> bytes:
        """NEWSETELEM or DELSETELEM for these elements of a set of intervals."""
        return self._request(
            kind,
            b"".join(
                [self._start + key[:-1] if key[-1:] == START else self._end + key[:-1] + _END_FLAG for key in keys]
            ),
        )

    def encode_plain(self, kind: int, keys: Sequence[bytes]) -> bytes:
        """The same of a set that is looked up by hashing: its elements have no ends. 0.05 us each."""
        return self._request(kind, self._start.join([b"", *keys]))

    def _request(self, kind: int, elements: bytes) -> bytes:
        length = HEADER_SIZE + len(self._where) + 4 + len(elements)
        flags = REQUEST | (CREATE if kind == NEWSETELEM else 0)
        header = HEADER.pack(length, SUBSYSTEM | kind, flags, 0, 0)
        return header + self._where + ATTRIBUTE.pack(4 + len(elements), 3) + elements


_END_FLAG = ATTRIBUTE.pack(8, 3) + (1).to_bytes(4, "big")


def _element_heads(size: int) -> tuple[bytes, bytes]:
    """What is before the address in a start element, and in an end element."""
    key = ATTRIBUTE.pack(size + 8, 1) + ATTRIBUTE.pack(size + 4, 1)
    return ATTRIBUTE.pack(size + 12, 1) + key, ATTRIBUTE.pack(size + 20, 1) + key


def belongs_to(table: str, buffer: bytes, start: int, end: int) -> bool:
    """Whether a message is about this table, or about what is in it: attribute 1 in all kinds, and the first."""
    if buffer[start] != FAMILY_INET:
        return False
    at, name = start + 4, _name_attribute(table)
    if buffer.startswith(name, at):
        return True
    kind = ATTRIBUTE.unpack_from(buffer, at)[1] if end >= at + 4 else 1
    return kind != 1 and attributes(buffer, at, end, 1).get(1) == name[4 : 5 + len(table)]


@cache
def _name_attribute(table: str) -> bytes:
    return attribute(1, table.encode() + b"\0")


def read_elements(buffer: bytes, start: int, end: int) -> tuple[str, list[tuple[bytes, bool]]]:
    """A NEWSETELEM or DELSETELEM message: the set's name, and (key, whether it is plain) of the elements."""
    found = attributes(buffer, start + 4, end)
    inner = found.get(3, b"")
    result, at = [], 0
    while at + 4 <= len(inner):
        length, _kind = ATTRIBUTE.unpack_from(inner, at)
        if length < 4:
            break
        result.append(_read_element(inner[at : at + length]))
        at += (length + 3) & ~3
    return text(found.get(2, b"")), result


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
    flags = int.from_bytes(found.get(3, b""), "big")
    return key + (END if flags & 1 else START), not flags & ~1 and not found.keys() - {1, 3, 8}


_HEADS = {size + 12 + more: (size, *_element_heads(size)) for size in KEY_TYPES for more in (0, 8)}
_HEADS |= {size + 12: (size, *_element_heads(size)) for size in PAIR_TYPES}
