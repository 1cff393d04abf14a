"""Each rule of the protocol, by the one interleaving that it is there for; and what happens without the rule.

The second half is what makes the first half evidence: with its rule taken away, the same story ends in an overlap, a
changed CIDR or a broken lock. Several of the stories were found by the state machine.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netloom.api.core import NODES
from netloom.api.meta import Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, ClusterPool, NetloomNode
from netloom.cidr import Cidr
from netloom.ipam import ledger, marks
from netloom.ipam.known_ledgers import KnownLedger
from netloom.ipam.ledger import Entry, Mark
from netloom.ipam.marks import Marks
from netloom.ipam.plan import BatchPlan, Grant
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.allocation.ledger_writer import LedgerWriter
from netloom_reconcilers.cluster.allocation.node_writes import NodeWrites
from tests.allocation.machine import AllocationMachine
from tests.allocation.world import ModelApi, World

Break = Callable[[pytest.MonkeyPatch], None]


def one_block(machine: AllocationMachine) -> Iterator[World]:
    """For all nodes; what must hold is checked after every write."""
    machine.world.apply_network(ipv4PodCIDRList=["10.0.0.0/24"], ipv4MaskSize=24)
    yield machine.world
    machine.world.close()


@pytest.fixture
def world() -> Iterator[World]:
    yield from one_block(AllocationMachine())


# The stories


def a_create_outlives_its_operator(world: World) -> None:
    """The block of a node that is gone is freed while a dead operator's create for it is still on its way."""
    first = world.start()
    world.join("a")
    create = world.delay(world.until(first, "create netloomnodes/a"))
    world.kill(first)
    second = world.start()
    world.leave("a")
    world.work(second)
    world.join("b")
    world.work(second)
    world.handle(create)
    world.calm(400)
    assert set(world.cidrs()) == {"b"}


def a_create_is_late(world: World) -> None:
    """As before, but the create is later than a short quarantine."""
    first = world.start()
    world.join("a")
    create = world.delay(world.until(first, "create netloomnodes/a"))
    world.kill(first)
    second = world.start()
    world.leave("a")
    world.join("b")
    world.work(second, 50)
    world.handle(create)
    world.calm(400)
    assert set(world.cidrs()) == {"b"}


def a_commit_is_slept_over(world: World) -> None:
    """An operator is frozen with its commit done and its create unsent, and thawed when all have forgotten it."""
    first = world.start()
    world.join("a")
    commit = world.until(first, "create netloomledgers")
    first.frozen = True
    world.handle(commit)
    second = world.start()
    world.leave("a")
    world.join("b")
    world.work(second, 140)
    assert set(world.cidrs()) == {"b"}
    first.frozen = False
    world.calm(400)
    assert set(world.cidrs()) == {"b"}


def a_create_was_given_up(world: World) -> None:
    """The client gave up, the retry succeeded; the first attempt arrives after the node is gone."""
    only = world.start()
    world.join("a")
    world.handle(create := world.until(only, "create netloomnodes/a"), "unavailable")
    world.work(only)
    assert "a" in world.cidrs()
    world.leave("a")
    world.join("b")
    world.work(only, 20)
    world.handle(create)
    world.calm(400)
    assert set(world.cidrs()) == {"b"}


def a_cache_does_not_know_the_node_object(world: World) -> None:
    """An operator whose cache never saw NetloomNode a finds its block in the ledger, and no such Node."""
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.1.0.0/24"], ipv4MaskSize=24)
    first = world.start()
    world.join("keeper")
    world.work(first)
    second = world.start()
    world.work(second, 1)
    world.join("a")
    world.work(first)
    world.join("b")
    world.leave("a")
    world.work(second, 20, blind="netloomnodes")
    second.relist()
    world.calm(400)
    assert set(world.cidrs()) == {"b", "keeper"}


