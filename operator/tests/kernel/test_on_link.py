"""A route without a gateway is not yet a network that peers are on: pods' packets have to arrive.

Two nodes, 192.168.7.1 and .2, with a pod each, and between them what people have: a router that answers ARP for
everybody, a VPN that lets through what it knows, a line with one other end. The other modes of the mesh are tried as
well: what nothing else leads to may go by a doubtful way.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN, Encapsulation
from netloom.kernel.mesh.keeper import MeshKeeper
from tests.kernel.meshes import eventually, here, peer, running
from tests.kernel.netns import Lab, Namespace

HYBRID, NATIVE = (NO_ENCAPSULATION, VXLAN), (NO_ENCAPSULATION,)
Start = Callable[..., Awaitable[list[MeshKeeper]]]


@pytest.fixture
def nodes(lab: Lab) -> list[Namespace]:
    """Not connected yet."""
    return [lab.namespace(f"node{number}") for number in (1, 2)]


@pytest.fixture
def pods(lab: Lab, nodes: list[Namespace]) -> list[Namespace]:
    made = []
    for number, node in enumerate(nodes, 1):
        pod = lab.namespace(f"pod{number}")
        lab.wire(pod, "eth0", node, "pod")
        pod.ip("link set eth0 mtu 1400")
        pod.ip(f"address add 10.{number}.0.2/32 dev eth0")
        node.ip("address add 169.254.1.1/32 dev pod")
        node.ip(f"route add 10.{number}.0.2 dev pod")
        pod.ip("route add 169.254.1.1 dev eth0")
        pod.ip("route add default via 169.254.1.1")
        made.append(pod)
    return made


@pytest.fixture
async def start(nodes: list[Namespace], tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(encapsulations: tuple[Encapsulation, ...], *, strict: bool = False) -> list[MeshKeeper]:
            planes = []
            for number, node in enumerate(nodes, 1):
                plane = MeshKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
                own = here(
                    f"node-{number}",
                    f"192.168.7.{number}",
                    f"10.{number}.0.0",
                    encapsulations=tuple(reversed(encapsulations)),
                    strict=strict,
                )
                other = 3 - number
                with node.entered():
                    await plane.open()
                    stack.push_async_callback(plane.close)
                    to = peer(other, f"10.{other}.0.0/24", encapsulations=encapsulations)
                    await plane.apply(Desired(own, [to]))
                    await stack.enter_async_context(running(plane))
                planes.append(plane)
            return planes

        yield started


def way(node: Namespace) -> str:
    """The device that the other node's pods are routed by; empty if they are not."""
    words = node.ip("-4 route show proto 158").split()
    return words[words.index("dev") + 1] if words else ""


def proxy(lab: Lab, nodes: list[Namespace]) -> None:
    """A router that answers for every address, and knows the nodes but no pods."""
    router = lab.namespace("router")
    for number, node in enumerate(nodes, 1):
        lab.wire(node, "eth0", router, f"p{number}")
        node.ip(f"address add 192.168.7.{number}/32 dev eth0")
        router.ip(f"address add 192.168.9.{number}/32 dev p{number}")
        router.ip(f"route add 192.168.7.{number} dev p{number}")
        router.sysctl(f"net.ipv4.conf.p{number}.proxy_arp", "1")
        router.sysctl(f"net.ipv4.neigh.p{number}.proxy_delay", "0")  # up to 0.8 s, else
    router.sysctl("net.ipv4.ip_forward", "1")


def line(nodes: list[Namespace], lab: Lab) -> None:
    """A device without ARP at each end; both have one MAC, so each takes what the other sends."""
    lab.wire(nodes[0], "wg0", nodes[1], "wg0")
    for node in nodes:
        node.ip("link set wg0 address 02:00:00:00:00:01 arp off")


@pytest.mark.parametrize("default", ["default", "0.0.0.0/1 128.0.0.0/1"])
async def test_behind_a_router_that_answers_for_everybody(
    lab: Lab, nodes: list[Namespace], pods: list[Namespace], start: Start, default: str
) -> None:
    proxy(lab, nodes)
    for node in nodes:
        for prefix in default.split():
            node.ip(f"route add {prefix} dev eth0")
    planes = await start(HYBRID)
    assert pods[0].pings("10.2.0.2")
    assert [way(node) for node in nodes] == ["netloom_vxlan"] * 2
    assert [plane.report.mtu for plane in planes] == [1450, 1450], "the device is the underlay all the same"


async def test_native_alone_it_is_no_network_either_and_reported(
    lab: Lab, nodes: list[Namespace], pods: list[Namespace], start: Start
) -> None:
    proxy(lab, nodes)
    for node in nodes:
        node.ip("route add default dev eth0")
    planes = await start(NATIVE, strict=True)
    assert [plane.report.unreachable for plane in planes] == [{"node-2": (4,)}, {"node-1": (4,)}]
    assert [way(node) for node in nodes] == ["", ""]


