"""Which devices count as the network between the nodes, whatever addresses other Nodes are said to have."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import MeshNode, Peer
from netloom.kernel.mesh.fib import FibLookups, FibResult
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.mesh.rows import DirectRoute
from netloom.kernel.mesh.tunnel_device import Interfaces
from netloom.kernel.mesh.underlay import Astray, Underlay, merged_at, own_addresses_of_peers, underlay_of
from netloom.kernel.netlink.links import InterfaceAddress, Link, LocalAddress
from tests.kernel.meshes import eventually, here, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.two import Two, view_of

# ---------------------------------------------------------------------------------------------- on a real kernel


def at(address: str, name: str = "wrong") -> Peer:
    """A node that is said to have this address, with a pod CIDR of its own."""
    return Peer(name, parse_address(address), mac_of(name), (Cidr.parse("10.66.0.0/24"),))


@pytest.fixture
async def two(lab: Lab, tmp_path: Path) -> AsyncIterator[Two]:
    made = Two(lab, tmp_path)
    async with made.opened(2) as other:
        assert (await other.apply(view_of(2))).in_sync
        yield made


def host_route(two: Two, mtu: int) -> str:
    """A pod's device as Calico's and AWS's plugins make it; its name."""
    name = f"cali{mtu}"
    two.here.ip(f"link add {name} mtu {mtu} type veth peer name eth0 netns {two.elsewhere.name}")
    two.here.ip(f"link set {name} up")
    two.elsewhere.ip("link set eth0 up")
    two.here.ip(f"route add 10.1.0.7 dev {name}")
    return name


def bridge(two: Two, mtu: int) -> str:
    """A pod's device as the plugin `bridge` makes it; the bridge has the least MTU of all that are in it."""
    if "cni0" not in two.here.ip("link"):
        two.here.ip("link add cni0 address 02:00:00:00:01:01 type bridge")
        two.here.ip("address add 10.1.0.1/24 dev cni0")
        two.here.ip("link set cni0 up")
    two.here.ip(f"link add veth{mtu} mtu {mtu} type veth peer name eth0 netns {two.elsewhere.name}")
    two.here.ip(f"link set veth{mtu} master cni0 up")
    two.elsewhere.ip("link set eth0 up")
    return "cni0"


@pytest.mark.parametrize("wire", [host_route, bridge])
async def test_a_pods_device_is_no_underlay_however_often_the_pod_is_replaced(
    two: Two, wire: Callable[[Two, int], str]
) -> None:
    """A pod gets its MTU from this node. Were that taken for the underlay's, each new pod would have 50 bytes less."""
    async with two.opened() as plane:
        desired = view_of(1, at("10.1.0.7"))
        await plane.apply(desired)
        async with running(plane):
            for _ in range(8):
                device = wire(two, plane.report.mtu)
                await eventually(lambda device=device: _devices(plane) == {device}, lambda: str(plane.report))
                assert (plane.report.mtu, plane.report.underlay) == (1450, ("eth0",))
                two.elsewhere.ip("link delete eth0")
        wire(two, 1450)
        report = await plane.apply(desired)
        assert report.astray == (Astray(device, "pod", (parse_address("10.1.0.7"),), ("wrong",)),)
        planned = [(each.text, each.why) for each in await plane.plan(desired) if each.left_out]
        why = f"packets to these addresses leave by {device}, which leads to this node's own pods"
        assert planned == [("10.1.0.7 of wrong does not count as a node's", why)]
        assert two.here.pings("10.2.0.0", size=1450)
        assert two.here.sysctl(f"net.ipv6.conf.{device}.accept_ra") == "1", "it is not touched"
    async with two.opened() as restarted:
        assert (await restarted.apply(desired)).written == {}
        assert restarted.report.mtu == 1450


def _devices(plane: MeshKeeper) -> set[str]:
    return {each.device for each in plane.report.astray}


MERGES = "generic-receive-offload: {}".format


