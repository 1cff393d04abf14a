"""A list that is read again and again as it changes: only what is another text is parsed.

The text is taken as blocks of lines, of which what they came to is kept with a hash, not the text itself. What the new
text begins and ends with as the old one did is skipped block by block; what is between is parsed. One line of 40,000
costs 5 ms instead of 90. Two changes far from each other cost what is between them, at most the whole.

The entries of all blocks are kept together (`block_records`): 1,400 of 3 KB each, as 25 lists have, tear holes into a
process's heap.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from netloom.cidr import VERSIONS
from netloom.prefilter.block_records import MOST_BLOCKS, BlockRecords
from netloom.prefilter.lists import EMPTY, NAMED, BadLine, ParsedList, parse_list

BLOCK = 1 << 14
"""Characters of a block, to the end of the line; a multiple where a list would have more than MOST_BLOCKS."""


@dataclass(frozen=True, slots=True)
class _Block:
    """size: characters. breaks: ends of lines in it. whole: it ends with one. parsed: what it came to, but for the
    entries."""

    size: int
    hash: int
    breaks: int
    whole: bool
    parsed: ParsedList


class ListReader:
    """See the module. `parsed`: of the text that was read last."""

    def __init__(self) -> None:
        self.parsed = EMPTY
        self._size = 0
        """Of a block, at least; 0: BLOCK."""
        self._blocks: list[_Block] = []
        self._records = {version: BlockRecords.none(version) for version in VERSIONS}

    def read(self, text: str) -> ParsedList:
        """As `parse_list`. A family in which nothing is different is the same object as before."""
        old = self._blocks
        first, start = self._same_at_start(text)
        last, end = self._same_at_end(text, first, start)
        size = self._size or BLOCK
        if first + len(old) - last + (end - start) // size + 1 > MOST_BLOCKS:
            last, end, first, start = len(old), len(text), 0, 0
            self._size = size = max(BLOCK, 2 * len(text) // MOST_BLOCKS)
        lists = list(_blocks(text, start, end, size))
        for version, records in self._records.items():
            self._records[version] = records.replaced(first, last, [each.family(version) for _, each in lists])
        self._blocks = [*old[:first], *(block for block, _ in lists), *old[last:]]
        found = [each.parsed for each in self._blocks]
        self.parsed = ParsedList(
            self._records[4].records,
            self._records[6].records,
            sum(each.lines for each in found),
            sum(each.masked for each in found),
            sum(each.bad_lines for each in found),
            self._bad(),
        )
        return self.parsed

    def _same_at_start(self, text: str) -> tuple[int, int]:
        """How many blocks, and of how many characters."""
        at = number = 0
        for each in self._blocks:
            end = at + each.size
            if end > len(text) or not (each.whole or end == len(text)) or hash(text[at:end]) != each.hash:
                break
            at, number = end, number + 1
        return number, at

    def _same_at_end(self, text: str, first: int, start: int) -> tuple[int, int]:
        """From which block on, and from which character; none of the first blocks, nor of what is before `start`."""
        end, number = len(text), len(self._blocks)
        while number > first:
            each = self._blocks[number - 1]
            at = end - each.size
            begins_line = at == start or (at > start and text[at - 1] == "\n")
            if not begins_line or (not each.whole and end != len(text)) or hash(text[at:end]) != each.hash:
                break
            end, number = at, number - 1
        return number, end

    def _bad(self) -> tuple[BadLine, ...]:
        before = accumulate((each.breaks for each in self._blocks), initial=0)
        found = [
            replace(bad, number=bad.number + lines)
            for block, lines in zip(self._blocks, before, strict=False)
            for bad in block.parsed.bad
        ]
        return tuple(found[:NAMED])


def _blocks(text: str, start: int, end: int, size: int) -> Iterator[tuple[_Block, ParsedList]]:
    while start < end:
        behind = text.find("\n", min(start + size, end) - 1, end) + 1 or end
        part = text[start:behind]
        found = parse_list(part)
        bare = replace(found, v4=EMPTY.v4, v6=EMPTY.v6)
        yield _Block(len(part), hash(part), part.count("\n"), part.endswith("\n"), bare), found
        start = behind
