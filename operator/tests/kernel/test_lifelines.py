"""Which prefixes would cut a node off, told of a node as `ip` shows one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Address, Cidr, parse_address
from netloom.kernel.mesh.lifelines import Device, Lifelines, NodeNetwork, NodeRoute

LO, ETH0, WG0, CNI0, DOCKER0, TUNNEL = range(1, 7)
DEVICES = {
    LO: Device("lo"),
    ETH0: Device("eth0"),
    WG0: Device("wg0"),
    CNI0: Device("cni0"),
    DOCKER0: Device("docker0"),
    TUNNEL: Device("netloom_vxlan", ours=True),
}
LAN = "10.90.0.0/16"
IN_THE_LAN = f"it lies in {LAN}, a network of this node (eth0)"
THE_GATEWAY = "it holds 10.90.0.1, a gateway of this node"


def on(ifindex: int, destination: str, *gateways: str, connected: bool = True) -> NodeRoute:
    hops = tuple((ifindex, parse_address(each)) for each in gateways) or ((ifindex, b""),)
    return NodeRoute(Cidr.parse(destination), hops, connected=connected and not gateways)


def default(gateway: str, ifindex: int = ETH0) -> NodeRoute:
    return on(ifindex, "::/0" if ":" in gateway else "0.0.0.0/0", gateway)


def addresses(*pairs: tuple[int, str]) -> list[tuple[int, Address]]:
    return [(ifindex, parse_address(text)) for ifindex, text in pairs]


def lifelines(
    *routes: NodeRoute, own: tuple[tuple[int, str], ...] = (), cidrs: tuple[str, ...] = (), api: str = ""
) -> Lifelines:
    found = Lifelines()
    found.see(
        NodeNetwork(
            DEVICES,
            routes,
            addresses(*own),
            [Cidr.parse(each) for each in cidrs],
            [parse_address("10.90.1.11")],
            {parse_address(api): "the API server"} if api else {},
        )
    )
    return found


def harm(of: Lifelines, prefix: str) -> str:
    return of.harm(Cidr.parse(prefix))


def test_what_lies_in_a_connected_network_would_cut_the_node_off_from_it() -> None:
    node = lifelines(on(ETH0, LAN), default("10.90.0.1"), api="10.90.0.2")
    assert harm(node, "10.90.1.0/24") == IN_THE_LAN
    assert harm(node, LAN) == harm(node, "10.90.0.0/24")
    assert harm(node, "10.90.0.0/24") == f"{IN_THE_LAN}, and {THE_GATEWAY}, and it holds 10.90.0.2, the API server"
    assert harm(node, "10.91.0.0/24") == ""
    assert harm(node, "192.168.0.0/24") == ""


def test_what_is_around_a_connected_network_does_it_no_harm_and_none_to_what_is_in_it() -> None:
    node = lifelines(on(ETH0, "10.90.1.0/24"), default("10.90.1.1"), api="10.90.1.2")
    node.move_node((), (parse_address("10.90.1.12"),))
    assert harm(node, "10.90.0.0/16") == ""
    assert node.network_in(Cidr.parse("10.90.0.0/16")) == "it holds 10.90.1.0/24, a network of this node (eth0)"
    assert node.network_in(Cidr.parse("10.90.2.0/24")) == ""


@pytest.mark.parametrize(
    ("routes", "api", "expected"),
    [
        ([default("10.91.0.1")], "", "it holds 10.91.0.1, a gateway of this node"),
        ([on(ETH0, "10.91.0.1/32", connected=False), default("10.91.0.1")], "", ""),
        ([], "10.91.7.7", "it holds 10.91.7.7, the API server"),
        ([on(ETH0, "10.5.0.0/16", "10.91.0.9")], "", "it holds 10.91.0.9, a gateway of this node"),
    ],
)
def test_what_holds_an_address_outside_the_connected_networks_takes_it_along(
    routes: list[NodeRoute], api: str, expected: str
) -> None:
    assert harm(lifelines(*routes, api=api), "10.91.0.0/16") == expected


def test_what_holds_a_node_takes_it_along_unless_it_does_not_count() -> None:
    node = lifelines(on(ETH0, "10.90.1.0/24"))
    for each in ("10.90.1.12", "10.91.3.3", "10.91.3.4", "10.91.3.3"):
        node.move_node((), (parse_address(each),))
    prefix = Cidr.parse("10.88.0.0/14")
    assert node.harm(prefix) == "it holds 10.91.3.3, the address of a node"
    named = {parse_address("10.91.3.4"): "node-4"}
    assert node.harm(prefix, lambda address: named.get(address, "")) == "it holds 10.91.3.4, the address of node-4"
    assert node.harm(prefix, lambda _: "") == ""
    node.move_node((parse_address("10.91.3.4"),), ())
    node.move_node((parse_address("10.91.3.3"),), ())
    assert node.harm(prefix) != ""
    node.move_node((parse_address("10.91.3.3"),), ())
    assert node.harm(prefix) == ""


def test_the_networks_of_own_pods_are_no_lifeline_however_wide_they_are_made() -> None:
    bridge, host = on(CNI0, "10.42.0.0/16"), on(CNI0, "10.42.1.9/32", connected=False)
    node = lifelines(bridge, host, own=((CNI0, "10.42.1.1"),), cidrs=("10.42.1.0/24",))
    assert harm(node, "10.42.3.0/24") == ""


def test_a_lan_that_holds_an_own_pod_cidr_stays_a_lifeline() -> None:
    for own in ("10.90.7.0/24", "10.90.1.0/24"):  # the second holds the node itself
        node = lifelines(on(ETH0, LAN), own=((ETH0, "10.90.1.11"),), cidrs=(own,))
        assert harm(node, "10.90.2.0/24") == IN_THE_LAN


def test_containers_of_docker_would_lose_their_traffic() -> None:
    node = lifelines(on(DOCKER0, "172.17.0.0/16"), own=((DOCKER0, "172.17.0.1"),), cidrs=("10.42.1.0/24",))
    assert harm(node, "172.17.3.0/24") == "it lies in 172.17.0.0/16, a network of this node (docker0)"


@pytest.mark.parametrize("wide", ["0.0.0.0/0", "0.0.0.0/1"])
@pytest.mark.parametrize("device", [ETH0, WG0])
def test_a_default_route_on_a_device_is_no_network(wide: str, device: int) -> None:
    assert harm(lifelines(on(device, wide, connected=False)), "10.42.3.0/24") == ""


@pytest.mark.parametrize("device", [ETH0, WG0])
def test_what_somebody_routes_to_a_device_is_no_network_but_what_its_address_makes_is(device: int) -> None:
    node = lifelines(on(WG0, "10.8.0.0/24"), on(device, "10.0.0.0/8", connected=False), default("10.42.9.1"))
    assert harm(node, "10.42.3.0/24") == ""
    assert harm(node, "10.42.9.0/24") == "it holds 10.42.9.1, a gateway of this node"
    assert harm(node, "10.8.0.128/25") == "it lies in 10.8.0.0/24, a network of this node (wg0)"


def test_what_is_ours_or_link_local_is_nothing_to_live_by() -> None:
    node = lifelines(
        on(TUNNEL, "10.42.0.0/16"),
        on(ETH0, "10.60.0.0/16", "10.42.3.1"),
        on(TUNNEL, "10.61.0.0/16", "10.43.3.1"),
        on(ETH0, "169.254.0.0/16"),
        default("fe80::1"),
        on(ETH0, "fe80::/64"),
    )
    assert harm(node, "10.42.4.0/24") == harm(node, "10.43.3.0/24") == harm(node, "169.254.8.0/24") == ""


def test_another_cnis_route_by_a_gateway_inside_itself_holds_nothing_back() -> None:
    assert harm(lifelines(on(ETH0, "10.42.3.0/24", "10.42.3.0")), "10.42.3.0/24") == ""


def test_an_address_of_its_own_cannot_be_taken_from_the_node() -> None:
    node = lifelines(own=((ETH0, "10.91.0.5"),), api="10.91.0.5")
    assert harm(node, "10.91.0.0/24") == ""


def test_ipv6() -> None:
    node = lifelines(on(ETH0, "2001:db8:1::/64"), default("2001:db8:2::1"), api="2001:db8:3::6")
    assert harm(node, "2001:db8:1::/80") == "it lies in 2001:db8:1::/64, a network of this node (eth0)"
    assert harm(node, "2001:db8:1::/48") == ""
    assert harm(node, "2001:db8:2::/64") == "it holds 2001:db8:2::1, a gateway of this node"
    assert harm(node, "2001:db8:3::/64") == "it holds 2001:db8:3::6, the API server"
    assert harm(node, "fd42:1::/64") == ""


def test_what_is_new_is_told_once() -> None:
    node = lifelines(on(ETH0, LAN), default("10.90.0.1"))
    same = NodeNetwork(DEVICES, [on(ETH0, LAN), default("10.90.0.1")])
    assert node.see(same) == set()
    added = NodeNetwork(DEVICES, [*same.routes, on(DOCKER0, "172.17.0.0/16")])
    assert node.see(added) == {Cidr.parse("172.17.0.0/16")}
    assert node.see(same) == {Cidr.parse("172.17.0.0/16")}
    assert node.see(NodeNetwork(DEVICES, [on(ETH0, LAN)])) == {Cidr.parse("10.90.0.1/32")}


cidrs = st.builds(
    lambda base, length: Cidr.of(base.to_bytes(4, "big"), length), st.integers(0, 255), st.integers(8, 32)
)
hosts = st.integers(0, 255).map(lambda base: base.to_bytes(4, "big"))


@given(st.lists(cidrs), st.lists(hosts), st.lists(hosts), cidrs)
def test_in_general(networks: list[Cidr], nodes: list[Address], gone: list[Address], prefix: Cidr) -> None:
    """Harmless is what takes no address along: neither one that lies in a network as wide, nor a node's outside."""
    lines = Lifelines()
    lines.see(NodeNetwork(DEVICES, [NodeRoute(each, ((ETH0, b""),), connected=True) for each in networks]))
    for address in (*nodes, *gone):
        lines.move_node((), (address,))
    assert lines.harm(prefix) is not None  # asked in between: what was added is in order before more is removed
    for address in gone:
        lines.move_node((address,), ())
    inside = any(each.contains(prefix) for each in networks)
    inner = [each for each in networks if each.length > prefix.length]
    lost = [
        node for node in map(Cidr.of, nodes) if prefix.contains(node) and not any(each.contains(node) for each in inner)
    ]
    assert bool(lines.harm(prefix)) == (inside or bool(lost))