async def test_what_the_underlay_puts_together_the_tunnel_does_not_look_for_again(two: Two) -> None:
    """A veth does not, unless it is told to; and what somebody makes of the tunnel's device is left."""
    tunnel, underlay = ("ethtool -K {} gro {}".format(device, "{}").format for device in ("netloom_vxlan", "eth0"))
    merges = "ethtool -k netloom_vxlan"
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        assert MERGES("on") in two.here.exec(merges)
        two.here.exec(underlay("on"))
        async with running(plane):
            two.here.ip("link delete netloom_vxlan")
            await eventually(two.passes)
        assert MERGES("off") in two.here.exec(merges)
    two.here.exec(tunnel("on"))
    async with two.opened() as restarted:
        assert (await restarted.apply(view_of(1))).written == {}
        assert MERGES("on") in two.here.exec(merges)
        two.here.ip("link delete netloom_vxlan")
        planned = {change.text: change.why for change in await restarted.plan(view_of(1))}
    assert planned[tunnel("off")] == "what comes out of the tunnel has been put together at eth0"


def test_it_has_to_be_sure_of_every_device_that_all_was_put_together_there() -> None:
    """Every device but a veth says that it does so, whatever it does."""
    card, other, bond, vpn, veth = (
        Link("eth0", 1, master=3),
        Link("eth1", 2),
        Link("bond0", 3, "bond"),
        Link("tun0", 4, "tun"),
        Link("eth2", 5, "veth"),
    )
    interfaces = Interfaces((card, other, bond, vpn, veth))

    def merged(*links: Link, off: str = "") -> tuple[str, ...]:
        return merged_at(links, interfaces, lambda device: device != off)

    assert merged(other) == ("eth1",)
    assert merged(other, off="eth1") == ()
    assert merged(bond, veth) == ("eth0", "eth2")
    assert merged(bond, off="eth0") == ()
    assert merged(bond, off="bond0") == ("eth0",), "that is not where it is done"
    assert merged(other, vpn) == ()
    assert merged(Link("bond1", 9, "bond")) == (), "nothing is in it"
    assert merged() == ()


@pytest.fixture
def docker(two: Two, lab: Lab) -> Namespace:
    """A container at 172.17.0.2, on a bridge on which the node is known to nobody."""
    two.here.ip("link add docker0 mtu 1400 type bridge")
    two.here.ip("address add 172.17.0.1/16 dev docker0")
    container = lab.namespace("container")
    lab.wire(container, "eth0", two.here, "veth7")
    two.here.ip("link set veth7 mtu 1400 master docker0")
    two.here.ip("link set docker0 mtu 1400 up")
    container.ip("address add 172.17.0.2/16 dev eth0")
    return container


async def test_a_bridge_of_containers_counts_only_if_it_is_named(two: Two, docker: Namespace) -> None:
    async with two.opened() as plane:
        report = await plane.apply(view_of(1, at("172.17.0.2")))
        assert (report.mtu, report.underlay) == (1450, ("eth0",))
        assert report.astray == (Astray("docker0", "indoors", (parse_address("172.17.0.2"),), ("wrong",)),)
        assert two.here.pings("10.2.0.0", size=1450)
        report = await plane.apply(view_of(1, at("172.17.0.2"), devices=("eth*", "docker0")))
        assert (report.mtu, sorted(report.underlay)) == (1350, ["docker0", "eth0"])
        assert report.astray == ()


async def test_an_address_that_this_machine_has_itself_is_no_other_nodes(two: Two, docker: Namespace) -> None:
    """Each machine with Docker has 172.17.0.1: a kubelet may report it."""
    async with two.opened() as plane:
        desired = view_of(1)
        await plane.apply(desired)
        async with running(plane):
            desired.set_peer(at("172.17.0.1"))
            report = await plane.apply(desired)
            assert report.astray == (Astray("docker0", "here", (parse_address("172.17.0.1"),), ("wrong",)),)
            two.here.ip("address delete 172.17.0.1/16 dev docker0")
            await eventually(lambda: plane.report.astray == (), lambda: str(plane.report))


VIRTUAL = {
    "a bridge with the machine's device in it": [
        "link add over type bridge",
        "link set eth0 master over",
    ],
    "a macvlan": ["link add over link eth0 type macvlan mode bridge"],
}


@pytest.mark.parametrize("commands", VIRTUAL.values(), ids=VIRTUAL)
async def test_a_virtual_device_with_the_nodes_address_is_its_underlay(two: Two, commands: list[str]) -> None:
    two.here.ip("address delete 192.168.7.1/24 dev eth0")
    for command in [*commands, "link set eth0 up", "link set over mtu 1400 up", "address add 192.168.7.1/24 dev over"]:
        two.here.ip(command)
    async with two.opened() as plane:
        report = await plane.apply(view_of(1))
        assert (report.mtu, report.underlay, report.astray) == (1350, ("over",), ())
        await eventually(two.passes)


