"""What changes from one content of a trie to another, or is different in the kernel: pure, and linear in what differs.

Contents are long byte strings, of which equal stretches are compared as such: in a million entries one that differs is
found in 5 ms. Object by object it would be a second.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from netloom.kernel.prefilter.maps import VALUE_SIZE
from netloom.prefilter.rules import MARK_SIZE, Entries

Entry = tuple[bytes, bytes]
"""A key and its value, as the kernel has them; or keys and values."""

Stretch = TypeVar("Stretch")

_SHORTEST, _LONGEST = 1 << 6, 1 << 15
"""Entries that are compared at once, at first and at most. The stretch is copied for it: from one difference to the
next it may not be far, and much longer ones would not stay in the cache."""


class Difference(msgspec.Struct):
    """put: entries that are new, or get another value. gone: those that are no more, with the value they had."""

    put: list[Entry] = msgspec.field(default_factory=list)
    gone: list[Entry] = msgspec.field(default_factory=list)

    def __len__(self) -> int:
        """How many entries differ."""
        return len(self.put) + len(self.gone)


def order(key: bytes) -> tuple[bytes, int]:
    """Of keys, as in `Entries`: by address, then by prefix length."""
    return key[4:], key[0]


class _Side(Generic[Stretch]):
    """A content and how far it has been looked at. cut: what is from one place on and before another."""

    def __init__(self, count: int, cut: Callable[[int, int], Stretch]) -> None:
        self.at = 0
        self.count = count
        self._cut = cut

    @property
    def left(self) -> int:
        return self.count - self.at

    def stretch(self, count: int) -> Stretch:
        """The next so many."""
        return self._cut(self.at, self.at + count)


def _packed(entries: Entries) -> _Side[bytes]:
    packed, size = entries.packed, entries.size
    return _Side(len(entries), lambda start, end: packed[start * size : end * size])


def _told(keys: bytes, values: bytes, size: int) -> _Side[Entry]:
    """As the kernel tells them. size: bytes of a key."""

    def cut(start: int, end: int) -> Entry:
        return keys[start * size : end * size], values[start * VALUE_SIZE : end * VALUE_SIZE]

    return _Side(len(values) // VALUE_SIZE, cut)


def _as_told(entries: Entries) -> _Side[Entry]:
    def cut(start: int, end: int) -> Entry:
        piece = entries.piece(start, end)
        return piece.keys, piece.values

    return _Side(len(entries), cut)


def _skip_equal(one: _Side[Stretch], other: _Side[Stretch]) -> None:
    """Go on to the first entry that is not the same on both sides, or to the end of one of them."""
    step = _SHORTEST
    while left := min(one.left, other.left):
        count = min(step, left)
        if one.stretch(count) == other.stretch(count):
            one.at += count
            other.at += count
            step = min(step * 8, _LONGEST)
        elif count > 1:
            step = (count + 7) // 8
        else:
            return


def compare(old: Entries, new: Entries, most: int) -> Difference | None:
    """From `old` to `new`, of one family; None if that is more than `most` entries."""
    found, end = Difference(), new.size - MARK_SIZE
    before, after = _packed(old), _packed(new)
    while True:
        _skip_equal(before, after)
        if not before.left and not after.left:
            return found
        if len(found) >= most:
            return None
        was, becomes = before.stretch(min(1, before.left)), after.stretch(min(1, after.left))
        if not becomes or (was and was[:end] < becomes[:end]):
            found.gone.append(_entry(was))
            before.at += 1
            continue
        found.put.append(_entry(becomes))
        after.at += 1
        if was[:end] == becomes[:end]:
            before.at += 1


def _entry(packed: bytes) -> Entry:
    one = Entries(packed, len(packed))
    return one.keys, one.values


class Inspection:
    """Holds what the kernel tells of a trie, run by run, against what it should hold.

    The kernel tells longer prefixes before those that they are in: one that covers others is missing at first, and told
    later. So a run that is not as expected is sorted before it is looked at closely.
    """

    def __init__(self, wanted: Entries, key_size: int, most: int) -> None:
        self._wanted = _as_told(wanted)
        self._size = key_size
        self._most = most
        self._missing: dict[bytes, bytes] = {}
        self._wrong: list[Entry] = []
        self._surplus: list[Entry] = []

    def take(self, keys: bytes, values: bytes) -> bool:
        """The next run; False: more than `most` entries differ, and the rest does not matter."""
        count = len(values) // VALUE_SIZE
        if self._wanted.left >= count and self._wanted.stretch(count) == (keys, values):
            self._wanted.at += count
            return True
        entries = sorted(_each(keys, values, self._size), key=lambda entry: order(entry[0]))
        told = _told(b"".join(key for key, _ in entries), b"".join(value for _, value in entries), self._size)
        while len(self._missing) + len(self._wrong) + len(self._surplus) <= self._most:
            _skip_equal(told, self._wanted)
            if not told.left:
                return True
            self._classify(told)
        return False

    def finish(self) -> Difference | None:
        """How the kernel's content becomes what it should be; None if that is more than `most` entries."""
        if len(self._missing) + len(self._wrong) + len(self._surplus) + self._wanted.left > self._most:
            return None
        rest = self._wanted.stretch(self._wanted.left)
        return Difference([*self._wrong, *self._missing.items(), *_each(*rest, self._size)], self._surplus)

    def _classify(self, told: _Side[Entry]) -> None:
        """The next entry that was told is not the next that is wanted."""
        key, value = told.stretch(1)
        if self._wanted.left:
            wanted, its = self._wanted.stretch(1)
            if order(wanted) < order(key):
                self._missing[wanted] = its
                self._wanted.at += 1
                return
            if wanted == key:
                self._wrong.append((key, its))
                self._wanted.at += 1
                told.at += 1
                return
        told.at += 1
        expected = self._missing.pop(key, None)
        if expected is None:
            self._surplus.append((key, value))
        elif expected != value:
            self._wrong.append((key, expected))


def _each(keys: bytes, values: bytes, key_size: int) -> Iterator[Entry]:
    for at in range(len(values) // VALUE_SIZE):
        yield keys[at * key_size : (at + 1) * key_size], values[at * VALUE_SIZE : (at + 1) * VALUE_SIZE]