def a_cache_does_not_know_the_node(world: World) -> None:
    """A Node was re-created and kept its CIDR; an operator that saw only the deletion looks after it."""
    first = world.start()
    world.join("a")
    world.work(first)
    second = world.start()
    world.work(second)
    uid = world.server.all("netloomnodes")["a"]["metadata"]["uid"]
    world.leave("a")
    second.see()
    world.join("a")
    world.work(first)
    world.work(second, 5, blind="nodes")
    second.relist()
    world.calm(400)
    assert world.server.all("netloomnodes").get("a", {}).get("metadata", {}).get("uid") == uid, "a was replaced"


def a_delete_is_late(world: World) -> None:
    """The NetloomNode of a Node that was gone is to be deleted; when that arrives, the Node is back and has it."""
    first = world.start()
    world.join("a")
    world.work(first)
    uid = world.server.all("netloomnodes")["a"]["metadata"]["uid"]
    world.leave("a")
    delete = world.delay(world.until(first, "delete netloomnodes/a"))
    world.join("a")
    second = world.start()
    world.work(second)
    world.handle(delete)
    assert world.server.all("netloomnodes").get("a", {}).get("metadata", {}).get("uid") == uid, "a was replaced"


def a_ledger_is_opened_while_the_lock_is_cleared(world: World) -> None:
    """One operator announced that it opens a closed ledger; another clears the lock before the ledger is written."""
    first = world.start()
    world.join("a")
    world.work(first)
    world.leave("a")
    world.work(first)
    assert world.mode_in_force == ""
    second = world.start()
    world.work(second)
    world.join("b")
    world.delay(reopen := world.until(first, "replace netloomledgers"))
    assert world.mode_in_force == "cluster-pool"
    world.leave("b")
    world.work(second, 4)
    assert world.mode_in_force == ""
    world.join("b")
    world.handle(reopen)
    world.work(first)
    world.calm(400)
    assert set(world.cidrs()) == {"b"}


def a_closed_ledger_is_found_again(world: World) -> None:
    """An operator announced a ledger, found it closed meanwhile, and has to announce it again."""
    first = world.start()
    world.join("a")
    world.delay(creation := world.until(first, "create netloomledgers"))
    world.delay(world.until(first, "patch netloomnetworks/default/status"))  # its answer would tell of the lock
    world.leave("a")
    second = world.start()
    world.work(second, 4)
    assert world.mode_in_force == ""
    world.join("a")
    first.see(blind="netloomnetworks")
    world.handle(creation)
    world.work(first, blind="netloomnetworks")
    world.calm(400)
    assert set(world.cidrs()) == {"a"}


def a_cidr_is_removed_before_its_first_block_is_given(world: World) -> None:
    """The API server lets a CIDR go of which nothing was given, and the announcement of its ledger comes too late."""
    operator = world.start()
    world.join("a")
    world.calm(20)
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.1.0.0/24"], ipv4MaskSize=24)
    world.calm(20)
    world.join("b")
    announcement = world.until(operator, "patch netloomnetworks/default/status")
    world.delay(announcement)
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/24"], ipv4MaskSize=24)
    world.handle(announcement)
    world.calm(20)
    assert world.network["status"]["ipam"]["ledgerRanges"] == ["10.0.0.0/16"]
    assert world.texts() == {"a": "10.0.0.0/24", "b": ""}
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.1.0.0/24"], ipv4MaskSize=24)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.1.0.0/24"}


# The rules, and how to break them


def no_heed_of_foreign_marks(patch: pytest.MonkeyPatch) -> None:
    expires = Marks._expires

    def broken(self: Marks, known: KnownLedger, node: str, cidr: Cidr, mark: Mark) -> float:
        return 0.0 if self._foreign(mark) else expires(self, known, node, cidr, mark)

    patch.setattr(Marks, "_expires", broken)


def no_marks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ledger, "marked", lambda entry, mark: Entry(entry.node, entry.marks))


def no_quarantine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(marks, "QUARANTINE_SECONDS", 10.0)


