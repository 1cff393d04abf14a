"""What the operator makes of signs of life: whom it tells silent and when, what it writes and how much of it."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from netloom.api.cluster_facts import agent_lease
from netloom.api.coordination import LEASES, Lease, LeaseSpec
from netloom.api.core import NODES, Node
from netloom.api.meta import Condition, ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    PREFILTERS,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkStatus,
    NodeIPAM,
)
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import ApiError, Forbidden, NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.health import LOOK_SECONDS, Health, HealthCaches
from netloom_reconcilers.cluster.summary import METRICS, RETELL_SECONDS, SETTLE_SECONDS
from netloom_reconcilers.features.cluster import ClusterContext
from netloom_reconcilers.signs_of_life import grace

SINCE = "2026-01-01T00:00:00Z"


class World:
    """A leader with a clock of its own, and an API server that holds what the caches hold, unless a test says else."""

    def __init__(self, nodes: int = 0) -> None:
        self.now = 1000.0
        self.deaf = ""
        self.clock = ServerClock()
        self.failing: ApiError | None = None
        self.slow = 0.0
        self.refused: set[str] = set()
        self.ready = "True"
        self.writes: list[tuple[str, str, str, str]] = []
        self.events: list[str] = []
        self.version = 100
        self.live: dict[str, Lease] = {}
        self.caches = HealthCaches(
            Store(NODES),
            Store(NETLOOM_NODES),
            Store(NETWORKS),
            Store(LEASES),
            Store(PREFILTERS),
            fault=lambda: self.deaf,
        )
        accepted = NetworkStatus(conditions=(Condition("Ready", "True", "Accepted", "fine", SINCE),))
        self.caches.networks.put(NetloomNetwork(metadata=self.meta("default"), status=accepted))
        for number in range(nodes):
            self.add(f"n{number}")
        self.term()

    def term(self) -> None:
        """A leader begins."""
        context = ClusterContext(api=self, events=self, caches=SimpleNamespace(), identity="op")  # type: ignore[arg-type]
        self.health = Health(context, self.caches, lambda: self.now)
        self.leave = self.health._heard.listen()

    def meta(self, name: str, **fields: Any) -> ObjectMeta:
        self.version += 1
        return ObjectMeta(name=name, uid=f"uid-{name}", resource_version=str(self.version), **fields)

    def add(self, name: str, *, cidrs: tuple[str, ...] = ("10.0.0.0/24",), node: bool = True) -> None:
        """A node whose agent said that all is well."""
        if node:
            self.caches.nodes.put(Node(metadata=self.meta(name)))
        spec = NetloomNodeSpec(ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs))
        self.caches.netloom_nodes.put(NetloomNode(metadata=self.meta(name), spec=spec))
        self.tell(name)

    def tell(self, name: str, status: str = "True", reason: str = "InSync") -> None:
        """The agent of the node writes its condition."""
        obj = self.caches.netloom_nodes.get(name)
        assert obj is not None
        told = Condition("DataplaneReady", status, reason, "text", SINCE)  # type: ignore[arg-type]
        others = tuple(each for each in obj.status.conditions if each.type != told.type)
        status_ = msgspec.structs.replace(obj.status, conditions=(*others, told))
        self.caches.netloom_nodes.put(msgspec.structs.replace(obj, metadata=self.meta(name), status=status_))

    def renew(self, *names: str, seen: bool = True, seconds: int = 40) -> None:
        """Agents give a sign of life. seen: the watch tells it."""
        for name in names:
            meta = self.meta(agent_lease(name), namespace="kube-system")
            spec = LeaseSpec(
                holder_identity=name,
                lease_duration_seconds=seconds,
                acquire_time="2026-01-01T00:00:00.000000Z",
                renew_time=f"2026-01-01T01:00:00.{self.version:06}Z",
            )
            lease = self.live[agent_lease(name)] = Lease(metadata=meta, spec=spec)
            if seen:
                self.caches.leases.put(lease)

    # The API server

    async def get(self, res: Any, name: str, namespace: str = "") -> Any:
        self.now += self.slow
        if self.failing:
            raise self.failing
        if res is NODES:
            if name not in self.caches.nodes:
                raise NotFound(404, "NotFound", name)
            conditions = [{"type": "Ready", "status": self.ready, "reason": "x", "lastHeartbeatTime": SINCE}]
            return msgspec.convert({"metadata": {"name": name}, "status": {"conditions": conditions}}, Node)
        assert (res, namespace) == (LEASES, "kube-system")
        if name not in self.live:
            raise NotFound(404, "NotFound", name)
        return self.live[name]

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> Any:
        """A server-side apply of one condition, and of what is told beside it."""
        assert options == {"subresource": "status", "kind": "apply", "field_manager": "netloom-operator-health"}
        store: Store[Any] = self.caches.networks if res is NETWORKS else self.caches.netloom_nodes
        obj = store.get(name)
        if name in self.refused:
            raise Forbidden(403, "Forbidden", f"{name}: a policy says no")
        (told,) = patch["status"]["conditions"]
        assert told["type"] == ("Degraded" if res is NETWORKS else "DataplaneReady")
        self.writes.append((name, told["status"], told["reason"], told["message"]))
        held = msgspec.to_builtins(obj.status)
        others = [each for each in held.get("conditions", ()) if each["type"] != told["type"]]
        status = msgspec.convert({**held, **patch["status"], "conditions": [*others, told]}, type(obj.status))
        return msgspec.structs.replace(obj, metadata=self.meta(name), status=status)

    def event(self, ref: Any, type_: str, reason: str, message: str) -> None:
        self.events.append(reason)

    # What happens

    async def pass_(self, seconds: float, *alive: str) -> None:
        """Time passes; these agents renew whenever the leader looks."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + LOOK_SECONDS)
            self.renew(*alive)
            await self.health.turn()

    async def silence(self, seconds: float, looked: float = 50.0) -> None:
        """Time passes in a large cluster, and nobody renews. Only in the last `looked` seconds somebody looks."""
        until = self.now + seconds
        while self.now < until:
            self.now += self.health._pause
            if until - self.now <= looked:  # what was before is as it was
                await self.health.turn()
            else:
                self.health._looked_at = self.now

    def marked(self) -> list[str]:
        """Nodes that were told silent, in order."""
        return [name for name, status, reason, _ in self.writes if (status, reason) == ("Unknown", "AgentNotHeardOf")]

    def summary(self) -> list[tuple[str, str, str]]:
        return [(status, reason, message) for name, status, reason, message in self.writes if name == "default"]


