"""The change from one way to another: what is decided from what, and that in no order of events a sender uses what its
receiver does not take.

The state machine runs the real reconcilers of three nodes. The API server is a dictionary whose news reach each node
when the machine says so, and the kernel a class that remembers what it was asked for.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netloom.api.meta import ObjectMeta, Resource
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    AcceptedEncapsulation,
    Address,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkSpec,
    NodeIPAM,
    Routing,
)
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import GENEVE, NO_ENCAPSULATION, VXLAN, Encapsulation
from netloom.kernel.mesh.keeper import MeshReport
from netloom.runtime.store import Store
from netloom_reconcilers.node import tunnels
from netloom_reconcilers.node.mesh.announcement import AnnouncementReconciler
from netloom_reconcilers.node.mesh.encapsulations import Announcement, Needs, accepted, announced, encapsulations_to
from netloom_reconcilers.node.tunnels import LINGER_SECONDS, TunnelsFeature
from tests.contexts import context

TUNNEL, HYBRID, ROUTER = Routing(), Routing(mode="hybrid"), Routing(mode="native")
DIRECT = Routing(mode="native", auto_direct_node_routes=True)


@pytest.mark.parametrize(
    ("accepts", "routing", "able", "encapsulations"),
    [
        ((), TUNNEL, True, (VXLAN,)),
        ((VXLAN,), TUNNEL, True, (VXLAN,)),
        ((GENEVE, VXLAN), TUNNEL, True, (VXLAN,)),
        ((GENEVE,), TUNNEL, True, (GENEVE,)),
        ((GENEVE, VXLAN), TUNNEL, False, (VXLAN, GENEVE)),
        ((NO_ENCAPSULATION,), TUNNEL, True, (NO_ENCAPSULATION,)),
        ((), HYBRID, True, (NO_ENCAPSULATION, VXLAN)),
        ((VXLAN,), HYBRID, True, (VXLAN,)),
        ((NO_ENCAPSULATION, GENEVE), HYBRID, True, (NO_ENCAPSULATION, GENEVE)),
        ((), DIRECT, True, (NO_ENCAPSULATION,)),
        ((VXLAN,), DIRECT, True, (VXLAN,)),
        ((VXLAN, NO_ENCAPSULATION), DIRECT, True, (NO_ENCAPSULATION,)),
        ((), ROUTER, True, ()),
        ((VXLAN,), ROUTER, True, (VXLAN,)),
        ((VXLAN, NO_ENCAPSULATION), ROUTER, True, ()),
    ],
)
def test_ways_to_a_peer(
    accepts: tuple[Encapsulation, ...], routing: Routing, able: bool, encapsulations: tuple[Encapsulation, ...]
) -> None:
    assert encapsulations_to(accepts, routing, able=able) == encapsulations


def test_a_way_is_kept_while_a_peer_sends_by_it_or_takes_nothing_else() -> None:
    needs = Needs()
    needs.change("a", (VXLAN,), Announcement((VXLAN,), frozenset({VXLAN})))
    needs.change("b", (GENEVE,), Announcement((GENEVE, VXLAN), frozenset({VXLAN})))
    geneve = Routing(tunnel_protocol="geneve")
    assert accepted(geneve, needs.encapsulations, ()) == ((GENEVE, VXLAN), (GENEVE, VXLAN))
    assert needs.sends == {VXLAN, GENEVE}
    needs.change("a", (GENEVE,), Announcement((GENEVE,), frozenset({GENEVE})))
    assert accepted(geneve, needs.encapsulations, ())[1] == (GENEVE, VXLAN), "b still sends by it"
    needs.forget("b")
    assert accepted(geneve, needs.encapsulations, (VXLAN,)) == ((GENEVE, VXLAN), (GENEVE,)), "kept, and not announced"
    assert needs.sends == {GENEVE}


class Kernel:
    """In the place of a MeshKeeper: has every device that it is asked for and can make."""

    nothing = Desired

    def __init__(self, cannot: frozenset[Encapsulation]) -> None:
        self._cannot = cannot
        self._ways: tuple[Encapsulation, ...] = ()
        self._loose = False
        self.peers: dict[str, tuple[Encapsulation, ...]] = {}
        self.traffic: dict[Encapsulation, int] = {}
        self.retained = 0

    @property
    def tunnels(self) -> tuple[Encapsulation, ...]:
        return tuple(sorted(encapsulation for encapsulation in self._ways if encapsulation.is_tunnel))

    @property
    def takes(self) -> set[Encapsulation]:
        """What comes natively is taken for ever after: the reverse path filter stays loose until `cleanup`."""
        return {*self._ways, NO_ENCAPSULATION} if self._loose else set(self._ways)

    def sends_to(self, peer: str) -> Encapsulation | None:
        """By which way; None: it has no way that works. No route of ours is the network's own."""
        encapsulations = self.peers[peer]
        return (
            next(
                (
                    encapsulation
                    for encapsulation in encapsulations
                    if encapsulation in self._ways or encapsulation == NO_ENCAPSULATION
                ),
                None,
            )
            if encapsulations
            else NO_ENCAPSULATION
        )

    async def apply(self, desired: Desired) -> MeshReport:
        assert desired.node is not None
        self._ways = tuple(
            encapsulation for encapsulation in desired.node.encapsulations if encapsulation not in self._cannot
        )
        self._loose = self._loose or NO_ENCAPSULATION in self._ways
        self.peers = {name: peer.encapsulations for name, peer in desired.peers.items()}
        return MeshReport(tunnels=self.tunnels)

    async def received(self, encapsulation: Encapsulation) -> int:
        return self.traffic.get(encapsulation, 0)


