"""Who holds which single address, and who is told when that changes."""

from netloom.cidr import Cidr, parse_address
from netloom.ipam.singles import Singles

A, B, C = (parse_address(f"10.7.0.{number}") for number in (5, 6, 7))


def test_two_that_hold_one_know_of_each_other_until_one_gives_it_up() -> None:
    singles = Singles()
    assert singles.hold("a", [A, B], in_use=True) == set()
    assert singles.hold("b", [B, C], in_use=True) == {"a"}
    assert singles.hold("c", [B], in_use=True) == {"a", "b"}
    assert singles.shared("a") == {B: {"a", "b", "c"}}
    assert singles.holders_of(A) == {"a"}
    assert singles.hold("a", [A], in_use=True) == {"b", "c"}
    assert singles.hold("c", [], in_use=False) == {"b"}
    assert singles.shared("b") == {}
    assert singles.holders_of(B) == {"b"}
    assert singles.hold("b", [B, C], in_use=True) == set(), "nothing changed"
    assert singles.hold("b", [], in_use=False) == set()
    assert singles.holders_of(B) == set()


def test_who_uses_what_was_withdrawn_holds_nothing_and_counts() -> None:
    singles = Singles()
    singles.hold("a", [], in_use=True)
    assert (singles.nodes(), singles.holders()) == (set(), {"a"})
    singles.hold("a", [], in_use=False)
    assert singles.holders() == set()


def test_what_lies_in_a_block() -> None:
    singles = Singles()
    assert singles.overlap(Cidr.parse("10.7.0.0/24")) is None
    singles.hold("a", [A], in_use=True)
    assert singles.overlap(Cidr.parse("10.7.0.0/24")) == Cidr.of(A)
    assert singles.overlap(Cidr.of(A)) == Cidr.of(A)
    assert singles.overlap(Cidr.of(B)) is None
    singles.hold("a", [], in_use=False)
    assert singles.overlap(Cidr.parse("10.7.0.0/24")) is None
