"""A list that changes is read as if it were new, and only what changed is parsed."""

import random

import pytest

from netloom.prefilter import block_records, list_reader
from netloom.prefilter.block_records import MOST_BLOCKS
from netloom.prefilter.list_reader import ListReader
from netloom.prefilter.lists import parse_list
from netloom.prefilter.records import split
from tests.economy import seeds

LINES = ["192.0.2.0/24", "192.0.2.7", "198.51.100.1/24", "2001:db8::/32", "# none", "", "bad", "10.0.0.1-10.0.0.9 ; x"]


def drawn(draw: random.Random) -> str:
    lines = [draw.choice([*LINES, f"10.{draw.randrange(256)}.0.0/16"]) for _ in range(draw.randrange(30))]
    return draw.choice(["\n", "\r\n"]).join(lines) + draw.choice(["", "\n"])


def edited(draw: random.Random, text: str) -> str:
    match draw.randrange(5):
        case 0:
            return drawn(draw)
        case 1:
            return text + draw.choice(["x", "\n", "9", "10.0.0.0/8\n"])
        case 2:
            return text + text
    start, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return text[:start] + draw.choice(["", "\n", "1", drawn(draw)]) + text[end if draw.random() < 0.5 else start :]


@pytest.mark.parametrize("few", [0, 2048])
@pytest.mark.parametrize("seed", seeds(30))
def test_whatever_is_edited_it_is_read_as_a_new_list(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_records, "FEW", few)
    draw = random.Random(seed)
    monkeypatch.setattr(list_reader, "BLOCK", draw.choice([1, 20, 60]))
    reader, text = ListReader(), ""
    for _ in range(40):
        text = edited(draw, text)[:4000]
        assert reader.read(text) == parse_list(text)
    assert told(reader) == held(reader, text)


def told(reader: ListReader) -> set[tuple[bytes, int]]:
    """Which block has what, as the reader keeps it."""
    found: list[tuple[bytes, int]] = []
    for each in reader._records.values():
        found += zip(each.records, each.blocks, strict=True)
        found += [(pair[:-1], pair[-1]) for pair in split(each.again, each.records.size + 1)]
    assert len(set(found)) == len(found)
    return set(found)


def held(reader: ListReader, text: str) -> set[tuple[bytes, int]]:
    """Which block has what, by parsing each."""
    found, at = set(), 0
    for number, block in enumerate(reader._blocks):
        parsed = parse_list(text[at : at + block.size])
        found |= {(record, number) for records in (parsed.v4, parsed.v6) for record in records}
        at += block.size
    assert at == len(text)
    return found


def test_of_a_long_list_one_line_costs_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(40_000)]
    reader = ListReader()
    before = reader.read("\n".join(lines))
    parsed: list[int] = []
    monkeypatch.setattr(list_reader, "parse_list", lambda text: (parsed.append(len(text)), parse_list(text))[1])
    lines[20_000] = "fd00::/8"
    after = reader.read("\n".join(lines))
    assert (len(parsed), len(after.v4), len(after.v6)) == (1, 39_999, 1)
    assert sum(parsed) < 2 * list_reader.BLOCK
    parsed.clear()
    again = reader.read("\n".join(lines))
    assert (parsed, again.v4 is after.v4, before.v4 == after.v4) == ([], True, False)


def test_a_list_of_many_blocks_has_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a byte can tell apart, however it grows."""
    monkeypatch.setattr(list_reader, "BLOCK", 64)
    reader, lines = ListReader(), [f"10.{number >> 8}.{number & 255}.0/24" for number in range(8_000)]
    for count in (10, 1000, 1500, 8000, 7999, 20):
        text = "\n".join([*lines[:count], "2001:db8::/32"] * 2)
        assert reader.read(text) == parse_list(text)
        assert len(reader._blocks) <= MOST_BLOCKS
    assert told(reader) == held(reader, text)
