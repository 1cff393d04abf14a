"""The ranges that ledgers answer for, and the names of the ledgers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr, CidrError, Version
from netloom.ipam.ledger_range import cover, ledger_name, ledger_range_from_name, ledger_range_of
from tests.cidr.test_cidr import VERSIONS, cidrs


@given(st.data(), VERSIONS)
def test_blocks_that_overlap_meet_in_one_ledger_range(data: st.DataObject, version: Version) -> None:
    shortest = 16 if version == 4 else 56
    one, other = data.draw(cidrs(version, shortest)), data.draw(cidrs(version, shortest))
    assert not one.overlaps(other) or ledger_range_of(one) == ledger_range_of(other)
    assert ledger_range_of(one).contains(one)
    assert ledger_range_from_name(ledger_name(ledger_range_of(one))) == ledger_range_of(one)


def test_a_block_larger_than_a_ledger_range_has_no_ledger() -> None:
    with pytest.raises(CidrError, match=r"10.0.0.0/15 is too large for one node: an IPv4 block has at least a /16"):
        ledger_range_of(Cidr.parse("10.0.0.0/15"))
    with pytest.raises(CidrError, match="at least a /56"):
        ledger_range_of(Cidr.parse("fd00::/48"))


def test_names_of_ledgers_are_object_names() -> None:
    assert ledger_name(Cidr.parse("10.3.0.0/16")) == "v4-10.3.0.0-16"
    assert ledger_name(Cidr.parse("fd00:10:0:ab00::/56")) == "v6-fd00-10-0-ab00-56"


@pytest.mark.parametrize(
    "name", ["", "v4-10.0.0.0-24", "v4-10.0.0.1-16", "v6-fd00--56", "v5-10.0.0.0-16", "v4", "v6-x-56"]
)
def test_other_names_are_none(name: str) -> None:
    with pytest.raises(CidrError, match="is not the name of a ledger"):
        ledger_range_from_name(name)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(16, 24)), max_size=40), st.integers(1, 5))
def test_a_cover_holds_all_and_is_short(blocks: list[tuple[int, int]], limit: int) -> None:
    cidrs = {Cidr(4, (10 << 24) + (number << 16), length) for number, length in blocks} | {Cidr.parse("fd00::/56")}
    found = cover(cidrs, limit)
    assert all(any(each.contains(cidr) for each in found) for cidr in cidrs)
    assert sum(each.version == 4 for each in found) <= limit
    if len(cidrs) <= limit:
        assert found == sorted(cidrs)
