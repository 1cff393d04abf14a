"""The parts of an allocation, each alone: reading ledgers, writing them, batching, who waits, and by which rules."""

import asyncio
from dataclasses import replace

import pytest

from netloom.api.core import NODES, Node, NodeAddress, NodeSpec, NodeStatus
from netloom.api.meta import ObjectMeta
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORKS, POOLS
from netloom.cidr import Cidr
from netloom.ipam.plan import BlockRequest, BlockTaken, Deferred, Grant, Release, Want
from netloom.ipam.pool import Exhausted
from netloom.runtime.errors import ApiError, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.allocation.commit_queue import BatchPolicy, CommitQueue
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import (
    BlocksFreed,
    Changed,
    NodesAffected,
    Stores,
)
from netloom_reconcilers.cluster.allocation.lock import LockError
from netloom_reconcilers.cluster.allocation.refused_writes import RefusedWrites
from netloom_reconcilers.cluster.allocation.reserved import Reserved
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange
from netloom_reconcilers.cluster.allocation.waiting import (
    LAG_SECONDS,
    RECHECK_SECONDS,
    WaitingNodes,
    problem,
    refused,
    told_by_network,
)
from tests.allocation.parts import LEDGER, Parts
from tests.allocation.server import Request
from tests.allocation.world import ModelServices

HEADER = "netloom-ledger/1 epoch=1\n"
ZERO, ONE = Cidr.parse("10.0.0.0/24"), Cidr.parse("10.0.1.0/24")


@pytest.fixture
def parts() -> Parts:
    parts = Parts()
    parts.apply_network("10.0.0.0/22")
    return parts


def ask(node: str) -> BlockRequest:
    return BlockRequest(node, "cluster-pool", wants=(Want("", 4),))


def affected(parts: Parts) -> list[set[str]]:
    return [set(event.names) for event in parts.events if isinstance(event, NodesAffected)]


# LedgerReader


async def test_the_first_read_names_all_nodes_that_have_or_hold_blocks(parts: Parts) -> None:
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n", used=1)
    parts.allocator.hold("b", (ONE,))
    await parts.reader.read_all()
    assert parts.allocator.assignments.entered("a") == (ZERO,)
    assert affected(parts) == [{"a", "b"}]


async def test_only_what_is_in_doubt_is_read_again(parts: Parts) -> None:
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n", used=1)
    await parts.reader.read_all()
    await parts.reader.recover()  # the lock
    await parts.writer.commit(parts.allocator.plan([ask("b")], [], 0.0))
    since = len(parts.server.executed)
    assert await parts.reader.recover() is None
    assert parts.requests(since) == []
    parts.reader.distrust_all()
    await parts.reader.recover()
    assert parts.requests(since) == [f"get netloomledgers/{LEDGER}"]
    assert not parts.allocator.ledgers[LEDGER].stale


async def test_an_unreadable_ledger_is_read_again_after_a_while_and_told_when_it_is_mended(parts: Parts) -> None:
    parts.edit_ledger("nonsense", used=1)
    await parts.reader.read_all()
    await parts.reader.recover()
    assert parts.reader.reread_at == parts.now + 5.0
    parts.events.clear()
    since = len(parts.server.executed)
    await parts.reader.recover()
    assert f"get netloomledgers/{LEDGER}" not in parts.requests(since), "it is not time"
    parts.now += 5.0
    await parts.reader.recover()
    assert f"get netloomledgers/{LEDGER}" in parts.requests(since)
    assert [type(event) for event in parts.events] == [NodesAffected], "nothing is new"
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n", used=1)
    parts.now += 5.0
    await parts.reader.recover()
    assert parts.events[-2:] == [Changed.LEDGERS, BlocksFreed()]
    assert (affected(parts)[-1], parts.reader.reread_at) == ({"a"}, float("inf"))


async def test_a_ledger_that_is_gone_is_asked_of_the_nodes_themselves(parts: Parts) -> None:
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n10.0.1.0/24 b\n", used=2)
    await parts.reader.read_all()
    spec = {"ipam": {"mode": "cluster-pool", "podCIDRs": ["10.0.0.0/24"]}}
    parts.server.execute(Request("create", "netloomnodes", "a", {"metadata": {"name": "a"}, "spec": spec}))
    parts.server.execute(Request("delete", "netloomledgers", LEDGER))
    parts.reader.distrust_all()
    await parts.reader.recover()
    assert "a" in parts.netloom_nodes
    assert affected(parts)[-1] == {"a", "b"}, "whom the ledger had, though nobody knows of b any more"


