"""The prefilter's feature of node-1, over caches that the test fills, and something instead of its kernel."""

import asyncio
from typing import Any

from netloom.api.meta import ObjectMeta
from netloom.api.prefilter import NetloomPrefilter, PrefilterSpec
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, PREFILTERS, Address, NetloomNode, NetloomNodeSpec
from netloom.cidr import Cidr, parse_address
from netloom.kernel.mesh.lifelines import Device, NodeNetwork, NodeRoute
from netloom.kernel.prefilter.keeper import PrefilterReport
from netloom.kernel.prefilter.prefiltering import Dropped, Prefiltering
from netloom.runtime.store import Store
from netloom_reconcilers.node.prefilter.feature import PrefilterFeature
from tests.contexts import context


def prefilter(name: str, **spec: Any) -> NetloomPrefilter:
    return NetloomPrefilter(metadata=ObjectMeta(name=name, generation=3), spec=PrefilterSpec(**spec))


class Kernel:
    """Instead of the keeper: takes what is wanted, says what the test wants said."""

    def __init__(self) -> None:
        self.applied: list[Prefiltering] = []
        self.report = PrefilterReport()
        self.counts: dict[str, Dropped] = {}
        self.stats: dict[str, int] = {}
        self._news: asyncio.Queue[Prefiltering] = asyncio.Queue()

    async def apply(self, desired: Prefiltering) -> PrefilterReport:
        self.applied.append(desired)
        self._news.put_nowait(desired)
        return self.report

    async def dropping(self, entries: int) -> None:
        """Waits until so many entries of IPv4 are wanted."""
        async with asyncio.timeout(60):
            while not self.applied or len(self.applied[-1].rules.v4) != entries:
                await self._news.get()

    def dropped(self) -> dict[str, Dropped]:
        return self.counts

    def overtagged(self) -> Dropped:
        return Dropped(2, 3000)


class Following:
    """Instead of who follows devices, addresses and routes. events: what it was asked, and told to leave."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.now = NodeNetwork(
            {2: Device("eth0")},
            [NodeRoute(Cidr.parse("0.0.0.0/0"), ((2, parse_address("192.0.2.1")),))],
            [(2, parse_address("10.1.0.5"))],
        )

    async def around(self) -> NodeNetwork:
        self.events.append("around")
        return self.now

    async def leave(self) -> None:
        self.events.append("leave")


class Setting:
    """The feature of node-1 over caches that the test fills."""

    def __init__(self, tmp_path: Any) -> None:
        self.following = Following()
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.prefilters: Store[NetloomPrefilter] = Store(PREFILTERS)
        self.kernel = Kernel()
        made = context("node-1", Store(NETWORKS), self.nodes)
        made.nodes, made.state_dir, made.run_dir, made.lease_namespace = self.nodes, None, tmp_path, "netloom-system"
        made.caches = self
        made.events = None
        self.feature = PrefilterFeature(made, self.kernel, self.following)  # type: ignore[arg-type]
        self.nodes.replace({"node-1": node("node-1", "10.1.0.5"), "node-2": node("node-2", "10.1.0.6")})

    def store(self, *_: object, **__: object) -> Store[NetloomPrefilter]:
        return self.prefilters

    async def have(self, *some: NetloomPrefilter) -> Prefiltering:
        self.prefilters.replace({each.metadata.name: each for each in some})
        await self.feature.reconcile("prefilter")
        return self.kernel.applied[-1]


def node(name: str, address: str, **labels: str) -> NetloomNode:
    spec = NetloomNodeSpec(addresses=(Address(type="InternalIP", ip=address),))
    return NetloomNode(metadata=ObjectMeta(name=name, labels=labels), spec=spec)
