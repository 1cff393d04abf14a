"""What is reserved, by thousands or by one, in each other or apart."""

from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.ipam.reservations import Reservations

LAN, DOCKER, HOST = (Cidr.parse(each) for each in ("10.90.0.0/16", "172.17.0.0/16", "10.90.1.7/32"))


def test_what_every_node_reserves_is_one_reservation_until_the_last_lets_it_go() -> None:
    found = Reservations()
    assert [found.reserve(DOCKER) for _ in range(5000)].count(True) == 1
    assert len(found) == 1
    assert [found.let_go(DOCKER) for _ in range(5000)] == [False] * 4999 + [True]
    assert found.overlap(DOCKER) is None


def test_what_lies_in_another_s_stays_when_that_goes() -> None:
    found = Reservations()
    found.reserve(HOST)
    found.reserve(LAN)
    block = Cidr.parse("10.90.1.0/24")
    assert (found.overlap(block), list(found.overlapping(block))) == (LAN, [LAN, HOST])
    assert list(found.of(4)) == [LAN]
    found.let_go(LAN)
    assert (found.overlap(block), list(found.overlapping(block))) == (HOST, [HOST])
    assert found.overlap(Cidr.parse("10.90.2.0/24")) is None


cidrs = st.builds(
    lambda base, length: Cidr.of(base.to_bytes(4, "big"), length), st.integers(0, 15), st.integers(26, 32)
)


@given(st.lists(cidrs), st.data(), cidrs)
def test_in_general(reserved: list[Cidr], data: st.DataObject, asked: Cidr) -> None:
    found = Reservations()
    for each in reserved:
        found.reserve(each)
    gone = data.draw(st.lists(st.sampled_from(reserved), unique=True)) if reserved else []
    rest = list(reserved)
    for each in gone:
        rest.remove(each)
        assert found.let_go(each) == (each not in rest)
    expected = {each for each in rest if each.overlaps(asked)}
    assert set(found.overlapping(asked)) == expected
    assert (found.overlap(asked) is not None) == bool(expected)
    assert len(found) == len(set(rest))
