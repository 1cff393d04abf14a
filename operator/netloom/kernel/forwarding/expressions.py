"""What nftables' rules ask and do, read off their expressions: the few that say which packets a forward filter takes.

A rule is a small program: values are loaded into registers, masked, compared. What is not known here (a port, a mark, a
limit, a match of xtables) is a condition that may hold. Numbers are from linux/netfilter/nf_tables.h. By hand, because
a filter may have thousands of rules and pyroute2's classes take half a millisecond for each: 19 times as long (`make
bench-codec`).
"""

import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence

import msgspec

from netloom.kernel.forwarding.packets import NAME_SIZE, UNKNOWN, FilterRule, Range, RuleCondition, Verdict, name_range
from netloom.kernel.netlink.wire import ATTRIBUTE, attributes, text

Element = tuple[bytes, bytes, bool]
"""Of a set: the key, what it leads to (a verdict, as in a rule; b"" in a plain set), and whether an interval ends
before this key."""

Elements = Callable[[str], Sequence[Element] | None]
"""The elements of a set by its name; None: they are not looked at."""

_VERDICTS: dict[int, Verdict] = {0: "drop", 1: "accept", -1: "", -2: "", -3: "jump", -4: "goto", -5: "return"}
"""NF_DROP, NF_ACCEPT, NFT_*."""

_NETWORK_HEADER = 1
_LESS_OR_EQUAL, _MORE_OR_EQUAL = 3, 5
"""NFT_CMP_*; equal is 0, another 1."""
_ADDRESSES = {12: ("ip saddr", 4), 16: ("ip daddr", 4), 8: ("ip6 saddr", 16), 24: ("ip6 daddr", 16)}
"""By their place in the header. A part of it that begins elsewhere is something else."""

_META = {
    15: ("nfproto", 1),
    1: ("protocol", 2),
    4: ("iif", 4),
    5: ("oif", 4),
    6: ("iif", NAME_SIZE),
    7: ("oif", NAME_SIZE),
}
"""NFT_META_*: the field, and the bytes of its value; a device by its number, and by its name."""

