"""The prefilter's maps: their shapes, and the numbers that stand for them in the compiled program."""

from typing import Final

from netloom.kernel.prefilter.bpf import ARRAY, ARRAY_OF_MAPS, LPM_TRIE, NO_PREALLOC, PERCPU_ARRAY, Shape

SLOTS: Final = 256
"""Prefilters of one node. Each costs 16 bytes of counters per CPU."""

OVERTAGGED: Final = SLOTS
"""The counter of frames with more VLAN tags than the program looks through."""

NAME_SIZE: Final = 256
"""Bytes: the name of a Kubernetes object has at most 253."""

SETS: Final = 16
"""Sets of rules of one node: devices for which the same prefilters are meant have one. A change of which devices share
theirs takes new ones beside those that run, so half of them can be in force."""

VALUE_SIZE: Final = 4
KEY_SIZES: Final = {"v4": 8, "v6": 20}
"""Bytes of a trie's key, by family."""

TRIES: Final = {"v4": "tries4", "v6": "tries6"}
"""By family, the map that holds the trie in force of each set, so that all its entries can be exchanged at once."""

COUNTERS: Final = "counters"
NAMES: Final = "names"
"""Which prefilter a slot is. In the kernel, so that it lives as long as the counters do."""

NUMBERS: Final = {COUNTERS: 0x6E650001, TRIES["v4"]: 0x6E650002, TRIES["v6"]: 0x6E650003}
"""What the program has in the place of a map's descriptor until it is loaded."""

OWN_SET: Final = 0x6E650004
"""What it has in the place of the number of its set."""

SHAPES: Final = {
    COUNTERS: Shape(PERCPU_ARRAY, 4, 16, SLOTS + 1),
    NAMES: Shape(ARRAY, 4, NAME_SIZE, SLOTS),
    TRIES["v4"]: Shape(ARRAY_OF_MAPS, 4, 4, SETS),
    TRIES["v6"]: Shape(ARRAY_OF_MAPS, 4, 4, SETS),
}

LEAST_CAPACITY: Final = 1 << 16
"""Entries that a trie has room for at least; only those that are there take memory."""


def trie_shape(family: str, most: int) -> Shape:
    """Of a trie for that many entries."""
    return Shape(LPM_TRIE, KEY_SIZES[family], VALUE_SIZE, most, NO_PREALLOC)


def capacity_for(count: int) -> int:
    """So many entries a new trie is made for that is to hold `count`: it can double before another is needed."""
    return max(LEAST_CAPACITY, 1 << (2 * count - 1).bit_length()) if count else LEAST_CAPACITY


def definitions() -> dict[str, int]:
    """The numbers that the program's source takes from its compiler's command line."""
    named = {name.upper(): number for name, number in NUMBERS.items()}
    return {**named, "OVERTAGGED": OVERTAGGED, "SET": OWN_SET}
