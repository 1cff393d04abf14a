"""Ranges against a set of plain integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.ipam.intervals import Intervals

RANGES = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def addresses(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))


@given(st.lists(RANGES, max_size=8), RANGES)
def test_overlap_is_that_of_sets(ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    members = set().union(*(addresses(*each) for each in ranges))
    found = Intervals(ranges).overlap(*asked)
    common = members & addresses(*asked)
    assert (found is None) == (not common)
    if found is not None:
        assert addresses(*found) <= members
        assert max(common) in addresses(*found)


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=30), RANGES)
def test_added_and_removed_as_in_a_list(steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    kept: list[tuple[int, int]] = []
    intervals = Intervals()
    for add, each in steps:
        if add and not any(addresses(*each) & addresses(*other) for other in kept):
            intervals.add(*each)
            kept.append(each)
        elif add:
            with pytest.raises(ValueError, match="overlaps"):
                intervals.add(*each)
        elif each in kept:
            intervals.remove(*each)
            kept.remove(each)
        else:
            with pytest.raises(KeyError):
                intervals.remove(*each)
    assert len(intervals) == len(kept)
    assert (intervals.overlap(*asked) is None) == (not any(addresses(*asked) & addresses(*each) for each in kept))
