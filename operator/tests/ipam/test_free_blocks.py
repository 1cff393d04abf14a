"""Which block is given, and why not another."""

import pytest

from netloom.cidr import Cidr
from netloom.ipam.allocator import Allocator
from netloom.ipam.free_blocks import FreeBlocks
from netloom.ipam.ledger import Entry, Ledger, LedgerError, Mark
from netloom.ipam.plan import BlockRequest, BlockTaken, ChosenBlocks, Deferred, Want
from netloom.ipam.pool import Exhausted, Pool, Usage

MODE = "cluster-pool"
ZERO, ONE = Cidr.parse("10.0.0.0/24"), Cidr.parse("10.0.1.0/24")


@pytest.fixture
def known() -> Allocator:
    """All that a search looks at; two blocks of IPv4."""
    allocator = Allocator("me")
    allocator.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/23")], 24)])
    return allocator


def load(known: Allocator, entries: dict[Cidr, Entry], version: str = "1") -> None:
    known.load(ZERO, Ledger(Cidr.parse("10.0.0.0/16"), MODE, 1, entries), version, 0.0)


def choose(blocks: FreeBlocks, node: str, *cidrs: Cidr, wants: tuple[Want, ...] = (Want("", 4),)) -> object:
    found = blocks.choose(BlockRequest(node, MODE, cidrs, wants))
    return [str(cidr) for _, cidr in found.blocks] if isinstance(found, ChosenBlocks) else found


def test_what_was_chosen_is_taken(known: Allocator) -> None:
    assert choose(known.blocks, "a") == ["10.0.0.0/24"]
    assert choose(known.blocks, "b") == ["10.0.1.0/24"]
    assert isinstance(choose(known.blocks, "c"), Exhausted)


def test_what_others_have_hold_reserve_or_had_is_passed_over(known: Allocator) -> None:
    known.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/21")], 24)])
    known.blocks.reserve(Cidr.parse("10.0.2.7/32"))
    load(known, {ZERO: Entry("enters")})
    known.hold("holds", (ONE,))
    known.former.remember("had", Cidr.parse("10.0.3.0/24"))
    assert choose(known.blocks, "new") == ["10.0.4.0/24"]
    assert choose(known.blocks, "had") == ["10.0.3.0/24"]


def test_a_node_gets_what_a_ledger_has_for_it_and_of_several_one_without_marks(known: Allocator) -> None:
    load(known, {ZERO: Entry("a", (Mark("stranger", 1),)), ONE: Entry("a")})
    assert choose(known.blocks, "a") == ["10.0.1.0/24"]


def test_a_former_block_that_is_none_of_the_pool_s_any_more_is_forgone(known: Allocator) -> None:
    known.former.remember("a", Cidr.parse("10.0.8.0/24"))
    assert choose(known.blocks, "a") == ["10.0.0.0/24"]


def test_a_former_block_that_is_reserved_by_now_is_given_back_to_its_node_and_to_nobody_else(known: Allocator) -> None:
    known.former.remember("a", ZERO)
    known.blocks.reserve(Cidr.parse("10.0.0.0/25"))
    assert choose(known.blocks, "b") == ["10.0.1.0/24"]
    assert choose(known.blocks, "a") == ["10.0.0.0/24"]


def test_what_is_reserved_no_more_is_given_at_once(known: Allocator) -> None:
    known.blocks.reserve(Cidr.parse("10.0.0.0/8"))
    assert str(choose(known.blocks, "a")) == (
        "all 2 IPv4 blocks (/24) of 10.0.0.0/23 are in use, or reserved for Services, nodes and their networks (2)"
    )
    known.blocks.reserve(Cidr.parse("10.0.0.7/32"))
    known.blocks.let_go(Cidr.parse("10.0.0.0/8"))
    assert choose(known.blocks, "a") == ["10.0.1.0/24"]
    known.blocks.let_go(Cidr.parse("10.0.0.7/32"))
    assert choose(known.blocks, "b") == ["10.0.0.0/24"]


def test_both_families_or_neither(known: Allocator) -> None:
    six = Pool(6, [Cidr.parse("fd00::/120")], 120)
    known.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/23")], 24), six])
    wants = (Want("", 4), Want("", 6))
    assert choose(known.blocks, "a", wants=wants) == ["10.0.0.0/24", "fd00::/120"]
    assert isinstance(choose(known.blocks, "b", wants=wants), Exhausted)
    assert known.ledgers.of(ONE).taken.overlap(ONE) is None
    (only,) = six.cidrs
    known.ledgers.of(only).taken.remove(only)
    known.blocks.put_back([only])
    assert choose(known.blocks, "b", wants=wants) == ["10.0.1.0/24", "fd00::/120"]


@pytest.mark.parametrize("held", [False, True])
def test_a_block_that_is_asked_for_is_refused_with_who_has_it(known: Allocator, held: bool) -> None:
    if held:
        known.hold("a", (ZERO,))
    else:
        load(known, {ZERO: Entry("a")})
    wide = Cidr.parse("10.0.0.0/23")
    assert choose(known.blocks, "b", wide) == BlockTaken(wide, ZERO, "a")
    assert (known.blocks.obstacle(ZERO, "b", held=False) is None) == held
    assert choose(known.blocks, "b", ONE) == ["10.0.1.0/24"]
    assert choose(known.blocks, "a", ZERO) == ["10.0.0.0/24"]


def test_what_is_being_given_at_this_moment_is_asked_for_again(known: Allocator) -> None:
    choose(known.blocks, "a")
    refusal = choose(known.blocks, "b", ZERO)
    assert isinstance(refusal, Deferred)
    assert refusal.reason == "LedgerBusy"


def test_a_ledger_that_cannot_be_relied_on_is_passed_over_and_comes_back(known: Allocator) -> None:
    known.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/15")], 24)])
    known.load(ZERO, LedgerError("v4-10.0.0.0-16", "odd"), "1", 0.0)
    assert choose(known.blocks, "a") == ["10.1.0.0/24"]
    load(known, {}, "2")
    assert choose(known.blocks, "b") == ["10.0.0.0/24"]


def test_without_a_pool_there_is_nothing(known: Allocator) -> None:
    known.blocks.configure("", [])
    assert isinstance(refusal := choose(known.blocks, "a", wants=()), Deferred)
    assert refusal.reason == "NoClusterCIDR"


def test_use_is_counted_by_ledgers_and_by_what_only_nodes_know_of(known: Allocator) -> None:
    load(known, {ZERO: Entry("a")})
    known.hold("a", (ZERO,))
    known.hold("b", (ONE,))
    assert known.blocks.usage() == [Usage(Cidr.parse("10.0.0.0/23"), 24, 2, 2)]