async def test_a_lost_lock_is_rebuilt_from_the_ledgers_or_said_why_not(parts: Parts) -> None:
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n", used=1)
    await parts.reader.read_all()
    parts.edit_ledger("nonsense", used=1)
    assert isinstance(error := await parts.reader.recover(), LockError)
    assert error.reason == "LedgerUnreadable"
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n", used=1)
    assert await parts.reader.recover() is None
    assert parts.network["status"]["ipam"]["mode"] == "cluster-pool"


# LedgerWriter


async def test_the_lock_is_opened_before_the_first_entry_and_not_again(parts: Parts) -> None:
    await parts.writer.commit(parts.allocator.plan([ask("a")], [], 0.0))
    assert parts.requests()[-3:] == [
        "patch netloomnetworks/default",
        "patch netloomnetworks/default/status",
        f"create netloomledgers/{LEDGER}",
    ]
    since = len(parts.server.executed)
    written, failure = await parts.writer.commit(parts.allocator.plan([ask("b")], [], 0.0))
    assert (written, failure) == ({LEDGER}, None)
    assert parts.requests(since) == [f"replace netloomledgers/{LEDGER}"]
    assert parts.entries() == {"10.0.0.0/24": "a*", "10.0.1.0/24": "b*"}


@pytest.mark.parametrize("error", [Unavailable(503, "ServiceUnavailable", "who knows"), ApiError(429, "Busy", "no")])
async def test_a_ledger_whose_write_failed_is_stale_and_nothing_is_entered(parts: Parts, error: ApiError) -> None:
    parts.api.faults["create netloomledgers"] = error
    written, failure = await parts.writer.commit(parts.allocator.plan([ask("a")], [], 0.0))
    assert (written, failure) == (set(), error)
    assert parts.allocator.ledgers[LEDGER].stale
    assert parts.allocator.assignments.entered("a") == ()


async def test_somebody_else_s_write_makes_the_commit_fail(parts: Parts) -> None:
    await parts.writer.commit(parts.allocator.plan([ask("a")], [], 0.0))
    plan = parts.allocator.plan([ask("b")], [], 0.0)
    parts.edit_ledger(HEADER + "10.0.0.0/24 a\n10.0.1.0/24 other\n", used=2)
    written, failure = await parts.writer.commit(plan)
    assert written == set()
    assert failure is not None
    assert parts.entries() == {"10.0.0.0/24": "a", "10.0.1.0/24": "other"}


async def test_a_lock_that_cannot_be_opened_stops_the_whole_batch(parts: Parts) -> None:
    plan = parts.allocator.plan([ask("a")], [], 0.0)
    parts.networks.remove("default")
    written, failure = await parts.writer.commit(plan)
    assert isinstance(failure, LockError)
    assert (written, failure.reason, parts.entries()) == (set(), "NoNetwork", {})
    assert parts.allocator.ledgers[LEDGER].stale


async def test_the_lock_is_cleared_behind_a_write_of_each_ledger_and_only_if_all_are_empty(parts: Parts) -> None:
    await parts.writer.commit(parts.allocator.plan([ask("a")], [], 0.0))
    await parts.writer.clear_lock()
    assert parts.network["status"]["ipam"]["mode"] == "cluster-pool"
    parts.edit_ledger(HEADER, used=0)
    parts.reader.distrust_all()
    await parts.reader.recover()
    since = len(parts.server.executed)
    await parts.writer.clear_lock()
    assert parts.requests(since) == [
        "get netloomnetworks/default",
        f"replace netloomledgers/{LEDGER}",
        "patch netloomnetworks/default/status",
        "patch netloomnetworks/default",
    ]
    assert parts.network["status"]["ipam"]["mode"] == ""
    assert parts.network["metadata"].get("finalizers", []) == []


# CommitQueue