def test_how_long_agents_may_be_silent() -> None:
    assert [grace(nodes) for nodes in (0, 1, 500, 501, 5000)] == [40, 40, 40, 40.08, 400]
    assert grace(3, least=4) == 4


async def test_a_silent_agent_is_told_once_and_takes_it_back() -> None:
    world = World(2)
    await world.pass_(60, "n0", "n1")
    assert world.marked() == []
    await world.pass_(35, "n0")
    assert world.marked() == []
    await world.pass_(10, "n0")
    assert world.marked() == ["n1"]
    (message,) = [each[3] for each in world.writes if each[0] == "n1"]
    assert message == (
        "The agent of this node was last heard of at 2026-01-01T01:00:00Z, and 40 s of silence are allowed. So nobody "
        "knows whether its data path is whole. Look whether `netloom agent` runs on node n1, and whether it reaches "
        "the API server."
    )
    await world.pass_(300, "n0")
    assert world.marked() == ["n1"]
    assert world.events.count("AgentNotHeardOf") == 1

    world.renew("n1")
    world.tell("n1")
    await world.pass_(300, "n0", "n1")
    assert world.marked() == ["n1"]
    await world.pass_(60, "n0")
    assert world.marked() == ["n1", "n1"]


async def test_a_machine_that_is_down_as_well() -> None:
    world = World(1)
    world.renew("n0")
    world.ready = "Unknown"
    await world.pass_(50)
    (message,) = [each[3] for each in world.writes if each[0] == "n0"]
    assert message.endswith(
        "Node n0 is not ready, either: see to the machine, or delete the Node if it is gone for good."
    )


async def test_an_agent_that_was_never_there() -> None:
    world = World(1)
    await world.health.turn()
    world.add("without-cidr", cidrs=())
    world.add("by-hand", node=False)
    await world.pass_(35)
    assert world.marked() == []
    await world.pass_(10)
    assert world.marked() == ["n0"]
    (message,) = [each[3] for each in world.writes if each[0] == "n0"]
    assert message.startswith(
        "The agent of this node was never heard of: there is no Lease kube-system/netloom-agent-n0. "
    )
    world.add("later")
    await world.health.turn()
    await world.pass_(35)
    assert world.marked() == ["n0"], "a node that is new has its whole time"
    await world.pass_(10)
    assert world.marked() == ["n0", "later"]