async def test_through_a_vpn_that_lets_through_what_it_knows(
    lab: Lab, nodes: list[Namespace], pods: list[Namespace], start: Start
) -> None:
    """As WireGuard: what is in AllowedIPs, and those are the nodes."""
    line(nodes, lab)
    for number, node in enumerate(nodes, 1):
        node.ip(f"address add 192.168.7.{number}/24 dev wg0")
        node.exec("nft add table ip vpn")
        node.exec("nft add chain ip vpn in { type filter hook prerouting priority raw; }")
        node.exec("nft add rule ip vpn in iifname wg0 ip saddr != 192.168.7.0/24 drop")
    await start(HYBRID)
    assert nodes[0].pings("192.168.7.2")
    assert pods[0].pings("10.2.0.2")
    assert [way(node) for node in nodes] == ["netloom_vxlan"] * 2


async def test_over_a_line_with_one_other_end_and_what_becomes_of_it(
    lab: Lab, nodes: list[Namespace], pods: list[Namespace], start: Start
) -> None:
    line(nodes, lab)
    for number, node in enumerate(nodes, 1):
        node.ip(f"address add 192.168.7.{number} peer 192.168.7.{3 - number} dev wg0")
    await start(HYBRID)
    assert [way(node) for node in nodes] == ["wg0", "wg0"], "the peer is what is there"
    assert pods[0].pings("10.2.0.2")
    # It becomes one of many behind that device ...
    for number, node in enumerate(nodes, 1):
        node.ip(f"address delete 192.168.7.{number} peer 192.168.7.{3 - number} dev wg0")
        node.ip(f"address add 192.168.7.{number}/24 dev wg0")
    await eventually(lambda: [way(node) for node in nodes] == ["netloom_vxlan"] * 2)
    assert pods[0].pings("10.2.0.2")
    # ... and that one on which all can be asked for.
    for node in nodes:
        node.ip("link set wg0 down")  # forgets its neighbours
        node.ip("link set wg0 address 02:00:00:00:00:02 arp on" if node is nodes[1] else "link set wg0 arp on")
        node.ip("link set wg0 up")
    await eventually(lambda: [way(node) for node in nodes] == ["wg0", "wg0"])
    assert pods[0].pings("10.2.0.2")


@pytest.mark.parametrize(("encapsulations", "expected"), [(HYBRID, "netloom_vxlan"), (NATIVE, "tun0")], ids=["2", "1"])
async def test_a_tun_device_counts_where_nothing_else_leads_there(
    nodes: list[Namespace], start: Start, encapsulations: tuple[Encapsulation, ...], expected: str
) -> None:
    for number, node in enumerate(nodes, 1):
        node.ip("tuntap add tun0 mode tun")
        node.ip("link set tun0 up")
        node.ip(f"address add 192.168.7.{number}/32 dev lo")
        node.ip(f"route add 192.168.7.{3 - number} dev tun0")
    planes = await start(encapsulations, strict=encapsulations == NATIVE)
    for plane in planes:
        plane._mesh.fib.set_stopped(())  # nobody holds its other end, so it has no carrier
        plane._mesh.reached(plane._mesh.fib.take_changed())
    wanted = [plane._mesh.nexthops.desired for plane in planes]
    devices = [node.ip_json("link show dev " + expected)[0]["ifindex"] for node in nodes]
    assert [each.ifindex for one in wanted for each in one.values()] == devices


async def test_of_ipv6_likewise(lab: Lab, nodes: list[Namespace], tmp_path: Path) -> None:
    node, far = nodes
    lab.wire(node, "eth0", far, "eth0")
    node.ip("address add 192.168.7.1/24 dev eth0")
    node.ip("-6 address add fd07::1/128 dev eth0")
    plane = MeshKeeper(run_directory=tmp_path / "run", resync_seconds=None)
    with node.entered():
        await plane.open()
    to = replace(peer(2, "fd00:2::/64", encapsulations=HYBRID), underlay6=bytes.fromhex("fd07" + "0" * 27 + "2"))
    for prefix, device in (("default", "netloom_vxlan"), ("2000::/3 fc00::/7", "netloom_vxlan"), ("fd07::/64", "eth0")):
        for each in prefix.split():
            node.ip(f"-6 route add {each} dev eth0")
        with node.entered():
            await plane.apply(Desired(here(encapsulations=(VXLAN, NO_ENCAPSULATION)), [to]))
        assert f"dev {device}" in node.ip("-6 route show fd00:2::/64"), prefix
        for each in prefix.split():
            node.ip(f"-6 route delete {each} dev eth0")
    await plane.close()
