"""What an agent writes of its pools, and in which order it gives blocks back, when the server fails."""

import contextlib
from pathlib import Path

import pytest

from netloom.cidr import Cidr
from netloom.ipam.pool_demand import IDLE_SECONDS
from netloom.runtime.errors import Forbidden
from netloom_reconcilers.node.pools.asking import HEAL_SECONDS, LATE_SECONDS
from tests.pool_world import REST, World, network, pool

SECOND = Cidr.parse("10.1.0.16/28")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def with_two_blocks(world: World) -> None:
    """A node that uses them."""
    world.pods(16)
    await world.settle()
    assert world.pods(16) == 16
    await world.service.written()
    assert world.blocks == {"default": ["10.1.0.0/28", "10.1.0.16/28"]}


async def with_idle_block(world: World) -> None:
    """A node that has used two blocks, and needs one."""
    await with_two_blocks(world)
    for number in range(16):
        world.gone(f"default/{number}")
    await world.settle(REST)


async def test_a_waiting_pod_costs_one_write_and_so_do_forty(world: World) -> None:
    await world.settle()
    before = len(world.writes)
    assert world.pods(40, "blue") == 0
    await world.look()
    assert len(world.writes) == before + 1
    assert world.writes[-1]["spec"]["ipam"]["pools"] == {
        "requested": ({"pool": "blue", "needed": {"ipv4Addrs": 56}}, {"pool": "default", "needed": {"ipv4Addrs": 14}})
    }
    await world.settle()
    assert (world.pods(40, "blue"), len(world.writes)) == (40, before + 1)


async def test_nothing_is_written_before_it_is_known_what_runs(world: World) -> None:
    world.service.obstacle = "the pods cannot be listed"
    await world.settle(100)
    assert world.writes == []
    world.service.obstacle = ""
    await world.settle()
    assert world.asked == {"default": 14}


async def test_an_idle_block_is_closed_and_then_taken_out_by_the_version_in_which_it_was_seen(world: World) -> None:
    await with_idle_block(world)
    version = world.server.metadata.resource_version
    await world.settle(REST + IDLE_SECONDS + 20)
    assert (world.blocks, world.taken_out) == ({"default": ["10.1.0.0/28"]}, [SECOND])
    last = world.writes[-1]
    assert last["metadata"] == {"name": "a", "uid": "u", "resourceVersion": version}
    assert last["spec"]["ipam"]["pools"]["requested"] == ({"pool": "default", "needed": {"ipv4Addrs": 14}},)
    assert world.own.kept == {}
    count = len(world.writes)
    await world.settle(300)
    assert len(world.writes) == count


async def test_a_block_that_the_agent_gave_back_is_not_kept_whatever_a_bridge_may_have_of_it(world: World) -> None:
    await with_idle_block(world)
    world.living[SECOND] = "10.1.0.17/28 on cni0"
    await world.settle(REST + IDLE_SECONDS + 20)
    assert (world.taken_out, world.own.kept, world.own.errors()) == ([SECOND], {}, [])


async def fails(world: World, fault: str) -> None:
    """The patch that takes the second block out does. Nothing is heard of the object meanwhile."""
    world.faults = [fault]
    while world.faults:
        await world.look()
        world.now += 1
    assert world.allocator.closed == {SECOND}


async def test_a_patch_that_never_arrived_leaves_the_block_closed_until_it_cannot_arrive_any_more(world: World) -> None:
    await with_idle_block(world)
    await fails(world, "lost")
    await world.settle(LATE_SECONDS - 5)
    assert world.allocator.closed == {SECOND}
    await world.settle(10)
    assert world.allocator.closed == set()
    assert (world.pods(16), world.taken_out) == (16, []), "it is given of again"


async def test_a_patch_that_was_executed_without_an_answer_is_seen_by_the_object(world: World) -> None:
    await with_idle_block(world)
    await fails(world, "unheard")
    await world.settle()
    assert (world.taken_out, world.allocator.closed) == ([SECOND], frozenset())
    assert world.own.kept == {}


