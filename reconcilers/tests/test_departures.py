"""Which vanished peers left: what is asked, what is believed, what is said; and the nodes that both reconcilers see."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.api.core import Node
from netloom.api.events import ObjectReference
from netloom.api.meta import LabelSelector, ObjectMeta, OwnerReference
from netloom.api.v1alpha1 import (
    CONTESTED,
    IGNORE_LABEL,
    NETLOOM_NODES,
    NETWORKS,
    Address,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkIPAMStatus,
    NetworkSpec,
    NetworkStatus,
    NodeIPAM,
)
from netloom.kernel.masquerade.keeper import MasqueradeKeeper, MasqueradeReport
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.runtime.errors import Forbidden, NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.node.known.departures import (
    NAMES,
    Delays,
    Departures,
    NodeLookup,
    NodesAnswer,
    Question,
    departed,
    question,
)
from netloom_reconcilers.node.known.peers import Peers, is_whole
from netloom_reconcilers.node.masquerade import MasqueradeFeature
from netloom_reconcilers.node.tunnels import TunnelsFeature
from tests.contexts import context

OWNER = OwnerReference(api_version="v1", kind="Node")
DELAYS = Delays(moment=1.0, spread=0.0, again=(2.0, 16.0), lasting=10.0)


def node(
    name: str, *cidrs: str, ip: str | None = None, since: str = "2026-01-01", version: str = "", owned: bool = True
) -> NetloomNode:
    number = name.rpartition("-")[2]
    ip = f"192.168.7.{number}" if ip is None else ip
    return NetloomNode(
        metadata=ObjectMeta(
            name=name, creation_timestamp=since, resource_version=version, owner_references=(OWNER,) if owned else ()
        ),
        spec=NetloomNodeSpec(
            addresses=(Address(type="InternalIP", ip=ip),) if ip else (),
            ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs),
        ),
    )


def numbered(number: int, **more: str) -> NetloomNode:
    return node(f"node-{number}", f"10.{number}.0.0/24", **more)  # type: ignore[arg-type]


class Watch:
    """As good as a watch."""

    position = "1000"
    following = True


class Server(NodeLookup):
    """Nodes that live, and what is asked of them."""

    def __init__(self, live: Iterable[int]) -> None:
        self.live = {f"node-{number}" for number in live}
        self.left_out: set[str] = set()
        self.asked: list[Question] = []
        self.fault: Exception | None = None

    async def ask(self, asked: Question, network: NetloomNetwork | None) -> NodesAnswer:
        self.asked.append(asked)
        if self.fault is not None:
            raise self.fault
        lives = {name: name in self.live and name not in self.left_out for name in asked.names}
        return NodesAnswer(lives, len(self.live) if asked.count else None)

    @property
    def requests(self) -> int:
        return sum(len(each.names) + each.count for each in self.asked)


class Part:
    """A kernel side that found ways of peers that nobody knows."""

    retained = 0

    async def prune(self) -> None:
        self.retained = 0


class World:
    """The agent of node-1 in a cluster of `count` nodes; nothing is written anywhere."""

    def __init__(self, tmp_path: Path, count: int, *, server: bool = True) -> None:
        self.now = 0.0
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.peers = Peers("node-1", self.nodes)
        self.tunnels = TunnelsFeature(context("node-1", self.networks, self.peers), MeshKeeper(run_directory=tmp_path))
        self.masquerading = MasqueradeFeature(self.tunnels.context, MasqueradeKeeper())
        self.watch, self.server, self.part = Watch(), Server(range(1, count + 1)), Part()
        self.events: list[tuple[str, str]] = []
        self.departures = Departures(
            self.networks,
            self.peers,
            (self.part,),
            self.server if server else None,
            self.watch if server else None,
            events=self,
            delays=DELAYS,
            clock=lambda: self.now,
        )
        self.network()
        for number in range(1, count + 1):
            self.nodes.put(numbered(number))
        self.routed()

    def event(self, ref: ObjectReference, type_: str, reason: str, message: str) -> None:
        self.events.append((f"{ref.kind} {ref.name}", reason))

    def network(self, left_out: int = 0) -> None:
        status = NetworkStatus(ipam=NetworkIPAMStatus(nodes_left_out=left_out))
        self.networks.put(NetloomNetwork(metadata=ObjectMeta(name="default"), status=status))

    def vanish(self, *numbers: int) -> None:
        for number in numbers:
            self.nodes.remove(f"node-{number}")

    def leave(self, *numbers: int) -> None:
        """The Nodes, too."""
        self.server.live -= {f"node-{number}" for number in numbers}
        self.vanish(*numbers)

    async def after(self, seconds: float) -> None:
        """Look whenever it was asked for, for so long."""
        end = self.now + seconds
        again = await self.departures.reconcile()
        while again is not None and self.now + again <= end:
            self.now += again
            again = await self.departures.reconcile()
        self.now = end

    def routed(self) -> list[int]:
        """The peers that the mesh has; masquerading knows the same."""
        desired, known = self.tunnels.desired(), self.masquerading.desired()
        if desired is None:
            assert known is None
            return []
        assert known is not None
        assert sorted(desired.peers) == sorted(name for name in known.known if name != "node-1")
        return sorted(int(name.rpartition("-")[2]) for name in desired.peers)

    def errors(self) -> str:
        return " ".join(self.departures.errors())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, 5)


@pytest.mark.parametrize(
    ("vanished", "peers", "names", "count", "with_own"),
    [(1, 5000, 1, False, False), (3, 5000, 3, False, False), (4, 5000, 3, True, True), (1, 3, 1, False, False),
     (1, 2, 1, False, True), (2, 3, 2, False, True), (4999, 5000, 3, True, True)],
)  # fmt: skip
def test_what_is_asked_is_little_at_any_size(
    vanished: int, peers: int, names: int, count: bool, with_own: bool
) -> None:
    asked = question([f"n{number}" for number in range(vanished)], peers, own="own")
    assert len(set(asked.names) - {"own"}) == names
    assert ("own" in asked.names, asked.count) == (with_own, count)
    assert "own" not in question(["a", "b"], 3).names, "of a node that stands for no Node"


ABC = {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("answer", "complete", "gone", "whole"),
    [
        (NodesAnswer({"a": False}), 9, {"a"}, False),
        (NodesAnswer({"a": True}), 9, set(), False),
        (NodesAnswer({"a": False, "b": True, "c": False}), 9, {"a", "c"}, False),
        (NodesAnswer({"a": False, "b": False, "c": False}, 6), 6, ABC, True),
        (NodesAnswer({"a": False, "b": False, "c": False}, 5), 6, ABC, True),
        (NodesAnswer({"a": False, "b": False, "c": False}, 7), 6, {"a", "b", "c"}, False),
        (NodesAnswer({"a": False, "b": False, "c": True}, 6), 6, {"a", "b"}, False),
        (NodesAnswer({"a": False, "b": False, "c": False, "own": False}, 6), 6, set(), False),
        (NodesAnswer({"a": False, "b": False, "c": False, "own": True}, 6), 6, ABC, True),
        (NodesAnswer({}, 0), 0, ABC, True),
        (NodesAnswer({"own": False}, 0), 0, set(), False),
    ],
)
def test_who_left_by_which_answer(answer: NodesAnswer, complete: int, gone: set[str], whole: bool) -> None:
    assert departed(ABC, answer, complete, "own") == (gone, whole)


async def test_a_peer_leaves_with_its_node_after_a_moment_and_for_one_request(world: World) -> None:
    world.leave(3)
    await world.after(0.9)
    assert (world.routed(), world.server.requests, world.errors()) == ([2, 3, 4, 5], 0, "")
    await world.after(0.2)
    assert (world.routed(), world.server.requests, world.errors()) == ([2, 4, 5], 1, "")
    await world.after(1000)
    assert world.server.requests == 1


async def test_a_peer_whose_node_lives_stays_and_is_said_and_comes_back(world: World) -> None:
    world.vanish(3)
    await world.after(5)
    assert world.routed() == [2, 3, 4, 5]
    assert "NetloomNodes vanished (node-3)" in world.errors()
    assert "Node node-3 lives." in world.errors()
    assert world.departures.errors(lasting=True) == [], "every agent would write it, and every other hear of it"
    await world.after(1000)
    assert world.server.requests < 100, "ever more seldom"
    assert len(world.departures.errors(lasting=True)) == 1
    world.leave(4)
    await world.after(1.1)
    assert world.routed() == [2, 3, 5], "one that leaves meanwhile does not wait for it"
    world.nodes.put(numbered(3, since="2026-02-01"))
    await world.after(0)
    assert (world.routed(), world.errors()) == ([2, 3, 5], "")
    assert world.events == [], "its own object has a condition"


async def test_a_node_that_leaves_after_its_object_vanished_is_let_go(world: World) -> None:
    world.vanish(3)
    await world.after(50)
    world.server.live.discard("node-3")
    await world.after(DELAYS.again[1])
    assert world.routed() == [2, 4, 5]


@pytest.mark.parametrize("first", [1, 2, 5])
async def test_a_definition_that_goes_takes_nobody_along_in_no_order(world: World, first: int) -> None:
    """And no question is asked once this node's own object is gone."""
    order = [first, *[number for number in (2, 3, 4, 5, 1) if number != first]]
    for number in order:
        world.vanish(number)
        await world.after(1.5)
    world.networks.remove("default")
    requests = world.server.requests
    await world.after(300)
    assert world.server.requests == requests
    assert sorted(world.peers.held) == ["node-2", "node-3", "node-4", "node-5"]
    assert world.events == [("Node node-1", "PeersStay")], "there is no object for a condition"
    world.network()
    for number in reversed(order):
        world.nodes.put(numbered(number, since="2026-02-01"))
        await world.after(1.5)
        assert world.routed() in ([2, 3, 4, 5], [])
    await world.after(30)
    assert (world.routed(), world.errors()) == ([2, 3, 4, 5], "")
    assert world.events[-1] == ("Node node-1", "PeersKnown")


