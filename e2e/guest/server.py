"""Nodes with the product's reconcilers and data path, and in place of an API server a dictionary.

Only that is a fake: what an agent writes reaches the others, and what an administrator edits reaches all, after as long
as each of them is told to lag. Kernel, reconcilers and announcements are the real ones.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

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
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.kernel.ownership import ENDPOINTS
from netloom.kernel.senders.keeper import SendersKeeper
from netloom.runtime.store import Store
from netloom_e2e.machines import Machine
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.mesh.announcement import AnnouncementReconciler
from netloom_reconcilers.node.senders import SendersFeature
from netloom_reconcilers.node.tunnels import TunnelsFeature
from tests.kernel.meshes import eventually
from tests.kernel.netns import Namespace


class Agent:
    """One node's, assembled as `netloom.roles.agent` does it. `lag`: seconds until it hears of a change."""

    def __init__(self, name: str, machine: Machine, server: "Server", folder: Path) -> None:
        self.name = name
        self.machine = machine
        self.namespace = Namespace(machine.name)
        self.folder = folder
        self.lag = 0.0
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.plane = MeshKeeper(run_directory=folder / name, resync_seconds=None, on_report=self._reported)
        context: Any = SimpleNamespace(
            node_name=name,
            networks=self.networks,
            peers=self.nodes,
            own=OwnNode(name),
            api=None,
            run_dir=folder,
            retain_unknown=False,
            changed=lambda: self.announcement.changed(),
        )
        self.tunnels = TunnelsFeature(context, self.plane)
        self.senders = SendersFeature(context, SendersKeeper(resync_seconds=None))
        self.announcement = AnnouncementReconciler(name, self.nodes, server, lambda: self.tunnels.announcement)

    def _reported(self, report: MeshReport) -> None:
        self.tunnels.announce(report)
        self.announcement.changed()

    @property
    def errors(self) -> list[str]:
        """What its condition would say."""
        return [*self.tunnels.errors(self.plane.report), *self.senders.errors(), *self.senders.warnings()]

    @property
    def in_sync(self) -> bool:
        """All that it was told is so."""
        applied = self.tunnels.applied and self.senders.applied
        return applied and not self.errors and not self.plane.report.pending

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It works meanwhile; the kernel keeps what it made."""
        with self.namespace.entered():
            await self.plane.open()
            await self.senders.keeper.open()
        features = (self.tunnels, self.senders)
        work = [self.announcement.controller.run, *(each.keeper.run for each in features)]
        work += [each.controller.run for each in features]
        tasks = [asyncio.create_task(each()) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.plane.close()
            await self.senders.keeper.close()

    def device_state(self) -> set[str]:
        """The devices that its routes to other nodes go through, of both families."""
        lines = [*self.namespace.ip("-4 route show type unicast proto 158").splitlines()]
        lines += self.namespace.ip("-6 route show type unicast proto 158").splitlines()
        found = {line.split(" dev ")[1].split()[0] for line in lines}
        return {device for device in found if not ENDPOINTS.link(device)}

    def devices(self) -> set[str]:
        """Of ours, but for pods'."""
        names = [line.split(": ")[1].partition("@")[0] for line in self.namespace.ip("-o link show").splitlines()]
        return {name for name in names if name.startswith("netloom_") and not ENDPOINTS.link(name)}


class Server:
    """Holds the objects, and tells the agents."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.network = NetloomNetwork()
        self.objects: dict[str, NetloomNode] = {}
        self._version = 0

    def _meta(self, name: str) -> ObjectMeta:
        self._version += 1
        return ObjectMeta(name=name, uid=name, resource_version=str(self._version))

    def add(self, agent: Agent, cidrs: tuple[str, ...]) -> None:
        """A node joins, with these pod CIDRs."""
        self.agents[agent.name] = agent
        addresses = (Address(type="InternalIP", ip=agent.machine.address),)
        spec = NetloomNodeSpec(addresses=addresses, ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs))
        self.objects[agent.name] = NetloomNode(metadata=self._meta(agent.name), spec=spec)

    def sync(self) -> None:
        """Every agent gets all there is, as from its first list."""
        for agent in self.agents.values():
            self.fill(agent)

    def fill(self, agent: Agent) -> None:
        """The same for one agent, which need not be among those that hear of changes."""
        agent.networks.replace({self.network.metadata.name: self.network})
        agent.nodes.replace(dict(self.objects))

    def edit(self, **routing: object) -> None:
        """An administrator writes spec.routing; the agents hear of it when their lag is over."""
        spec = NetworkSpec(routing=Routing(**routing))  # type: ignore[arg-type]
        self.network = made = NetloomNetwork(metadata=self._meta("default"), spec=spec)
        for agent in self.agents.values():
            self._later(agent, lambda agent=agent: agent.networks.put(made))

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **_options: object) -> NetloomNode:
        """What the announcement writes: `spec.encapsulations` of one node."""
        tunnels = msgspec.convert(patch["spec"]["encapsulations"], tuple[AcceptedEncapsulation, ...])
        spec = msgspec.structs.replace(self.objects[name].spec, encapsulations=tunnels)
        made = self.objects[name] = NetloomNode(metadata=self._meta(name), spec=spec)
        for agent in self.agents.values():
            self._later(agent, lambda agent=agent: agent.nodes.put(made))
        return made

    def _later(self, agent: Agent, deliver: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(agent.lag, deliver)

    async def settled(self, encapsulation: Encapsulation) -> None:
        """Until every node accepts and sends by this way alone, and says so."""
        wanted = (AcceptedEncapsulation(encapsulation.protocol, encapsulation.port, sending=True),)

        def there() -> bool:
            said = all(node.spec.encapsulations == wanted for node in self.objects.values())
            return said and all(agent.in_sync for agent in self.agents.values())

        await eventually(there, lambda: "\n".join(str(agent.plane.report) for agent in self.agents.values()))


def routing_of(encapsulation: Encapsulation) -> dict[str, object]:
    """spec.routing that asks for this tunnel."""
    return {"tunnel_protocol": encapsulation.protocol, "tunnel_port": encapsulation.port}
