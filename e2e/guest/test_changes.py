"""Another tunnel under living traffic: the agents hear of it at different times, and no packet is lost."""

import asyncio

import pytest

from guest.conftest import Joined
from guest.server import routing_of
from netloom.kernel.mesh.encapsulation import GENEVE, VXLAN, Encapsulation
from netloom_e2e.flow import Flows
from netloom_e2e.lab import Lab
from netloom_reconcilers.node import tunnels
from tests.kernel.meshes import eventually

RATE = 20
"""Packets per second of each flow. At 100 the 12 flows take three quarters of an emulated processor."""

LAGS = {"n1": 0.0, "n2": 0.5, "n3": 2.0}


@pytest.mark.timeout(900)  # three changes, each a minute or two where others have the processors
async def test_no_change_of_the_tunnel_loses_a_packet(
    joined: Joined, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VXLAN to Geneve, Geneve to another port, and back to VXLAN."""
    monkeypatch.setattr(tunnels, "LINGER_SECONDS", 5.0)
    pods = {name: machine.pods["a"] for name, machine in lab.nodes.items()}
    async with joined(VXLAN) as server:
        await server.settled(VXLAN)
        for name, lag in LAGS.items():
            server.agents[name].lag = lag
        with Flows(pods, versions=(4, 6), rate=RATE, deadline=90) as flows:
            began = {}
            for encapsulation in (GENEVE, Encapsulation("geneve", 6082), VXLAN):
                began[str(encapsulation)] = flows.now
                server.edit(**routing_of(encapsulation))
                await server.settled(encapsulation)
                for agent in server.agents.values():
                    assert agent.device_state() == {encapsulation.device}
            report = await asyncio.to_thread(flows.stop)
        print(report)
        assert report.lossless, f"{report}\nchanges began at {began}"
        for agent in server.agents.values():
            await eventually(lambda agent=agent: agent.devices() == {VXLAN.device}, agent.name)  # type: ignore[misc]
