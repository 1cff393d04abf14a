"""A checkpoint as bytes: whatever becomes of it, what is read of it was written, in that order, and once."""

import pytest

from netloom.ipam.address_records import (
    Closed,
    Freed,
    Gave,
    Header,
    Opened,
    Record,
    RecordsRead,
    Rests,
    line,
    read,
    whole,
)

HEADER = Header("n1", "boot", "file")
RECORDS: tuple[Record, ...] = (
    Gave("default/a", "1", "eth0", "", ("10.0.0.2", "fd00::2")),
    Freed("default/a", "1", "eth0", ("10.0.0.2",), 7.5),
    Rests((("10.0.0.9", 3.0),)),
    Closed("10.0.0.0/24"),
    Opened("10.0.0.0/24"),
)
DATA, LAST = whole(HEADER, RECORDS)
LINES = DATA.splitlines(keepends=True)


def test_what_is_written_is_read() -> None:
    assert read(DATA) == RecordsRead(HEADER, RECORDS, len(DATA), LAST)
    more = line(LAST + 1, RECORDS[0], HEADER.seed)
    assert read(DATA + more).records == (*RECORDS, RECORDS[0])


def test_of_a_file_that_is_cut_anywhere_whole_records_are_left() -> None:
    for size in range(len(DATA)):
        found = read(DATA[:size])
        ends = [end for end in _ends() if end <= size]
        assert found.size == (ends[-1] if ends else 0)
        assert found.records == RECORDS[: max(0, len(ends) - 1)]
        assert bool(found.damage) == (size not in _ends())
        assert (found.header is None) == (not ends)


def _ends() -> list[int]:
    return [sum(map(len, LINES[: number + 1])) for number in range(len(LINES))]


def test_a_byte_that_changed_ends_what_is_relied_on() -> None:
    for at in range(len(DATA)):
        changed = bytearray(DATA)
        changed[at] ^= 0x10
        found = read(bytes(changed))
        assert found.records == RECORDS[: len(found.records)]
        assert len(found.records) < len(RECORDS)
        assert found.damage


@pytest.mark.parametrize("number", range(len(LINES)))
@pytest.mark.parametrize("again", [1, 3])
def test_a_line_that_stands_there_again_counts_once(number: int, again: int) -> None:
    repeated = LINES[number] * again
    assert read(DATA + repeated).records == RECORDS
    assert read(DATA + repeated).damage == ""
    assert read(b"".join([*LINES[: number + 1], repeated, *LINES[number + 1 :]])).records == RECORDS


def test_a_line_that_is_missing_ends_what_is_relied_on() -> None:
    found = read(b"".join([*LINES[:2], *LINES[3:]]))
    assert found.records == RECORDS[:1]
    assert found.damage == "what follows record 1 cannot be trusted"


@pytest.mark.parametrize("header", [Header("n2", "boot", "file"), Header("n1", "boot", "another")])
def test_lines_of_another_file_count_for_nothing(header: Header) -> None:
    other = whole(header, [*RECORDS, RECORDS[0]])[0]
    assert read(DATA + other).records == RECORDS
    assert read(DATA + other).damage == f"what follows record {LAST} cannot be trusted"
    assert read(other + DATA).header == header
    assert read(DATA + other.splitlines(keepends=True)[-1]).records == RECORDS


@pytest.mark.parametrize("data", [b"", b"\n", b"nonsense", b"\0" * 5000, LINES[1], b"00000000 0 null\n"])
def test_what_is_no_checkpoint_is_told(data: bytes) -> None:
    found = read(data)
    assert (found.header, found.records, found.size) == (None, (), 0)
    assert found.damage in ("it is empty", "it does not begin as one")
