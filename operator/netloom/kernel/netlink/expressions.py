"""Expressions of nf_tables rules for packets that carry others: raw bytes, masks, concatenated keys, verdicts.

Attributes stand in the order and form in which the kernel writes them back (nf_tables_fill_expr_info, no NLA_F_NESTED),
so that a dumped rule can be compared byte by byte. By hand, as pyroute2's classes know some of these in part (`fib`,
`objref`), and others not at all (`dynset`). Numbers are from linux/netfilter/nf_tables.h.
"""

import socket
import sys

from netloom.kernel.netlink.wire import attribute

UDP = socket.IPPROTO_UDP
ACCEPT, DROP = 1, 0
_GOTO = 0xFFFF_FFFC
"""NF_ACCEPT, NF_DROP, NFT_GOTO."""

UNICAST = 1
"""RTN_UNICAST: the packet is on its way to another machine."""

_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK, _TRANSPORT = 1, 2
_EQUAL, _NOT_EQUAL = 0, 1
_ADDRESS_TYPE, _OF_DESTINATION = 3, 1 << 1
_COUNTER = 1
_ADD = 0

_FIRST = 1
"""NFT_REG_1, of 16 bytes: where values are loaded to that are not a part of a key."""


def _register(at: int) -> int:
    """That which begins `at` bytes into the first. One at a boundary of 16 bytes goes by its 16-byte name."""
    return _FIRST + at // 16 if at % 16 == 0 else 8 + at // 4


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _expression(name: str, *attributes: bytes) -> bytes:
    data = attribute(2, b"".join(attributes)) if attributes else b""
    return attribute(1, _text(1, name) + data)


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _FIRST), _number(2, _EQUAL), attribute(3, attribute(1, value)))


def _differs(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _FIRST), _number(2, _NOT_EQUAL), attribute(3, attribute(1, value)))


def _load(base: int, offset: int, length: int, at: int = 0) -> bytes:
    where = _number(1, _register(at)), _number(2, base), _number(3, offset), _number(4, length)
    return _expression("payload", *where)


def _mask(mask: bytes, at: int = 0) -> bytes:
    register, nothing = _register(at), attribute(5, attribute(1, bytes(len(mask))))
    values = attribute(4, attribute(1, mask)), nothing
    return _expression(
        "bitwise", _number(1, register), _number(2, register), _number(3, len(mask)), _number(6, 0), *values
    )


def of_family(size: int) -> bytes:
    """`meta nfproto ipv4`, or ipv6, by the bytes of an address."""
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    return _expression("meta", _number(2, _META_NFPROTO), _number(1, _FIRST)) + _equals(bytes([family]))


def to_port(port: int) -> bytes:
    """`@th,16,16 PORT`: of UDP, or another protocol. The kernel does this in place, and has to call for `l4proto`."""
    return _load(_TRANSPORT, 2, 2) + _equals(port.to_bytes(2, "big"))


def is_udp(*, other: bool = False) -> bytes:
    """`meta l4proto udp`, `!=` for any `other`."""
    compare = _differs if other else _equals
    return _expression("meta", _number(2, _META_L4PROTO), _number(1, _FIRST)) + compare(bytes([UDP]))


def is_plain_udp4() -> bytes:
    """`@nh,0,8 0x45 @nh,72,8 17`: UDP over IPv4 without options, also in place."""
    return _load(_NETWORK, 0, 1) + _equals(b"\x45") + _load(_NETWORK, 9, 1) + _equals(bytes([UDP]))


def payload_is(offset: int, value: bytes, mask: bytes = b"", *, other: bool = False) -> bytes:
    """`@th,OFFSET,LENGTH & MASK == VALUE`, `!=` for any `other`; offset in bytes from the UDP header."""
    compare = _differs if other else _equals
    return _load(_TRANSPORT, offset, len(value)) + (_mask(mask) if mask else b"") + compare(value)


def source_in(name: str) -> bytes:
    """`ip saddr @SET`."""
    return _load(_NETWORK, 12, 4) + _lookup(name)


def source_and_payload_in(offset: int, mask: bytes, name: str) -> bytes:
    """`ip saddr . @th,OFFSET,LENGTH & MASK @SET`, for a payload of the mask's length."""
    return _load(_NETWORK, 12, 4) + _load(_TRANSPORT, offset, len(mask), at=4) + _mask(mask, at=4) + _lookup(name)


def payload_in(offset: int, mask: bytes, name: str) -> bytes:
    """`@th,OFFSET,LENGTH & MASK @SET`."""
    return _load(_TRANSPORT, offset, len(mask)) + _mask(mask) + _lookup(name)


def _lookup(name: str) -> bytes:
    return _expression("lookup", _text(1, name), _number(2, _FIRST), _number(5, 0))


def on_its_way() -> bytes:
    """`fib daddr type unicast`: to another machine, and not to this one, nor to all or some that listen."""
    fib = _expression("fib", _number(1, _FIRST), _number(2, _ADDRESS_TYPE), _number(3, _OF_DESTINATION))
    return fib + _equals(UNICAST.to_bytes(4, sys.byteorder))


def remember_source(size: int, name: str) -> bytes:
    """`add @SET { ip saddr }`, or `ip6 saddr`. Where the set is full, the rule ends here."""
    load = _load(_NETWORK, {4: 12, 16: 8}[size], size)
    set_own = attribute(6, bytes(8)), _number(9, 0)
    return load + _expression("dynset", _number(4, _FIRST), _number(3, _ADD), _text(1, name), *set_own)


def count(name: str) -> bytes:
    """`counter name NAME`."""
    return _expression("objref", _text(2, name), _number(1, _COUNTER))


def untracked() -> bytes:
    """`notrack`: the packet has no entry in the table of connections."""
    return _expression("notrack")


def verdict(code: int) -> bytes:
    """`accept`, `drop`."""
    return _verdict(_number(1, code))


def go_to(chain: str) -> bytes:
    """`goto CHAIN`."""
    return _verdict(_number(1, _GOTO) + _text(2, chain))


def _verdict(attributes: bytes) -> bytes:
    return _expression("immediate", _number(1, 0), attribute(2, attribute(2, attributes)))