@pytest.mark.parametrize("first", [1, 3])
async def test_the_objects_come_back_one_by_one_under_living_nodes(world: World, first: int) -> None:
    world.vanish(1, 2, 3, 4, 5)
    await world.after(20)
    for number in (first, *[number for number in range(1, 6) if number != first]):
        world.nodes.put(numbered(number))
        await world.after(60)
        assert world.routed() in ([2, 3, 4, 5], [])
    assert (world.routed(), world.errors()) == ([2, 3, 4, 5], "")


@pytest.mark.parametrize(
    "fault", [Unavailable(0, "ConnectionRefused", "no answer"), Forbidden(403, "Forbidden", "nodes is forbidden")]
)
async def test_no_answer_is_no_proof(world: World, fault: Exception) -> None:
    world.leave(3)
    world.server.fault = fault
    await world.after(100)
    assert world.routed() == [2, 3, 4, 5]
    assert str(fault) in world.errors()
    assert len(world.server.asked) < 20
    world.server.fault = None
    await world.after(DELAYS.again[1])
    assert (world.routed(), world.errors()) == ([2, 4, 5], "")


async def test_a_404_of_something_that_is_no_api_server_is_no_answer() -> None:
    class Proxy:
        def __init__(self) -> None:
            self.details: dict[str, str] = {}

        async def get(self, resource: object, name: str) -> None:
            raise NotFound(404, "NotFound", "no such page", None, self.details)

    api = Proxy()
    with pytest.raises(Unavailable, match="no API server"):
        await NodeLookup(api).ask(Question(("node-3",), False), None)  # type: ignore[arg-type]
    api.details = {"name": "node-3", "kind": "nodes"}
    assert await NodeLookup(api).ask(Question(("node-3",), False), None) == NodesAnswer({"node-3": False})  # type: ignore[arg-type]


