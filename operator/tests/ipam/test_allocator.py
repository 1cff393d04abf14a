"""Batches: what is committed for whom, and what becomes known by it."""

import pytest

from netloom.cidr import Cidr
from netloom.ipam import known_ledgers
from netloom.ipam.allocator import Allocator
from netloom.ipam.ledger import Entry, Ledger, Mark
from netloom.ipam.plan import BatchPlan, BlockRequest, BlockTaken, Deferred, Grant, Release, Want
from netloom.ipam.pool import Exhausted, Pool

MODE = "cluster-pool"
NAME = "v4-10.0.0.0-16"
RANGE = Cidr.parse("10.0.0.0/16")
ZERO, ONE = Cidr.parse("10.0.0.0/24"), Cidr.parse("10.0.1.0/24")
STRANGER = Mark("stranger", 1)


@pytest.fixture
def allocator() -> Allocator:
    allocator = Allocator("me")
    allocator.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/23")], 24)])
    allocator.load(RANGE, None, "", 0.0)
    return allocator


def load(allocator: Allocator, entries: dict[Cidr, Entry], version: str, now: float = 0.0) -> None:
    allocator.load(RANGE, Ledger(RANGE, MODE, 1, entries), version, now)


def commit(allocator: Allocator, plan: BatchPlan, version: str) -> None:
    allocator.committed(plan, NAME, allocator.edited(plan, NAME, 3), version)


def ask(node: str, *cidrs: Cidr, mode: str = MODE, adopt: bool = False, since: str = "") -> BlockRequest:
    return BlockRequest(node, mode, cidrs, (Want("", 4),), adopt=adopt, since=since)


def release(allocator: Allocator, node: str, cidr: Cidr, now: float = 0.0) -> BatchPlan:
    changes = allocator.ledgers.of(cidr).foreign_changes
    return allocator.plan([], [Release(node, cidr, changes)], now)


def test_a_block_is_granted_with_our_mark_in_the_same_commit(allocator: Allocator) -> None:
    plan = allocator.plan([ask("a"), ask("b"), ask("c")], [], 100.0)
    assert plan.edits == {NAME: {ZERO: Entry("a", (Mark("me", 1),)), ONE: Entry("b", (Mark("me", 1),))}}
    assert isinstance(grant := plan.decisions["a"], Grant)
    assert (grant.node, grant.mode, grant.cidrs) == ("a", MODE, (ZERO,))
    assert isinstance(plan.decisions["c"], Exhausted)
    assert (plan.opens, plan.entered) == ({NAME}, {"a": {NAME}, "b": {NAME}})


def test_a_ledger_is_opened_by_its_first_entry_and_keeps_its_epoch_then(allocator: Allocator) -> None:
    plan = allocator.plan([ask("a")], [], 0.0)
    opened = allocator.edited(plan, NAME, 3)
    assert (opened.mode, opened.epoch) == (MODE, 3)
    commit(allocator, plan, "5")
    assert allocator.assignments.entered("a") == (ZERO,)
    again = allocator.edited(allocator.plan([ask("b")], [], 0.0), NAME, 9)
    assert (again.mode, again.epoch, again.entries.keys()) == (MODE, 3, {ZERO, ONE})


def test_a_request_of_another_mode_is_deferred(allocator: Allocator) -> None:
    plan = allocator.plan([ask("a", mode="kubernetes")], [], 0.0)
    assert isinstance(decision := plan.decisions["a"], Deferred)
    assert (decision.reason, plan.edits) == ("ModeChanged", {})


def test_what_a_node_holds_is_entered_without_a_mark_and_before_others_are_given_any(allocator: Allocator) -> None:
    allocator.hold("a", (ZERO,))
    plan = allocator.plan([ask("b"), ask("a", ZERO, adopt=True)], [], 0.0)
    assert plan.edits == {NAME: {ZERO: Entry("a"), ONE: Entry("b", (Mark("me", 1),))}}
    assert plan.decisions["a"] is None
    commit(allocator, plan, "1")
    assert allocator.assignments.unrecorded == {}


def test_of_two_that_hold_one_block_the_elder_keeps_it(allocator: Allocator) -> None:
    younger, elder = ask("a", ZERO, adopt=True, since="2"), ask("b", ZERO, adopt=True, since="1")
    plan = allocator.plan([younger, elder], [], 0.0)
    assert plan.edits == {NAME: {ZERO: Entry("b")}}
    assert isinstance(plan.decisions["a"], Deferred)
    commit(allocator, plan, "1")
    assert allocator.plan([younger], [], 0.0).decisions == {"a": BlockTaken(ZERO, ZERO, "b")}


