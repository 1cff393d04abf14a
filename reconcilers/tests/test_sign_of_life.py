"""An agent's sign of life: what it writes and how often, whom it notices, and when it gives none."""

import asyncio
from typing import Any

import msgspec
import pytest

from netloom.api.coordination import Lease
from netloom.api.meta import Condition, ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode, NetloomNodeStatus
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict, Forbidden, NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.node import sign_of_life
from netloom_reconcilers.node.sign_of_life import SignOfLife
from netloom_reconcilers.node.status import NodeStatusReconciler

NAMESPACES = {"kind": "namespaces", "name": "elsewhere"}


class Server:
    """An API server that holds one Lease."""

    def __init__(self) -> None:
        self.clock = ServerClock()
        self.lease: Lease | None = None
        self.version = 100
        self.calls: list[str] = []
        self.failures: list[ApiError] = []
        self.unanswered = False

    async def get(self, res: Any, name: str, namespace: str = "") -> Lease:
        self._called("get")
        if self.lease is None:
            raise NotFound(404, "NotFound", name)
        return self.lease

    async def create(self, res: Any, obj: Lease) -> Lease:
        self._called("create")
        if self.lease is not None:
            raise AlreadyExists(409, "AlreadyExists", obj.metadata.name)
        return self._stored(obj)

    async def replace(self, res: Any, obj: Lease) -> Lease:
        self._called("replace")
        if self.lease is None:
            raise NotFound(404, "NotFound", obj.metadata.name)
        if self.lease.metadata.resource_version != obj.metadata.resource_version:
            raise Conflict(409, "Conflict", obj.metadata.name)
        stored = self._stored(obj)
        if self.unanswered:
            raise Unavailable(0, "Timeout", "no answer")
        return stored

    def _called(self, verb: str) -> None:
        self.calls.append(verb)
        if self.failures:
            raise self.failures[-1]

    def _stored(self, obj: Lease) -> Lease:
        self.version += 1
        meta = msgspec.structs.replace(obj.metadata, resource_version=str(self.version))
        self.lease = msgspec.structs.replace(obj, metadata=meta)
        return self.lease


class World:
    def __init__(self, nodes: int = 1) -> None:
        self.now = 1000.0
        self.server = Server()
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        for number in range(nodes):
            self.nodes.put(NetloomNode(metadata=ObjectMeta(name=f"n{number}", uid=f"uid-{number}")))
        self.idle = ""
        self.changes = 0
        self.life = self.agent()

    def agent(self) -> SignOfLife:
        """A process of node n0's agent."""
        return SignOfLife(
            self.server,  # type: ignore[arg-type]
            "n0",
            self.nodes,
            "kube-system",
            idle=lambda: self.idle,
            on_change=self.changed,
            clock=lambda: self.now,
        )

    def changed(self) -> None:
        self.changes += 1

    async def turns(self, count: int = 1, life: SignOfLife | None = None) -> list[str]:
        """What is asked of the API server in so many turns."""
        self.server.calls.clear()
        for _ in range(count):
            self.now += await (life or self.life)._turn()
        return list(self.server.calls)


async def test_one_request_per_renewal() -> None:
    world = World()
    assert not world.life.given
    assert await world.turns() == ["get", "create"]
    assert (world.life.given, world.changes) == (True, 1)
    lease = world.server.lease
    assert lease is not None
    assert (lease.metadata.name, lease.metadata.namespace) == ("netloom-agent-n0", "kube-system")
    assert lease.metadata.labels == {"netloom.dev/agent": "true"}
    (owner,) = lease.metadata.owner_references
    assert (owner.api_version, owner.kind, owner.name, owner.uid) == (
        "netloom.dev/v1alpha1",
        "NetloomNode",
        "n0",
        "uid-0",
    )
    assert (lease.spec.holder_identity, lease.spec.lease_duration_seconds) == ("n0", 40)
    assert await world.turns(10) == ["replace"] * 10
    assert world.server.lease is not None
    assert world.server.lease.spec.renew_time != lease.spec.renew_time
    assert world.server.lease.spec.acquire_time == lease.spec.acquire_time
    assert world.server.lease.spec.lease_transitions == 0
    assert world.changes == 1, "nothing new"


@pytest.mark.parametrize(
    ("nodes", "interval", "seconds"), [(1, 10, 40), (500, 10, 40), (1000, 20, 80), (5000, 100, 400)]
)
async def test_how_often_follows_from_the_size_of_the_cluster(nodes: int, interval: float, seconds: int) -> None:
    world = World(nodes)
    begin = world.now
    assert len(await world.turns(20)) == 21
    assert 0.9 * interval * 20 <= world.now - begin <= 1.1 * interval * 20
    assert world.server.lease is not None
    assert world.server.lease.spec.lease_duration_seconds == seconds
    assert nodes / interval <= 50


async def test_a_restart_takes_the_lease_over() -> None:
    world = World()
    await world.turns(3)
    before = world.server.lease
    restarted = world.agent()
    assert await world.turns(3, restarted) == ["get", "replace", "replace", "replace"]
    assert (restarted.twin, restarted.fault) == ("", "")
    assert before is not None
    assert world.server.lease is not None
    assert world.server.lease.spec.acquire_time != before.spec.acquire_time
    assert world.server.lease.spec.lease_transitions == 1


async def test_two_agents_of_one_name_both_say_so_in_the_same_words() -> None:
    world = World()
    other = world.agent()
    for _ in range(4):
        await world.turns()
        world.now -= 10
        await world.turns(life=other)
    assert world.life.twin == other.twin != ""
    assert world.life.twin.startswith("Two agents run as node n0: both renew Lease kube-system/netloom-agent-n0. End")
    assert world.life.given
    assert len(await world.turns()) == 3, "of each: what it wrote is over, it looks, and takes it back"
    for _ in range(3):
        await world.turns()
        assert world.life.twin != "", "the other may be held up"
    await world.turns()
    assert world.life.twin == "", "the other has ended"


