"""Pods that reach each other: three nodes on one switch, a pod each, both families, packets that fill the MTU."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from netloom.cidr import Cidr
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.surroundings.keeper import SurroundingsKeeper
from netloom.kernel.surroundings.part import Surroundings
from tests.kernel.meshes import eventually, here, peer, running
from tests.kernel.netns import SOON, Lab, Namespace

NODES = (1, 2, 3)
TUNNEL_MTU = 1450


@pytest.fixture
def switch(lab: Lab) -> Namespace:
    """What joins the nodes; it knows no pod CIDR."""
    made = lab.namespace("switch")
    made.batch(["link add bridge type bridge", "link set bridge up"])
    return made


@pytest.fixture
def nodes(lab: Lab, switch: Namespace) -> dict[int, Namespace]:
    """Nodes 192.168.7.N."""
    made = {}
    for number in NODES:
        node = lab.namespace(f"node{number}")
        lab.wire(node, "eth0", switch, f"port{number}", f"address add 192.168.7.{number}/24 dev eth0")
        switch.ip(f"link set port{number} master bridge")
        made[number] = node
    return made


@pytest.fixture
def pods(lab: Lab, nodes: dict[int, Namespace]) -> dict[int, Namespace]:
    """A pod per node: 10.N.0.2 and fd00:N::2, behind a veth pair with routes, as a CNI plugin makes it."""
    made = {}
    for number, node in nodes.items():
        pod = lab.namespace(f"pod{number}")
        lab.wire(pod, "eth0", node, "pod")
        node.batch(
            [
                "address add 169.254.1.1/32 dev pod",
                "address add fe80::1/64 dev pod",
                f"route add 10.{number}.0.2 dev pod",
                f"route add fd00:{number}::2 dev pod",
            ]
        )
        pod.batch(
            [
                f"link set eth0 mtu {TUNNEL_MTU}",
                f"address add 10.{number}.0.2/32 dev eth0",
                f"address add fd00:{number}::2/128 dev eth0",
                "route add 169.254.1.1 dev eth0",
                "route add default via 169.254.1.1",
                "route add default via fe80::1 dev eth0",
            ]
        )
        made[number] = pod
    return made


def view_of(number: int, members: tuple[int, ...] = NODES) -> Desired:
    """The mesh as node `number` sees it."""
    own = here(f"node-{number}", f"192.168.7.{number}", f"10.{number}.0.0", f"fd00:{number}::")
    return Desired(own, [peer(other) for other in members if other != number])


@pytest.fixture
async def planes(nodes: dict[int, Namespace], tmp_path: Path) -> AsyncIterator[dict[int, MeshKeeper]]:
    """Every node has joined."""
    made = {}
    async with AsyncExitStack() as stack:
        for number, node in nodes.items():
            plane = made[number] = MeshKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
            with node.entered():
                await plane.open()
                stack.push_async_callback(plane.close)
                assert (await plane.apply(view_of(number))).in_sync
        yield made


def address(number: int, family: int) -> str:
    """A pod's."""
    return f"10.{number}.0.2" if family == 4 else f"fd00:{number}::2"


@pytest.mark.parametrize("family", [4, 6])
async def test_every_pod_reaches_every_pod_with_full_packets(
    planes: dict[int, MeshKeeper], pods: dict[int, Namespace], family: int
) -> None:
    for number, pod in pods.items():
        for other in NODES:
            if other != number:
                assert pod.pings(address(other, family)), f"{number} -> {other}"
                assert pod.pings(address(other, family), size=TUNNEL_MTU), f"{number} -> {other}, {TUNNEL_MTU} bytes"
    assert not pods[1].pings(address(2, family), size=TUNNEL_MTU + 1, seconds=SOON), "the pod's own MTU"


@pytest.mark.parametrize("family", [4, 6])
async def test_a_node_reaches_remote_pods_from_an_address_of_its_pod_cidr(
    planes: dict[int, MeshKeeper], nodes: dict[int, Namespace], pods: dict[int, Namespace], family: int
) -> None:
    route = nodes[1].ip(f"route get {address(2, family)}")
    assert f"src {'10.1.0.0' if family == 4 else 'fd00:1::'} " in route
    assert nodes[1].pings(address(2, family), size=TUNNEL_MTU)
    assert pods[2].pings("10.1.0.0" if family == 4 else "fd00:1::"), "and is reached there"