class Server:
    """In the place of the API server: takes announcements."""

    def __init__(self, nodes: dict[str, NetloomNode]) -> None:
        self.nodes = nodes

    async def patch(
        self,
        res: Resource[Any],
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        kind: Literal["merge", "apply"] = "merge",
        field_manager: str = "",
    ) -> Any:
        said = tuple(msgspec.convert(each, AcceptedEncapsulation) for each in patch["spec"]["encapsulations"])
        spec = msgspec.structs.replace(self.nodes[name].spec, encapsulations=said)
        self.nodes[name] = msgspec.structs.replace(self.nodes[name], spec=spec)
        return self.nodes[name]


class Member:
    """One node: its caches, its reconcilers, its kernel."""

    def __init__(self, name: str, server: Server, cannot: frozenset[Encapsulation]) -> None:
        self.kernel = Kernel(cannot)
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.tunnels = TunnelsFeature(context(name, self.networks, self.nodes), self.kernel)  # type: ignore[arg-type]
        self.announcer = AnnouncementReconciler(name, self.nodes, server, lambda: self.tunnels.announcement)
        self.networks.synced.set()
        self.nodes.synced.set()


NAMES = ("a", "b", "c")
ROUTINGS = [TUNNEL, Routing(tunnel_protocol="geneve"), Routing(tunnel_port=8473), HYBRID, ROUTER, DIRECT]
names = st.sampled_from(NAMES)