async def test_a_write_that_was_not_answered_is_no_other_agent() -> None:
    world = World()
    await world.turns()
    for _ in range(4):
        world.server.unanswered = True
        await world.turns()
        assert "no answer" in world.life.fault
        assert world.life.silence == "", "nobody counts one that is lost"
        world.server.unanswered = False
        assert await world.turns() == ["get", "replace"]
    assert (world.life.twin, world.life.fault) == ("", "")


async def test_a_lease_that_is_deleted_is_made_again() -> None:
    world = World()
    await world.turns()
    world.server.lease = None
    assert await world.turns() == ["replace", "get", "create"]
    assert world.life.fault == ""


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (Forbidden(403, "Forbidden", 'leases is forbidden: User "x"'), "grant that (docs/examples/rbac.yaml)"),
        (
            NotFound(404, "NotFound", 'namespaces "kube-system" not found', details=NAMESPACES),
            "Create the namespace kube-system",
        ),
        (Unavailable(503, "ServiceUnavailable", "away"), "It is tried again."),
    ],
)
async def test_a_lease_that_cannot_be_written_is_said_once_and_asked_for_seldom(error: ApiError, way_out: str) -> None:
    world = World()
    world.server.failures = [error]
    begin = world.now
    asked = await world.turns(30)
    assert not world.life.given
    assert world.life.silence == world.life.fault
    assert world.life.fault.startswith("Lease kube-system/netloom-agent-n0: cannot be renewed: ")
    assert way_out in world.life.fault
    assert world.changes == 1
    assert len(asked) <= 60
    assert world.now - begin >= 30 * 10 / 2 - 20
    world.server.failures = []
    await world.turns()
    assert (world.life.given, world.life.fault, world.changes) == (True, "", 2)


async def test_who_does_no_work_gives_no_sign() -> None:
    world = World()
    await world.turns()
    world.idle = "the kernel has not answered tunnels for more than 60 s."
    assert await world.turns(5) == []
    assert not world.life.given
    assert world.life.fault == f"no sign of life is given, as this agent does no work: {world.idle}"
    world.idle = ""
    assert await world.turns() == ["replace"]
    assert world.life.given


async def test_without_a_netloom_node_there_is_no_lease() -> None:
    """Nothing would ever take it away."""
    world = World(0)
    assert await world.turns(3) == []
    world.nodes.put(NetloomNode(metadata=ObjectMeta(name="n0", uid="later")))
    assert await world.turns() == ["get", "create"]
    assert world.life.fault == ""


async def test_a_condition_is_taken_back_only_with_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else operator and agent would answer each other for ever."""
    written = []

    class Conditions:
        async def set(self, res: Any, obj: NetloomNode, type_: str, wanted: Readiness) -> None:
            written.append(wanted)

    world = World()
    told = Condition("DataplaneReady", "Unknown", "AgentNotHeardOf", "silent", "2026-01-01T00:00:00Z")
    node = NetloomNode(
        metadata=ObjectMeta(name="n0", uid="uid-0", resource_version="7"),
        status=NetloomNodeStatus(conditions=(told,)),
    )
    world.nodes.put(node)
    good = Readiness(True, "InSync", "fine")
    reconciler = NodeStatusReconciler(
        "n0",
        world.nodes,
        Conditions(),
        lambda: good,
        spell=lambda: world.life.spell,  # type: ignore[arg-type]
    )
    await reconciler.reconcile("n0")
    assert written == []
    await world.turns()
    await reconciler.reconcile("n0")
    assert written == [good]
    world.now += 1000
    other = msgspec.structs.replace(told, reason="Degraded")
    status = NetloomNodeStatus(conditions=(other,))
    meta = msgspec.structs.replace(node.metadata, resource_version="8")
    world.nodes.put(msgspec.structs.replace(node, metadata=meta, status=status))
    await reconciler.reconcile("n0")
    assert written == [good, good], "what others than the operator tell is not left"


async def test_an_operator_that_does_not_hear_is_not_answered_for_ever() -> None:
    """It listens in another namespace, say: both would write every few seconds, and all agents are sent each write."""
    world, written = World(), []
    told = Condition("DataplaneReady", "Unknown", "AgentNotHeardOf", "silent", "2026-01-01T00:00:00Z")
    status = NetloomNodeStatus(conditions=(told,))
    node = NetloomNode(metadata=ObjectMeta(name="n0", uid="uid-0", resource_version="7"), status=status)
    world.nodes.put(node)

    class Conditions:
        async def set(self, *asked: Any) -> NetloomNode:
            written.append(world.now)
            return node  # and the operator says the same again

    good = Readiness(True, "InSync", "fine")
    reconciler = NodeStatusReconciler(
        "n0",
        world.nodes,
        Conditions(),  # type: ignore[arg-type]
        lambda: good,
        spell=lambda: world.life.spell,
        clock=lambda: world.now,
    )
    for _ in range(360):
        await world.turns()
        await reconciler.reconcile("n0")
        world.now += 10
    assert 5 < len(written) < 15, "in an hour"
    before = len(written)
    world.now += 41  # it stood still, and was silent indeed
    await world.turns()
    await reconciler.reconcile("n0")
    assert len(written) == before + 1, "that it is back is said at once"


async def test_agents_that_start_together_do_not_write_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(5000)
    world.nodes.synced.set()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(sign_of_life.asyncio, "sleep", sleep)
    for _ in range(200):
        with pytest.raises(asyncio.CancelledError):
            await world.agent().run()
    assert 0 <= min(waits) < 1
    assert 9 < max(waits) <= 10
