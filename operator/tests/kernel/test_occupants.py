"""What lives on a node inside a CIDR, read off a real kernel: pods as CNI plugins wire them, and what is no pod."""

import pytest

from netloom.cidr import Cidr
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.occupants import occupants
from tests.kernel.conftest import Planes
from tests.kernel.meshes import here, mesh
from tests.kernel.netns import Lab, Namespace

FOUR, SIX, OTHER = Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64"), Cidr.parse("10.9.0.0/24")


async def found() -> dict[str, str]:
    return {str(cidr): what for cidr, what in (await occupants([FOUR, SIX, OTHER])).items()}


async def test_nothing_lives_where_only_ours_is(node: Namespace, planes: Planes) -> None:
    """Our own address of the CIDR, routes of peers, a route by a gateway, one that drops, and a CIDR's neighbour."""
    plane = await planes.open()
    await plane.apply(mesh())
    node.ip("route add 10.1.0.0/25 via 192.168.7.9")
    node.ip("route add 10.1.0.7/32 via 192.168.7.9 dev eth0 onlink")
    node.ip("route add blackhole 10.1.0.0/24")
    node.ip("route add 10.0.0.0/8 dev eth0")
    node.ip("route add 10.1.1.5/32 dev eth0")
    assert await found() == {}


async def test_pods_by_their_host_routes(node: Namespace, lab: Lab) -> None:
    pod = lab.namespace("pod")
    lab.wire(node, "veth1", pod, "eth0")
    node.ip("route add 10.1.0.5/32 dev veth1")
    node.ip("-6 route add fd00:1::5/128 dev veth1")
    assert await found() == {"10.1.0.0/24": "10.1.0.5/32 on veth1", "fd00:1::/64": "fd00:1::5/128 on veth1"}
    node.ip("link del veth1")
    assert await found() == {}


async def test_pods_on_a_bridge_and_a_bridge_whose_last_one_left(node: Namespace, lab: Lab) -> None:
    node.ip("link add cni0 type bridge")
    node.ip("link set cni0 up")
    node.ip("address add 10.1.0.1/24 dev cni0")
    lab.wire(node, "veth1", lab.namespace("pod"), "eth0")
    node.ip("link set veth1 master cni0")
    assert await found() == {"10.1.0.0/24": "10.1.0.0/24 on cni0"}
    node.ip("link del veth1")
    assert await found() == {}


@pytest.mark.parametrize("table", ["100", "main"])
async def test_pods_whose_routes_are_in_a_table_of_their_own(
    node: Namespace, lab: Lab, planes: Planes, table: str
) -> None:
    lab.wire(node, "veth1", lab.namespace("pod"), "eth0")
    node.ip(f"route add 10.9.0.5/32 dev veth1 table {table}")
    plane = await planes.open()
    await plane.apply(Desired(here("node-1", "192.168.7.1", "10.1.0.0")))
    assert await found() == {"10.9.0.0/24": "10.9.0.5/32 on veth1"}