async def test_pods_on_the_bridge_with_the_machines_address_do_not_lower_its_mtu(two: Two) -> None:
    """The bridge has the least MTU of all devices in it, and its pods have theirs from this node."""
    two.here.ip("address delete 192.168.7.1/24 dev eth0")
    for command in (
        "link add uplink link eth0 type macvlan mode passthru",
        "link add cni0 type bridge",
        "link set uplink master cni0 up",
        "address add 192.168.7.1/24 dev cni0",
        "address add 10.1.0.1/24 dev cni0",
        "link set cni0 up",
    ):
        two.here.ip(command)
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        async with running(plane):
            for _ in range(3):
                bridge(two, plane.report.mtu)
                report = await plane.apply(view_of(1))
                assert (report.mtu, report.underlay) == (1450, ("cni0",))
                assert report.mtu_source == "uplink has 1500, less 50 for the tunnel"
                two.elsewhere.ip("link delete eth0")
        await eventually(two.passes)


# ------------------------------------------------------------------------------------------------------- decided


def seen(*devices: tuple[str, str, list[str]]) -> Interfaces:
    """Devices, as (name, kind, addresses); their ifindexes are 1, 2, ..."""
    links, addresses = [], []
    for index, (name, kind, held) in enumerate(devices, 1):
        links.append(Link(name, index, kind, up=True, running=True, mtu=1500 - index))
        for text in held:
            address, _, length = text.partition("/")
            addresses.append(InterfaceAddress(index, LocalAddress(parse_address(address), int(length))))
    return Interfaces(tuple(links), tuple(addresses))


def fib(*ways: tuple[str, int, bool]) -> FibLookups:
    """What the kernel says of peers: (address, ifindex, on the device's network)."""
    made = FibLookups()
    for address, _, _ in ways:
        made.want(parse_address(address))
    made.answered_all([(parse_address(address), FibResult(index, direct)) for address, index, direct in ways])
    return made


def node(**about: object) -> MeshNode:
    return here(local="192.168.7.1", cidrs=(Cidr.parse("10.1.0.0/24"),), **about)  # type: ignore[arg-type]


def decide(about: MeshNode, interfaces: Interfaces, ways: FibLookups, *routes: DirectRoute) -> Underlay:
    return underlay_of(about, interfaces, ways, lambda: list(routes))


def names(underlay: Underlay) -> list[str]:
    return [link.name for link in underlay.links]


ETH0 = ("eth0", "", ["192.168.7.1/24"])
PEER = ("192.168.7.2", 1, True)

KINDS = ["", "bond", "team", "vlan", "bridge", "macvlan", "ipvlan", "wireguard", "veth", "tun", "vxlan", "netkit"]


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_nodes_address_any_kind_is_the_underlay(kind: str) -> None:
    found = decide(node(), seen(("net0", kind, ["192.168.7.1/24"])), fib(("192.168.7.2", 1, True)))
    assert (names(found), found.mtu.bytes, found.astray) == (["net0"], 1499, ())


@pytest.mark.parametrize(
    ("second", "counts"),
    [
        (("eth1", "", []), True),
        (("bond0.7", "vlan", ["192.168.8.1/24"]), True),
        (("wg0", "wireguard", ["192.168.8.1/32"]), True),
        (("eth1", "veth", ["192.168.8.1/24"]), True),
        (("cali7", "veth", []), False),
        (("cali7", "veth", ["169.254.1.1/32", "fe80::1/64"]), False),
        (("gke7", "veth", ["192.168.9.1/32"]), False),
        (("br9", "bridge", ["192.168.8.1/24"]), False),
        (("tun0", "tun", ["192.168.8.1/24"]), True),
        (("tap7", "tun", []), False),
        (("eth1", "veth", ["10.1.0.1/24"]), False),
        (("eth0_1", "", ["10.1.0.1/32"]), False),
    ],
)
def test_a_second_device_without_the_nodes_address(second: tuple[str, str, list[str]], counts: bool) -> None:
    found = decide(node(), seen(ETH0, second), fib(PEER, ("192.168.8.2", 2, True)))
    assert names(found) == (["eth0", second[0]] if counts else ["eth0"])
    assert [each.device for each in found.astray] == ([] if counts else [second[0]])


