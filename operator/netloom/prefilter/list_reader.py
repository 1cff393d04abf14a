"""A list that is read again and again as it changes: only what is another text is parsed.

The text is taken as blocks of lines, of which what they came to is kept with a hash, not the text itself. What the new
text begins and ends with as the old one did is skipped block by block; what is between is parsed. One line of 40,000
costs 5 ms instead of 90. Two changes far from each other cost what is between them, at most the whole.

The entries of all blocks are one `bytes`: 1,400 of 3 KB each, as 25 lists have, tear holes into a process's heap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from netloom.cidr import VERSIONS, Version
from netloom.prefilter.lists import EMPTY, NAMED, BadLine, ParsedList, parse_list
from netloom.prefilter.records import SIZES, Records, patched, split

BLOCK = 1 << 14
"""Characters of a block, to the end of the line."""
FEW = 2048
"""Entries that differ, up to which they are put into the others one by one."""


@dataclass(frozen=True, slots=True)
class _Block:
    """size: characters. breaks: ends of lines in it. whole: it ends with one. parsed: what it came to, but for the
    entries; v4, v6: how many these are."""

    size: int
    hash: int
    breaks: int
    whole: bool
    parsed: ParsedList
    v4: int
    v6: int

    def length(self, version: Version) -> int:
        """Bytes of its entries of one family."""
        return (self.v4 if version == 4 else self.v6) * SIZES[version]


class ListReader:
    """See the module. `parsed`: of the text that was read last."""

    def __init__(self) -> None:
        self.parsed = EMPTY
        self._blocks: list[_Block] = []
        self._entries: dict[Version, bytes] = dict.fromkeys(VERSIONS, b"")
        """Records of the blocks, one block after another, each sorted."""

    def read(self, text: str) -> ParsedList:
        """As `parse_list`. A family in which nothing is different is the same object as before."""
        old = self._blocks
        first, start = self._same_at_start(text)
        last, end = self._same_at_end(text, first, start)
        lists = list(_blocks(text, start, end))
        new = [block for block, _ in lists]
        families = {version: self._family(version, first, last, [each for _, each in lists]) for version in VERSIONS}
        self._blocks = [*old[:first], *new, *old[last:]]
        found = [each.parsed for each in self._blocks]
        self.parsed = ParsedList(
            families[4],
            families[6],
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

    def _family(self, version: Version, first: int, last: int, come: Sequence[ParsedList]) -> Records:
        """With what came in the place of the blocks from `first` on and before `last`."""
        before, held, size = self.parsed.family(version), self._entries[version], SIZES[version]
        start = sum(block.length(version) for block in self._blocks[:first])
        end = len(held) - sum(block.length(version) for block in self._blocks[last:])
        new = b"".join(each.family(version).packed for each in come)
        if new == held[start:end]:
            return before
        self._entries[version] = b"".join((held[:start], new, held[end:]))
        lost, won = set(split(held[start:end], size)), set(split(new, size))
        lost, won = lost - won, won - lost
        if not before or len(lost) + len(won) > FEW:
            return Records.of(split(self._entries[version], size), size)
        behind = start + len(new)
        stay = (
            [*self._runs(version, 0, 0, first), *self._runs(version, behind, last, len(self._blocks))] if lost else []
        )
        return patched(before, {each for each in lost if not any(each in one for one in stay)}, won)

    def _runs(self, version: Version, at: int, first: int, last: int) -> Iterator[Records]:
        """The entries of these blocks, of which the first's begin at a place."""
        for block in self._blocks[first:last]:
            yield Records(self._entries[version][at : at + block.length(version)], SIZES[version])
            at += block.length(version)

    def _bad(self) -> tuple[BadLine, ...]:
        before = accumulate((each.breaks for each in self._blocks), initial=0)
        found = [
            replace(bad, number=bad.number + lines)
            for block, lines in zip(self._blocks, before, strict=False)
            for bad in block.parsed.bad
        ]
        return tuple(found[:NAMED])


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[_Block, ParsedList]]:
    while start < end:
        behind = text.find("\n", min(start + BLOCK, end) - 1, end) + 1 or end
        part = text[start:behind]
        found = parse_list(part)
        bare = replace(found, v4=EMPTY.v4, v6=EMPTY.v6)
        numbers = len(part), hash(part), part.count("\n"), part.endswith("\n")
        yield _Block(*numbers, bare, len(found.v4), len(found.v6)), found
        start = behind