async def test_a_late_patch_does_not_take_a_block_that_is_given_of_again(world: World) -> None:
    await with_idle_block(world)
    await fails(world, "late")
    await world.settle(LATE_SECONDS + 5)
    assert world.pods(16) == 16
    world.write()  # somebody else does, of anything
    world.arrive()
    assert (world.taken_out, len(world.blocks["default"])) == ([], 2)


@pytest.mark.parametrize("is_sent", [False, True], ids=["before", "after"])
async def test_an_agent_that_dies_in_between_goes_on_where_it_was(world: World, is_sent: bool) -> None:
    await with_idle_block(world)
    await fails(world, "unheard" if is_sent else "lost")
    assert (world.taken_out == [SECOND]) is is_sent
    world.start()
    await world.look()
    assert (world.taken_out, world.blocks) == ([SECOND], {"default": ["10.1.0.0/28"]})
    assert world.own.kept == {}


async def test_a_conflict_is_answered_by_the_same_from_the_new_version(world: World) -> None:
    await with_idle_block(world)
    count = len(world.writes)
    world.faults = ["conflict"]
    await world.settle(IDLE_SECONDS + 20)
    assert (world.taken_out, len(world.writes)) == ([SECOND], count + 2)


async def test_what_cannot_be_written_down_is_not_given_back(world: World) -> None:
    await with_idle_block(world)
    world.service.checkpoint.append = _fails  # type: ignore[method-assign]
    await world.settle(IDLE_SECONDS + 60)
    assert (world.taken_out, world.allocator.closed) == ([], frozenset())


def _fails(_records: object) -> None:
    from netloom_reconcilers.node.addresses.checkpoint import Unwritable

    raise Unwritable("no room")


async def test_a_write_that_is_refused_changes_nothing(world: World) -> None:
    await with_idle_block(world)
    world.faults = ["forbidden"]
    while world.faults:
        with contextlib.suppress(Forbidden):
            await world.look()
        world.now += 1
    assert (world.allocator.closed, world.taken_out) == (frozenset(), [])
    await world.settle(IDLE_SECONDS + 5)
    assert world.taken_out == [SECOND]


async def test_what_an_earlier_life_closed_stays_closed_though_this_ones_write_is_refused(world: World) -> None:
    await with_idle_block(world)
    world.faults = ["late"]
    while world.faults:
        await world.look()
        world.now += 1
    world.start()
    world.faults = ["forbidden"]
    with contextlib.suppress(Forbidden):
        await world.look()
    assert world.faults == []
    assert world.allocator.closed == {SECOND}, "the first one's patch may come yet"
    await world.settle(LATE_SECONDS + 1, grants=False)
    assert world.allocator.closed == frozenset() or SECOND in world.taken_out


async def test_delete_create_delete_of_the_last_pod_of_a_pool(world: World) -> None:
    await world.settle()
    for _ in range(3):
        world.pod("a/last", "blue")
        await world.settle()
        assert world.pod("a/last", "blue") is not None
        world.gone("a/last")
        await world.settle(REST + IDLE_SECONDS / 2)
    assert (world.blocks["blue"], world.taken_out) == (["10.2.0.0/28"], [])
    await world.settle(IDLE_SECONDS)
    assert (world.asked, list(world.blocks)) == ({"default": 14}, ["default"])
    world.pod("a/last", "blue")
    await world.settle()
    assert world.pod("a/last", "blue") is not None
    world.gone("a/last")
    world.start()
    await world.settle(REST + 2 * IDLE_SECONDS)
    assert list(world.blocks) == ["default"]


async def test_blocks_that_somebody_took_out_are_entered_again_while_pods_use_them(world: World) -> None:
    await with_two_blocks(world)
    world.edit({})
    world.hear()
    await world.look()
    assert world.blocks == {"default": ["10.1.0.0/28", "10.1.0.16/28"]}
    count = len(world.writes)
    world.edit({"default": ["10.1.0.0/28"]})
    world.hear()
    await world.look()
    assert len(world.writes) == count, "whoever takes it out again is not answered at once"
    await world.settle(HEAL_SECONDS + 1, grants=False)
    assert world.blocks == {"default": ["10.1.0.0/28", "10.1.0.16/28"]}
    assert world.taken_out == []
    assert world.pods(16) == 16