async def test_a_node_reaches_a_remote_pod_from_its_underlay_address(
    planes: dict[int, MeshKeeper], nodes: dict[int, Namespace], pods: dict[int, Namespace]
) -> None:
    """Strict reverse path filtering on the pod's node must not drop it: host-network pods do this. Without it, the
    tunnel's device has none, whatever devices are made with."""
    everywhere, tunnel = (f"net.ipv4.conf.{device}.rp_filter" for device in ("all", "netloom_vxlan"))
    assert nodes[2].sysctl(tunnel) == "0"
    async with running(planes[2]):
        for value, then in (("1", "2"), ("0", "0"), ("2", "0"), ("1", "2")):
            nodes[2].sysctl(everywhere, value)
            await eventually(lambda then=then: nodes[2].sysctl(tunnel) == then)
            assert nodes[1].pings("10.2.0.2", source="192.168.7.1")


async def test_pods_of_hardened_nodes_get_through_and_stay_so(
    nodes: dict[int, Namespace], pods: dict[int, Namespace], tmp_path: Path
) -> None:
    """No device forwards when the agents come, and again later, as a tool leaves it that goes over all of them."""
    switch = "net.ipv4.conf.{}.forwarding".format
    for node in nodes.values():
        node.sysctl("net.ipv4.ip_forward", "1")
        for device in ("default", "eth0", "pod"):
            node.sysctl(switch(device), "0")
    async with AsyncExitStack() as stack:
        keepers = {}
        for number, node in nodes.items():
            plane = MeshKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
            keeper = keepers[number] = SurroundingsKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
            with node.entered():
                for each in (plane, keeper):
                    await each.open()
                    stack.push_async_callback(each.close)
            await plane.apply(view_of(number))
            await stack.enter_async_context(running(plane))
        assert not pods[1].pings("10.2.0.2", seconds=SOON), "the pods' own devices do not forward yet"
        for number, keeper in keepers.items():
            await keeper.apply(Surroundings(own=(Cidr.parse(f"10.{number}.0.0/24"),)))
            await stack.enter_async_context(running(keeper))
        assert pods[1].pings("10.2.0.2")
        for device in ("netloom_vxlan", "pod"):
            nodes[1].sysctl(switch(device), "0")
            await eventually(lambda device=device: nodes[1].sysctl(switch(device)) == "1")  # type: ignore[misc]
            assert pods[1].pings("10.2.0.2")


async def test_jumbo_frames_work_by_themselves(
    planes: dict[int, MeshKeeper], nodes: dict[int, Namespace], pods: dict[int, Namespace], switch: Namespace
) -> None:
    async with AsyncExitStack() as stack:
        for plane in planes.values():
            await stack.enter_async_context(running(plane))
        switch.ip("link set bridge mtu 9000")
        for number, node in nodes.items():
            switch.ip(f"link set port{number} mtu 9000")
            node.ip("link set eth0 mtu 9000")
            node.ip("link set pod mtu 8950")
            pods[number].ip("link set eth0 mtu 8950")
        await eventually(lambda: all(plane.report.mtu == 8950 for plane in planes.values()))
    assert pods[1].pings("10.2.0.2", size=8950)


async def test_a_node_that_leaves_and_another_that_joins(
    planes: dict[int, MeshKeeper], nodes: dict[int, Namespace], pods: dict[int, Namespace]
) -> None:
    for number in (1, 2):
        await planes[number].apply(view_of(number, (1, 2)))
    assert not pods[1].pings("10.3.0.2", seconds=SOON)
    assert pods[1].pings("10.2.0.2")
    for number in (1, 2):
        await planes[number].apply(view_of(number))
    assert pods[1].pings("10.3.0.2")


@pytest.mark.slow
async def test_traffic_flows_on_while_the_agent_is_away_and_back(
    planes: dict[int, MeshKeeper], nodes: dict[int, Namespace], pods: dict[int, Namespace], tmp_path: Path
) -> None:
    """A flow of pings that does not lose one, while node 1's data path is closed, opened and applied again."""
    flow = subprocess.Popen(
        ["ip", "netns", "exec", pods[2].name, "ping", "-n", "-i", "0.005", "-c", "200", "-W", "2", "10.1.0.2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with flow:
        restarts = 0
        while flow.poll() is None:
            plane = MeshKeeper(run_directory=tmp_path / "1", resync_seconds=None)
            with nodes[1].entered():
                await plane.open()
                report = await plane.apply(view_of(1))
                await plane.close()
            assert report.written == {}
            restarts += 1
        assert flow.stdout
        assert " 0% packet loss" in flow.stdout.read()
    assert restarts > 1