async def test_a_new_leader_gives_everybody_the_whole_time() -> None:
    world = World(1)
    world.renew("n0")
    world.now += 3600
    world.term()
    await world.health.turn()
    await world.pass_(35)
    assert world.marked() == []
    await world.pass_(10)
    assert world.marked() == ["n0"]
    world.term()
    await world.pass_(300)
    assert world.marked() == ["n0"], "it says so already"


async def test_who_cannot_hear_tells_nobody_silent() -> None:
    world = World(1)
    await world.pass_(30, "n0")
    world.deaf = "the watch ended"
    await world.pass_(600)
    assert world.marked() == []
    world.deaf = ""
    await world.pass_(35)
    assert world.marked() == []
    await world.pass_(10)
    assert world.marked() == ["n0"]


async def test_who_stood_still_tells_nobody_silent() -> None:
    world = World(1)
    await world.pass_(30, "n0")
    world.now += 600
    await world.health.turn()
    await world.pass_(35)
    assert world.marked() == []


async def test_the_cache_alone_is_not_believed() -> None:
    world = World(1)
    world.renew("n0")
    await world.pass_(35)
    world.renew("n0", seen=False)
    await world.pass_(45)
    assert world.marked() == []
    await world.pass_(20)
    assert world.marked() == ["n0"]


@pytest.mark.parametrize("how", ["failing", "slow"])
async def test_an_api_server_that_does_not_answer(how: str) -> None:
    world = World(1)
    world.renew("n0")
    await world.pass_(35)
    if how == "failing":
        world.failing = Unavailable(0, "Timeout", "no answer")
    else:
        world.slow = 12.0
    await world.pass_(300)
    assert world.marked() == []
    world.failing, world.slow = None, 0.0
    await world.health.turn()
    await world.pass_(50)
    assert world.marked() == ["n0"]


async def test_a_node_whose_object_takes_no_writes_keeps_nothing_from_the_others() -> None:
    """A policy of the cluster's refuses them, say; and the summary is told, too."""
    world = World(nodes=3)
    world.refused = {"n0", "n1"}
    await world.pass_(90)
    assert {name for name, *_ in world.writes} == {"n2", "default"}


async def test_a_node_that_goes_meanwhile() -> None:
    world = World(1)
    world.renew("n0")
    await world.pass_(35)
    get = world.get

    async def gone(res: Any, name: str, namespace: str = "") -> Any:
        if res is NODES:
            raise NotFound(404, "NotFound", name)
        return await get(res, name, namespace)

    world.get = gone  # type: ignore[method-assign]
    await world.pass_(60)
    assert world.marked() == []


@pytest.mark.slow
async def test_what_is_written_when_a_rack_falls_silent() -> None:
    """100 of 5,000: one a second."""
    world = World(5000)
    names = [f"n{number}" for number in range(5000)]
    world.renew(*names, seconds=400)
    await world.health.turn()
    assert world.health._pause == 10
    await world.silence(400)
    world.renew(*names[100:], seconds=400)
    assert world.marked() == []
    for number in range(1, 9):
        await world.silence(10)
        assert 10 * number - 5 <= len(world.marked()) <= 10 * number + 10
    await world.silence(50)
    assert sorted(world.marked()) == sorted(names[:100])


@pytest.mark.slow
async def test_most_of_a_large_cluster_falls_silent_at_once() -> None:
    """One node in ten seconds, and one summary: at a rate of 0.1/s to 5,000 agents."""
    world = World(5000)
    world.renew(*(f"n{number}" for number in range(5000)), seconds=400)
    await world.health.turn()
    await world.silence(400)
    assert (world.marked(), world.summary()) == ([], [("False", "AllWell", "5,000 of 5,000 nodes ready.")])
    world.writes.clear()
    await world.silence(200, looked=200)
    assert 18 <= len(world.marked()) <= 21
    assert [each[:2] for each in world.summary()] == [("True", "AgentSilent")] * len(world.summary())
    assert 1 <= len(world.summary()) <= 21
    assert world.events.count("AgentSilent") == 1


