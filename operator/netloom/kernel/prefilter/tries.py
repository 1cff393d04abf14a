"""The entries of one family in the kernel.

A map (the outer one) holds the trie in force, of each set of rules one. A small change is made in that trie, entry by
entry, and what stays is there all the time; a large one fills a new trie, which takes the old one's place at once.
"""

import os
from hashlib import blake2b

import msgspec

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.differences import Difference, Entry, Inspection, compare
from netloom.kernel.prefilter.maps import KEY_SIZES, VALUE_SIZE, capacity_for, trie_shape
from netloom.kernel.prefilter.pins import Pins, closed_on_error
from netloom.prefilter.rules import Entries

_ALLOW = 0x80
"""In the last byte of a value."""
_LEAST_REWRITTEN = 4096
_SHARE_REWRITTEN = 16
_PIECE = 4 * bpf.BATCH
"""Entries that are in the kernel's form at a time."""


class Trie(msgspec.Struct, frozen=True):
    """A trie: its descriptor, identity, capacity in entries, and the name of its pin."""

    descriptor: int
    identity: int
    most: int
    pin: str


class FamilyTrie:
    """Of one set of rules, see the module. Used by one thread at a time.

    known: what the kernel holds, as far as that is known.
    trie: the one in force; None: there is none, and nothing is dropped.
    """

    def __init__(self, family: str, pins: Pins, outer: int, number: int = 0) -> None:
        self.family = family
        self.known: Entries | None = None
        self.trie: Trie | None = None
        self._pins = pins
        self._outer = outer
        self._key_size = KEY_SIZES[family]
        self._digest = b""
        """Of all that the kernel told when it held what is known; it tells the same in the same order."""
        self._index = number.to_bytes(4, "little")
        self._places = tuple(f"{pin_prefix(family)}{number or ''}{letter}" for letter in "ab")

    def find(self) -> None:
        """The trie in force, of those that are pinned; others were being filled when an agent ended, and go. Raises
        OSError."""
        held = bpf.lookup(self._outer, self._index, 4)
        identity = int.from_bytes(held, "little") if held is not None else 0
        for name in self._places:
            descriptor = self._pins.open(name)
            if descriptor is None:
                continue
            with closed_on_error(descriptor):
                info = bpf.describe_map(descriptor)
            if info.identity == identity and self.trie is None:
                self.trie = Trie(descriptor, identity, info.shape.most, name)
            else:
                os.close(descriptor)
                self._pins.remove(name)
        if self.trie is None and identity:  # somebody took its pin: there is no way to it
            bpf.delete(self._outer, self._index)
        if self.trie is None:
            self.known = Entries()

    def close(self) -> None:
        """Close what is open. The kernel keeps it."""
        if self.trie is not None:
            os.close(self.trie.descriptor)
            self.trie = None

    def put(self, wanted: Entries) -> int:
        """Make this the content; how many entries were written or deleted. Raises OSError, and what the kernel holds is
        unknown then."""
        if self.known is wanted or self.known == wanted:
            self.known = wanted
            return 0
        known, self.known, self._digest = self.known, None, b""
        if not len(wanted):
            self._take_away()
            written = 1
        else:
            difference = self._difference(known, wanted)
            written = self._rewrite(wanted) if difference is None else self._change(difference)
        self.known = wanted
        return written

    def verify(self) -> bool:
        """Whether the kernel holds what is known of it, and in the place where the program looks; else nothing is known
        any more. Raises OSError."""
        held = bpf.lookup(self._outer, self._index, 4)
        identity = int.from_bytes(held, "little") if held is not None else 0
        if self.trie is None or self.known is None:
            return identity == 0 and self.known is not None
        if identity != self.trie.identity:
            bpf.update(self._outer, self._index, self.trie.descriptor.to_bytes(4, "little"))
        if not self._pins.has(self.trie.pin):
            self._pins.pin(self.trie.pin, self.trie.descriptor)
        known, digest = self.known, self._digest
        if (digest and self._read(None) == digest) or self._inspect(known) == Difference():
            return identity == self.trie.identity
        self.known = None
        return False

    # -------------------------------------------------------------------------------------------------- content

    def _difference(self, known: Entries | None, wanted: Entries) -> Difference | None:
        """None: write all anew."""
        if self.trie is None or len(wanted) > self.trie.most:
            return None
        most = max(_LEAST_REWRITTEN, len(wanted) // _SHARE_REWRITTEN)
        if known is None:
            return self._inspect(wanted)
        return compare(known, wanted, most)

    def _inspect(self, wanted: Entries) -> Difference | None:
        """Read all; how it becomes what is wanted, None if that is too much."""
        most = max(_LEAST_REWRITTEN, len(wanted) // _SHARE_REWRITTEN)
        inspection = Inspection(wanted, self._key_size, most)
        digest = self._read(inspection)
        difference = inspection.finish() if digest else None
        if difference == Difference():
            self._digest = digest
        return difference

    def _read(self, inspection: Inspection | None) -> bytes:
        """A digest of all that the kernel tells of the trie in force; b"" if the inspection has seen enough."""
        assert self.trie is not None
        digest = blake2b(digest_size=16)
        for keys, values in bpf.entries(self.trie.descriptor, self._key_size, VALUE_SIZE):
            digest.update(keys)
            digest.update(values)
            if inspection is not None and not inspection.take(keys, values):
                return b""
        return digest.digest()

    def _change(self, difference: Difference) -> int:
        """Exceptions come first and go last: in between, nothing is dropped that neither content drops."""
        assert self.trie is not None
        keys, values = _joined(sorted(difference.put, key=_denies))
        bpf.update_all(self.trie.descriptor, keys, values, self._key_size, VALUE_SIZE)
        keys, _values = _joined(sorted(difference.gone, key=_denies, reverse=True))
        bpf.delete_all(self.trie.descriptor, keys, self._key_size)
        return len(difference)

    def _rewrite(self, wanted: Entries) -> int:
        """Fill a new trie, and have it take the place of the one in force."""
        old = self.trie
        most = capacity_for(len(wanted))
        pin = next(name for name in self._places if old is None or name != old.pin)
        descriptor = bpf.create_map(f"netloom_{self.family}", trie_shape(self.family, most))
        with closed_on_error(descriptor):
            for start in range(0, len(wanted), _PIECE):
                piece = wanted.piece(start, start + _PIECE)
                bpf.update_all(descriptor, piece.keys, piece.values, self._key_size, VALUE_SIZE)
            identity = bpf.describe_map(descriptor).identity
            self._pins.pin(pin, descriptor)
            bpf.update(self._outer, self._index, descriptor.to_bytes(4, "little"))
        self.trie = Trie(descriptor, identity, most, pin)
        if old is not None:
            os.close(old.descriptor)
            self._pins.remove(old.pin)
        return len(wanted)

    def _take_away(self) -> None:
        """Without entries there is no trie: the program is done sooner."""
        bpf.delete(self._outer, self._index)
        if self.trie is not None:
            self._pins.remove(self.trie.pin)
            self.close()


def pin_prefix(family: str) -> str:
    """Of the names of its tries' pins, before the number of their set (none: 0) and a letter."""
    return f"entries_{family}_"


def _denies(entry: Entry) -> bool:
    return not entry[1][3] & _ALLOW


def _joined(entries: list[Entry]) -> tuple[bytes, bytes]:
    return b"".join(key for key, _ in entries), b"".join(value for _, value in entries)
