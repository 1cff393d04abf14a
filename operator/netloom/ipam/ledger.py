"""The ledger of one range of addresses: who holds which block, and who may still be writing it to a node.

A ledger is the only place where a block is given out, and it changes only by the API server's compare-and-swap on
one NetloomLedger object. An entry carries *marks*: a mark says "this incarnation of an operator may have a request
under way that writes this block to this node". As long as a mark stands, nobody else may free the block. How the
marks are used, and why that is safe, is in docs/allocation.md; this module holds values and transitions, no I/O.

Wire form, one opaque string (the API server tracks the ownership of every key of a map, and needs four times as long
to write one):

    netloom-ledger/1 epoch=3
    10.0.0.0/24 node-a
    10.0.1.0/24 node-b 5f3a9c1e.12

Equal ledgers have equal text. A text that is not exactly of this form is an error: guessing at half a ledger could
give a block away twice.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import LedgerSpec, NetloomLedger
from netloom.cidr import Cidr, CidrError
from netloom.ipam.ledger_range import ledger_name, ledger_range_of

_HEADER = re.compile(r"netloom-ledger/1 epoch=(0|[1-9][0-9]*)")
_MARK = re.compile(r"([a-z0-9]+)\.([1-9][0-9]*)")
_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class LedgerError(ValueError):
    """A ledger object whose content is no ledger. Nothing is given out of its range until it is repaired."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"NetloomLedger {name}: {problem}")
        self.problem = problem


class Mark(NamedTuple):
    """Incarnation of an operator, and the number of its commit that set the mark. Never used twice."""

    incarnation: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


class Entry(NamedTuple):
    """`node` is the only one that may hold the block. No marks: no request that writes it is under way."""

    node: str
    marks: tuple[Mark, ...] = ()


_NO_ENTRIES: Mapping[Cidr, Entry] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ledger:
    """All blocks given out of `range`. No two entries overlap. `mode` "" means closed: it has no entries then."""

    range: Cidr
    mode: str = ""
    epoch: int = 0
    entries: Mapping[Cidr, Entry] = field(default_factory=lambda: _NO_ENTRIES)

    @property
    def name(self) -> str:
        return ledger_name(self.range)

    def edited(self, edits: Mapping[Cidr, Entry | None], mode: str, epoch: int) -> "Ledger":
        """The ledger after a commit of each block's new entry, or None where it is freed. Whoever edits a ledger has
        opened it for `mode`."""
        entries = {**self.entries, **edits}
        kept = {cidr: entry for cidr, entry in entries.items() if entry is not None}
        return Ledger(self.range, mode, epoch, MappingProxyType(kept))


def marked(entry: Entry, mark: Mark) -> Entry:
    """The entry with this incarnation's mark; an older one of the same incarnation is replaced by it."""
    others = tuple(each for each in entry.marks if each.incarnation != mark.incarnation)
    return Entry(entry.node, tuple(sorted((*others, mark))))


def unmarked(entry: Entry, gone: Collection[Mark]) -> Entry:
    """The entry without the marks in `gone`."""
    return Entry(entry.node, tuple(mark for mark in entry.marks if mark not in gone))


def encode(ledger: Ledger, version: str) -> NetloomLedger:
    """The object that holds a ledger, to be written at `version` ("": to be created)."""
    return NetloomLedger(
        metadata=ObjectMeta(name=ledger.name, resource_version=version),
        spec=LedgerSpec(ledger.mode, str(ledger.range), len(ledger.entries), text_of(ledger)),  # type: ignore[arg-type]
    )


def text_of(ledger: Ledger) -> str:
    """The wire form; equal ledgers give equal text."""
    lines = [f"netloom-ledger/1 epoch={ledger.epoch}"]
    for cidr in sorted(ledger.entries):
        node, marks = ledger.entries[cidr]
        lines.append(" ".join([str(cidr), node, *map(str, marks)]))
    return "\n".join(lines) + "\n"


def decode(obj: NetloomLedger) -> Ledger:
    """The ledger that an object holds. Raises LedgerError: the object, and what is wrong with it."""
    name, text, mode, used = obj.metadata.name, obj.spec.range, obj.spec.mode, obj.spec.used
    try:
        cidr = Cidr.parse(text)
        if ledger_range_of(cidr) != cidr:
            raise CidrError(f"{text} is not a ledger range")
    except CidrError as error:
        raise LedgerError(name, f"spec.range: {error}") from error
    if ledger_name(cidr) != name:
        raise LedgerError(name, f"spec.range {text} belongs to {ledger_name(cidr)}")
    header, *lines = obj.spec.entries.split("\n")
    match = _HEADER.fullmatch(header)
    if match is None:
        raise LedgerError(name, f"spec.entries begins with {header[:60]!r}, not with a header of this version")
    if not lines or lines.pop():
        raise LedgerError(name, "spec.entries does not end with a line break: it is cut off")
    entries = dict(_entries(name, lines))
    _check(name, cidr, entries)
    if len(lines) != used or len(entries) != used:
        raise LedgerError(name, f"spec.used says {used} blocks, spec.entries has {len(entries)} in {len(lines)} lines")
    if entries and not mode:
        raise LedgerError(name, f"spec.mode is empty, so it should be closed, but it has {used} entries")
    return Ledger(cidr, mode, int(match[1]), MappingProxyType(entries))


def _entries(name: str, lines: Iterable[str]) -> Iterable[tuple[Cidr, Entry]]:
    for number, line in enumerate(lines, 2):
        where = f"spec.entries line {number}"
        block, *rest = line.split(" ")
        if not rest or not _NODE.fullmatch(rest[0]):
            raise LedgerError(name, f"{where}: {line[:80]!r} is not 'CIDR node [marks]'")
        marks = []
        for text in rest[1:]:
            match = _MARK.fullmatch(text)
            if match is None:
                raise LedgerError(name, f"{where}: {text[:80]!r} is not a mark")
            marks.append(Mark(match[1], int(match[2])))
        try:
            yield Cidr.parse(block), Entry(rest[0], tuple(marks))
        except CidrError as error:
            raise LedgerError(name, f"{where}: {error}") from error


def _check(name: str, ledger_range: Cidr, entries: Mapping[Cidr, Entry]) -> None:
    for cidr, entry in entries.items():
        if not ledger_range.contains(cidr):
            raise LedgerError(name, f"{cidr} of node {entry.node} is outside {ledger_range}")
    for cidr, other in pairwise(sorted(entries)):
        if cidr.overlaps(other):
            nodes = f"{entries[cidr].node} and {entries[other].node}"
            raise LedgerError(name, f"{cidr} and {other} overlap (nodes {nodes})")
