"""In what the kernel's sets differ from those that are wanted. Pure.

Only differences are kept: what is wanted is in `Senders`, and what is known to be in the kernel follows from both.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from netloom.cidr import format_address
from netloom.kernel.keeper.transaction import ELEMENT, Write
from netloom.kernel.netlink.nftables import DELSETELEM, NEWSETELEM, ElementMessages
from netloom.kernel.senders.ruleset import TABLE_NAME
from netloom.kernel.senders.senders import Change, SetName

_AT_ONCE = 200
"""Elements that one request adds to a new set: 5,000 nodes have 15,000 of them. One that is refused is found when those
that are left are written one by one."""


class SetElement(msgspec.Struct, frozen=True, gc=False):
    """An element, as it is named to people."""

    name: SetName
    key: bytes

    @property
    def text(self) -> str:
        """The key as `nft` writes it."""
        parts = [self.key] if len(self.key) == self.name.family else [self.key[:4], self.key[4:]]
        return " . ".join(map(format_address, parts))

    def __str__(self) -> str:
        return f"{self.name} {self.text}"


class SetDifference:
    """Of one set. `retained`: of what is in the kernel and not wanted, what may be needed for all that is known."""

    __slots__ = ("missing", "retained", "surplus")

    def __init__(self) -> None:
        self.missing: set[bytes] = set()
        self.surplus: set[bytes] = set()
        self.retained: set[bytes] = set()

    @property
    def pending(self) -> set[bytes]:
        """Keys to be written."""
        return self.missing | (self.surplus - self.retained) if self.missing or self.surplus else self.missing

    def changed(self, key: bytes, *, wanted: bool) -> None:
        """It is wanted from now on, or no longer."""
        there, absent = (self.surplus, self.missing) if wanted else (self.missing, self.surplus)
        if key in there:
            there.discard(key)
            self.retained.discard(key)
        else:
            absent.add(key)

    def saw(self, key: bytes, *, wanted: bool, plain: bool) -> None:
        """The kernel holds it. One that is not plain is taken for another, which is in its place."""
        (self.missing.discard if wanted else self.surplus.add)(key)
        if wanted and not plain:
            self.missing.add(key)
            self.surplus.add(key)

    def gone(self, key: bytes, *, wanted: bool) -> None:
        """The kernel does not hold it."""
        self.surplus.discard(key)
        self.retained.discard(key)
        if wanted:
            self.missing.add(key)


class Differences:
    """Of all sets."""

    def __init__(self) -> None:
        self.of: dict[SetName, SetDifference] = {}
        self._messages: dict[SetName, ElementMessages] = {}

    def __getitem__(self, name: SetName) -> SetDifference:
        found = self.of.get(name)
        if found is None:
            found = self.of[name] = SetDifference()
        return found

    def changed(self, changes: Iterable[Change]) -> list[SetElement]:
        """These came or went; the same as elements."""
        found = []
        for name, key, wanted in changes:
            self[name].changed(key, wanted=wanted)
            found.append(SetElement(name, key))
        return found

    def load(self, name: SetName, wanted: Iterable[bytes], kernel: Mapping[bytes, bool]) -> None:
        """The kernel's set holds these, by key and whether they are plain."""
        difference, absent = self[name], dict(kernel)
        if not kernel:
            difference.missing, difference.surplus, difference.retained = set(wanted), set(), set()
            return
        odd = [key for key, plain in kernel.items() if not plain]
        difference.missing = {key for key in wanted if absent.pop(key, None) is None}
        difference.surplus = {*absent, *odd}
        difference.missing.update(key for key in odd if key not in absent)
        difference.retained &= difference.surplus

    def pending(self) -> Iterator[SetElement]:
        """Elements that are not as they should be."""
        return (SetElement(name, key) for name, each in self.of.items() for key in each.pending)

    def count(self) -> int:
        """How many."""
        return sum(len(each.pending) for each in self.of.values())

    def writes(self, *, gone: Iterable[SetName] = (), anew: bool = False) -> list[Write]:
        """Requests for what is pending; but nothing is taken from sets that are `gone`. anew: all sets are made."""
        without, deletions, additions = set(gone), [], []
        for name, each in sorted(self.of.items()):
            if name not in without:
                deletions += self._encode(name, each.surplus - each.retained, deletes=True)
                additions += self._encode(name, each.missing, at_once=_AT_ONCE if anew else 1)
        return deletions + additions

    def wrote(self, writes: Iterable[Write]) -> None:
        """The kernel has done these."""
        for write in writes:
            each = self.of[write.item[1].name]  # type: ignore[attr-defined]
            (each.surplus if write.deletes else each.missing).difference_update(write.keys)
        for each in self.of.values():
            each.missing = each.missing or set()  # an empty one has the room of all that it held: 0.5 MiB of 5,000

    def _encode(self, name: SetName, keys: Iterable[bytes], *, deletes: bool = False, at_once: int = 1) -> list[Write]:
        messages = self._messages.get(name)
        if messages is None:
            messages = self._messages[name] = ElementMessages(TABLE_NAME, str(name), name.size)
        kind, what = (DELSETELEM, "delete") if deletes else (NEWSETELEM, "add")
        ordered = sorted(keys)
        return [
            Write(
                (ELEMENT, SetElement(name, part[0])),
                what,
                messages.encode_plain(kind, part),
                keys=tuple(part),
                deletes=deletes,
            )
            for part in (ordered[at : at + at_once] for at in range(0, len(ordered), at_once))
        ]
