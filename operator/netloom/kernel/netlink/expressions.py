"""Expressions of nf_tables' rules: raw bytes, masks, concatenated keys, verdicts.

By pyroute2's classes: a table has some dozens, most of them several times, and each is made once. Attributes stand in
the order and form in which the kernel writes them back (nf_tables_fill_expr_info, no NLA_F_NESTED, registers by their
16-byte names), so that a dumped rule can be compared byte by byte. Numbers are from linux/netfilter/nf_tables.h.
"""

import socket
import sys
from functools import cache
from typing import Any

from netloom.kernel.netlink.messages import encode, nested, nftsocket
from netloom.kernel.netlink.nftables import as_kinds
from netloom.kernel.netlink.wire import ATTRIBUTE, FAMILIES, HEADER_SIZE, RTN_UNICAST

UDP = socket.IPPROTO_UDP
DROP, ACCEPT, JUMP, GOTO = 0, 1, -3, -4
"""NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_GOTO."""

_META_L4PROTO = 16
_NETWORK, _TRANSPORT = 1, 2
_EQUAL, _NOT_EQUAL = nftsocket.Cmp.NFT_CMP_EQ, nftsocket.Cmp.NFT_CMP_NEQ
_ADDRESS_TYPE, _OF_DESTINATION = 3, 1 << 1
_COUNTER = 1
_ADD = 0

_FIRST = nftsocket.Regs.NFT_REG_1
"""Of 16 bytes: where values are loaded to that are not a part of a key."""

_Known = nftsocket.nft_contains_expr.nft_expr


class _Expressions(nftsocket.nfgen_msg):  # type: ignore[misc]
    prefix = ""
    nla_map = (("UNSPEC", "none"), ("EXPRESSIONS", "*nft_expr"))

    class nft_expr(_Known):  # type: ignore[misc,valid-type]
        class nft_fib(_Known.nft_fib):  # type: ignore[misc,name-defined]
            """What is asked for as a number: pyroute2 takes it for flags."""

            nla_map = as_kinds(_Known.nft_fib, NFTA_FIB_RESULT="be32")


def _expression(name: str, **parts: Any) -> bytes:
    """As the kernel holds it."""
    data = {"NFTA_EXPR_DATA": nested(**parts)} if parts else {}
    whole = encode(_Expressions, 0, 0, {}, expressions=[nested(NFTA_EXPR_NAME=name, **data)])
    return whole[HEADER_SIZE + 4 + ATTRIBUTE.size :]


