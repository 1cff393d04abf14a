"""Block lists as they are published, one entry a line, to records.

Taken: a CIDR, an address, a range of addresses (`10.0.0.1-10.0.0.9`), in any spelling of IPv6; after `#` or `;`
anything; blank lines, blanks around an entry, lines that end in CR LF, a byte order mark. Bits below the mask mean
nothing to those who publish lists, so they are dropped and counted. What else there is is a bad line: it is left out,
counted, and the first of them named. Not taken on purpose, as it may mean one thing or another: leading zeros (octal to
some), masks, columns.

A million lines are 2 to 3 s of a core, most of it in this loop: it has no call that is not needed. Half the time that a
pattern for the blanks before comments took was saved by leaving these to `str.replace`.
"""

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from netloom.cidr import WIDTH, Cidr, CidrError, MappedAddressError, Version, parse_address, version_of
from netloom.cidr import split as split_cidr
from netloom.prefilter.records import SIZES, Records, masked, record, record_of

NAMED = 8
"""Bad lines of a list that are named."""
_SHOWN = 40
"""Characters of a bad line that are shown."""

_COMMENTS = re.compile(r"[#;].*")
_MASKED_AWAY = {length: (1 << (32 - length)) - 1 for length in range(33)}
_SUFFIXES = {str(length): bytes([length]) for length in range(33)}
_PIECE = 1 << 16
"""Lines that are objects at a time."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """number: from 1. text: what stands there, cut. reason: why it is no entry, as a clause."""

    number: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.number} ({self.text!r}) {self.reason}"


@dataclass(frozen=True, slots=True)
class ParsedList:
    """v4, v6: its entries. lines: that hold an entry. masked: those with bits below the mask. bad: the first NAMED of
    `bad_lines`."""

    v4: Records
    v6: Records
    lines: int = 0
    masked: int = 0
    bad_lines: int = 0
    bad: tuple[BadLine, ...] = ()

    def family(self, version: Version) -> Records:
        """Its entries of one family."""
        return self.v4 if version == 4 else self.v6

    @property
    def duplicates(self) -> int:
        """Entries that were there before; a range is several entries, so it may be less than none and is none then."""
        return max(0, self.lines - len(self.v4) - len(self.v6))


EMPTY = ParsedList(Records(b"", SIZES[4]), Records(b"", SIZES[6]))


@dataclass(slots=True)
class _Parsing:
    v4: list[bytes] = field(default_factory=list)
    v6: list[bytes] = field(default_factory=list)
    lines: int = 0
    masked: int = 0
    bad_lines: int = 0
    bad: list[BadLine] = field(default_factory=list)

    def add(self, cidr: Cidr) -> None:
        (self.v4 if cidr.version == 4 else self.v6).append(record(cidr))


def parse_list(text: str) -> ParsedList:
    """The entries of a list, and what is wrong with it. Raises nothing: any text is a list, if of bad lines."""
    parsing = _Parsing()
    plain = text = text.removeprefix("\ufeff")  # a byte order mark, as editors of other systems leave it
    for sign in "#;":
        if sign in text:  # the blank before it is what most lists have; taken away, the line is one of the plain ones
            plain = plain.replace(f" {sign}", sign)
    if "#" in text or ";" in text:
        plain = _COMMENTS.sub("", plain)
    if "\r" in plain:
        plain = plain.replace("\r\n", "\n").removesuffix("\r")
    # Only "\n" ends a line, as in editors: str.splitlines() would also count form feeds and others, and numbers be off.
    lines = iter(plain.split("\n"))
    number = 1
    while piece := list(islice(lines, _PIECE)):
        _parse(piece, number, parsing)
        number += len(piece)
    return ParsedList(
        Records.of(parsing.v4, SIZES[4]),
        Records.of(parsing.v6, SIZES[6]),
        parsing.lines,
        parsing.masked,
        parsing.bad_lines,
        tuple(parsing.bad),
    )


def _parse(lines: list[str], number: int, parsing: _Parsing) -> None:
    """The plain forms of IPv4 here, all others by `_other`."""
    pton, family, append, suffixes = socket.inet_pton, socket.AF_INET, parsing.v4.append, _SUFFIXES
    below, number_of = _MASKED_AWAY, int.from_bytes
    taken = 0
    for at, line in enumerate(lines, number):
        try:
            address, slash, length = line.partition("/")
            packed = pton(family, address)
            if not slash:
                append(packed + b"\x20")
            else:
                suffix = suffixes[length]
                if number_of(packed, "big") & below[suffix[0]]:
                    raise KeyError
                append(packed + suffix)
            taken += 1
        except (OSError, KeyError, ValueError):
            _other(line, at, parsing)
    parsing.lines += taken


def _other(line: str, number: int, parsing: _Parsing) -> None:
    text = line.strip()
    if not text:
        return
    try:
        if "-" in text:
            for cidr in _range(text):
                parsing.add(cidr)
        else:
            _entry(text, parsing)
        parsing.lines += 1
    except CidrError as error:
        parsing.bad_lines += 1
        if len(parsing.bad) < NAMED:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            parsing.bad.append(BadLine(number, shown, str(error)))


def _entry(text: str, parsing: _Parsing) -> None:
    if len(text.split(None, 1)) > 1:
        raise CidrError("has more than one word: write one CIDR a line, and what else there is after #")
    if "/" in text:
        address, length = _strict(split_cidr, text)
    else:
        address = _strict(parse_address, text)
        length = len(address) * 8
    base = masked(address, length)
    parsing.masked += base != address
    (parsing.v4 if len(address) == 4 else parsing.v6).append(record_of(base, length))


T = TypeVar("T")


def _strict(parse: Callable[[str], T], text: str) -> T:
    """As `parse`, with the words for people who keep lists."""
    try:
        return parse(text)
    except MappedAddressError:
        raise CidrError("is an IPv4 address written as IPv6, and packets of IPv4 are not seen as such") from None
    except CidrError:
        raise CidrError("is no CIDR, address or range of addresses") from None


def _range(text: str) -> Iterator[Cidr]:
    """The fewest CIDRs that hold exactly the addresses from one to another."""
    first, _, last = (part.strip() for part in text.partition("-"))
    start, end = _strict(parse_address, first), _strict(parse_address, last)
    if len(start) != len(end) or start > end:
        raise CidrError("is a range that ends before it begins, or in another family")
    version = version_of(start)
    at, behind = int.from_bytes(start, "big"), int.from_bytes(end, "big") + 1
    while at < behind:
        size = min(at & -at or 1 << WIDTH[version], 1 << (behind - at).bit_length() - 1)
        yield Cidr(version, at, WIDTH[version] - size.bit_length() + 1)
        at += size
