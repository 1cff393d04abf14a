"""CIDRs that are counted, by thousands or by one, in each other or apart: as of what is reserved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.cidr.counted_cidrs import CountedCidrs

LAN, DOCKER, HOST = (Cidr.parse(each) for each in ("10.90.0.0/16", "172.17.0.0/16", "10.90.1.7/32"))


def test_what_every_node_reserves_is_one_reservation_until_the_last_lets_it_go() -> None:
    found = CountedCidrs()
    assert [found.add(DOCKER) for _ in range(5000)].count(None) == 4999
    assert len(found) == 1
    assert [found.remove(DOCKER) for _ in range(5000)] == [None] * 4999 + [([], [DOCKER])]
    assert found.overlap(DOCKER) is None


def test_what_lies_in_another_s_stays_when_that_goes() -> None:
    found = CountedCidrs()
    found.add(HOST)
    found.add(LAN)
    block = Cidr.parse("10.90.1.0/24")
    assert (found.overlap(block), list(found.overlapping(block))) == (LAN, [LAN, HOST])
    assert list(found.outermost(4)) == [LAN]
    found.remove(LAN)
    assert (found.overlap(block), list(found.overlapping(block))) == (HOST, [HOST])
    assert found.overlap(Cidr.parse("10.90.2.0/24")) is None


def test_a_cidr_that_contains_others_takes_their_place_and_gives_it_back() -> None:
    found = CountedCidrs()
    for prefix in map(Cidr.parse, ("10.1.0.0/24", "10.1.1.0/24", "10.1.1.128/25", "10.2.0.0/24")):
        found.add(prefix)
    wide, inner = Cidr.parse("10.1.0.0/16"), [Cidr.parse("10.1.0.0/24"), Cidr.parse("10.1.1.0/24")]
    assert found.add(wide) == ([wide], inner)
    assert found.remove(wide) == (inner, [wide])


def test_what_two_have_goes_with_the_second() -> None:
    found = CountedCidrs()
    assert found.add(LAN) == ([LAN], [])
    assert found.add(LAN) is None
    assert found.remove(LAN) is None
    assert found.remove(LAN) == ([], [LAN])
    with pytest.raises(KeyError):
        found.remove(LAN)


cidrs = st.builds(
    lambda base, length: Cidr.of(base.to_bytes(4, "big"), length), st.integers(0, 15), st.integers(26, 32)
)


@given(st.lists(cidrs), st.data(), cidrs)
def test_in_general(reserved: list[Cidr], data: st.DataObject, asked: Cidr) -> None:
    found = CountedCidrs()
    for each in reserved:
        found.add(each)
    gone = data.draw(st.lists(st.sampled_from(reserved), unique=True)) if reserved else []
    rest = list(reserved)
    for each in gone:
        rest.remove(each)
        assert (found.remove(each) is None) == (each in rest)
    expected = {each for each in rest if each.overlaps(asked)}
    assert set(found.overlapping(asked)) == expected
    assert (found.overlap(asked) is not None) == bool(expected)
    assert len(found) == len(set(rest))
