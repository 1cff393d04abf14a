"""A node's allocator: what it gives, to whom, and what it never gives."""

import pytest

from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import Address, Cidr, Version, format_address, parse_address
from netloom.ipam.address_block import usable
from netloom.ipam.address_records import Closed, Freed, Gave, Opened, Rests
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import FORGET_SECONDS, NodeAllocator, Owner, Shortage

V4: frozenset[Version] = frozenset({4})
BOTH: frozenset[Version] = frozenset({4, 6})
A, B, C = Owner("default/a", "1"), Owner("default/b", "2"), Owner("default/c", "3")


def supplied(*cidrs: str, pool: str = "", rest: float = 30.0, **more: object) -> NodeAllocator:
    made = NodeAllocator(rest)
    made.provide(supply(*cidrs, pool=pool, **more))
    return made


def supply(*cidrs: str, pool: str = "", **more: object) -> Supply:
    return Supply(blocks={pool: tuple(map(Cidr.parse, cidrs))}, **more)  # type: ignore[arg-type]


def ask(made: NodeAllocator, owner: Owner, pool: str = "", versions: frozenset[Version] = V4, now: float = 0) -> str:
    got = made.allocate(owner, pool, versions, now)
    if isinstance(got, Shortage):
        return "short of " + " ".join(f"IPv{version}" for version in sorted(got.versions))
    return " ".join(map(format_address, got))


def packed(text: str) -> Address:
    return parse_address(text)


def all_of(made: NodeAllocator, pool: str = "", versions: frozenset[Version] = V4) -> list[str]:
    """Every address that it gives, in order."""
    found = []
    while (got := ask(made, Owner(f"pod/{len(found)}"), pool, versions)) and not got.startswith("short"):
        found.append(got)
    return found


