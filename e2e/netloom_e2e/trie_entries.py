"""Entries of a prefilter's tries as the kernel has them, byte by byte (`netloom.prefilter.rules` says how)."""

import struct

from netloom.prefilter.rules import ALLOW

_U32 = struct.Struct("<I")


def key(address: bytes, length: int) -> bytes:
    """Of a CIDR whose host bits are zero."""
    return _U32.pack(length) + address


def value(slot: int, *, allow: bool = False) -> bytes:
    """Of an entry."""
    return _U32.pack(slot | (ALLOW if allow else 0))