class Queue:
    """A queue whose task runs."""

    def __init__(self, parts: Parts, **policy: float) -> None:
        settings = {"free_after": 0.0, "pace": 0.0, "retry": (0.0, 0.0)} | policy
        self.commits = CommitQueue(
            parts.shared, parts.lock, parts.reader, parts.writer, RefusedWrites(parts.shared), BatchPolicy(**settings)
        )

    async def __aenter__(self) -> CommitQueue:
        self.task = asyncio.create_task(self.commits.run())
        await self.commits.loaded.wait()
        return self.commits

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def commits_of(parts: Parts, since: int) -> list[str]:
    return [each for each in parts.requests(since) if f"netloomledgers/{LEDGER}" in each]


async def test_those_who_ask_together_are_committed_together(parts: Parts) -> None:
    async with Queue(parts) as commits:
        since = len(parts.server.executed)
        decisions = await asyncio.gather(*(commits.ask(ask(name)) for name in "abc"))
        assert [str(decision.cidrs[0]) for decision in decisions] == ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]
        assert commits_of(parts, since) == [f"create netloomledgers/{LEDGER}"]
        assert commits.busy
        for decision in decisions:
            commits.finish(decision, None)
        assert not commits.busy


async def test_a_batch_takes_so_many_and_the_next_waits_until_they_are_written(parts: Parts) -> None:
    async with Queue(parts, batch=2, low_water=1) as commits:
        asked = [asyncio.create_task(commits.ask(ask(name))) for name in "abcd"]
        for _ in range(20):
            await asyncio.sleep(0)
        done, waiting = {each for each in asked if each.done()}, {each for each in asked if not each.done()}
        assert (len(done), len(waiting)) == (2, 2)
        commits.finish(done.pop().result(), None)
        await asyncio.wait(waiting)
        assert len(parts.entries()) == 4


async def test_a_request_whose_commit_failed_is_in_the_next_batch(parts: Parts) -> None:
    async with Queue(parts) as commits:
        parts.api.faults["create netloomledgers"] = Unavailable(503, "ServiceUnavailable", "who knows")
        grant = await commits.ask(ask("a"))
        assert isinstance(grant, Grant)
        assert parts.entries() == {"10.0.0.0/24": "a*"}
        assert parts.allocator.marks.wait(parts.allocator.ledgers[LEDGER], "a", ZERO, 0.0) == float("inf")
        commits.finish(grant, None)
        assert commits.failure is None


async def test_what_the_lock_refuses_is_told_the_node(parts: Parts) -> None:
    async with Queue(parts) as commits:
        parts.networks.remove("default")
        decision = await commits.ask(ask("a"))
        assert isinstance(decision, Deferred)
        assert decision.reason == "NoNetwork"
        assert str(commits.failure) == decision.message


async def test_who_gives_up_gives_the_grant_back(parts: Parts) -> None:
    async with Queue(parts) as commits:
        asked = asyncio.create_task(commits.ask(ask("a")))
        parts.api.before = lambda request: asked.cancel() if request.plural == "netloomledgers" else None
        await asyncio.gather(asked, return_exceptions=True)
        parts.api.before = lambda request: None
        for _ in range(20):
            await asyncio.sleep(0)
        assert not commits.busy
        assert parts.allocator.marks.wait(parts.allocator.ledgers[LEDGER], "a", ZERO, 0.0) == 0.0


async def test_a_grant_that_its_node_never_learns_of_is_given_back(parts: Parts) -> None:
    async with Queue(parts) as commits:
        asked = asyncio.create_task(commits.ask(ask("a")))

        def give_up(event: object) -> None:
            asked.cancel()

        parts.told = give_up  # the ledger is written, and the answer on its way
        await asyncio.gather(asked, return_exceptions=True)
        assert asked.cancelled()
        assert parts.entries() == {"10.0.0.0/24": "a*"}
        assert not commits.busy
        assert parts.allocator.marks.wait(parts.allocator.ledgers[LEDGER], "a", ZERO, 0.0) == 0.0


async def test_freed_blocks_are_told_and_the_last_one_clears_the_lock(parts: Parts) -> None:
    async with Queue(parts) as commits:
        commits.finish(await commits.ask(ask("a")), None)
        parts.events.clear()
        release = Release("a", ZERO, parts.allocator.ledgers[LEDGER].foreign_changes)
        assert await commits.release(release)
        assert parts.events == [BlocksFreed(1, (ZERO,)), Changed.LEDGERS]
        assert not await commits.release(release), "it is freed already"
        assert parts.entries() == {}
        assert parts.network["status"]["ipam"]["mode"] == ""


