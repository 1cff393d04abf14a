"""What nodes had by ledgers that vanished."""

from netloom.cidr import Cidr
from netloom.ipam.former import Former


def test_a_node_is_remembered_by_family_until_it_has_another() -> None:
    former, four, six = Former(), Cidr.parse("10.0.0.0/24"), Cidr.parse("fd00::/64")
    former.remember("a", four)
    former.remember("a", six)
    assert (former.of("a"), former.of("b")) == ((four, six), ())
    assert former.forget("a", {four}) == (four,)
    assert (former.of("a"), former.nodes()) == ((six,), ["a"])
    assert former.overlap(four) is None
    assert former.forget("a") == (six,)
    assert (former.forget("a"), former.nodes()) == ((), [])


def test_of_two_that_overlap_the_first_counts() -> None:
    former = Former()
    former.remember("a", Cidr.parse("10.0.0.0/24"))
    former.remember("b", Cidr.parse("10.0.0.0/23"))
    former.remember("b", Cidr.parse("10.0.2.0/24"))
    assert (former.of("b"), former.nodes()) == ((Cidr.parse("10.0.2.0/24"),), ["a", "b"])
    assert former.overlap(Cidr.parse("10.0.0.0/22")) == Cidr.parse("10.0.2.0/24")
