"""No route takes away what the node lives by: held back by what the kernel shows, given by event, freed at a restart.

The node is 192.168.7.1 on a LAN 192.168.0.0/16, with a gateway and others on it who answer.
"""

import pytest

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.desired import Desired, FurtherAddresses, Peer
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.mesh.node_network import SeenNodeNetwork
from tests.kernel.conftest import Planes
from tests.kernel.meshes import becomes, eventually, here, mesh, peer, running
from tests.kernel.netns import SOON, Lab, Namespace

LAN = "192.168.0.0/16"
IN_THE_LAN = f"it lies in {LAN}, a network of this node (eth0)"
GATEWAY, SERVER, OTHER = "192.168.0.1", "192.168.0.7", "192.168.7.3"
SERVERS = {parse_address(SERVER): "the API server"}
OWN = (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64"))


@pytest.fixture
def node(lab: Lab) -> object:
    node, wire = lab.namespace("node"), lab.namespace("wire")
    lab.wire(node, "eth0", wire, "lan", "address add 192.168.7.1/16 dev eth0", "address add 2001:db8::1/64 dev eth0")
    node.ip(f"route add default via {GATEWAY}")
    others = (f"{GATEWAY}/16", f"{SERVER}/16", f"{OTHER}/16", "192.168.7.2/16", "2001:db8::2/64")
    wire.batch([f"address add {address} dev lan" for address in others])
    with node.entered():
        yield node


def told(*peers: Peer) -> Desired:
    return Desired(here(cidrs=OWN), [peer(4), *peers])


def of(number: int, *texts: str, **more: object) -> Peer:
    return peer(number, *texts, **more)  # type: ignore[arg-type]


def routes(node: Namespace) -> set[str]:
    lines = [*node.ip("route show proto 158").splitlines(), *node.ip("-6 route show proto 158").splitlines()]
    return {line.split()[0] for line in lines} - {"10.4.0.0/24", "fd00:4::/64"}


def withheld(plane: MeshKeeper) -> dict[str, str]:
    return {each.cidr: each.why for each in plane.report.withheld}


@pytest.mark.parametrize("encapsulation", [VXLAN, NO_ENCAPSULATION], ids=str)
async def test_a_route_into_the_lan_is_not_made_and_named(
    node: Namespace, planes: Planes, encapsulation: object
) -> None:
    plane = await planes.open()
    await plane.free_node(SERVERS)
    cidrs = ("192.168.0.0/24", "192.168.7.0/24", "10.2.0.0/24", "2001:db8::/80", "fd00:2::/64")
    ways = (encapsulation, VXLAN)
    report = await plane.apply(told(of(2, *cidrs, encapsulations=ways)))
    assert all(node.pings(each) for each in (GATEWAY, SERVER, OTHER, "192.168.7.2", "2001:db8::2"))
    assert routes(node) == ({"10.2.0.0/24", "fd00:2::/64"})
    assert (report.in_sync, report.pending, report.failures) == (False, 0, ())
    assert {each.peer for each in report.withheld} == {"node-2"}
    assert withheld(plane) == {
        "192.168.0.0/24": f"{IN_THE_LAN}, and it holds {GATEWAY}, a gateway of this node, and it holds {SERVER}, "
        "the API server",
        "192.168.7.0/24": f"{IN_THE_LAN}, and it holds 192.168.7.2, the address of node-2",
        "2001:db8::/80": "it lies in 2001:db8::/64, a network of this node (eth0)",
    }
    planned = await plane.plan(told(of(2, *cidrs, encapsulations=ways)))
    assert {each.text: each.why for each in planned if each.left_out} == {
        f"{cidr} of node-2 is not routed": why for cidr, why in withheld(plane).items()
    }
    assert [each.text for each in planned if not each.left_out] == []


async def test_it_is_decided_again_by_event_in_both_directions(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    desired = told(of(2, "10.9.2.0/24", "fd09:2::/64"), of(3))
    await plane.apply(desired)
    both = {"10.9.2.0/24", "fd09:2::/64"}
    assert both <= routes(node)

    async def becomes(gone: set[str], *, writes: int) -> None:
        before = sum(plane.report.written.values())
        await eventually(lambda: withheld(plane).keys() == gone, lambda: str(plane.report))
        await eventually(lambda: both - routes(node) == gone, lambda: str(routes(node)))
        await eventually(lambda: not plane.report.converging, lambda: str(plane.report))
        assert sum(plane.report.written.values()) == before + writes

    node.ip("link add other type veth peer name far")
    async with running(plane):
        node.ip("address add 10.9.1.1/16 dev other")  # no route while the device is down
        node.ip("link set other up")
        await becomes({"10.9.2.0/24"}, writes=3)  # its route, nexthop and neighbour
        node.ip("-6 address add fd09::1/16 dev other nodad")
        await becomes(both, writes=3)
        node.ip("-6 address delete fd09::1/16 dev other")
        await becomes({"10.9.2.0/24"}, writes=3)
        node.ip("link set other down")
        await becomes(set(), writes=3)
        node.ip("link set other up")
        await becomes({"10.9.2.0/24"}, writes=3)
        node.ip("link delete other")
        await becomes(set(), writes=3)
        node.ip("route add 10.50.0.0/16 via 10.9.2.7 dev eth0 onlink")
        await becomes({"10.9.2.0/24"}, writes=3)
        node.ip("route replace 10.50.0.0/16 via 10.9.3.7 dev eth0 onlink")
        await becomes(set(), writes=3)
        await plane.free_node({parse_address("10.9.2.8"): "the API server"})
        await becomes({"10.9.2.0/24"}, writes=3)
        node.ip("route add 10.9.2.8 via 192.168.0.9")  # by a gateway: not known to lead there
        node.ip("route add 10.9.2.8/31 dev eth0")
        await becomes(set(), writes=3)


@pytest.mark.parametrize(
    ("cidr", "edit"),
    [
        ("10.2.0.0/24", "via 10.9.2.7 dev eth0 onlink"),
        ("10.2.0.0/24", "nexthop via 10.9.2.7 dev eth0 onlink nexthop dev lo"),
        ("10.2.0.0/24", "dev lo"),
        ("fd00:2::/64", "via 2001:db8::2 dev eth0"),
        ("fd00:2::/64", "dev lo"),
    ],
)
async def test_what_takes_the_place_of_a_route_of_ours_is_repaired_without_reading_what_the_node_lives_by(
    node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch, cidr: str, edit: str
) -> None:
    plane = await planes.open()
    await plane.apply(told(of(2), of(3, "10.9.2.0/24", "fd09:2::/64")))
    before, readings = node.state(), list[SeenNodeNetwork]()
    monkeypatch.setattr(reader, "load_node_network", lambda _commands, node_network: readings.append(node_network))
    async with running(plane):
        node.ip(f"route replace {cidr} {edit}")
        await eventually(lambda: plane.report.repaired > 0)
        await becomes(node.state, before)  # the gateway is none of this node's any more
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert readings == []


async def test_what_takes_the_place_of_another_route_beside_ours_stays_what_the_node_lives_by(
    node: Namespace, planes: Planes
) -> None:
    plane = await planes.open()
    await plane.apply(told(of(2, "10.2.0.0/24"), of(3, "10.9.2.0/24")))
    async with running(plane):
        node.ip("route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto bird")
        await eventually(lambda: plane.report.rivals != ())
        node.ip("route replace 10.2.0.0/24 via 10.9.2.7 dev eth0 onlink")
        await eventually(lambda: withheld(plane) == {"10.9.2.0/24": "it holds 10.9.2.7, a gateway of this node"})
        # All of ours is written again, but for the one whose place another's has: that is refused, time and again.
        node.ip("nexthop flush proto 158")
        await eventually(lambda: plane.report.repaired > 0 and plane.report.pending <= 1)
    assert withheld(plane).keys() == {"10.9.2.0/24"}
    assert "10.2.0.0/24 via 10.9.2.7 dev eth0 onlink" in node.ip("route")


async def test_a_peer_that_changes_or_goes_gives_the_node_back_what_it_claimed(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    desired = told(of(2, "192.168.0.0/24"), of(3))
    assert (await plane.apply(desired)).withheld != ()
    writes = sum(plane.report.written.values())
    desired.set_peer(of(2, "10.2.0.0/24"))
    report = await plane.apply(desired)
    assert (report.in_sync, report.withheld) == (True, ())
    assert sum(report.written.values()) == writes + 3
    desired.set_peer(of(2, "192.168.0.0/24"))
    await plane.apply(desired)
    desired.remove_peer("node-2")
    assert (await plane.apply(desired)).in_sync
    assert sum(plane.report.written.values()) == writes + 6


def harmful(node: Namespace, *prefixes: str, remote: str = "192.168.7.9") -> None:
    """What a version without all this would have left."""
    node.ip(
        f"nexthop add id 1845493777 encap ip id 1 dst {remote} ttl 64 via {remote} dev netloom_vxlan onlink proto 158"
    )
    for prefix in prefixes:
        node.ip(f"route add {prefix} nhid 1845493777 proto 158")


async def test_a_harmful_route_of_an_earlier_life_goes_before_anything_is_known(
    node: Namespace, planes: Planes
) -> None:
    await (await planes.open()).apply(told(of(2)))
    harmful(node, "192.168.0.0/24", "10.77.0.0/24")
    assert not node.pings(GATEWAY, seconds=SOON)
    plane = await planes.open(retain_unknown=True)
    await plane.free_node(SERVERS)
    assert node.pings(GATEWAY), "before a desired state was applied"
    assert node.pings(SERVER)
    assert plane.stats == {"delroute": 1}
    assert routes(node) == {"10.2.0.0/24", "fd00:2::/64", "10.77.0.0/24"}
    report = await plane.apply(told(of(2)))
    assert (report.in_sync, plane.retained, plane.stats) == (True, 1, {"delroute": 1})


async def test_a_tunnel_into_itself_of_an_earlier_life_goes_as_well(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(told())
    harmful(node, "10.77.0.0/24", remote="10.77.0.9")
    plane = await planes.open(retain_unknown=True)
    await plane.free_node({})
    assert routes(node) == set()


async def test_what_lies_in_the_lan_goes_though_what_is_unknown_is_retained(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(told(of(2)))
    harmful(node, "192.168.7.0/24", "10.77.0.0/24")
    assert not node.pings(OTHER, seconds=SOON)
    plane = await planes.open(retain_unknown=True)
    await plane.apply(told(of(2)))
    assert node.pings(OTHER)
    assert (routes(node) & {"192.168.7.0/24", "10.77.0.0/24"}, plane.retained) == ({"10.77.0.0/24"}, 1)


async def test_a_restart_with_a_route_held_back_writes_nothing(node: Namespace, planes: Planes) -> None:
    desired = told(of(2, "192.168.0.0/24", "10.2.0.0/24"))
    await (await planes.open()).apply(desired)
    before = node.owned()
    plane = await planes.open(retain_unknown=True)
    await plane.free_node(SERVERS)
    report = await plane.apply(told(of(2, "192.168.0.0/24", "10.2.0.0/24")))
    assert (plane.stats, node.owned(), len(report.withheld)) == ({}, before, 1)


async def test_a_bridge_of_own_pods_holds_nothing_back_however_wide(node: Namespace, planes: Planes) -> None:
    node.ip("link add cni0 type bridge")
    node.ip("link set cni0 up")
    plane = await planes.open()
    async with running(plane):
        await plane.apply(told(of(2, "10.2.0.0/24")))
        writes = plane.stats
        node.ip("address add 10.1.0.1/8 dev cni0")
        node.ip("address add 172.30.0.9/32 dev eth0")  # heard after it
        node.ip("link set eth0 mtu 1400")
        await eventually(lambda: plane.report.mtu == 1350)
        assert (withheld(plane), plane.report.written.get("delroute", 0)) == ({}, writes.get("delroute", 0))
        assert routes(node) == {"10.2.0.0/24"}


def elsewhere(name: str, underlay: str, *cidrs: str, since: str = "", speaks: bool = True, held: bool = False) -> Peer:
    prefixes = tuple(map(Cidr.parse, cidrs))
    return Peer(name, parse_address(underlay), mac_of(name), prefixes, since, speaks=speaks, held=held)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (elsewhere("b", "10.9.2.7", "10.8.0.0/24", since="2026-01"), "it holds 10.9.2.7, the address of b"),
        (elsewhere("b", "10.9.2.7", "10.8.0.0/24", since="2026-02"), "it holds 10.9.2.7, the address of b"),
        (elsewhere("b", "10.9.2.7", "10.8.0.0/24", since="2026-03"), ""),
        (elsewhere("b", "10.9.2.7", "10.8.0.0/24", since="2026-01", speaks=False), ""),
        (elsewhere("b", "10.9.2.7", "10.8.0.0/24", since="~", held=True), "it holds 10.9.2.7, the address of b"),
        (FurtherAddresses((parse_address("10.9.2.7"),), "2026-01"), "it holds 10.9.2.7, the address of b"),
        (FurtherAddresses((parse_address("10.9.2.7"),), "2026-03"), ""),
        (FurtherAddresses((parse_address("10.9.2.7"),), "2026-01", speaks=False), ""),
    ],
    ids=["older", "as old", "younger", "a pod", "held", "without rows", "the same, younger", "the same, a pod"],
)
async def test_a_nodes_address_behind_a_gateway_counts_if_it_is_an_older_machines(
    node: Namespace, planes: Planes, other: Peer | FurtherAddresses, expected: str
) -> None:
    plane = await planes.open()
    desired = told(elsewhere("a", "10.7.0.5", "10.9.2.0/24", since="2026-02"))
    await plane.apply(desired)
    assert (routes(node), withheld(plane)) == ({"10.9.2.0/24"}, {})
    if isinstance(other, Peer):
        desired.set_peer(other)
    else:
        desired.set_further("b", other)
    await plane.apply(desired)
    assert withheld(plane) == ({"10.9.2.0/24": expected} if expected else {})
    assert ("10.9.2.0/24" in routes(node)) == (not expected)
    again = await planes.open()
    await again.apply(desired)
    assert (withheld(again), again.stats) == (withheld(plane), {})
    desired.remove_peer("b")
    desired.set_further("b", None)
    await again.apply(desired)
    assert (routes(node), withheld(again)) == ({"10.9.2.0/24"}, {})


async def test_a_peer_behind_a_gateway_whose_own_address_is_in_its_cidr(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    desired = told(elsewhere("a", "10.9.2.5", "10.9.2.0/24"))
    await plane.apply(desired)
    assert withheld(plane) == {"10.9.2.0/24": "it holds 10.9.2.5, the address of a"}
    desired.set_peer(elsewhere("a", "10.9.3.5", "10.9.2.0/24"))
    await plane.apply(desired)
    assert (withheld(plane), routes(node)) == ({}, {"10.9.2.0/24"})


async def test_own_pod_cidrs_over_own_networks_are_told(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    desired = Desired(here(cidrs=(Cidr.parse("192.168.9.0/24"), *OWN)), [peer(4)])
    desired.set_further("virtual", FurtherAddresses((parse_address("10.1.0.7"),), speaks=False))
    report = await plane.apply(desired)
    assert [(each.cidr, each.why) for each in report.misplaced] == [("192.168.9.0/24", IN_THE_LAN)]
    assert (await plane.apply(mesh(4))).misplaced == ()