@pytest.mark.parametrize(
    ("cidr", "pool", "more", "given"),
    [
        ("10.0.0.0/29", "", {}, "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"),
        ("10.0.0.0/29", "web", {}, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"),
        ("10.0.0.0/30", "web", {"whole": frozenset({"web"})}, "10.0.0.0 10.0.0.1 10.0.0.2 10.0.0.3"),
        (
            "10.0.0.0/30",
            "web",
            {"whole": frozenset({"web"}), "taken": frozenset({packed("10.0.0.0"), packed("10.9.0.1")})},
            "10.0.0.1 10.0.0.2 10.0.0.3",
        ),
        ("10.0.0.0/31", "web", {}, "10.0.0.0 10.0.0.1"),
        ("10.0.0.7/32", "", {}, "10.0.0.7"),
        ("fd00::/127", "", {}, "fd00:: fd00::1"),
        ("fd00::/128", "web", {}, "fd00::"),
        ("fd00::/126", "", {}, "fd00::2"),
    ],
)
def test_some_addresses_of_a_block_are_never_given(cidr: str, pool: str, more: dict[str, object], given: str) -> None:
    made = supplied(cidr, pool=pool, **more)
    versions: frozenset[Version] = frozenset({6}) if ":" in cidr else V4
    assert made.need(pool, 0)[next(iter(versions))].free == len(given.split())
    assert all_of(made, pool, versions) == given.split()
    if "taken" not in more:
        assert usable(Cidr.parse(cidr), gateway=not pool, whole="whole" in more) == len(given.split())


def test_an_owner_that_asks_again_is_told_what_it_has() -> None:
    made = supplied("10.0.0.0/29", "fd00::/64")
    assert ask(made, A, versions=BOTH) == "10.0.0.2 fd00::2"
    assert ask(made, A, versions=BOTH) == "10.0.0.2 fd00::2"
    assert ask(made, B, versions=BOTH) == "10.0.0.3 fd00::3"


def test_both_families_or_none() -> None:
    made = supplied("10.0.0.0/30", "fd00::/64")
    assert ask(made, A, versions=BOTH) == "10.0.0.2 fd00::2"
    assert ask(made, B, versions=BOTH) == "short of IPv4"
    assert made.need("", 0)[6].used == 1
    assert made.need("", 0)[6].waiting == 1


def test_a_release_frees_what_exactly_that_owner_has() -> None:
    made = supplied("10.0.0.0/30", rest=0)
    ask(made, A)
    assert made.release(A, now=0) == (packed("10.0.0.2"),)
    assert ask(made, B) == "10.0.0.2"
    assert made.release(A, [packed("10.0.0.2")], now=0) == ()
    assert made.release(Owner(B.name, "another", B.interface), [packed("10.0.0.2")], now=0) == ()
    assert made.release(B, [packed("10.0.0.1")], now=0) == ()
    assert made.user(packed("10.0.0.2")) == B


def test_an_address_rests_and_the_longest_free_is_next() -> None:
    made = supplied("10.0.0.0/29", pool="web")
    owners = [Owner(f"pod/{number}") for number in range(6)]
    for owner in owners:
        ask(made, owner, "web")
    for second, number in enumerate([4, 1, 2]):
        made.release(owners[number], now=second)
    assert made.allocate(A, "web", V4, 29) == Shortage("web", V4, ready_at=30)
    assert made.need("web", 31)[4] == (3, 1, 2, 1)
    assert [ask(made, each, "web", now=32) for each in (A, B, C)] == ["10.0.0.5", "10.0.0.2", "10.0.0.3"]


def test_who_waits_counts_until_it_is_served_released_or_does_not_ask_again() -> None:
    made = supplied("10.0.0.7/32", pool="web", rest=0)
    ask(made, A, "web")
    for owner in (B, C):
        assert ask(made, owner, "web") == "short of IPv4"
    assert made.need("web", 0)[4].waiting == 2
    made.release(C, now=0)
    assert made.need("web", 89)[4].waiting == 1
    assert made.need("web", 90)[4].waiting == 0
    ask(made, B, "web", now=61)
    made.release(A, now=62)
    assert ask(made, B, "web", now=62) == "10.0.0.7"
    assert made.need("web", 62)[4] == (1, 0, 0, 0)


def test_earlier_blocks_are_used_first_so_that_later_ones_become_idle() -> None:
    made = supplied("10.0.0.0/31", "10.0.1.0/31", pool="web")
    owners = [Owner(f"pod/{number}") for number in range(3)]
    assert [ask(made, each, "web") for each in owners] == ["10.0.0.0", "10.0.0.1", "10.0.1.0"]
    assert made.idle("web", 0) == []
    made.release(owners[2], now=0)
    made.release(owners[0], now=0)
    assert made.idle("web", 29) == []
    assert list(map(str, made.idle("web", 30))) == ["10.0.1.0/31"]
    assert ask(made, A, "web", now=30) == "10.0.0.0"


def test_of_a_closed_block_nothing_is_given_until_it_is_open_again() -> None:
    made = supplied("10.0.0.0/31", "10.0.1.0/31", pool="web", rest=10)
    first, second = map(Cidr.parse, ("10.0.0.0/31", "10.0.1.0/31"))
    ask(made, A, "web")
    assert not made.close(first, 0)
    made.release(A, now=0)
    assert not made.close(first, 9)
    assert made.close(first, 10)
    assert ask(made, B, "web", now=20) == "10.0.1.0"
    assert not made.close(second, 20)
    assert made.need("web", 20)[4].free == 1
    made.reopen(first)
    assert made.need("web", 20)[4].free == 3
    made.close(first, 20)
    made.provide(supply("10.0.1.0/31", pool="web"))
    assert made.closed == frozenset()


def test_nothing_new_is_given_of_a_draining_pool() -> None:
    made = supplied("10.0.0.0/29", pool="web", closed=frozenset({"web"}))
    assert ask(made, A, "web") == "short of IPv4"
    assert made.need("web", 0)[4] == (0, 1, 0, 0)


def test_what_is_used_outside_of_what_is_provided_stays_used() -> None:
    made = supplied("10.0.0.0/29", "10.0.1.0/29", pool="web")
    ask(made, A, "web")
    made.provide(supply("10.0.1.0/29", pool="web"))
    assert made.orphans() == {packed("10.0.0.1"): A}
    assert ask(made, A, "web") == "10.0.0.1"
    made.provide(supply("10.0.0.0/28", "10.0.1.0/29", pool="web"))
    assert made.orphans() == {}
    assert ask(made, B, "web") == "10.0.0.2"
    made.provide(supply("10.0.1.0/29", pool="web"))
    made.release(A, now=100)
    made.provide(supply("10.0.0.0/30", pool="web"))
    made.release(B, now=101)
    assert ask(made, C, "web", now=129) == "short of IPv4"
    assert ask(made, C, "web", now=130) == "10.0.0.1"


def test_a_block_inside_another_is_left_out() -> None:
    made = supplied("10.0.0.0/29", "10.0.0.4/30", pool="web")
    assert made.stock.overlapping == (Cidr.parse("10.0.0.4/30"),)
    assert len(all_of(made, "web")) == 6


def test_single_addresses_go_to_their_owners_and_the_others_to_anyone() -> None:
    texts = {"10.0.0.1": "", "10.0.0.2": B.name, "10.0.0.3": "", "fd00::1": ""}
    entries = {packed(text): PoolAddress(owner=owner) for text, owner in texts.items()}
    made = NodeAllocator(rest_seconds=0)
    made.provide(Supply(singles=entries))
    assert made.need("", 0)[4].free == 3
    assert ask(made, B) == "10.0.0.2"
    assert [ask(made, each) for each in (A, C, Owner("d/d"))] == ["10.0.0.1", "10.0.0.3", "short of IPv4"]
    made.provide(
        Supply(singles={packed("10.0.0.2"): PoolAddress(owner="default/z"), packed("10.0.0.1"): PoolAddress()})
    )
    assert made.orphans() == {packed("10.0.0.3"): C}
    made.release(B, now=0)
    assert ask(made, B) == "short of IPv4"
    assert ask(made, Owner("default/z")) == "10.0.0.2"
    assert made.need("", 0)[4] == (2, 2, 0, 0)


def test_who_waits_looks_again_when_one_for_it_has_rested_and_not_before() -> None:
    """Whatever has rested already and is not for it would be looked at again and again."""
    entries = {packed("10.0.0.1"): PoolAddress(owner=A.name), packed("10.0.0.2"): PoolAddress()}
    made = NodeAllocator(rest_seconds=10)
    made.provide(Supply(singles=entries))
    assert ask(made, A) == "10.0.0.1"
    assert ask(made, B) == "10.0.0.2"
    made.release(A, now=0)
    short = made.allocate(C, "", V4, 100)
    assert isinstance(short, Shortage)
    assert short.ready_at is None
    made.release(B, now=100)
    short = made.allocate(C, "", V4, 101)
    assert isinstance(short, Shortage)
    assert short.ready_at == 110
    closed = supplied("10.0.0.0/31", pool="web", rest=10)
    ask(closed, A, "web")
    closed.release(A, now=0)
    closed.close(Cidr.parse("10.0.0.0/31"), 10)
    short = closed.allocate(B, "web", V4, 100)
    assert isinstance(short, Shortage)
    assert short.ready_at is None


def test_what_is_seen_to_run_is_adopted() -> None:
    made = supplied("10.0.0.0/29")
    ask(made, A)
    assert made.adopt(Owner(A.name), [packed("10.0.0.2")]) == ()
    assert made.adopt(Owner("default/z"), [packed("10.0.0.2"), packed("10.0.0.3"), packed("10.0.0.1")]) == (
        packed("10.0.0.2"),
    )
    assert ask(made, B) == "10.0.0.4"
    assert made.need("", 0)[4] == (4, 0, 2, 0)
    assert made.release(Owner("default/z", "another container"), now=0) == ()


def test_a_block_of_many_addresses_costs_no_more_than_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom.ipam.address_block.REMEMBERED", 3)
    made = supplied("fd00::/125", pool="web", rest=10)
    six: frozenset[Version] = frozenset({6})
    given = []
    for second in range(60):
        given.append(ask(made, A, "web", six, now=second * 10))
        made.release(A, now=second * 10)
    assert given[:6] == [f"fd00::{number}" for number in range(1, 7)]
    assert set(given) == set(given[:6])
    assert all(given.count(each) >= 8 for each in set(given))


def test_an_address_rests_as_well_when_its_block_goes_and_comes_back() -> None:
    made, whole = supplied("10.0.0.0/31", pool="web"), supply("10.0.0.0/31", pool="web")
    ask(made, A, "web")
    ask(made, B, "web")
    made.release(A, now=10)
    made.provide(supply(pool="web"))
    made.release(B, now=20)
    again = NodeAllocator()
    again.restore(made.records(now=20), now=20)
    for each in (made, again):
        each.provide(whole)
        assert each.need("web", 39)[4] == (0, 0, 0, 2)
        assert ask(each, C, "web", now=39) == "short of IPv4"
        assert ask(each, C, "web", now=40) == "10.0.0.0"


def test_records_that_contradict_others_are_passed_over() -> None:
    made = NodeAllocator()
    records = [
        Gave(*A, "", ("10.0.0.2",)),
        Gave(*B, "", ("10.0.0.2",)),
        Freed(*B, ("10.0.0.2",), 0.0),
        Rests((("10.0.0.2", 0.0),)),
        Gave(*C, "", ("no address",)),
        Closed("10.0.0.0/24"),
        Opened("10.0.0.0/24"),
    ]
    assert made.restore(records, now=0) == 4
    assert made.user(packed("10.0.0.2")) == A
    assert made.closed == frozenset()


def test_a_clock_that_was_ahead_keeps_no_address_resting_for_ever() -> None:
    made = NodeAllocator()
    made.restore([Rests((("10.0.0.7", 1e9),))], now=5)
    made.provide(supply("10.0.0.7/32", pool="web"))
    assert ask(made, A, "web", now=34) == "short of IPv4"
    assert ask(made, A, "web", now=35) == "10.0.0.7"


def test_as_many_free_addresses_are_told_as_json_can_hold() -> None:
    made = supplied("fd00::/56", "fd01::/56")
    assert made.need("", 0)[6].free == 2**53 - 1


def test_who_asked_and_went_away_is_forgotten_though_nobody_looks() -> None:
    """As callers that each come once, with the id of another container."""
    made = supplied("10.0.0.7/32")
    ask(made, A)
    for number in range(1000):
        assert ask(made, Owner("default/b", str(number)), now=number).startswith("short")
        assert ask(made, B, now=number).startswith("short")
        assert len(made._waiting) <= FORGET_SECONDS + 1
    assert B in made._waiting, "who asks again and again"
    assert made.need("", 1000 + FORGET_SECONDS)[4].waiting == 0
