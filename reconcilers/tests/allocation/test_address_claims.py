"""By which address others reach a node whose addresses other Nodes report as well; and who is told of a change."""

from collections.abc import Callable

import pytest

from netloom.cidr import format_address, parse_address
from netloom_reconcilers.cluster.allocation.address_claims import AddressClaims, Claim

VIP, VIP6 = "10.0.0.100", "fd00::100"


def claim(*addresses: str, unready: int = 0, since: str = "2026", absent: str = "", current: str = "") -> Claim:
    """`absent`, `current`: addresses, with blanks between."""
    gone, now = (frozenset(map(parse_address, text.split())) for text in (absent, current))
    return Claim(tuple(map(parse_address, addresses)), unready, since, gone, now)


def chosen(**nodes: Claim) -> dict[str, str]:
    """What each is reached by: `-HOLDER` where another has it."""
    claims = AddressClaims()
    for name, each in nodes.items():
        claims.change(name, each)
    backwards = AddressClaims()
    for name in reversed(nodes):
        backwards.change(name, nodes[name])
    found = {}
    for name in nodes:
        sizes = sorted({len(address) for address in nodes[name].addresses})
        choices = [claims.choice(name, size) for size in sizes]
        assert choices == [backwards.choice(name, size) for size in sizes], "whatever came first"
        found[name] = " ".join(format_address(each.address) if each.address else f"-{each.holder}" for each in choices)
    return found


@pytest.mark.parametrize(
    ("a", "b", "then"),
    [
        # Nothing is shared: the Node's own order, and what was chosen before.
        (claim("10.0.0.1", "10.0.1.1"), claim("10.0.0.2"), "10.0.0.1 10.0.0.2"),
        (claim(VIP, "10.0.0.1"), claim("10.0.0.2"), f"{VIP} 10.0.0.2"),
        (claim(VIP, "10.0.0.1", current="10.0.0.1"), claim("10.0.0.2"), "10.0.0.1 10.0.0.2"),
        (claim(VIP, "10.0.0.1", absent=VIP), claim("10.0.0.2"), "10.0.0.1 10.0.0.2"),
        (claim("10.0.0.1", absent="10.0.0.1"), claim("10.0.0.2"), "10.0.0.1 10.0.0.2"),
        # A virtual IP in both lists, whoever has it, and wherever it went before.
        (claim(VIP, "10.0.0.1"), claim(VIP, "10.0.0.2"), "10.0.0.1 10.0.0.2"),
        (claim(VIP, "10.0.0.1", current=VIP), claim(VIP, "10.0.0.2", absent=VIP), "10.0.0.1 10.0.0.2"),
        (claim(VIP, "10.0.0.1", absent="10.0.0.1"), claim(VIP, "10.0.0.2"), "10.0.0.1 10.0.0.2"),
        # One has nothing else.
        (claim(VIP), claim(VIP, "10.0.0.2"), f"{VIP} 10.0.0.2"),
        (claim(VIP, unready=2, absent=VIP), claim(VIP, "10.0.0.2", current=VIP), f"{VIP} 10.0.0.2"),
        # Neither has: Ready, kubelet that talks, machine that has it, Node that had it, age, name.
        (claim(VIP, unready=2), claim(VIP, since="2027"), f"-b {VIP}"),
        (claim(VIP, unready=2), claim(VIP, since="2027", unready=1), f"-b {VIP}"),
        (claim(VIP, current=VIP, unready=1), claim(VIP, since="2027", absent=VIP), f"-b {VIP}"),
        (claim(VIP, current=VIP, absent=VIP), claim(VIP, since="2027"), f"-b {VIP}"),
        (claim(VIP), claim(VIP, since="2027", current=VIP), f"-b {VIP}"),
        (claim(VIP, current=VIP), claim(VIP, since="2025", current=VIP), f"-b {VIP}"),
        (claim(VIP), claim(VIP), f"{VIP} -a"),
        # Each family by itself.
        (
            claim(VIP, VIP6, "10.0.0.1", "fd00::1"),
            claim(VIP6, VIP, "fd00::2", "10.0.0.2"),
            "10.0.0.1 fd00::1 10.0.0.2 fd00::2",
        ),
        (claim("10.0.0.1", VIP6), claim("10.0.0.2", VIP6, "fd00::2"), f"10.0.0.1 {VIP6} 10.0.0.2 fd00::2"),
        (claim("10.0.0.1", VIP6), claim("10.0.0.2", VIP6), f"10.0.0.1 {VIP6} 10.0.0.2 -a"),
    ],
)
def test_which_address_others_send_to(a: Claim, b: Claim, then: str) -> None:
    assert " ".join(chosen(a=a, b=b).values()) == then


def test_whether_a_node_needs_what_it_shares_depends_on_third_ones() -> None:
    """B has an address of its own only while C does not report it, too; then A, though older, goes without."""
    a, b = claim(VIP, since="2026"), claim(VIP, "10.0.0.2", since="2025")
    assert chosen(a=a, b=b) == {"a": VIP, "b": "10.0.0.2"}
    assert chosen(a=a, b=b, c=claim("10.0.0.2", "10.0.0.3")) == {"a": "-b", "b": VIP, "c": "10.0.0.3"}


@pytest.fixture
def told() -> Callable[..., str]:
    claims = AddressClaims()

    def change(name: str, new: Claim | None) -> str:
        affected = claims.change(name, new)
        for each in [*affected, *([name] if new else [])]:
            claims.choice(each, 4)  # as its reconcile does
        return " ".join(sorted(affected))

    return change


def test_who_is_told_of_a_change(told: Callable[..., str]) -> None:
    assert told("a", claim("10.0.0.1")) == ""
    assert told("b", claim("10.0.0.2")) == "", "nothing is shared"
    assert told("c", claim(VIP, "10.0.0.3")) == ""
    assert told("d", claim(VIP, "10.0.0.4")) == "c", "it has it no longer alone"
    for number in range(5, 100):
        assert told(f"n{number}", claim(VIP, f"10.0.0.{number}")) == "", "they have passed it over already"
    assert told("d", claim(VIP, "10.0.0.4", absent=VIP)) == "", "nobody depends on where it is"
    assert told("d", claim(VIP, "10.0.0.4", unready=2)) == ""
    assert told("d", claim("10.0.0.4")) == ""
    assert told("d", None) == ""


def test_who_is_told_where_a_node_has_nothing_else(told: Callable[..., str]) -> None:
    told("old", claim(VIP, since="2025", current=VIP))
    assert told("new", claim(VIP, since="2026", unready=1)) == "old"
    assert told("new", claim(VIP, since="2026")) == "", "the older one has it as before"
    assert told("old", claim(VIP, since="2025", unready=2, current=VIP)) == "new", "which has it now"
    assert told("new", claim(VIP, since="2026", current=VIP)) == "old", "what is said of it may be another"
    assert told("old", claim(VIP, since="2025", unready=2)) == ""
    assert told("new", None) == "old"


def test_who_is_told_when_a_third_one_takes_what_another_had_of_its_own(told: Callable[..., str]) -> None:
    told("a", claim(VIP, since="2026"))
    told("b", claim(VIP, "10.0.0.2", since="2025"))
    assert told("c", claim("10.0.0.2", "10.0.0.3")) == "a b"
    assert told("c", claim("10.0.0.3")) == "a b"