async def test_a_node_that_is_left_out_has_left() -> None:
    class Labelled:
        def __init__(self, **labels: str) -> None:
            self.labels = labels

        async def get(self, res: object, name: str) -> Node:
            return Node(metadata=ObjectMeta(name=name, labels=self.labels))

    chosen = NetloomNetwork(spec=NetworkSpec(node_selector=LabelSelector(match_labels={"role": "worker"})))
    asked = Question(("node-3",), False)
    for labels, network, lives in (
        ({}, None, True),
        ({IGNORE_LABEL: "true"}, None, False),
        ({}, chosen, False),
        ({"role": "worker"}, chosen, True),
        ({"role": "worker", IGNORE_LABEL: ""}, chosen, False),
    ):
        answer = await NodeLookup(Labelled(**labels)).ask(asked, network)  # type: ignore[arg-type]
        assert answer == NodesAnswer({"node-3": lives})


async def test_many_that_leave_at_once_go_by_one_question(tmp_path: Path) -> None:
    world = World(tmp_path, 200)
    world.leave(*range(3, 150))
    await world.after(1.1)
    assert world.routed() == [2, *range(150, 201)]
    assert world.server.requests == NAMES + 2, "three of them, this node's own, and how many there are"


async def test_many_that_are_left_out_at_once_go_by_one_question_when_the_network_counts_them(tmp_path: Path) -> None:
    world = World(tmp_path, 40)
    world.server.left_out = {f"node-{number}" for number in range(3, 23)}
    world.vanish(*range(3, 23))
    await world.after(1.1)
    assert len(world.routed()) == 39 - NAMES, "the three that were asked for by name"
    world.network(left_out=20)
    await world.after(2.1)
    assert world.routed() == [2, *range(23, 41)]
    assert world.errors() == ""
    world.vanish(30, 31, 32, 33)
    await world.after(60)
    assert len(world.routed()) == 19, "their Nodes live, and take part"


