"""What one node drops, as the kernel's tries take it: the whole desired content, as packed bytes.

A key is `struct bpf_lpm_trie_key` of <linux/bpf.h>: the prefix length as u32, then the address in network order. The
u32 is written little-endian, as are the values: all machines that Netloom runs on are.
"""

import struct
from dataclasses import dataclass
from typing import Final

from netloom.cidr import Version

ALLOW: Final = 1 << 31
"""Bit of a value: an exception. A packet whose most specific entry has it passes."""

SLOT: Final = 0xFFFF
"""Mask of a value: the slot of the prefilter that the entry is counted for."""

VALUE_SIZE: Final = 4
LENGTH_SIZE: Final = 4
"""Bytes of a value, and of the prefix length before a key's address."""
KEY_SIZES: Final[dict[Version, int]] = {4: LENGTH_SIZE + 4, 6: LENGTH_SIZE + 16}
"""Bytes of a key."""

_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Entries:
    """Of one family. keys: LENGTH_SIZE + 4 (IPv4) or + 16 (IPv6) bytes each, host bits zero, sorted by (address, prefix
    length), none twice. values: VALUE_SIZE bytes each, in the order of the keys."""

    keys: bytes = b""
    values: bytes = b""

    def __len__(self) -> int:
        """How many entries."""
        return len(self.values) // VALUE_SIZE


@dataclass(frozen=True, slots=True)
class Rules:
    """What a node drops. The most specific entry decides; without one, or with one that has ALLOW, a packet passes.

    names: of the prefilters, by slot; "" where a slot is free. A prefilter keeps its slot while the node has it, so
    that what the kernel counts by slot keeps its meaning.
    """

    v4: Entries = Entries()
    v6: Entries = Entries()
    names: tuple[str, ...] = ()


def key(address: bytes, length: int) -> bytes:
    """The key of a CIDR whose host bits are zero."""
    return _U32.pack(length) + address


def value(slot: int, *, allow: bool = False) -> bytes:
    """The value of an entry."""
    return _U32.pack(slot | (ALLOW if allow else 0))
