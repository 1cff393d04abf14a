"""What somebody does to a pod's device on the node, or to what stands on it, is undone by the kernel's event."""

from collections.abc import AsyncIterator

import pytest

from netloom.kernel.endpoints.endpoint import Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import Pod, endpoints_of, forwarding_node, pod, switches


class Story:
    """A node with two pods, as it should be."""

    def __init__(self, node: Namespace, pods: list[Pod], keeper: EndpointsKeeper) -> None:
        self.node, self.pods, self.keeper = node, pods, keeper
        self.device = pods[0].endpoint.device
        self.whole = self.state()
        self.stats = dict(keeper.stats)

    def state(self) -> str:
        return self.node.state() + switches(self.node, self.device)

    async def is_mended(self) -> None:
        await becomes(self.state, self.whole)
        await eventually(lambda: self.keeper.report.in_sync, lambda: str(self.keeper.report))
        for version in (".3", "::3"):
            assert self.pods[0].place.pings(("10.1.0" if version == ".3" else "fd00:1") + version)


@pytest.fixture
async def story(lab: Lab) -> AsyncIterator[Story]:
    node = forwarding_node(lab)
    pods = [pod(lab, 1), pod(lab, 2)]
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        for each in pods:
            await each.add(keeper)
        async with running(keeper):
            yield Story(node, pods, keeper)


EDITS = {
    "route": ["route delete 10.1.0.2"],
    "route6": ["-6 route delete fd00:1::2"],
    "all routes": ["route flush proto 158", "-6 route flush proto 158"],
    "route to another device": ["route replace 10.1.0.2 dev lo proto 158 metric 65536"],
    "route6 to another device": ["-6 route replace fd00:1::2 dev lo proto 158 metric 65536"],
    "route with a source": ["route replace 10.1.0.2 dev DEVICE proto 158 metric 65536 src 127.0.0.1"],
    "route with an MTU": ["route replace 10.1.0.2 dev DEVICE proto 158 metric 65536 scope link mtu 900"],
    "route more": ["route add 10.9.0.0/24 dev DEVICE proto 158 metric 65599"],
    "route more under one key": ["route append 10.1.0.2 dev lo proto 158 metric 65536"],
    "neighbour": ["neighbour delete 10.1.0.2 dev DEVICE"],
    "neighbour6": ["neighbour delete fd00:1::2 dev DEVICE"],
    "neighbour's MAC": ["neighbour replace 10.1.0.2 dev DEVICE lladdr 02:00:00:00:00:01 nud permanent"],
    "neighbour's state": ["neighbour change 10.1.0.2 dev DEVICE lladdr 02:00:00:00:00:01 nud reachable"],
    "neighbour more": ["neighbour add 10.1.0.99 dev DEVICE lladdr 02:00:00:00:00:01 nud permanent"],
    "all neighbours": ["neighbour flush dev DEVICE nud permanent"],
    "down": ["link set DEVICE down"],
    "down and up": ["link set DEVICE down", "link set DEVICE up"],
    "mtu": ["link set DEVICE mtu 1400"],
    "mtu below what IPv6 needs": ["link set DEVICE mtu 1000"],
    "mac": ["link set DEVICE address 02:00:00:00:00:07"],
    "arp off": ["link set DEVICE arp off"],
    "arp off and on": ["link set DEVICE arp off", "link set DEVICE arp on"],
    "alias": ["link set DEVICE alias somebody's"],
    "renamed": ["link set DEVICE name foreign"],
    "master": ["link add br0 type bridge", "link set DEVICE master br0", "link delete br0"],
    "address": ["address add 10.9.9.9/24 dev DEVICE"],
    "address6": ["address add fd09::9/64 dev DEVICE nodad"],
    "link-local addresses": ["link set DEVICE addrgenmode eui64", "link set DEVICE down"],
    "deleted": ["link delete DEVICE"],
    "sysctl": ["!net/ipv4/conf/DEVICE/rp_filter=2"],
    "forwarding": ["!net/ipv4/conf/DEVICE/forwarding=0"],
    "IPv6 off": ["!net/ipv6/conf/DEVICE/disable_ipv6=1"],
}


@pytest.mark.parametrize("name", EDITS)
async def test_it_is_undone(story: Story, name: str) -> None:
    for line in EDITS[name]:
        line = line.replace("DEVICE", story.device)
        if line.startswith("!"):
            story.node.sysctl(*line[1:].split("="))
        else:
            story.node.ip(line)
    await story.is_mended()
