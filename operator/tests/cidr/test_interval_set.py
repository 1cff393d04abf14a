"""Sets of CIDRs against sets of plain addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.cidr.interval_set import FrozenIntervalSet, IntervalSet

CIDRS = st.builds(
    lambda address, length: Cidr.of(address, len(address) * 8 - 6 + length),
    st.integers(0, 63).flatmap(lambda low: st.sampled_from([bytes([255, 255, 255, 192 + low]), bytes([10, 0, 0, low])]))
    | st.integers(0, 63).map(lambda low: bytes(15) + bytes([low])),
    st.integers(0, 6),
)


def addresses(cidr: Cidr) -> set[tuple[int, int]]:
    return {(cidr.version, address) for address in range(cidr.base, cidr.last + 1)}


@given(st.lists(CIDRS, max_size=8), CIDRS)
def test_overlap_is_that_of_sets(cidrs: list[Cidr], asked: Cidr) -> None:
    members: set[tuple[int, int]] = set().union(*map(addresses, cidrs))
    intervals = IntervalSet(cidrs)
    found = intervals.overlap(asked)
    common = members & addresses(asked)
    assert (found is None) == (not common)
    if found is not None:
        assert addresses(found) <= members
        assert max(common) in addresses(found)
    assert set(intervals.inside(asked)) == {each for each in cidrs if asked.contains(each) and each in intervals}
    frozen = FrozenIntervalSet(cidrs)
    gaps = list(frozen.gaps(asked))
    missing = {(asked.version, address) for first, last in gaps for address in range(first, last + 1)}
    assert missing == addresses(asked) - members
    assert gaps == sorted(gaps)
    assert frozen.covers(asked) == (addresses(asked) <= members)


@given(st.lists(st.tuples(st.booleans(), CIDRS), max_size=30), CIDRS)
def test_added_and_removed_as_in_a_list(steps: list[tuple[bool, Cidr]], asked: Cidr) -> None:
    kept: list[Cidr] = []
    intervals = IntervalSet()
    for add, each in steps:
        if add and not any(addresses(each) & addresses(other) for other in kept):
            intervals.add(each)
            kept.append(each)
        elif add:
            with pytest.raises(ValueError, match="overlaps"):
                intervals.add(each)
        elif each in kept:
            intervals.remove(each)
            kept.remove(each)
        else:
            with pytest.raises(KeyError):
                intervals.remove(each)
    assert len(intervals) == len(kept)
    assert all(each in intervals for each in kept)
    assert (intervals.overlap(asked) is None) == (not any(addresses(asked) & addresses(each) for each in kept))


def test_two_halves_cover_a_whole_and_stay_two() -> None:
    whole, low, high = map(Cidr.parse, ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25"))
    intervals = IntervalSet([high, low])
    assert (whole in intervals, len(intervals)) == (False, 2)
    assert FrozenIntervalSet([high, low]).covers(whole)
    assert list(FrozenIntervalSet([high]).gaps(whole)) == [(low.base, low.last)]
