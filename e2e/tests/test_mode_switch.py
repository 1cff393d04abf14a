"""Make before break: the routing of a living cluster changes, its agents notice at different times, no packet is lost.

Four nodes, an agent each, a pod each, UDP at 1 kHz from every pod to every other, in both families. Two of the agents
are stopped for seconds while the network is edited. Geneve is not in this machine's kernel: see test_other_kernels.
"""

import os
import re
from collections.abc import Iterator

import pytest

from netloom_e2e.agents import NETWORK, Agents, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.flow import Flows
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.mesh import PROTOCOL, facts

NODES = ("n1", "n2", "n3", "n4")
LATE = ("n2", "n4")
LATE_SECONDS = 2.0
LINGER_SECONDS = 30


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    plane = crds_installed
    with Lab(f"nls{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        try:
            machines = [made.join(name) for name in NODES]
            made.in_sync(*machines, peers=3)
            made.moved("vxlan:8472")
            for number, machine in enumerate(machines, 1):
                machine.add_pod("pod", f"10.42.{number}.5", f"fd00:42:0:{number}::5", mtu=1400)
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def devices(agents: Agents) -> set[str]:
    """The tunnels', on all nodes."""
    return {
        line.split(": ")[1]
        for machine in agents.lab.nodes.values()
        for line in machine.ip("-o", "link", "show").splitlines()
        if re.search(r"netloom_(?!probe)", line)
    }


def device_state(agents: Agents) -> set[str]:
    """The devices that Netloom's routes go through, of both families, on all nodes."""
    found = set()
    for machine in agents.lab.nodes.values():
        for family in ("-4", "-6"):
            lines = machine.ip(family, "route", "show", "type", "unicast", "proto", PROTOCOL).splitlines()
            assert len(lines) == len(NODES) - 1
            found |= {line.split(" dev ")[1].split()[0] for line in lines}
    return found


CHANGES = {
    "another port": ({"tunnelPort": 8473}, ("vxlan:8473",), "netloom_v8473"),
    "tunnels to hybrid": ({"mode": "hybrid"}, ("none", "vxlan:8473"), "eth0"),
    "hybrid to native": ({"mode": "native", "autoDirectNodeRoutes": True}, ("none",), "eth0"),
    "native to tunnels": ({"mode": "tunnel", "autoDirectNodeRoutes": False}, ("vxlan:8473",), "netloom_v8473"),
    "tunnels to native": ({"mode": "native", "autoDirectNodeRoutes": True}, ("none",), "eth0"),
    "native to hybrid, on another port": (
        {"mode": "hybrid", "autoDirectNodeRoutes": False, "tunnelPort": 0},
        ("none", "vxlan:8472"),
        "eth0",
    ),
    "hybrid to tunnels": ({"mode": "tunnel"}, ("vxlan:8472",), "netloom_vxlan"),
}


def test_no_change_of_the_routing_loses_a_packet(agents: Agents) -> None:
    """All changes in a row under one flow, so that what the last left lingering is there, too."""
    pods = {name: agents.lab.nodes[name].pods["pod"] for name in NODES}
    with Flows(pods, versions=(4, 6), rate=1000) as flows:
        began = {}
        for name, (routing, ways, device) in CHANGES.items():
            began[name] = flows.now
            with agents.held(*LATE):
                agents.edit(**routing)
                wait_for("the late ones to be late", lambda since=began[name]: flows.now > since + LATE_SECONDS)  # type: ignore[misc]
            agents.moved(*ways)
            # A node hears a moment later that the last of its peers accepts the new way, too.
            wait_for(f"routes through {device}", lambda want=device: device_state(agents) == {want})  # type: ignore[misc]
        for mtu, pods_mtu in ((1480, 1430), (0, 1450)):
            began[f"spec.mtu {mtu}"] = flows.now
            with agents.held(*LATE):
                agents.edit_spec(mtu=mtu)
                wait_for("the early ones", lambda want=pods_mtu: facts(agents.lab.nodes["n1"])["mtu"] == want)  # type: ignore[misc]
            for machine in agents.lab.nodes.values():
                wait_for("the MTU", lambda m=machine, want=pods_mtu: facts(m)["mtu"] == want)  # type: ignore[misc]
        report = flows.stop()
    assert report.lossless, f"{report}\nchanges began at {began}"
    for machine in agents.lab.nodes.values():
        assert facts(machine)["errors"] == []


def test_what_was_left_is_removed_when_nobody_can_use_it_any_more(agents: Agents) -> None:
    wait_for("old devices to go", lambda: devices(agents) == {"netloom_vxlan"}, deadline=2 * LINGER_SECONDS + 30)