def test_a_physical_device_that_leads_only_to_pods_is_none() -> None:
    """As the representor of a pod's virtual function."""
    found = decide(node(), seen(ETH0, ("eth0_1", "", [])), fib(PEER, ("10.1.0.7", 2, True)))
    assert (names(found), found.astray[0].why) == (["eth0"], "pod")


def test_a_virtual_wire_to_a_router_counts_unless_it_is_a_pods() -> None:
    """The first as in a node that is a container, with a routing daemon; the second as a VPN's gateway in a pod."""
    interfaces, ways = seen(("lo", "", ["192.168.7.1/32"]), ("eth1", "veth", [])), fib(("192.168.8.2", 2, False))
    assert names(decide(node(), interfaces, ways)) == ["eth1"]
    found = decide(node(), interfaces, ways, DirectRoute(Cidr.parse("10.1.0.7/32"), 2))
    assert (names(found), found.astray[0].why) == (["lo"], "pod")


def test_where_the_nodes_own_address_is_nowhere_the_routes_alone_decide() -> None:
    found = decide(node(), seen(("br0", "bridge", ["192.168.8.1/24"])), fib(("192.168.8.2", 1, True)))
    assert (names(found), found.astray) == (["br0"], ())


def test_an_own_pod_cidr_around_the_nodes_network_does_not_take_its_device_away() -> None:
    own = here(local="10.1.0.9", cidrs=(Cidr.parse("10.1.0.0/24"),))
    found = decide(own, seen(("eth0", "", ["10.1.0.9/16"])), fib(("10.1.0.2", 1, True)))
    assert (names(found), found.mtu.bytes, found.astray) == (["eth0"], 1499, ())


def test_a_pods_bridge_that_the_node_is_known_by_says_nothing_of_the_mtu() -> None:
    own = here(local="10.1.0.1", cidrs=(Cidr.parse("10.1.0.0/24"),))
    found = decide(own, seen(("cni0", "bridge", ["10.1.0.1/24"])), fib(("192.168.7.2", 1, True)))
    assert (names(found), found.mtu.bytes) == (["cni0"], 0)
    assert found.mtu.why == "cni0 leads to this node's own pods, and has its MTU from them: set spec.mtu"


@pytest.mark.parametrize(
    ("devices", "chosen"),
    [
        (("eth*",), ["eth0"]),
        (("*",), ["eth0"]),
        (("cali*",), []),
        (("cali7",), ["cali7"]),
        (("eth5",), []),
    ],
)
def test_devices_that_the_spec_names(devices: tuple[str, ...], chosen: list[str]) -> None:
    """A pattern does not make a pod's device one between nodes; its very name does, unless pods are seen behind it."""
    interfaces = seen(ETH0, ("cali7", "veth", []))
    assert names(decide(node(devices=devices), interfaces, fib(PEER, ("192.168.8.2", 2, True)))) == chosen
    assert "cali7" not in names(decide(node(devices=("*",)), interfaces, fib(("10.1.0.7", 2, True))))


def test_no_routes_are_read_where_no_device_is_in_doubt() -> None:
    def fail() -> list[DirectRoute]:
        raise AssertionError

    bridge_with_pods = seen(("br0", "bridge", ["192.168.7.1/24"]), ("docker0", "bridge", ["172.17.0.1/16"]))
    assert names(underlay_of(node(), bridge_with_pods, fib(PEER), fail)) == ["br0"]


def test_another_nodes_pod_is_behind_the_tunnel() -> None:
    interfaces, ways = seen(ETH0, ("netloom_vxlan", "vxlan", [])), fib(PEER, ("10.2.0.7", 2, False))
    found = decide(node(), interfaces, ways)
    assert (names(found), found.mtu.bytes) == (["eth0"], 1499)
    assert found.astray == (Astray("netloom_vxlan", "tunnel", (parse_address("10.2.0.7"),)),)


def test_own_addresses_of_peers_by_device() -> None:
    interfaces = seen(ETH0, ("docker0", "bridge", ["172.17.0.1/16"]))
    found: Iterator[Astray] = own_addresses_of_peers(node(), interfaces, fib(PEER, ("172.17.0.1", 0, False)))
    assert [(each.device, each.why) for each in found] == [("docker0", "here")]