class Cluster(RuleBasedStateMachine):
    """Node c cannot make Geneve devices in half of the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 1000.0
        self.clock = tunnels.time.monotonic
        tunnels.time.monotonic = lambda: self.now  # type: ignore[assignment]

    def teardown(self) -> None:
        try:
            if hasattr(self, "members"):
                self.settles()
        finally:
            tunnels.time.monotonic = self.clock  # type: ignore[assignment]
            self.runner.close()

    @initialize(first=st.sampled_from(ROUTINGS[:1] + ROUTINGS[2:]), lame=st.booleans())
    def start(self, first: Routing, lame: bool) -> None:
        """All nodes are there and have spoken."""
        self.lame = lame
        self.server = Server({name: bare(number, name) for number, name in enumerate(NAMES, 1)})
        self.routing = first
        self.members = {}
        for name in NAMES:
            cannot = frozenset({GENEVE}) if lame and name == "c" else frozenset[Encapsulation]()
            self.members[name] = Member(name, self.server, cannot)
        for name in NAMES:
            self.notice(name)
            self.hear_all(name)
        for _ in range(2):
            for name in NAMES:
                self.announce(name)
            for name in NAMES:
                self.hear_all(name)

    @rule(routing=st.sampled_from(ROUTINGS))
    def edit(self, routing: Routing) -> None:
        self.routing = routing

    @rule(name=names)
    def notice(self, name: str) -> None:
        network = NetloomNetwork(metadata=ObjectMeta(name="default"), spec=NetworkSpec(routing=self.routing))
        self.members[name].networks.put(network)

    @rule(name=names, about=names)
    def hear(self, name: str, about: str) -> None:
        self.members[name].nodes.put(self.server.nodes[about])

    @rule(name=names)
    def run(self, name: str) -> None:
        self.runner.run(self.members[name].tunnels.reconcile())

    @rule(name=names)
    def announce(self, name: str) -> None:
        self.run(name)
        self.runner.run(self.members[name].announcer.reconcile(name))

    @rule(name=names)
    def restart(self, name: str) -> None:
        """The agent starts anew, with the kernel as it was, and hears what there is to hear."""
        old = self.members[name]
        fresh = Member(name, self.server, frozenset())
        fresh.kernel = fresh.tunnels.keeper = old.kernel  # type: ignore[assignment]
        self.members[name] = fresh
        self.notice(name)
        self.hear_all(name)

    @rule()
    def wait(self) -> None:
        """Longer than news take to arrive, and than a way is kept."""
        for name in NAMES:
            self.hear_all(name)
        self.now += LINGER_SECONDS + 1
        for one in NAMES:
            for other in NAMES:
                if one != other and (encapsulation := self.members[one].kernel.sends_to(other)) is not None:
                    kernel = self.members[other].kernel
                    kernel.traffic[encapsulation] = kernel.traffic.get(encapsulation, 0) + 1

    def hear_all(self, name: str) -> None:
        for about in NAMES:
            self.hear(name, about)
        self.run(name)

    @invariant()
    def who_is_sent_to_takes_it(self) -> None:
        if not hasattr(self, "members"):
            return
        for one in NAMES:
            for other in NAMES:
                if one != other and other in self.members[one].kernel.peers:
                    encapsulation = self.members[one].kernel.sends_to(other)
                    takes = self.members[other].kernel.takes
                    assert encapsulation in takes, (
                        f"{one} sends to {other} by {encapsulation}, which takes {sorted(map(str, takes))}"
                    )

    def settles(self) -> None:
        """With nothing more changing, all end with what the spec wants, and nothing else."""
        for _ in range(6):
            for name in NAMES:
                self.notice(name)
            for name in NAMES:
                self.announce(name)
            self.wait()
            self.who_is_sent_to_takes_it()
        wants = {
            "tunnel": {Encapsulation(self.routing.tunnel_protocol, self.routing.port)},
            "native": {NO_ENCAPSULATION},
            "hybrid": {NO_ENCAPSULATION, VXLAN},
        }[self.routing.mode]
        if self.lame and GENEVE in wants:
            assert all(announced(self.server.nodes[name]).accepts for name in NAMES)
            return
        for name in NAMES:
            said = announced(self.server.nodes[name])
            assert set(said.accepts) == wants, name
            assert set(self.members[name].kernel.tunnels) == wants - {NO_ENCAPSULATION}, name


def bare(number: int, name: str) -> NetloomNode:
    return NetloomNode(
        metadata=ObjectMeta(name=name),
        spec=NetloomNodeSpec(
            addresses=(Address(type="InternalIP", ip=f"192.168.7.{number}"),),
            ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=(f"10.{number}.0.0/24",)),
        ),
    )


TestCluster = pytest.mark.slow(Cluster.TestCase)
TestCluster.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