def no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(marks, "WINDOW_SECONDS", 1e9)


def time_outs_taken_for_answers(patch: pytest.MonkeyPatch) -> None:
    finish = Marks.finish

    def broken(self: Marks, grant: Grant, sent: float | None) -> None:
        finish(self, grant, None)

    patch.setattr(Marks, "finish", broken)


def the_cache_believed_about_netloom_nodes(patch: pytest.MonkeyPatch) -> None:
    believe_the_cache(patch, NETLOOM_NODES)


def the_cache_believed_about_nodes(patch: pytest.MonkeyPatch) -> None:
    believe_the_cache(patch, NODES)


def believe_the_cache(patch: pytest.MonkeyPatch, resource: Resource[Any]) -> None:
    live = NodeWrites.live

    async def broken(self: NodeWrites, store: Store[Any], name: str) -> Any:
        return store.get(name) if store.resource is resource else await live(self, store, name)

    patch.setattr(NodeWrites, "live", broken)


def no_preconditions(patch: pytest.MonkeyPatch) -> None:
    delete = ModelApi.delete

    async def broken(self: ModelApi, res: Resource[NetloomNode], name: str, **conditions: str) -> None:
        await delete(self, res, name)

    patch.setattr(ModelApi, "delete", broken)


def closing_writes_nothing(patch: pytest.MonkeyPatch) -> None:
    close = LedgerWriter._close

    async def broken(self: LedgerWriter, ledger_range: Cidr, epoch: int) -> bool:
        known = self._allocator.ledgers.of(ledger_range)
        return True if known.version and not known.mode else await close(self, ledger_range, epoch)

    patch.setattr(LedgerWriter, "_close", broken)


def announced_once_is_enough(patch: pytest.MonkeyPatch) -> None:
    open_ = LedgerWriter._open

    async def broken(self: LedgerWriter, plan: BatchPlan, pool: ClusterPool | None) -> int:
        network = self._lock.network
        assert network is not None
        if plan.opens <= set(network.status.ipam.ledgers):
            return network.status.ipam.epoch
        return await open_(self, plan, pool)

    patch.setattr(LedgerWriter, "_open", broken)


def chosen_is_chosen(patch: pytest.MonkeyPatch) -> None:
    open_ = LedgerWriter._open

    async def broken(self: LedgerWriter, plan: BatchPlan, pool: ClusterPool | None) -> int:
        return await open_(self, plan, None)

    patch.setattr(LedgerWriter, "_open", broken)


TOLD: list[tuple[Callable[[World], None], Break, str]] = [
    (a_create_outlives_its_operator, no_heed_of_foreign_marks, "overlap"),
    (a_create_outlives_its_operator, no_marks, "overlap"),
    (a_create_is_late, no_quarantine, "overlap"),
    (a_commit_is_slept_over, no_window, "overlap"),
    (a_create_was_given_up, time_outs_taken_for_answers, "overlap"),
    (a_cache_does_not_know_the_node_object, the_cache_believed_about_netloom_nodes, "overlap"),
    (a_cache_does_not_know_the_node, the_cache_believed_about_nodes, "a was replaced"),
    (a_delete_is_late, no_preconditions, "a was replaced"),
    (a_ledger_is_opened_while_the_lock_is_cleared, closing_writes_nothing, "lock"),
    (a_closed_ledger_is_found_again, announced_once_is_enough, "lock"),
    (a_cidr_is_removed_before_its_first_block_is_given, chosen_is_chosen, "removed: b holds 10.1.0.0/24"),
]


def _name(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize("story", dict.fromkeys(story for story, _, _ in TOLD), ids=_name)
def test_the_rules_hold(world: World, story: Callable[[World], None]) -> None:
    story(world)


@pytest.mark.parametrize(("story", "broken", "ends_in"), TOLD, ids=_name)
def test_without_its_rule_the_story_goes_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, story: Callable[[World], None], broken: Break, ends_in: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=ends_in):
        story(world)