def test_a_block_is_freed_and_given_again(allocator: Allocator) -> None:
    load(allocator, {ZERO: Entry("a"), ONE: Entry("b")}, "1")
    assert isinstance(allocator.plan([ask("c")], [], 0.0).decisions["c"], Exhausted)
    plan = release(allocator, "a", ZERO)
    assert (plan.edits, [each.cidr for each in plan.released]) == ({NAME: {ZERO: None}}, [ZERO])
    commit(allocator, plan, "2")
    assert allocator.assignments.entered("a") == ()
    assert isinstance(grant := allocator.plan([ask("c")], [], 0.0).decisions["c"], Grant)
    assert grant.cidrs == (ZERO,)


def test_a_block_is_not_freed_by_what_was_seen_before_the_ledger_changed(allocator: Allocator) -> None:
    load(allocator, {ZERO: Entry("a")}, "1")
    seen = allocator.ledgers[NAME].foreign_changes
    load(allocator, {ZERO: Entry("a"), ONE: Entry("b")}, "2")
    assert allocator.plan([], [Release("a", ZERO, seen)], 0.0).edits == {}


def test_a_block_is_not_freed_while_anybody_may_write_it_or_it_is_another_s(allocator: Allocator) -> None:
    load(allocator, {ZERO: Entry("a", (STRANGER,)), ONE: Entry("b")}, "1", now=50.0)
    assert release(allocator, "a", ZERO, 169.9).released == []
    assert release(allocator, "b", ZERO, 170.0).released == []
    allocator.ledgers[NAME].stale = True
    assert release(allocator, "a", ZERO, 170.0).released == []
    allocator.ledgers[NAME].stale = False
    assert release(allocator, "a", ZERO, 170.0).edits == {NAME: {ZERO: None}}


def test_old_marks_go_with_the_next_commit_or_with_one_of_their_own(allocator: Allocator) -> None:
    load(allocator, {ZERO: Entry("a", (STRANGER,))}, "1")
    assert allocator.tidy(119.9).edits == {}
    assert allocator.tidy(120.0).edits == {NAME: {ZERO: Entry("a")}}
    with_b = allocator.plan([ask("b")], [], 120.0)
    assert with_b.edits == {NAME: {ZERO: Entry("a"), ONE: Entry("b", (Mark("me", 1),))}}


def test_a_ledger_that_vanishes_leaves_wishes_until_the_nodes_are_gone(allocator: Allocator) -> None:
    load(allocator, {ZERO: Entry("a")}, "1")
    allocator.load(RANGE, None, "", 0.0)
    assert (allocator.former.nodes(), allocator.in_use()) == (["a"], False)
    plan = allocator.plan([ask("b"), ask("a")], [], 0.0)
    assert {node: grant.cidrs for node, grant in plan.decisions.items()} == {"b": (ONE,), "a": (ZERO,)}
    commit(allocator, plan, "2")
    assert allocator.former.nodes() == []


def test_space_that_only_a_node_knew_of_is_free_when_it_holds_it_no_more(allocator: Allocator) -> None:
    assert not allocator.hold("a", (ZERO, ONE))
    assert isinstance(allocator.plan([ask("b")], [], 0.0).decisions["b"], Exhausted)
    assert allocator.hold("a", (ONE,))
    assert isinstance(grant := allocator.plan([ask("b")], [], 0.0).decisions["b"], Grant)
    assert grant.cidrs == (ZERO,)


def test_a_ledger_gets_no_more_entries_than_its_object_can_hold(
    allocator: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_ledgers, "MOST_ENTRIES", 3)
    allocator.blocks.configure(MODE, [Pool(4, [Cidr.parse("10.0.0.0/22"), Cidr.parse("10.1.0.0/24")], 24)])
    load(allocator, {ZERO: Entry("a"), ONE: Entry("b")}, "1")
    plan = allocator.plan([ask(name) for name in "cde"], [], 0.0)
    assert [str(cidr) for name in "cd" for cidr in plan.decisions[name].cidrs] == ["10.0.2.0/24", "10.1.0.0/24"]  # type: ignore[union-attr]
    assert isinstance(plan.decisions["e"], Exhausted)
    commit(allocator, plan, "2")
    commit(allocator, release(allocator, "a", ZERO), "3")
    found = allocator.plan([ask("e")], [], 0.0).decisions["e"]
    assert isinstance(found, Grant)
    assert str(found.cidrs[0]) in ("10.0.0.0/24", "10.0.3.0/24")