async def test_many_that_leave_while_another_lost_its_object_go_by_name(tmp_path: Path) -> None:
    world = World(tmp_path, 40)
    world.vanish(2)
    await world.after(20)
    before = world.server.requests
    world.leave(*range(3, 23))
    await world.after(60)
    assert world.routed() == [2, *range(23, 41)]
    assert world.server.requests - before <= 3 * 20
    world.nodes.put(numbered(2))
    await world.after(0)
    assert world.errors() == ""


async def test_when_this_nodes_own_node_is_gone_too_many_others_are_not_believed(tmp_path: Path) -> None:
    world = World(tmp_path, 10)
    world.server.live.clear()
    world.vanish(*range(3, 11))
    await world.after(60)
    assert world.routed() == list(range(2, 11))
    assert "Node node-1, this node's own, is not there, either, or is left out." in world.errors()


async def test_nodes_that_were_made_by_hand_go_as_their_objects_do(world: World) -> None:
    for number in range(1, 6):
        world.nodes.put(node(f"node-{number}", f"10.{number}.0.0/24", owned=False))
    world.server.live.clear()
    world.vanish(2, 3, 4, 5)
    await world.after(1.1)
    assert world.routed() == []


async def test_hand_made_objects_do_not_make_up_for_missing_ones(tmp_path: Path) -> None:
    world = World(tmp_path, 40)
    for number in range(100, 140):
        world.nodes.put(node(f"x-{number}", f"10.{number}.0.0/24", owned=False))
    world.vanish(39, 40)
    world.leave(*range(3, 39))
    await world.after(120)
    assert {39, 40} <= set(world.routed())


async def test_while_the_objects_are_not_followed_nobody_is_asked(world: World) -> None:
    world.watch.following = False
    world.leave(3)
    await world.after(60)
    assert (world.routed(), world.server.requests) == ([2, 3, 4, 5], 0)
    assert "cannot be followed" in world.errors()
    world.watch.following = True
    await world.after(10)
    assert world.routed() == [2, 4, 5]


async def test_a_server_whose_history_went_back_has_a_minute_to_learn_of_the_node_again(world: World) -> None:
    world.nodes.put(numbered(3, version="900"))
    world.watch.position = "500"
    world.leave(3)
    await world.after(50)
    assert (world.routed(), world.server.requests) == ([2, 3, 4, 5], 0)
    assert "history went back" in world.errors()
    await world.after(20)
    assert world.routed() == [2, 4, 5]


async def test_what_a_living_node_claims_of_a_held_one_is_its_own(world: World) -> None:
    world.nodes.put(numbered(3, since="2020-01-01"))
    world.routed()
    world.vanish(3)
    await world.after(5)
    desired = world.tunnels.desired()
    assert desired is not None
    world.nodes.put(node("node-9", "10.3.0.0/24", since="2026-05-01"))
    world.tunnels.desired()
    held, living = desired.peers["node-3"], desired.peers["node-9"]
    assert living.seniority < held.seniority


async def test_a_held_node_that_returns_with_another_cidr_follows_its_object(world: World) -> None:
    world.vanish(3)
    await world.after(5)
    world.nodes.put(node("node-3", "10.33.0.0/24", since="2026-05-01"))
    desired = world.tunnels.desired()
    assert desired is not None
    assert [str(cidr) for cidr in desired.peers["node-3"].cidrs] == ["10.33.0.0/24"]
    assert desired.peers["node-3"].since == "2026-05-01"


