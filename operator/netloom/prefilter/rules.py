"""What one node drops: the whole desired content of the kernel's tries, in half of the bytes that these take.

The kernel's own form of an entry is a key and a value. A key is `struct bpf_lpm_trie_key` of <linux/bpf.h>: the prefix
length as u32, then the address in network order. A value is a u32. Both u32 are little-endian: all machines that
Netloom runs on are. Of a million entries that is 12 MB, of which 5 are always zero. So they are kept without these
(`Entries`), and the kernel's form is made of some thousands at a time.
"""

from dataclasses import dataclass, field
from typing import Final

from netloom.cidr import Version
from netloom.prefilter.records import SIZES

ALLOW: Final = 1 << 31
"""Bit of a value: an exception. A packet whose most specific entry has it passes."""

SLOT: Final = 0xFFFF
"""Mask of a value: the slot of the prefilter that the entry is counted for. There are 256 (`slots.MOST`)."""

VALUE_SIZE: Final = 4
LENGTH_SIZE: Final = 4
"""Bytes of a value, and of the prefix length before a key's address."""

MARK_SIZE: Final = 2
"""Bytes of an entry after its record: the first and the last of its value, so its slot, and whether it is of ALLOW. The
others are zero."""
ENTRY_SIZES: Final[dict[Version, int]] = {version: size + MARK_SIZE for version, size in SIZES.items()}
"""Bytes of an entry."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Of one family. packed: `size` bytes each: a record (`records`) and its mark; sorted by address and prefix length,
    none twice."""

    packed: bytes = b""
    size: int = field(default=ENTRY_SIZES[4], compare=False)

    def __len__(self) -> int:
        """How many entries."""
        return len(self.packed) // self.size

    def piece(self, start: int, end: int) -> "Entries":
        """From one place on, before another."""
        return Entries(self.packed[start * self.size : end * self.size], self.size)

    def record(self, at: int) -> bytes:
        """Of the entry at a place."""
        start = at * self.size
        return self.packed[start : start + self.size - MARK_SIZE]

    def value(self, at: int) -> int:
        """Of the entry at a place."""
        mark = (at + 1) * self.size - MARK_SIZE
        return self.packed[mark] | self.packed[mark + 1] << 24

    @property
    def keys(self) -> bytes:
        """All, as the kernel has them, in the order of the entries. Made at each call."""
        packed, size = self.packed, self.size
        width = size - MARK_SIZE - 1
        step = LENGTH_SIZE + width
        keys = bytearray(len(self) * step)
        keys[0::step] = packed[width::size]
        for place in range(width):
            keys[LENGTH_SIZE + place :: step] = packed[place::size]
        return bytes(keys)

    @property
    def values(self) -> bytes:
        """As `keys`."""
        packed, size = self.packed, self.size
        values = bytearray(len(self) * VALUE_SIZE)
        values[0::VALUE_SIZE] = packed[size - MARK_SIZE :: size]
        values[VALUE_SIZE - 1 :: VALUE_SIZE] = packed[size - 1 :: size]
        return bytes(values)


EMPTY: Final[dict[Version, Entries]] = {version: Entries(b"", size) for version, size in ENTRY_SIZES.items()}
"""Of a family, none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a node drops. The most specific entry decides; without one, or with one that has ALLOW, a packet passes.

    names: of the prefilters, by slot; "" where a slot is free. A prefilter keeps its slot while the node has it, so
    that what the kernel counts by slot keeps its meaning.
    """

    v4: Entries = EMPTY[4]
    v6: Entries = EMPTY[6]
    names: tuple[str, ...] = ()


def entry(record: bytes, value: int) -> bytes:
    """Of a record and its value."""
    return record + mark(value)


def mark(value: int) -> bytes:
    """Of a value."""
    return bytes((value & 0xFF, value >> 24))
