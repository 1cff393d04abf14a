"""A node whose kernel cannot make the tunnel that the network asks for goes on with the one it has."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from pathlib import Path

from netloom.api.meta import ObjectMeta
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
from netloom.kernel.mesh.encapsulation import VXLAN
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.runtime.store import Store
from netloom_reconcilers.node.mesh.encapsulations import Announcement
from netloom_reconcilers.node.tunnels import TunnelsFeature
from tests.contexts import context
from tests.kernel.faults import FaultyCommands
from tests.kernel.meshes import eventually
from tests.kernel.netns import Namespace

ON_VXLAN = (AcceptedEncapsulation("vxlan", 8472, sending=True),)


class Setting:
    """Node 1's reconciler and data path, on caches that the test fills; the kernel refuses what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.commands: FaultyCommands
        self.reports = 0
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.plane = MeshKeeper(
            run_directory=folder, resync_seconds=None, commands=self._make, on_report=lambda r: self._reported(r)
        )
        self.tunnels = TunnelsFeature(context("node-1", self.networks, self.nodes), self.plane)
        for number in (1, 2):
            spec = NetloomNodeSpec(
                addresses=(Address(type="InternalIP", ip=f"192.168.7.{number}"),),
                ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=(f"10.{number}.0.0/24",)),
                encapsulations=ON_VXLAN,
            )
            self.nodes.put(NetloomNode(metadata=ObjectMeta(name=f"node-{number}"), spec=spec))

    def _make(self) -> FaultyCommands:
        self.commands = FaultyCommands()
        return self.commands

    def _reported(self, report: MeshReport) -> None:
        self.reports += 1
        self.tunnels.announce(report)

    def ask_for(self, protocol: str) -> None:
        spec = NetworkSpec(routing=Routing(tunnel_protocol=protocol))  # type: ignore[arg-type]
        self.networks.put(NetloomNetwork(metadata=ObjectMeta(name="default"), spec=spec))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.plane.open()
        self.networks.synced.set()
        self.nodes.synced.set()
        tasks = [asyncio.create_task(each()) for each in (self.plane.run, self.tunnels.controller.run)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.plane.close()

    def attempts(self) -> int:
        return max((failure.attempts for failure in self.plane.report.failures), default=0)


async def test_the_old_tunnel_stays_in_use_and_nothing_flaps(node: Namespace, tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    setting.ask_for("vxlan")
    async with setting.running():
        await eventually(lambda: setting.tunnels.applied and setting.plane.report.in_sync)
        before, written = node.owned(), dict(setting.plane.stats)
        setting.commands.refuse("newlink", errno.EOPNOTSUPP)
        setting.ask_for("geneve")
        await eventually(lambda: setting.attempts() >= 4, lambda: str(setting.plane.report))
        assert setting.tunnels.errors(setting.plane.report) == [
            "link netloom_geneve: this kernel cannot make geneve devices: CONFIG_GENEVE is missing (ENOTSUP: injected)"
        ]
        assert node.owned() == before
        assert setting.plane.stats == written, "what was refused is all that was tried"
        assert setting.commands.refused == setting.attempts()
        assert setting.reports < 4 * setting.attempts()
        assert setting.tunnels.announcement == Announcement((VXLAN,), frozenset({VXLAN}))
        setting.ask_for("vxlan")
        await eventually(lambda: setting.plane.report.in_sync, lambda: str(setting.plane.report))
        assert node.owned() == before