async def test_a_block_that_another_node_has_now_is_not_taken_from_it(world: World) -> None:
    await with_two_blocks(world)
    assert world.pods(16) == 16
    world.others[SECOND] = "b"
    world.edit({"default": ["10.1.0.0/28"]})
    world.hear()
    await world.settle(100)
    assert "10.1.0.16/28" not in world.blocks["default"]
    assert world.reconciler.problems == (
        "NetloomNode a: spec.ipam.pools.allocated does not hold 10.1.0.16/28, which is in use, and NetloomNode b holds "
        "addresses of it now: drain Node a; its pods come back with other addresses.",
    )
    assert world.pods(16) == 16, "nothing is taken from any pod"


async def test_what_runs_by_the_kernel_alone_is_entered_again_too(world: World) -> None:
    await with_idle_block(world)
    await world.own.look(world.server)
    world.living[SECOND] = "10.1.0.20/32 on veth7"
    world.edit({"default": ["10.1.0.0/28"]})
    world.hear()
    await world.look()
    assert world.blocks == {"default": ["10.1.0.0/28", "10.1.0.16/28"]}


@pytest.mark.parametrize("is_known", [True, False])
async def test_what_is_of_a_pool_that_is_gone_is_entered_again_by_its_block_and_else_told(
    world: World, is_known: bool
) -> None:
    await with_two_blocks(world)
    before = world.blocks
    world.pools.replace({"blue": pool("blue", 2)})
    world.edit({})
    if not is_known:
        (world.folder / "own.json").unlink()
        world.start()
    world.hear()
    await world.settle(10)
    assert world.blocks == (before if is_known else {})
    assert world.reconciler.problems == (
        ()
        if is_known
        else (
            "NetloomNode a: spec.ipam.pools.allocated does not hold 10.1.0.1 (default/0), 10.1.0.2 (default/1), "
            "10.1.0.3 (default/2) and 13 more, in use, and no NetloomIPPool has a CIDR with them, so they cannot be "
            "entered again. Give a pool such a CIDR, or delete these pods.",
        )
    )
    assert world.pods(16) == 16, "nothing is taken from any pod"


async def test_when_another_pool_becomes_the_default_one_the_node_moves_into_it_and_gives_the_old_one_back(
    world: World,
) -> None:
    await world.settle()
    assert list(world.blocks) == ["default"]
    world.networks.replace({"default": network("blue")})
    await world.settle(10)
    assert list(world.blocks) == ["blue", "default"], "its own addresses are in the first one"
    await world.settle(2 * IDLE_SECONDS)
    assert world.blocks == {"blue": ["10.2.0.0/28"]}
    assert world.asked == {"blue": 14}


async def test_the_node_does_not_move_to_where_a_pod_has_the_address_that_it_would_have(world: World) -> None:
    world.pools.replace({"default": pool("default", 1), "blue": pool("blue", 2, allowFirstLastIPs=True)})
    world.pod("a/1", "blue")
    await world.settle()
    assert world.pod("a/1", "blue") == (bytes((10, 2, 0, 0)),)
    world.networks.replace({"default": network("blue")})
    await world.settle(100)
    assert next(iter(world.blocks)) == "default"
    world.gone("a/1")
    await world.settle(1)
    world.now += REST
    assert world.pod("a/2", "blue") == (bytes((10, 2, 0, 1)),), "the node may move there at any moment"
    await world.settle(10)
    assert next(iter(world.blocks)) == "blue"


async def test_blocks_of_a_pool_that_was_deleted_stay_while_they_are_used(world: World) -> None:
    world.pod("a/1", "blue")
    await world.settle()
    assert world.pod("a/1", "blue") is not None
    world.pools.replace({"default": pool("default", 1)})
    world.provide()
    await world.settle(300)
    assert (world.blocks["blue"], world.asked) == (["10.2.0.0/28"], {"default": 14})
    world.gone("a/1")
    await world.settle(REST + 2 * IDLE_SECONDS)
    assert list(world.blocks) == ["default"]