_CT = {0: "state", 2: "status"}
_BITS = ("state", "status")
_INNOCENT = {"counter", "log", "notrack", "objref", "flow_offload", "last", "dup"}
"""They ask nothing, and the packet goes on."""
_PASSING_TARGETS = {"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "DSCP", "TOS", "TTL", "HL", "CT", "NOTRACK", "AUDIT"}
"""Targets of xtables after which the packet goes on; so do CHECKSUM, CLASSIFY and SECMARK, which nobody has here."""

_CONNTRACK_STATE = 1 << 0
_CONNTRACK_FLAGS = struct.Struct("=HHHH")
"""Of struct xt_conntrack_mtinfo1 to 3, from byte 146: match_flags, invert_flags, state_mask, status_mask."""


class Loaded(msgspec.Struct, frozen=True):
    """What is in a register: a field, or its first `size` bytes; mask: what was left of it, b"" for all."""

    field: str
    size: int
    whole: int
    mask: bytes = b""


def rules_of(handle: int, expressions: bytes, elements: Elements) -> list[FilterRule]:
    """What a rule means. One that looks a verdict up in a map is as many rules as the map has entries."""
    return _Reader(elements).read(handle, expressions)


class _Reader:
    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._registers: dict[int, Loaded] = {}
        self._conditions: list[RuleCondition] = []
        self._map: list[tuple[tuple[Range, ...], bytes]] | None = None
        self._mapped = RuleCondition(UNKNOWN)
        self._verdict: tuple[Verdict, str] = ("", "")

    def read(self, handle: int, expressions: bytes) -> list[FilterRule]:
        for name, data in _expressions(expressions):
            read = _READERS.get(name)
            if read is not None:
                read(self, attributes(data, 0, len(data)))
            elif name not in _INNOCENT:
                self._conditions.append(RuleCondition(UNKNOWN))
                self._registers.clear()  # it may have loaded one
        conditions = tuple(self._conditions)
        if self._map is None:
            return [FilterRule(conditions, *self._verdict, handle=handle)]
        return [
            FilterRule(
                (*conditions, msgspec.structs.replace(self._mapped, ranges=ranges)), *_verdict(data), handle=handle
            )
            for ranges, data in self._map
        ]

    # Expressions that load.

    def _load(self, register: bytes | None, loaded: Loaded | None) -> None:
        if register is not None:
            self._registers[_register(register)] = loaded or Loaded("", 0, 0)

    def _payload(self, found: dict[int, bytes]) -> None:
        base, offset, size = (_number(found.get(kind, b"")) for kind in (2, 3, 4))
        field, whole = _ADDRESSES.get(offset, ("", 0)) if base == _NETWORK_HEADER else ("", 0)
        fits = size <= whole and (offset != 8 or size > 1)
        self._load(found.get(1), Loaded(field, size, whole) if fits else None)

    def _meta(self, found: dict[int, bytes]) -> None:
        field, size = _META.get(_number(found.get(2, b"")), ("", 0))
        self._load(found.get(1), Loaded(field, size, size) if field else None)

    def _ct(self, found: dict[int, bytes]) -> None:
        field = _CT.get(_number(found.get(2, b"")), "")
        self._load(found.get(1), Loaded(field, 4, 4) if field else None)

    def _bitwise(self, found: dict[int, bytes]) -> None:
        loaded, mask = self._register(found.get(1)), _value(found.get(4, b""))
        plain = mask and not any(_value(found.get(5, b""))) and not _number(found.get(6, b""))
        fits = loaded is not None and plain and not loaded.mask and len(mask) == loaded.size
        self._load(found.get(2), msgspec.structs.replace(loaded, mask=mask) if fits and loaded else None)

    def _register(self, register: bytes | None) -> Loaded | None:
        loaded = self._registers.get(_register(register)) if register is not None else None
        return loaded if loaded is not None and loaded.field else None

    # Expressions that ask.

    def _cmp(self, found: dict[int, bytes]) -> None:
        operation, value = _number(found.get(2, b"")), _value(found.get(3, b""))
        if operation in (_LESS_OR_EQUAL, _MORE_OR_EQUAL):
            less = operation == _LESS_OR_EQUAL
            ends = (bytes(len(value)), value) if less else (value, b"\xff" * len(value))
            self._between(found.get(1), *ends, inverted=False)
            return
        loaded = self._register(found.get(1))
        condition = _compared(loaded, value, inverted=operation == 1) if loaded and operation in (0, 1) else None
        self._conditions.append(condition or RuleCondition(UNKNOWN))

    def _range(self, found: dict[int, bytes]) -> None:
        first, last = (_value(found.get(kind, b"")) for kind in (3, 4))
        self._between(found.get(1), first, last, inverted=_number(found.get(2, b"")) == 1)

    def _between(self, register: bytes | None, first: bytes, last: bytes, *, inverted: bool) -> None:
        loaded = self._register(register)
        fits = loaded is not None and loaded.field.endswith("addr") and not loaded.mask and len(first) == loaded.whole
        condition = (
            RuleCondition(loaded.field, ((_number(first), _number(last)),), inverted) if loaded and fits else None
        )
        self._conditions.append(condition or RuleCondition(UNKNOWN))

    def _lookup(self, found: dict[int, bytes]) -> None:
        loaded, maps = self._register(found.get(2)), found.get(3) == bytes(4)
        if 3 in found and not maps:
            self._load(found[3], None)
            self._conditions.append(RuleCondition(UNKNOWN))
            return
        elements = self._elements(text(found.get(1, b""))) if loaded is not None or maps else None
        if loaded is None or loaded.mask or elements is None:
            self._conditions.append(RuleCondition(UNKNOWN))
            if maps:
                self._verdict = ("unknown", "")
            return
        ranges = list(_ranges(loaded, elements))
        if maps:
            self._mapped, self._map = RuleCondition(loaded.field), [((each,), data) for each, data in ranges]
        elif len(ranges) < len([1 for _key, _data, ends in elements if not ends]):
            self._conditions.append(RuleCondition(UNKNOWN))
        else:
            inverted = bool(_number(found.get(5, b"")))
            self._conditions.append(RuleCondition(loaded.field, tuple(each for each, _data in ranges), inverted))

    def _match(self, found: dict[int, bytes]) -> None:
        name, info = text(found.get(1, b"")), found.get(3, b"")
        if name == "comment":
            return
        condition = RuleCondition(UNKNOWN)
        if name == "conntrack" and len(info) > 153:
            asked, inverted, state, _status = _CONNTRACK_FLAGS.unpack_from(info, 146)
            if asked == _CONNTRACK_STATE and not state & ~0xF:
                condition = RuleCondition("state", _bits(state), bool(inverted & _CONNTRACK_STATE))
        self._conditions.append(condition)

    # Expressions that decide.

    def _immediate(self, found: dict[int, bytes]) -> None:
        register = _register(found.get(1, b"\0\0\0\0"))
        if register:
            self._registers[register] = Loaded("", 0, 0)
        else:
            self._verdict = _verdict(found.get(2, b""))

    def _reject(self, _found: dict[int, bytes]) -> None:
        self._verdict = ("drop", "")

    def _queue(self, _found: dict[int, bytes]) -> None:
        self._verdict = ("unknown", "")

    def _target(self, found: dict[int, bytes]) -> None:
        name = text(found.get(1, b""))
        if name in ("REJECT", "DROP"):
            self._verdict = ("drop", "")
        elif name not in _PASSING_TARGETS:
            self._verdict = ("unknown", "")


_READERS: dict[str, Callable[[_Reader, dict[int, bytes]], None]] = {
    "payload": _Reader._payload,
    "meta": _Reader._meta,
    "ct": _Reader._ct,
    "bitwise": _Reader._bitwise,
    "cmp": _Reader._cmp,
    "range": _Reader._range,
    "lookup": _Reader._lookup,
    "match": _Reader._match,
    "immediate": _Reader._immediate,
    "reject": _Reader._reject,
    "queue": _Reader._queue,
    "target": _Reader._target,
}


def _expressions(listed: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and data."""
    for element in _each(listed):
        found = attributes(element, 0, len(element))
        yield text(found.get(1, b"")), found.get(2, b"")


def _each(listed: bytes) -> Iterator[bytes]:
    """The values of attributes that are all of one type."""
    at = 0
    while at + 4 <= len(listed):
        length, _kind = ATTRIBUTE.unpack_from(listed, at)
        if length < 4:
            return
        yield listed[at + 4 : at + length]
        at += (length + 3) & ~3


def elements_of(listed: bytes) -> list[Element]:
    """Of a NEWSETELEM message the elements (its attribute 3)."""
    result = []
    for element in _each(listed):
        found = attributes(element, 0, len(element))
        if 1 in found:
            result.append((_value(found[1]), found.get(2, b""), bool(_number(found.get(3, b"")) & 1)))
    return result


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _register(value: bytes) -> int:
    """NFT_REG_1..4 are 1..4, of 16 bytes each, and the same as NFT_REG32_00.. (8 and on) of 4."""
    number = _number(value)
    return 8 + (number - 1) * 4 if 0 < number < 5 else number


def _value(data: bytes) -> bytes:
    """Of nested NFTA_DATA_VALUE."""
    return attributes(data, 0, len(data)).get(1, b"")


def _verdict(data: bytes) -> tuple[Verdict, str]:
    """Of nested NFTA_DATA_VERDICT, with the chain that it leads to."""
    nested = attributes(data, 0, len(data)).get(2, b"")
    found = attributes(nested, 0, len(nested))
    code = int.from_bytes(found.get(1, b""), "big", signed=True)
    return _VERDICTS.get(code, "unknown"), text(found.get(2, b""))


def _bits(mask: int) -> tuple[Range, ...]:
    return tuple((1 << bit, 1 << bit) for bit in range(32) if mask >> bit & 1)


def _compared(loaded: Loaded, value: bytes, *, inverted: bool) -> RuleCondition | None:
    """`field == value`, or with a mask; None: that it cannot be told."""
    field = loaded.field
    if field in _BITS:
        number = int.from_bytes(value, sys.byteorder)
        if not loaded.mask:
            return RuleCondition(field, ((number, number),), inverted)
        return None if number else RuleCondition(field, _bits(int.from_bytes(loaded.mask, sys.byteorder)), not inverted)
    if field in ("iif", "oif") and loaded.whole != NAME_SIZE:
        return None if loaded.mask else RuleCondition(field, (_device(value),), inverted)
    more = 8 * (loaded.whole - len(value))
    if more < 0:
        return None
    first, free = _number(value), 0
    if loaded.mask:
        free = _number(loaded.mask) ^ ((1 << 8 * len(loaded.mask)) - 1)
        if len(loaded.mask) != len(value) or free & (free + 1):
            return None  # no prefix
    return RuleCondition(field, ((first << more, ((first | free) + 1 << more) - 1),), inverted)


def _device(value: bytes) -> Range:
    """By its number; one that is not there has no packets."""
    try:
        return name_range(socket.if_indextoname(int.from_bytes(value, sys.byteorder)))
    except (OSError, OverflowError):
        return name_range("")


def _ranges(loaded: Loaded, elements: Sequence[Element]) -> Iterator[tuple[Range, bytes]]:
    """What each element takes of the field, and what it leads to; without those of another size (concatenations)."""
    intervals = any(ends for _key, _data, ends in elements)
    behind = 1 << 8 * loaded.whole
    for key, data, ends in sorted(elements, key=lambda element: (element[0], element[2]), reverse=True):
        if ends:
            behind = _number(key)
        elif len(key) == loaded.size == loaded.whole and (condition := _compared(loaded, key, inverted=False)):
            first, last = condition.ranges[0]
            yield (first, behind - 1 if intervals else last), data
            behind = first