def _register(at: int) -> int:
    """That which begins `at` bytes into the first. One at a boundary of 16 bytes goes by its 16-byte name."""
    return int(_FIRST + at // 16 if at % 16 == 0 else nftsocket.Regs.NFT_REG32_00 + at // 4)


@cache
def _compare(value: bytes, *, other: bool = False) -> bytes:
    operation, data = _NOT_EQUAL if other else _EQUAL, nested(NFTA_DATA_VALUE=value)
    return _expression("cmp", NFTA_CMP_SREG=_FIRST, NFTA_CMP_OP=operation, NFTA_CMP_DATA=data)


@cache
def _meta(key: int) -> bytes:
    return _expression("meta", NFTA_META_KEY=key, NFTA_META_DREG=_FIRST)


@cache
def _load(base: int, offset: int, length: int, at: int = 0) -> bytes:
    where = {"NFTA_PAYLOAD_BASE": base, "NFTA_PAYLOAD_OFFSET": offset, "NFTA_PAYLOAD_LEN": length}
    return _expression("payload", NFTA_PAYLOAD_DREG=_register(at), **where)


def _load_address(size: int, *, destination: bool = False) -> bytes:
    return _load(_NETWORK, {4: (12, 16), 16: (8, 24)}[size][destination], size)


@cache
def _mask(mask: bytes, at: int = 0) -> bytes:
    registers = {"NFTA_BITWISE_SREG": _register(at), "NFTA_BITWISE_DREG": _register(at)}
    operands = {
        "NFTA_BITWISE_MASK": nested(NFTA_DATA_VALUE=mask),
        "NFTA_BITWISE_XOR": nested(NFTA_DATA_VALUE=bytes(len(mask))),
    }
    return _expression("bitwise", **registers, NFTA_BITWISE_LEN=len(mask), NFTA_BITWISE_OP=0, **operands)


@cache
def _lookup(name: str, *, inside: bool = True) -> bytes:
    flags = () if inside else ("NFT_LOOKUP_F_INV",)
    return _expression("lookup", NFTA_LOOKUP_SET=name, NFTA_LOOKUP_SREG=_FIRST, NFTA_LOOKUP_FLAGS=flags)


def netmask(size: int, length: int) -> bytes:
    """Of a prefix length, for an address of so many bytes."""
    return ((1 << length) - 1 << 8 * size - length).to_bytes(size, "big")


def of_family(size: int) -> bytes:
    """`meta nfproto ipv4`, or ipv6, by the bytes of an address."""
    return _meta(nftsocket.Meta.NFT_META_NFPROTO) + _compare(bytes([FAMILIES[size]]))


def to_port(port: int) -> bytes:
    """`@th,16,16 PORT`: of UDP, or another protocol. The kernel does this in place, and has to call for `l4proto`."""
    return _load(_TRANSPORT, 2, 2) + _compare(port.to_bytes(2, "big"))


def is_udp(*, other: bool = False) -> bytes:
    """`meta l4proto udp`, `!=` for any `other`."""
    return _meta(_META_L4PROTO) + _compare(bytes([UDP]), other=other)


def is_plain_udp4() -> bytes:
    """`@nh,0,8 0x45 @nh,72,8 17`: UDP over IPv4 without options, also in place."""
    return _load(_NETWORK, 0, 1) + _compare(b"\x45") + _load(_NETWORK, 9, 1) + _compare(bytes([UDP]))


def payload_is(offset: int, value: bytes, mask: bytes = b"", *, other: bool = False) -> bytes:
    """`@th,OFFSET,LENGTH & MASK == VALUE`, `!=` for any `other`; offset in bytes from the UDP header."""
    return _load(_TRANSPORT, offset, len(value)) + (_mask(mask) if mask else b"") + _compare(value, other=other)


def address_in(size: int, name: str, *, destination: bool = False, inside: bool = True) -> bytes:
    """`ip saddr @set` and its like: `ip daddr`, or with `inside` False `ip saddr != @set`."""
    return _load_address(size, destination=destination) + _lookup(name, inside=inside)


def address_within(base: bytes, length: int, *, destination: bool = False) -> bytes:
    """`ip saddr CIDR`, or `ip daddr`; in a table of the address's family."""
    size = len(base)
    masked = _mask(netmask(size, length)) if length < 8 * size else b""
    return _load_address(size, destination=destination) + masked + _compare(base)


def source_and_payload_in(offset: int, mask: bytes, name: str) -> bytes:
    """`ip saddr . @th,OFFSET,LENGTH & MASK @SET`, for a payload of the mask's length."""
    return _load_address(4) + _load(_TRANSPORT, offset, len(mask), at=4) + _mask(mask, at=4) + _lookup(name)


def payload_in(offset: int, mask: bytes, name: str) -> bytes:
    """`@th,OFFSET,LENGTH & MASK @SET`."""
    return _load(_TRANSPORT, offset, len(mask)) + _mask(mask) + _lookup(name)


def not_out_of(device_prefix: str) -> bytes:
    """`oifname != "prefix*"`."""
    return _meta(nftsocket.Meta.NFT_META_OIFNAME) + _compare(device_prefix.encode(), other=True)


def on_its_way() -> bytes:
    """`fib daddr type unicast`: to another machine, and not to this one, nor to all or some that listen."""
    what = {"NFTA_FIB_RESULT": _ADDRESS_TYPE, "NFTA_FIB_FLAGS": _OF_DESTINATION}
    return _expression("fib", NFTA_FIB_DREG=_FIRST, **what) + _compare(RTN_UNICAST.to_bytes(4, sys.byteorder))


def remember_source(size: int, name: str) -> bytes:
    """`add @SET { ip saddr }`, or `ip6 saddr`. Where the set is full, the rule ends here."""
    added = {"NFTA_DYNSET_SREG_KEY": _FIRST, "NFTA_DYNSET_OP": _ADD, "NFTA_DYNSET_SET_NAME": name}
    return _load_address(size) + _expression("dynset", **added, NFTA_DYNSET_TIMEOUT=0, NFTA_DYNSET_FLAGS=())


def counter() -> bytes:
    """`counter`."""
    return _expression("counter", NFTA_COUNTER_BYTES=0, NFTA_COUNTER_PACKETS=0)


def count(name: str) -> bytes:
    """`counter name NAME`."""
    return _expression("objref", NFTA_OBJREF_IMM_NAME=name, NFTA_OBJREF_IMM_TYPE=_COUNTER)


@cache
def untracked() -> bytes:
    """`notrack`: the packet has no entry in the table of connections."""
    return _expression("notrack")


def masquerade() -> bytes:
    """`masquerade fully-random`: without it, two connections that start at once may be given the same port."""
    return _expression("masq", NFTA_MASQ_FLAGS=("NF_NAT_RANGE_PROTO_RANDOM_FULLY",))


@cache
def verdict(code: int, chain: str = "") -> bytes:
    """`accept`, `drop`, or `jump CHAIN`, `goto CHAIN`."""
    said = {"NFTA_VERDICT_CODE": code, **({"NFTA_VERDICT_CHAIN": chain} if chain else {})}
    data = nested(NFTA_DATA_VERDICT=nested(**said))
    register = nftsocket.Regs.NFT_REG_VERDICT
    return _expression("immediate", NFTA_IMMEDIATE_DREG=register, NFTA_IMMEDIATE_DATA=data)