async def test_at_the_end_finished_marks_go(parts: Parts) -> None:
    async with Queue(parts) as commits:
        commits.finish(await commits.ask(ask("a")), None)
        assert parts.entries() == {"10.0.0.0/24": "a*"}
    assert parts.entries() == {"10.0.0.0/24": "a"}


# WaitingNodes


def exhausted() -> Exhausted:
    return Exhausted(4, (Cidr.parse("10.0.0.0/22"),), 24, 4)


def test_waiting_is_told_when_it_changes_and_not_when_it_goes_on() -> None:
    events: list[object] = []
    waiting = WaitingNodes(events.append)
    assert waiting.add("a", exhausted()) is None
    assert waiting.add("a", exhausted()) is None
    assert events == [Changed.WAITING]
    assert waiting.add("a", refused("a", Deferred("LedgerBusy", "again"))) == LAG_SECONDS
    assert waiting.add("a", refused("a", BlockTaken(ZERO, ZERO, "b"))) == RECHECK_SECONDS
    waiting.remove("a")
    waiting.remove("a")
    assert len(events) == 4


def test_as_many_are_woken_as_blocks_came_back_and_all_who_wait_for_something_else() -> None:
    waiting = WaitingNodes(lambda event: None)
    for name in "abc":
        waiting.add(name, exhausted())
    waiting.add("d", problem("d", "PodCIDRConflict", "held by another.", "Remove one."))
    assert waiting.woken(2) == ["a", "b", "d"]
    assert waiting.woken(0) == ["d"]
    assert waiting.woken() == ["a", "b", "c", "d"]


def test_what_the_network_tells_is_told_no_node() -> None:
    assert told_by_network(problem("a", "NoNetwork", "there is no NetloomNetwork.", "Create one."))
    assert told_by_network(refused("a", Deferred("NetworkBusy", "again")))
    assert not told_by_network(refused("a", Deferred("ModeLocked", "of another mode")))
    assert not told_by_network(exhausted())
    assert isinstance(refused("a", BlockTaken(ZERO, ONE, "b")), Problem)


# AllocationConfiguration


def a_node(name: str, address: str) -> Node:
    status = NodeStatus(addresses=(NodeAddress(type="InternalIP", address=address),))
    return Node(metadata=ObjectMeta(name=name), spec=NodeSpec(), status=status)


def test_a_block_with_a_node_s_address_is_given_to_nobody(parts: Parts) -> None:
    nodes = Store(NODES)
    stores = Stores(Store(NETWORKS), nodes, parts.netloom_nodes, Store(POOLS))
    shared = replace(parts.shared, stores=stores)
    services = ModelServices(())
    reserved = Reserved(shared, services)
    configuration = AllocationConfiguration(shared, reserved)
    configuration.watch()
    assert (configuration.settings, configuration.mode, parts.events) == (None, "", [Changed.RESERVED])
    stores.networks.put(parts.networks.get("default"))
    assert parts.events[1:] == [Changed.SETTINGS, Changed.NETWORK]
    assert configuration.mode == "cluster-pool"
    nodes.put(a_node("far", "192.168.0.1"))
    assert len(parts.events) == 3
    nodes.put(a_node("near", "10.0.0.7"))
    assert parts.events[3:] == [Changed.RESERVED]
    assert list(reserved.addresses) == ["near"]
    services.known = (ServiceRange(Cidr.parse("10.0.2.0/23"), "ServiceCIDR kubernetes"),)
    services.on_change()
    assert set(parts.events[4:]) == {Changed.RESERVED}
    assert isinstance(grant := parts.allocator.plan([ask("a")], [], 0.0).decisions["a"], Grant)
    assert grant.cidrs == (ONE,)
    parts.events.clear()
    nodes.remove("near")
    assert (reserved.addresses, parts.events) == ({}, [BlocksFreed(1, (Cidr.parse("10.0.0.7/32"),)), Changed.RESERVED])
    stores.networks.remove("default")
    assert (configuration.settings, parts.events[2:]) == (None, [Changed.SETTINGS, Changed.NETWORK])