@pytest.mark.parametrize(
    ("emptied", "words"),
    [(node("node-3"), "spec.ipam has no pod CIDRs"), (node("node-3", "10.3.0.0/24", ip=""), "no IPv4 address")],
)
async def test_what_an_object_loses_while_it_lives_stays_as_it_was(
    world: World, emptied: NetloomNode, words: str
) -> None:
    before = world.tunnels.desired()
    assert before is not None
    rows = before.peers["node-3"].cidrs, before.peers["node-3"].underlay
    world.nodes.put(emptied)
    assert world.routed() == [2, 3, 4, 5]
    assert (before.peers["node-3"].cidrs, before.peers["node-3"].underlay) == rows
    assert before.peers["node-3"].since == "~", "whoever lives and claims it has it"
    (said,) = world.departures.peers.problems()
    assert words in said
    await world.after(30)
    assert world.errors() == "", "it is that node's own agent that is not ready"
    world.vanish(3)
    assert world.routed() == [2, 3, 4, 5], "and when the object vanishes as well"
    world.nodes.put(node("node-3", "10.7.0.0/24"))
    await world.after(0)
    assert str(before.peers["node-3"].cidrs[0]) == "10.3.0.0/24", "until the next run"
    world.routed()
    assert str(before.peers["node-3"].cidrs[0]) == "10.7.0.0/24"
    assert world.departures.peers.problems() == []


async def test_an_address_that_another_node_has_is_not_kept(world: World) -> None:
    before = world.tunnels.desired()
    assert before is not None
    contested = node("node-3", "10.3.0.0/24")
    spec = msgspec.structs.replace(contested.spec, addresses=(Address(CONTESTED, contested.spec.addresses[0].ip),))
    world.nodes.put(msgspec.structs.replace(contested, spec=spec))
    world.tunnels.desired()
    assert sorted(before.peers) == ["node-2", "node-4", "node-5"]
    assert world.departures.peers.problems() == []
    assert is_whole(world.nodes.get("node-3")), "nothing is missing of it: what no node explains may go"  # type: ignore[arg-type]


async def test_what_the_kernel_has_of_nobody_goes_when_every_node_has_its_object(world: World) -> None:
    world.part.retained = 3
    world.vanish(4, 5)
    world.departures.look()
    await world.after(20)
    assert world.part.retained == 3
    assert "3 entries in the kernel are no known peer's" in world.errors()
    world.nodes.put(numbered(4))
    world.nodes.put(node("node-5"))
    await world.after(60)
    assert world.part.retained == 3, "a NetloomNode without pod CIDRs explains nothing"
    world.nodes.put(numbered(5))
    await world.after(60)
    assert (world.part.retained, world.errors()) == (0, "")


async def test_a_restart_in_a_whole_world_asks_nothing(world: World) -> None:
    world.departures.look()
    await world.after(100)
    assert world.server.asked == []


async def test_a_manifest_that_is_taken_away_counts_after_a_moment(tmp_path: Path) -> None:
    world = World(tmp_path, 5, server=False)
    world.part.retained = 2
    world.vanish(3)
    await world.after(1.1)
    assert (world.routed(), world.part.retained) == ([2, 4, 5], 0)


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (2, 0, 3), (0, 2, 3, 1)])
async def test_a_directory_that_is_emptied_takes_nobody_along_in_no_order(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    world = World(tmp_path, 5, server=False)
    for number in order:
        world.vanish(number) if number else world.networks.remove("default")
        await world.after(0.1)
    await world.after(60)
    world.network()
    world.nodes.put(numbered(1))
    await world.after(60)
    assert world.routed() == [2, 3, 4, 5]
    assert "they went with this node's own object or the network" in world.errors()
    for number in (2, 3, 4, 5):
        world.nodes.put(numbered(number))
    await world.after(1)
    assert world.errors() == ""
    world.vanish(2)
    await world.after(1.1)
    assert world.routed() == [3, 4, 5]


def test_both_reconcilers_say_nothing_of_a_held_peer(world: World) -> None:
    world.vanish(3)
    world.routed()
    assert world.tunnels.errors(MeshReport()) + world.masquerading.errors(MasqueradeReport()) == []


@given(
    live=st.sets(st.integers(2, 12)),
    cached=st.sets(st.integers(2, 12)),
    vanished=st.sets(st.integers(2, 12)),
)
def test_nobody_is_let_go_whose_node_lives(live: set[int], cached: set[int], vanished: set[int]) -> None:
    """Whatever vanished, with objects for other Nodes there or not: all stay whose Node was not proven to be gone."""
    names = {f"n{number}" for number in vanished - cached}
    nodes = {f"n{number}" for number in live}
    complete = {f"n{number}" for number in cached & live}  # objects without a Node are a lag, and a test of their own
    asked = question(names, 12)
    answer = NodesAnswer({name: name in nodes for name in asked.names}, len(nodes) if asked.count else None)
    gone, _whole = departed(names, answer, len(complete))
    assert not gone & nodes
