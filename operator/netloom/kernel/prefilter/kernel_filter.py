"""The prefilter in the kernel, as one thing: maps, program and entries, opened when they are needed.

All of it blocks, and belongs into the keeper's thread. What it knows is good until `doubt`.
"""

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from netloom.kernel.prefilter import bpf, pins, slots
from netloom.kernel.prefilter.compiler import Compiled
from netloom.kernel.prefilter.maps import COUNTERS, NAME_SIZE, NAMES, OVERTAGGED, SHAPES, SLOTS, TRIES, trie_shape
from netloom.kernel.prefilter.pins import Pins, closed_on_error
from netloom.kernel.prefilter.prefiltering import Dropped
from netloom.kernel.prefilter.program import Programs
from netloom.kernel.prefilter.tries import FamilyTrie, pin_prefix
from netloom.prefilter.rules import Entries, Rules

_COUNT = 16
"""Bytes: packets and bytes, of one CPU."""


class KernelFilter:
    """See the module. programs: what is loaded. names: whom each counter counts for. tries: by set and family. filled:
    sets that have had the rules that are wanted of them since this began, so that their programs may be attached."""

    def __init__(self, folder: Path) -> None:
        self.pins = Pins(folder)
        self.programs = Programs(self.pins)
        self.names: tuple[str, ...] = ()
        self.tries: dict[tuple[int, str], FamilyTrie] = {}
        self.filled: set[int] = set()
        self._maps: dict[str, int] = {}
        self._open = threading.Lock()
        """Who counts is in another thread: descriptors must not become somebody else's meanwhile."""

    @property
    def has_maps(self) -> bool:
        """Whether they are open."""
        return bool(self._maps)

    def find(self) -> None:
        """Open the programs that are pinned, so that it is known what is ours. Raises OSError."""
        if not self.programs.open:
            self.programs.find()

    def need_maps(self) -> None:
        """Open the maps, and make those that are missing or of another shape. Raises KernelUnsupported, OSError."""
        if self._maps:
            return
        self.pins.make()
        opened: dict[str, int] = {}
        tries: dict[tuple[int, str], FamilyTrie] = {}
        try:
            for name in SHAPES:
                opened[name] = self._map(name)
            for number in self._sets_with_pins():
                tries |= self._find_tries(number, opened)
            names = _read_names(opened[NAMES])
        except BaseException:
            for trie in tries.values():
                trie.close()
            pins.close(opened.values())
            raise
        with self._open:
            self._maps, self.tries, self.names = opened, tries, names

    def need_program(self, compiled: Compiled, number: int) -> bool:
        """Have it loaded for the set of this number; whether it had to be. Raises ProgramRefusal, OSError."""
        return self.programs.need(compiled, self._maps, number)

    def put(self, sets: Mapping[int, Rules]) -> int:
        """Make these the rules of their sets; others are left as they are. Returns how many entries changed. Raises
        ValueError (too many prefilters), OSError."""
        named = list(sets.values())
        asked = named[0].names if len(named) == 1 else tuple(dict.fromkeys(name for one in named for name in one.names))
        assigned = slots.assign(self.names, asked)
        self._name(assigned)
        written = 0
        for number, rules in sets.items():
            if (number, "v4") not in self.tries:
                self.tries |= self._find_tries(number, self._maps)
            places = assigned.places_of(rules.names)
            for family, entries in (("v4", rules.v4), ("v6", rules.v6)):
                written += self.tries[number, family].put(slots.renumbered(entries, places))
            self.filled.add(number)
        return written

    def leave_sets(self, needed: Collection[int]) -> None:
        """Take away the entries of other sets, which no program looks into any more. Raises OSError."""
        self.filled.intersection_update(needed)
        for place in [each for each in self.tries if each[0] and each[0] not in needed]:
            self.tries[place].put(Entries())
            del self.tries[place]
        if 0 not in needed and needed:
            for family in TRIES:
                self.tries[0, family].put(Entries())

    def verify(self) -> list[str]:
        """What of it is not as it was left, and is put right now or by the next `put`. Raises KernelUnsupported (no
        bpffs), OSError."""
        self.pins.make()  # somebody may have removed it, or mounted another bpffs over it
        filled = {place: trie for place, trie in self.tries.items() if place[0] in self.filled}
        wrong = [f"entries {family}" for (_number, family), trie in filled.items() if not trie.verify()]
        for name, descriptor in self._maps.items():
            if not self.pins.has(name):
                self.pins.pin(name, descriptor)
                wrong.append(f"pin {name}")
        self.programs.repin()
        return wrong

    def dropped(self) -> dict[str, Dropped]:
        """By name of prefilter. Raises OSError."""
        with self._open:
            if not self._maps:
                return {}
            return {name: self._read(slot) for slot, name in enumerate(self.names) if name}

    def overtagged(self) -> Dropped:
        """Frames with too many VLAN tags. Raises OSError."""
        with self._open:
            return self._read(OVERTAGGED) if self._maps else Dropped()

    def remove(self) -> None:
        """Unpin and close all: nothing is left in the kernel. Raises OSError."""
        self.pins.clear()
        self.close()

    def close(self) -> None:
        """Close what is open. The kernel keeps what is pinned."""
        with self._open:
            opened, self._maps = self._maps, {}
            for trie in self.tries.values():
                trie.close()
            self.tries, self.names = {}, ()
            self.filled.clear()
            self.programs.close()
            pins.close(opened.values())

    # --------------------------------------------------------------------------------------------------- inside

    def _sets_with_pins(self) -> list[int]:
        """The first, and others that an agent has left. Raises OSError."""
        found = {0}
        for family in TRIES:
            prefix = pin_prefix(family)
            found.update(int(name.removeprefix(prefix)[:-1] or 0) for name in self.pins.names(prefix))
        return sorted(found)

    def _find_tries(self, number: int, maps: Mapping[str, int]) -> dict[tuple[int, str], FamilyTrie]:
        """Those of a set, as they are in the kernel. Raises OSError."""
        found = {(number, family): FamilyTrie(family, self.pins, maps[name], number) for family, name in TRIES.items()}
        try:
            for trie in found.values():
                trie.find()
        except BaseException:
            for trie in found.values():
                trie.close()
            raise
        return found

    def _map(self, name: str) -> int:
        shape = SHAPES[name]
        descriptor = self.pins.open(name)
        if descriptor is not None:
            with closed_on_error(descriptor):
                found = bpf.describe_map(descriptor).shape
            if found == shape:
                return descriptor
            os.close(descriptor)  # another version's: its program goes on with it until ours takes its place
        inner = [
            bpf.create_map("netloom_model", trie_shape(family, 1)) for family, outer in TRIES.items() if outer == name
        ]
        try:
            descriptor = bpf.create_map(f"netloom_{name}"[:15], shape, inner=inner[0] if inner else 0)
        finally:
            pins.close(inner)
        with closed_on_error(descriptor):
            self.pins.pin(name, descriptor)
        return descriptor

    def _name(self, assigned: slots.Slots) -> None:
        """Counters begin at 0, and only then have their name: an agent that is killed in between begins them again."""
        zero = bytes(_COUNT * _possible_cpus())
        for place in assigned.new:
            bpf.update(self._maps[COUNTERS], _number(place), zero)
        for place, (name, before) in enumerate(zip(assigned.names, self.names, strict=True)):
            if name != before:
                bpf.update(self._maps[NAMES], _number(place), name.encode().ljust(NAME_SIZE, b"\0"))
        with self._open:
            self.names = assigned.names

    def _read(self, slot: int) -> Dropped:
        size = _COUNT * _possible_cpus()
        value = bpf.lookup(self._maps[COUNTERS], _number(slot), size) or bytes(size)
        numbers = memoryview(value).cast("Q")
        return Dropped(sum(numbers[::2]), sum(numbers[1::2]))


def _read_names(descriptor: int) -> tuple[str, ...]:
    values: list[str] = []
    for _keys, run in bpf.entries(descriptor, 4, NAME_SIZE, SLOTS):
        values += [
            run[at : at + NAME_SIZE].rstrip(b"\0").decode(errors="replace") for at in range(0, len(run), NAME_SIZE)
        ]
    return tuple(values)


def _possible_cpus() -> int:
    """Of which a value of a map is told; `0-3,8` are five. Raises OSError."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")
    return sum(int(each.rpartition("-")[2]) - int(each.partition("-")[0]) + 1 for each in ranges)


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")
