"""A change of the tunnel that is taken back, under living traffic, before an agent has heard what others gave up."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from guest.server import Agent, Server, routing_of
from netloom.kernel.mesh.encapsulation import VXLAN, Encapsulation
from netloom_e2e.flow import Flows
from netloom_e2e.lab import Lab

OTHER = Encapsulation("vxlan", 8473)
BEHIND_SECONDS = 3.0
"""Of the 30 s that an encapsulation is kept: time for n2 to hear of both, and to make a device anew."""


@contextlib.asynccontextmanager
async def _running(agent: Agent) -> AsyncIterator[Agent]:
    async with agent.running():
        yield agent


async def test_who_hears_late_sends_by_what_is_kept_for_that(tmp_path: Path) -> None:
    """n1 hears of the change back at once, and sends by what n2 has given up: n2 hears of the change later."""
    with Lab(f"nhl{os.getpid() % 10000}") as lab:
        server, pods = Server(), {}
        server.edit(**routing_of(VXLAN))
        for number, name in enumerate(("n1", "n2"), 1):
            machine = lab.add_node(name)
            pods[name] = machine.add_pod("a", f"10.{number}.0.2", f"fd00:{number}::2", mtu=1450)
            server.add(Agent(name, machine, server, tmp_path), (f"10.{number}.0.0/24", f"fd00:{number}::/64"))
        lab.introduce_nodes()
        server.sync()
        async with AsyncExitStack() as stack:
            n1, n2 = [await stack.enter_async_context(_running(agent)) for agent in server.agents.values()]
            await server.settled(VXLAN)
            with Flows(pods, versions=(4, 6), rate=100) as flows:
                server.edit(**routing_of(OTHER))
                n1.lag = BEHIND_SECONDS
                await server.settled(OTHER)
                n1.lag, n2.lag = 0.0, BEHIND_SECONDS / 2
                server.edit(**routing_of(VXLAN))
                n1.lag = BEHIND_SECONDS
                await server.settled(VXLAN)
                report = await asyncio.to_thread(flows.stop)
            assert report.lossless, str(report)
