"""What agents say of a prefilter, gathered; and how often it is written."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec

from netloom.api.core import NODES, Node
from netloom.api.meta import Condition, LabelSelector, ObjectMeta
from netloom.api.prefilter import (
    NetloomPrefilter,
    NodeFilter,
    NodePrefilter,
    PrefilterFailure,
    PrefilterNodes,
    PrefilterSpec,
    PrefilterStatus,
)
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, PREFILTERS, NetloomNode, NetloomNodeStatus
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import Forbidden
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.prefilters import (
    FAILURES,
    LOOK_SECONDS,
    Gathered,
    Prefilters,
    PrefiltersFeature,
    gathered,
    trimmed,
)
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.cluster import ClusterContext

PREFILTER = NetloomPrefilter(metadata=ObjectMeta(name="a", generation=2))


def filtered(**said: object) -> NodeFilter:
    return NodeFilter(name="a", **{"generation": 2, "ipv4_entries": 7, "ipv6_entries": 1, **said})  # type: ignore[arg-type]


def test_it_runs_everywhere() -> None:
    assert gathered(
        PREFILTER, ["n2", "n1"], {"n1": filtered(), "n2": filtered(), "n3": filtered(error="x")}
    ) == Gathered(
        PrefilterNodes(selected=2, active=2, failed=0),
        7,
        1,
        0,
        (),
        (),
        Readiness(True, "Active", "It runs on every node that it selects."),
        Readiness(True, "Whole", "All that it says is active where it runs."),
    )


def test_a_node_that_holds_the_generation_before_is_waited_for() -> None:
    found = gathered(PREFILTER, ["n1", "n2"], {"n1": filtered(generation=1), "n2": filtered()})
    assert (found.nodes, found.ready[:2]) == (PrefilterNodes(selected=2, active=1, failed=0), (False, "Waiting"))
    assert gathered(PREFILTER, ["n1"], {}).ready[:2] == (False, "Waiting")
    assert gathered(PREFILTER, [], {}).ready[:2] == (None, "NoNodes")
    many = gathered(PREFILTER, [f"n{number}" for number in range(9)], {"n0": filtered()}).ready.message
    assert many.startswith("Nothing says that it runs on n1, n2, n3 and others. Where that lasts,")


def test_the_first_that_fail_are_named() -> None:
    said = {f"n{number:02}": filtered(error="eth0: there is no such device.") for number in range(20)}
    found = gathered(PREFILTER, said, said)
    assert found.nodes == PrefilterNodes(selected=20, active=0, failed=20)
    assert len(found.failures) == FAILURES
    assert found.failures[0] == PrefilterFailure("n00", "eth0: there is no such device.")
    assert found.ready == Readiness(
        False,
        "NodesFailed",
        "On n00: eth0: there is no such device. On n01: eth0: there is no such device. On n02: eth0: there is no such "
        "device. And on others: see status.failures.",
    )


def test_what_is_not_active_is_said_once() -> None:
    bad = "lists/drop:list: 1 line is left out: line 3 ('x') is no CIDR, address or range of addresses. Mend the list."
    held = "1 entries would cut this node off, and are not active: ..."
    said = {
        "n2": filtered(problems=(bad,), bad_lines=1),
        "n1": filtered(problems=(bad, held), bad_lines=1, withheld=1),
    }
    found = gathered(PREFILTER, said, said)
    assert found.problems == (f"on n1: {bad}", f"on n1: {held}")
    assert (found.withheld, found.whole[:2]) == (1, (False, "Withheld"))
    only = gathered(PREFILTER, ["n2"], said)
    assert only.whole == Readiness(False, "BadLines", f"on n2: {bad}")
    assert only.ready.ready, "the good lines are active"


class World:
    """A leader with a clock of its own, and an API server that holds what the caches hold."""

    def __init__(self, nodes: int = 0) -> None:
        self.now, self.version = 1000.0, 0
        self.clock = ServerClock()
        self.writes: list[tuple[str, str, str]] = []
        self.events: list[str] = []
        self.refused: set[str] = set()
        stores = {res.kind: Store(res) for res in (PREFILTERS, NODES, NETLOOM_NODES, NETWORKS)}
        caches = SimpleNamespace(store=lambda res, *args, **options: stores[res.kind])
        context = ClusterContext(api=self, events=self, caches=caches)  # type: ignore[arg-type]
        self.feature = PrefiltersFeature(context)
        for number in range(nodes):
            self.join(f"n{number:04}")
        self.work = Prefilters(self.feature, lambda: self.now)

    def meta(self, name: str, **fields: Any) -> ObjectMeta:
        self.version += 1
        return ObjectMeta(name=name, uid=f"uid-{name}", resource_version=str(self.version), **fields)

    def join(self, name: str, **labels: str) -> None:
        self.feature.nodes.put(Node(metadata=self.meta(name, labels={"edge": "true", **labels})))
        self.feature.netloom_nodes.put(NetloomNode(metadata=self.meta(name)))

    def apply(self, name: str = "a", generation: int = 1, **labels: str) -> None:
        """A prefilter for nodes with these labels is written."""
        held = self.feature.prefilters.get(name)
        spec = PrefilterSpec(node_selector=LabelSelector(match_labels=labels or {"edge": "true"}))
        status = held.status if held is not None else PrefilterStatus()
        meta = self.meta(name, generation=generation)
        self.feature.prefilters.put(NetloomPrefilter(metadata=meta, spec=spec, status=status))

    def say(self, name: str, error: str = "", generation: int = 1, prefilter: str = "a") -> None:
        """The agent of a node writes how it fares."""
        obj = self.feature.netloom_nodes.get(name)
        assert obj is not None
        said = NodePrefilter((), (NodeFilter(prefilter, generation, 7, 1, error=error),))
        status = msgspec.structs.replace(obj.status, prefilter=said)
        self.feature.netloom_nodes.put(msgspec.structs.replace(obj, metadata=self.meta(name), status=status))

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> NetloomPrefilter:
        """A server-side apply of one condition, and of what is told beside it."""
        if name in self.refused:
            raise Forbidden(403, "Forbidden", f"{name}: a policy says no")
        obj = self.feature.prefilters.get(name)
        assert obj is not None
        (told,) = patch["status"]["conditions"]
        self.writes.append((name, told["type"], told["reason"]))
        held = msgspec.to_builtins(obj.status)
        others = [each for each in held.get("conditions", ()) if each["type"] != told["type"]]
        status = {**held, **patch["status"], "conditions": [*others, told]}
        meta = self.meta(name, generation=obj.metadata.generation)
        return msgspec.structs.replace(obj, metadata=meta, status=msgspec.convert(status, PrefilterStatus))

    def event(self, ref: Any, type_: str, reason: str, message: str) -> None:
        self.events.append(reason)

    async def look(self, seconds: float = LOOK_SECONDS) -> None:
        self.now += seconds
        await self.work.turn()

    def told(self, name: str = "a") -> tuple[str, PrefilterNodes | None]:
        """The reason of Ready, and the counts."""
        obj = self.feature.prefilters.get(name)
        assert obj is not None
        reason = next((each.reason for each in obj.status.conditions if each.type == "Ready"), "")
        return reason, obj.status.nodes


async def test_many_nodes_that_take_it_over_are_few_writes() -> None:
    world = World(nodes=1000)
    world.apply()
    await world.look()
    assert world.told() == ("Waiting", PrefilterNodes(1000, 0, 0))
    for number in range(1000):
        world.say(f"n{number:04}")
        if number % 100 == 99:
            await world.look()
    assert world.told() == ("Active", PrefilterNodes(1000, 1000, 0))
    assert [type_ for _, type_, _ in world.writes] == ["Ready", "Whole", "Ready", "Ready"], "one for its counts"
    await world.look(3600)
    assert len(world.writes) == 4


async def test_one_that_takes_no_writes_keeps_nothing_from_the_others() -> None:
    world = World(nodes=1)
    world.refused = {"a"}
    world.apply("a")
    world.apply("b")
    await world.look()
    assert world.told("b")[0] == "Waiting"
    world.refused.clear()
    await world.look()
    assert world.told("a")[0] == "Waiting"


async def test_a_node_that_fails_and_runs_in_turns_is_told_seldom_and_its_end_is() -> None:
    world = World(nodes=3)
    world.apply()
    for name in ("n0000", "n0001", "n0002"):
        world.say(name)
    await world.look()
    world.writes.clear()
    for turn in range(720):  # an hour
        world.say("n0001", error="" if turn % 2 else "eth0: there is no such device.")
        await world.look()
    assert len(world.writes) <= 3 + 60, "what was in hand, and one a minute"
    assert {reason for _, _, reason in world.writes} == {"NodesFailed", "Active"}
    world.say("n0001", error="eth0: there is no such device.")
    await world.look(120)
    assert world.told() == ("NodesFailed", PrefilterNodes(3, 2, 1))


async def test_nodes_that_leave_and_a_selector_that_changes() -> None:
    world = World(nodes=3)
    world.join("other", edge="false")
    world.apply()
    world.say("n0000", error="eth0: there is no such device.")
    world.say("n0001")
    world.say("n0002")
    await world.look()
    assert world.told() == ("NodesFailed", PrefilterNodes(3, 2, 1))
    world.feature.nodes.remove("n0000")
    await world.look()
    assert world.told() == ("Active", PrefilterNodes(2, 2, 0)), "what its object still says counts for nothing"

    world.apply(generation=2, edge="false")
    await world.look()
    assert world.told() == ("Waiting", PrefilterNodes(1, 0, 0))
    world.say("other", generation=2)
    await world.look()
    assert world.told() == ("Active", PrefilterNodes(1, 1, 0))
    world.apply(generation=3, edge="nowhere")
    await world.look()
    assert world.told() == ("NoNodes", PrefilterNodes(0, 0, 0))


def test_what_many_nodes_say_alike_is_kept_once() -> None:
    def node(name: str, packets: int) -> NetloomNode:
        problem = "".join(("x/drop:list: 3 lines ", "are left out."))  # an object of its own
        said = NodePrefilter((), (filtered(problems=(problem,), packets=packets, bytes=9),))
        return NetloomNode(metadata=ObjectMeta(name=name), status=NetloomNodeStatus(prefilter=said))

    kept = [trimmed(node("n1", 5)), trimmed(node("n2", 7))]
    assert kept[0].status.prefilter is kept[1].status.prefilter
    bare = NetloomNode(metadata=ObjectMeta(name="n3"))
    assert trimmed(bare) is bare


async def test_an_agent_that_is_silent_has_said_nothing() -> None:
    world = World(nodes=2)
    world.apply()
    world.say("n0000")
    world.say("n0001")
    await world.look()
    assert world.told() == ("Active", PrefilterNodes(2, 2, 0))
    obj = world.feature.netloom_nodes.get("n0001")
    assert obj is not None
    silent = Condition("DataplaneReady", "Unknown", "AgentNotHeardOf", "silent", "2026-01-01T00:00:00Z")
    status = msgspec.structs.replace(obj.status, conditions=(silent,))
    world.feature.netloom_nodes.put(msgspec.structs.replace(obj, metadata=world.meta("n0001"), status=status))
    await world.look()
    assert world.told() == ("Waiting", PrefilterNodes(2, 1, 0))


async def test_a_spec_that_was_taken_over_between_two_looks_is_told_as_judged() -> None:
    world = World(nodes=1)
    world.apply()
    world.say("n0000")
    await world.look()
    world.apply(generation=2)
    world.say("n0000", generation=2)
    await world.look()
    obj = world.feature.prefilters.get("a")
    assert obj is not None
    assert [each.observed_generation for each in obj.status.conditions if each.type == "Ready"] == [2]
    assert world.events == [], "that it runs as before is no news"


async def test_many_prefilters_together_write_no_more_than_agents_can_be_sent() -> None:
    world = World(nodes=1000)
    for number in range(100):
        world.apply(f"p{number:02}")
    await world.look(7)
    assert len({name for name, _, _ in world.writes}) == 50, "5 a second are sent to 1,000 agents each"
    for _ in range(10):
        await world.look(7)
    assert len({name for name, _, _ in world.writes}) == 100
