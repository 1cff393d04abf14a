"""A list that is read again and again as it changes: only what is another text is parsed.

The text is taken as blocks of lines, of which what they came to is kept with a hash, not the text itself. What the new
text begins and ends with as the old one did is skipped block by block; what is between is parsed. One line of 40,000
costs 5 ms instead of 90. Two changes far from each other cost what is between them, at most the whole.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

from netloom.cidr import VERSIONS, Version
from netloom.prefilter.lists import EMPTY, NAMED, BadLine, ParsedList, parse_list
from netloom.prefilter.records import SIZES, Records, patched

BLOCK = 1 << 14
"""Characters of a block, to the end of the line."""
FEW = 2048
"""Entries that differ, up to which they are put into the others one by one."""


@dataclass(frozen=True, slots=True)
class _Block:
    """size: characters. breaks: ends of lines in it. whole: it ends with one."""

    size: int
    hash: int
    breaks: int
    whole: bool
    parsed: ParsedList


class ListReader:
    """See the module. `parsed`: of the text that was read last."""

    def __init__(self) -> None:
        self.parsed = EMPTY
        self._blocks: list[_Block] = []

    def read(self, text: str) -> ParsedList:
        """As `parse_list`. A family in which nothing is different is the same object as before."""
        old = self._blocks
        first, start = self._same_at_start(text)
        last, end = self._same_at_end(text, first, start)
        new = _blocks(text, start, end)
        self._blocks = [*old[:first], *new, *old[last:]]
        stay = [*old[:first], *old[last:]]
        families = {version: self._family(version, old[first:last], new, stay) for version in VERSIONS}
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

    def _family(self, version: Version, gone: list[_Block], come: list[_Block], stay: list[_Block]) -> Records:
        before = self.parsed.family(version)
        if not before:
            return self._whole(version) or before
        lost = {each for block in gone for each in block.parsed.family(version)}
        won = {each for block in come for each in block.parsed.family(version)}
        lost, won = lost - won, won - lost
        if not lost and not won:
            return before
        if len(lost) + len(won) > FEW:
            return self._whole(version)
        lost = {each for each in lost if not any(each in block.parsed.family(version) for block in stay)}
        return patched(before, lost, won)

    def _whole(self, version: Version) -> Records:
        every = (each for block in self._blocks for each in block.parsed.family(version))
        return Records.of(every, SIZES[version])

    def _bad(self) -> tuple[BadLine, ...]:
        before = accumulate((each.breaks for each in self._blocks), initial=0)
        found = [
            replace(bad, number=bad.number + lines)
            for block, lines in zip(self._blocks, before, strict=False)
            for bad in block.parsed.bad
        ]
        return tuple(found[:NAMED])


def _blocks(text: str, start: int, end: int) -> list[_Block]:
    found = []
    while start < end:
        behind = text.find("\n", min(start + BLOCK, end) - 1, end) + 1 or end
        part = text[start:behind]
        found.append(_Block(len(part), hash(part), part.count("\n"), part.endswith("\n"), parse_list(part)))
        start = behind
    return found
