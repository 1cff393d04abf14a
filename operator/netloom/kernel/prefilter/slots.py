"""Which counter counts for which prefilter. Pure.

A name keeps its counter for as long as it is wanted, across restarts of the agent: the kernel holds the names. The
rules number prefilters in their own way; where that is another, their values are rewritten.
"""

from collections.abc import Sequence

import msgspec

from netloom.kernel.prefilter.maps import SLOTS
from netloom.prefilter.rules import MARK_SIZE, Entries


class Slots(msgspec.Struct, frozen=True):
    """names: by counter, "" where it is free. places: by the rules' number, its counter. new: counters that begin to
    count for another name."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    new: tuple[int, ...]

    def places_of(self, wanted: Sequence[str]) -> tuple[int, ...]:
        """The same for other rules that name some of those that are named here."""
        return tuple(self.names.index(name) if name else number for number, name in enumerate(wanted))


def assign(held: Sequence[str], wanted: Sequence[str]) -> Slots:
    """Counters for what the rules name, who held which before. Raises ValueError if there are not enough."""
    names = [*held, *[""] * (SLOTS - len(held))]
    asked = [name for name in wanted if name]
    if len(set(asked)) > SLOTS:
        raise ValueError(f"{len(set(asked))} prefilters apply to this node, which can count for {SLOTS}: use fewer")
    before = list(names)
    names = [name if name in asked else "" for name in names]
    for number, name in enumerate(wanted):
        if not name or name in names:
            continue
        # The rules' own number, if it is free: then nothing has to be rewritten. One that was another's until now, only
        # if there is no other: entries that still count there are replaced a moment later.
        free = [place for place in (number, *range(SLOTS)) if place < SLOTS and not names[place]]
        names[next((place for place in free if not before[place]), free[0])] = name
    new = tuple(place for place, name in enumerate(names) if name and name != before[place])
    places = tuple(names.index(name) if name else number for number, name in enumerate(wanted))
    return Slots(tuple(names), places, new)


def renumbered(entries: Entries, places: Sequence[int]) -> Entries:
    """With counters in the place of the rules' numbers; the same object where these are the same."""
    if all(number == place for number, place in enumerate(places)):
        return entries
    table = bytes([*places, *range(len(places), SLOTS)])
    packed, size = bytearray(entries.packed), entries.size
    packed[size - MARK_SIZE :: size] = entries.packed[size - MARK_SIZE :: size].translate(table)
    return Entries(bytes(packed), size)
