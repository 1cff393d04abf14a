"""The records of a list that is read in blocks, and which block has which: so it is known what goes with a block.

Each record is kept once, with a byte that says which block has it. That further blocks have it as well is kept beside
that: lists have few things twice. (The records of all blocks, one block after another, were as much memory as the
records themselves.)
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netloom.cidr import Version
from netloom.prefilter.records import SIZES, Records, spliced, split

MOST_BLOCKS = 256
FEW = 2048
"""Records that come, up to which they are put between the others one by one."""


@dataclass(frozen=True, slots=True)
class BlockRecords:
    """See the module. blocks: a byte for each record, the number of a block that has it. again: end to end and sorted,
    record and number of each further block that has it."""

    records: Records
    blocks: bytes = b""
    again: bytes = b""

    @classmethod
    def none(cls, version: Version) -> "BlockRecords":
        """Of a list without a block."""
        return cls(Records(b"", SIZES[version]))

    def replaced(self, first: int, last: int, come: Sequence[Records]) -> "BlockRecords":
        """With other blocks in the place of those from `first` on and before `last`; the numbers of those behind change
        with that. `records` is the same object where they are the same."""
        size, shift = self.records.size, len(come) - (last - first)
        new, again = _first_of(come, first)
        numbers = bytes((number if number < first else number + shift) & 0xFF for number in range(MOST_BLOCKS))
        stay = [
            each[:-1] + numbers[each[-1] : each[-1] + 1]
            for each in split(self.again, size + 1)
            if not first <= each[-1] < last
        ]
        gone = _places(self.blocks, first, last)
        if len(gone) == len(self.records) and not stay:
            found = _made(new, again, size)
        elif len(new) - len(gone) > FEW:
            pairs = [*stay, *again, *(record + bytes((number,)) for record, number in new.items())]
            left = set(range(len(self.records))).difference(gone)
            pairs += [self.records[at] + numbers[self.blocks[at] : self.blocks[at] + 1] for at in left]
            found = _of_pairs(pairs, size)
        else:
            found = self._changed(self.blocks.translate(numbers), gone, new, stay, again)
        if found.records == self.records:
            return BlockRecords(self.records, found.blocks, found.again)
        return found

    def _changed(
        self, blocks: bytes, gone: Iterable[int], new: dict[bytes, int], stay: Iterable[bytes], again: Iterable[bytes]
    ) -> "BlockRecords":
        """blocks: with the numbers that hold now. gone: places of records whose block is. new: by record, the block
        that it comes with. stay: of `again`, that is as before; again: what comes to it."""
        records, numbers, size = self.records, bytearray(blocks), self.records.size
        further = {each[:-1]: each[-1] for each in stay}
        changes: list[tuple[int, int, bytes]] = []
        held, more = set(stay), set(again)
        for at in gone:
            record = records[at]
            if record in new:
                numbers[at] = new.pop(record)
            elif record in further:
                numbers[at] = further[record]
                held.remove(record + bytes((further[record],)))
            else:
                changes.append((at, at + 1, b""))
        for record, number in new.items():
            at = bisect_left(records, record)
            if at < len(records) and records[at] == record:
                more.add(record + bytes((number,)))
            else:
                changes.append((at, at, record))
        changes.sort()
        marks = [(at, end, bytes((new[record],)) if record else b"") for at, end, record in changes]
        return BlockRecords(
            Records(spliced(records.packed, size, changes), size),
            spliced(bytes(numbers), 1, marks),
            b"".join(sorted(held | more)),
        )


def _first_of(come: Sequence[Records], first: int) -> tuple[dict[bytes, int], list[bytes]]:
    """By record, the first block that has it, as they are numbered from `first` on; and what further ones have."""
    found: dict[bytes, int] = {}
    for number, each in reversed([*enumerate(come, first)]):
        found.update(dict.fromkeys(each, number))
    if len(found) == sum(map(len, come)):
        return found, []
    pairs = ((record, number) for number, each in enumerate(come, first) for record in each)
    return found, [record + bytes((number,)) for record, number in pairs if found[record] != number]


def _places(blocks: bytes, first: int, last: int) -> list[int]:
    """Of records whose block is one from `first` on and before `last`."""
    if first == last:
        return []
    pattern = b"[%b-%b]" % (re.escape(bytes((first,))), re.escape(bytes((last - 1,))))
    return [found.start() for found in re.finditer(pattern, blocks, re.DOTALL)]


def _made(blocks: dict[bytes, int], again: Iterable[bytes], size: int) -> BlockRecords:
    """blocks: by record, in any order. again: as it is kept, in any order."""
    ordered = sorted(blocks)
    numbers = bytes(map(blocks.__getitem__, ordered))
    return BlockRecords(Records(b"".join(ordered), size), numbers, b"".join(sorted(again)))


def _of_pairs(pairs: Iterable[bytes], size: int) -> BlockRecords:
    """Of records with the numbers of their blocks, in any order."""
    held = list(pairs)
    found = {each[:-1]: each[-1] for each in held}
    return _made(found, [each for each in held if found[each[:-1]] != each[-1]], size)
