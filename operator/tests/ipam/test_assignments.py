"""Blocks by node, as the ledgers have them and as the NetloomNodes do."""

from netloom.cidr import Cidr
from netloom.ipam.assignments import Assignments

ONE, OTHER, SIX = Cidr.parse("10.0.1.0/24"), Cidr.parse("10.0.2.0/24"), Cidr.parse("fd00::/120")


def test_what_is_held_and_in_no_ledger_is_unrecorded_until_it_is_entered() -> None:
    known = Assignments()
    assert list(known.hold("a", (ONE, SIX))) == []
    assert known.unrecorded == {"a": (ONE, SIX)}
    assert known.overlap(Cidr.parse("10.0.0.0/22")) == ONE
    assert list(known.enter("a", ONE)) == [ONE, SIX]
    assert (known.unrecorded, known.entered("a")) == ({"a": (SIX,)}, (ONE,))
    assert known.overlap(ONE) is None
    assert known.overlap(SIX) == SIX
    assert list(known.enter("a", SIX)) == [SIX]
    assert (known.unrecorded, known.overlap(SIX)) == ({}, None)


def test_what_is_struck_while_it_is_held_is_unrecorded_again() -> None:
    known = Assignments()
    known.enter("a", ONE)
    known.hold("a", (ONE,))
    assert list(known.strike("a", ONE)) == []
    assert known.unrecorded == {"a": (ONE,)}
    assert list(known.hold("a", ())) == [ONE]
    assert not bool(known.holders())


def test_another_node_s_entry_does_not_count_for_it() -> None:
    known = Assignments()
    known.hold("a", (ONE,))
    assert list(known.enter("b", ONE)) == []
    assert known.unrecorded == {"a": (ONE,)}


def test_holders_hold_or_have_an_entry() -> None:
    known = Assignments()
    known.hold("holds", (ONE,))
    known.enter("is-given", OTHER)
    known.enter("is-given", SIX)
    assert known.holders() == {"holds", "is-given"}
    assert (known.nodes(), bool(known.holders())) == (["is-given"], True)
    known.strike("is-given", OTHER)
    known.strike("is-given", SIX)
    known.hold("holds", ())
    assert (known.holders(), known.nodes(), bool(known.holders())) == (set(), [], False)
