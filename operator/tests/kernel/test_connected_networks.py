"""The networks of a node are those of its addresses, and no route that somebody made."""

from netloom.cidr import Cidr
from netloom.kernel.mesh.connected_networks import connected_networks
from tests.kernel.netns import Namespace


async def test_a_network_is_what_an_address_makes(node: Namespace) -> None:
    node.ip("-6 address add fd77::1/64 dev eth0")
    node.ip("route add 10.9.0.0/16 dev eth0")
    node.ip("route add default via 192.168.7.254")
    node.ip("link add cni0 type bridge")
    node.ip("link set cni0 up")
    node.ip("address add 10.1.0.1/24 dev cni0")
    found = {network for network in await connected_networks() if network != Cidr.parse("fe80::/64")}
    assert found == {Cidr.parse(text) for text in ("192.168.7.0/24", "fd77::/64", "10.1.0.0/24")}