async def test_a_small_cluster_is_told_at_once() -> None:
    world = World(20)
    world.renew(*(f"n{number}" for number in range(20)))
    await world.pass_(50)
    assert len(world.marked()) == 20


async def test_the_summary_settles_before_it_is_told() -> None:
    world = World(2)
    await world.pass_(SETTLE_SECONDS - 1, "n0", "n1")
    assert world.summary() == []
    await world.pass_(300, "n0", "n1")
    assert world.summary() == [("False", "AllWell", "2 of 2 nodes ready.")]
    held = world.caches.networks.get("default")
    assert held is not None
    assert held.status.nodes is not None
    assert (held.status.nodes.total, held.status.nodes.ready, held.status.nodes.not_heard_of) == (2, 2, 0)
    assert [each.type for each in held.status.conditions] == ["Ready", "Degraded"]
    assert metrics()["netloom_degraded", ""] == 0

    world.add("n2")  # joins; its agent is there a moment later
    await world.health.turn()
    assert metrics()["netloom_degraded", ""] == 1
    world.renew("n2")
    await world.pass_(300, "n0", "n1", "n2")
    assert [each[2] for each in world.summary()] == ["2 of 2 nodes ready.", "3 of 3 nodes ready."]

    await world.pass_(120, "n0", "n1")
    status, reason, message = world.summary()[-1]
    assert (status, reason) == ("True", "AgentSilent")
    assert message.startswith("2 of 3 nodes ready. agent of n2: was last heard of at 2026-01-01T01:00:00Z, and 40 s of")
    assert len(world.summary()) == 3
    assert metrics()["netloom_agents", "silent"] == metrics()["netloom_problems", "AgentSilent"] == 1
    assert metrics()["netloom_nodes", "ready"] == 2
    assert world.events == ["AgentNotHeardOf", "AgentSilent"], "that all is well from the beginning is no news"


@pytest.mark.slow
async def test_counts_that_change_all_the_time() -> None:
    world = World(0)
    begin = world.now
    for number in range(1000):
        world.add(f"n{number}", cidrs=())
        world.now += 0.5
        if number % 10 == 0:
            await world.health.turn()
    assert 10 < len(world.summary()) <= (world.now - begin) / RETELL_SECONDS
    assert len(set(world.events)) == len(world.events) == 1, "one Event, however often it is counted anew"


async def test_what_is_wrong_changes_all_the_time() -> None:
    world = World(2)
    for number in range(10):
        world.tell("n0", *(("False", f"Reason{number}") if number % 2 else ("True", "InSync")))
        world.tell("n1", *(("True", "InSync") if number % 2 else ("False", f"Reason{number}")))
        await world.pass_(5, "n0", "n1")
    assert {each[0] for each in world.summary()} == {"True"}
    assert 3 <= len(world.summary()) <= 5


async def test_no_network() -> None:
    world = World(1)
    world.caches.networks.remove("default")
    await world.pass_(60, "n0")
    assert world.writes == []
    assert metrics()["netloom_problems", "NoNetwork"] == 1


async def test_leases_that_may_not_be_read() -> None:
    world = World(1)
    world.deaf = "leases is forbidden"
    await world.pass_(600)
    assert world.marked() == []
    status, reason, message = world.summary()[-1]
    assert (status, reason) == ("True", "NotLookedAt")
    assert "leases is forbidden" in message


async def test_a_crash_is_told() -> None:
    world = World(1)
    await world.pass_(60, "n0")
    await world.health.tell_crash("health crashed: x.")
    assert world.summary()[-1] == ("Unknown", "OperatorCrashed", "In the operator, health crashed: x.")


def test_a_lease_that_is_deleted_counts_from_then() -> None:
    world = World(1)
    world.renew("n0")
    world.health._heard.expect(["n0"])
    world.now += 39
    world.caches.leases.remove(f"kube-system/{agent_lease('n0')}")
    world.now += 39
    assert not world.health._heard.is_silent("n0")
    world.now += 2
    assert world.health._heard.is_silent("n0")


def metrics() -> dict[tuple[str, str], float]:
    """By name, and the last label's value."""
    return {
        (sample.name, (*sample.labels.values(), "")[-1 if not sample.labels else len(sample.labels) - 1]): sample.value
        for family in METRICS.collect()
        for sample in family.samples
    }
