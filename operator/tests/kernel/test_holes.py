"""Packets for pods that nobody has end at the node, and their sender hears of it.

pod 10.1.0.2 -- node 192.168.7.1 -- eth0 -- router 192.168.7.254, to which the default route leads, and which sends what
is for 10.1.0.0/24 back to the node. It counts what it gets for addresses of pods.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mesh import holes
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN, Encapsulation
from netloom.kernel.mesh.holes import HoleRules, Holes
from netloom.kernel.mesh.lifelines import Device, Lifelines, NodeNetwork, NodeRoute
from netloom.kernel.mesh.row_readers import read_route
from netloom.kernel.mesh.rows import UNREACHABLE
from netloom.kernel.netlink.sockets import EventSocket, walk
from netloom.kernel.netlink.wire import NAMES
from netloom.kernel.ownership import HOLES
from tests.kernel.conftest import Planes
from tests.kernel.meshes import becomes, eventually, here, peer, running
from tests.kernel.netns import SOON, Lab, Namespace

GENEVE = Encapsulation("geneve", 6081)
OWN = tuple(map(Cidr.parse, ("10.1.0.0/24", "fd00:1::/64")))
CLUSTER = tuple(map(Cidr.parse, ("10.0.0.0/12", "fd00::/16")))
FREE = {4: "10.1.0.77", 6: "fd00:1::77"}
DEPARTED = {4: "10.3.0.2", 6: "fd00:3::2"}
UNREACHED = re.compile("Destination (Host|Net) Unreachable|Destination unreachable: (No route|Address unreachable)")


class World:
    """The pod, the node (in which the test runs), and the router."""

    def __init__(self, lab: Lab) -> None:
        self.node, self.pod, self.router = map(lab.namespace, ("node", "pod", "router"))
        lab.wire(self.node, "eth0", self.router, "node")
        lab.wire(self.node, "pod", self.pod, "eth0")
        self.node.ip("address add 192.168.7.1/24 dev eth0")
        self.node.ip("-6 address add fd77::1/64 dev eth0")
        self.router.ip("address add 192.168.7.254/24 dev node")
        self.router.ip("-6 address add fd77::fe/64 dev node")
        for family, gateway, node in (("-4", "192.168.7.254", "192.168.7.1"), ("-6", "fd77::fe", "fd77::1")):
            self.node.ip(f"{family} route add default via {gateway}")
            self.router.ip(f"{family} route add {OWN[family == '-6']} via {node}")
        self.router.sysctl("net.ipv4.ip_forward", "1")
        self.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.pod.ip("address add 10.1.0.2/32 dev eth0")
        self.pod.ip("-6 address add fd00:1::2/128 dev eth0")
        self.node.ip("route add 10.1.0.2 dev pod")
        self.node.ip("-6 route add fd00:1::2 dev pod")
        self.node.ip("address add 169.254.1.1/32 dev pod")
        self.node.ip("-6 address add fe80::1/64 dev pod")
        self.pod.ip("route add 169.254.1.1 dev eth0")
        self.pod.ip("route add default via 169.254.1.1")
        self.pod.ip("-6 route add default via fe80::1 dev eth0")
        self.count()

    def count(self) -> None:
        self.router.exec("nft flush ruleset")
        self.router.exec("nft add table inet count")
        self.router.exec("nft add chain inet count pre { type filter hook prerouting priority -300 ; }")
        for family, prefix in (("ip", "10.0.0.0/8"), ("ip6", "fd00::/16")):
            self.router.exec(f"nft add rule inet count pre {family} daddr {prefix} counter")

    @property
    def leaked(self) -> int:
        """Packets for addresses of pods that the router got."""
        return sum(map(int, re.findall(r"packets (\d+)", self.router.exec("nft list ruleset"))))

    def ask(self, target: str, sender: Namespace | None = None) -> str:
        """What a ping says that nobody answers."""
        return (sender or self.pod).exec(f"ping -n -c 1 -W 1 {target}", check=False)

    def holes(self) -> list[str]:
        """The unreachable routes that are ours, without their metrics."""
        lines = [line for f in ("-4", "-6") for line in self.node.ip(f"{f} route show proto 158").splitlines()]
        return sorted(line.split()[1] for line in lines if line.startswith("unreachable"))


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    with made.node.entered():
        yield made


def view(
    *numbers: int,
    cluster: tuple[Cidr, ...] = CLUSTER,
    carried: bool = False,
    ways: tuple[Encapsulation, ...] = (VXLAN,),
) -> Desired:
    """Node 1's view of a mesh with these peers."""
    own = here(encapsulations=ways, holes=HoleRules(OWN, cluster, carried=carried), strict=False)
    return Desired(own, [peer(number, encapsulations=ways) for number in numbers])


async def test_without_holes_packets_for_nobody_leave_and_circle(world: World, planes: Planes) -> None:
    """What all this is against; the router counts."""
    desired = view(2)
    assert desired.node is not None
    desired.node = replace(desired.node, holes=None)
    await (await planes.open()).apply(desired)
    for target in (FREE[4], FREE[6]):
        world.ask(target)
    assert world.leaked > 50
    world.count()
    world.ask(DEPARTED[4])
    assert world.leaked > 0


@pytest.mark.parametrize("family", [4, 6])
async def test_free_and_departed_addresses_end_here(world: World, planes: Planes, family: int) -> None:
    plane = await planes.open()
    assert (await plane.apply(view(2))).in_sync
    for target in (FREE[family], DEPARTED[family]):
        for sender in (world.pod, world.node):
            said = world.ask(target, sender)
            # For its own packets the node has no ICMP: the call itself fails.
            assert UNREACHED.search(said) or sender is world.node, said
    assert world.leaked == 0
    assert all(world.node.pings(pod) for pod in ("10.1.0.2", "fd00:1::2"))
    assert world.holes() == sorted(map(str, (*OWN, *CLUSTER))), (
        "a peer costs no second route where the cluster CIDR is known"
    )


async def test_what_leads_somewhere_goes_before(world: World, planes: Planes) -> None:
    """A bridge of pods has the node's CIDR as its network, a DHCP client a metric of its own."""
    await (await planes.open()).apply(view(2))
    world.node.ip("link add cni0 type bridge")
    world.node.ip("link set cni0 up")
    world.node.ip("address add 10.1.0.1/24 dev cni0")
    assert "dev cni0" in world.node.ip("route get 10.1.0.77")
    world.node.ip("address delete 10.1.0.1/24 dev cni0")
    world.node.ip("route add 10.1.0.0/24 via 192.168.7.254 metric 20100")
    assert "via 192.168.7.254" in world.node.ip("route get 10.1.0.77")


async def test_where_a_router_knows_pods_only_own_cidrs_end_here(world: World, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(view(2, carried=True, ways=()))
    assert world.holes() == sorted(map(str, OWN))
    world.ask("10.2.0.2")
    assert world.leaked == 1, "left to the router"
    world.count()
    assert UNREACHED.search(world.ask(FREE[4]))
    assert world.leaked == 0


async def test_while_a_peer_is_only_reached_through_the_network_no_cluster_cidr_ends_here(
    world: World, planes: Planes
) -> None:
    """The cluster goes from native routing to tunnels, and node 2 has not made its tunnel yet."""
    desired = view(2, 3)
    desired.set_peer(replace(peer(2, encapsulations=(NO_ENCAPSULATION,)), underlay=bytes((192, 168, 8, 2))))
    plane = await planes.open()
    await plane.apply(desired)
    assert world.holes() == sorted(map(str, OWN))
    assert "via 192.168.7.254" in world.node.ip("route get 10.2.0.2")
    desired.set_peer(peer(2))
    await plane.apply(desired)
    assert world.holes() == sorted(map(str, (*OWN, *CLUSTER)))


async def test_a_peer_without_a_way_has_a_hole_where_no_cluster_cidr_covers_it(world: World, planes: Planes) -> None:
    """Node 2 speaks Geneve only, and this node has no such device."""
    desired = view(2, 3, cluster=())
    plane = await planes.open()
    await plane.apply(desired)
    assert world.holes() == sorted(map(str, OWN))
    before = plane.stats
    desired.set_peer(peer(2, encapsulations=(GENEVE,)))
    await plane.apply(desired)
    assert world.holes() == sorted(("10.2.0.0/24", "fd00:2::/64", *map(str, OWN)))
    assert UNREACHED.search(world.ask("10.2.0.2"))
    desired.set_peer(peer(2))
    await plane.apply(desired)
    assert world.holes() == sorted(map(str, OWN))
    assert "dev netloom_vxlan" in world.node.ip("route get 10.2.0.2")
    assert world.leaked == 0
    assert plane.stats["newroute"] - before["newroute"] == 4


async def test_a_peer_that_leaves_has_one_for_an_hour_where_no_cluster_cidr_is_known(
    world: World, planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = view(2, 3, cluster=())
    plane = await planes.open()
    await plane.apply(desired)
    desired.remove_peer("node-3")
    await plane.apply(desired)
    wanted = sorted(("10.3.0.0/24", "fd00:3::/64", *map(str, OWN)))
    assert world.holes() == wanted
    assert UNREACHED.search(world.ask(DEPARTED[4]))
    assert world.leaked == 0
    whole = world.node.state()
    await plane.close()

    plane = await planes.open()
    report = await plane.apply(view(2, cluster=()))
    assert report.written == {}, "a restart leaves them"
    assert world.node.state() == whole

    desired = view(2, cluster=())
    await plane.apply(desired)
    desired.set_peer(peer(4, "10.3.0.0/24"))
    await plane.apply(desired)
    assert world.holes() == sorted(("fd00:3::/64", *map(str, OWN))), "somebody has it again"
    monkeypatch.setattr(holes, "FORMER_SECONDS", 0.0)
    await plane.apply(desired)
    assert world.holes() == sorted(map(str, OWN)), "it was long ago"


async def test_what_only_the_default_route_leads_to_stays_reached_while_the_node_has_a_network_there(
    world: World, planes: Planes
) -> None:
    """10.91.0.9 is a machine beyond the router, and the node is in 10.90.0.0/16: others live among the pods' CIDRs."""
    world.node.ip("address add 10.90.0.11/16 dev eth0")
    world.router.ip("address add 10.90.0.1/16 dev node")
    world.router.ip("address add 10.91.0.9/32 dev lo")
    wide = Cidr.parse("10.0.0.0/8")
    plane = await planes.open()
    await plane.apply(view(2, cluster=(wide,)))
    assert world.node.pings("10.91.0.9")
    assert plane.report.left_out == {wide: "it holds 10.90.0.0/16, a network of this node (eth0)"}
    assert await plane.plan(view(2, cluster=(wide,))) == []
    async with running(plane):
        world.node.ip("address delete 10.90.0.11/16 dev eth0")
        await eventually(lambda: "10.0.0.0/8" in world.holes(), lambda: str(plane.report))
        assert plane.report.left_out == {}
        world.node.ip("address add 10.90.0.11/16 dev eth0")
        await eventually(lambda: "10.0.0.0/8" not in world.holes(), lambda: str(plane.report))
    assert world.node.pings("10.91.0.9")


async def test_one_of_an_earlier_life_over_the_api_server_goes_before_anything_is_known(
    world: World, planes: Planes
) -> None:
    world.router.ip("address add 10.1.0.99/32 dev lo")
    world.node.ip(f"route add unreachable 10.1.0.0/24 proto 158 metric {HOLES.routes.start}")
    plane = await planes.open()
    assert not world.node.pings("10.1.0.99", seconds=SOON)
    await plane.free_node({parse_address("10.1.0.99"): "the API server"})
    assert world.node.pings("10.1.0.99")
    await plane.apply(view(2))
    assert world.node.pings("10.1.0.99")
    assert list(plane.report.left_out.values()) == ["it holds 10.1.0.99, the API server"] * 2


DRIFT = {
    "one is deleted": [f"route delete unreachable 10.1.0.0/24 metric {HOLES.routes.start}"],
    "one of IPv6 is deleted": [f"-6 route delete unreachable fd00:1::/64 metric {HOLES.routes.start}"],
    "one leads somewhere": [f"route replace 10.1.0.0/24 via 192.168.7.254 proto 158 metric {HOLES.routes.start}"],
    "one is made": [f"route add unreachable 10.9.0.0/24 proto 158 metric {HOLES.routes.start}"],
}


@pytest.mark.parametrize("commands", DRIFT.values(), ids=DRIFT.keys())
async def test_drift_is_repaired_by_the_event(world: World, planes: Planes, commands: list[str]) -> None:
    plane = await planes.open()
    await plane.apply(view(2))
    whole = world.node.state()
    async with running(plane):
        for command in commands:
            world.node.ip(command)
        await becomes(world.node.state, whole)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert plane.report.repaired == 1
    assert plane.report.compared == 2, "by its event"


async def test_a_comparison_finds_what_no_event_told_and_a_restart_writes_nothing(world: World, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(view(2))
    whole = world.node.state()
    await plane.close()
    world.node.ip(f"-6 route delete unreachable fd00::/16 metric {HOLES.routes.start}")
    plane = await planes.open()
    assert [change.text for change in await plane.plan(view(2))] == [
        f"ip route add unreachable fd00::/16 metric {HOLES.routes.start} proto 158"
    ]
    assert (await plane.apply(view(2))).written == {"newroute": 1}
    assert world.node.state() == whole
    await plane.close()
    plane = await planes.open()
    assert await plane.plan(view(2)) == []
    assert (await plane.apply(view(2))).written == {}


async def test_they_go_with_all_else(world: World, planes: Planes, tmp_path: Path) -> None:
    before = world.node.state()
    plane = await planes.open()
    await plane.apply(view(2))
    assert sum(" unreachable " in change.text for change in await plane.plan_cleanup()) == 4
    await plane.cleanup()
    assert world.node.state() == before


async def test_one_is_there_before_a_way_goes_and_until_another_is(world: World, planes: Planes) -> None:
    """What is written is seen in its order by somebody who listens."""
    desired = view(2, cluster=())
    plane = await planes.open()
    await plane.apply(desired)
    listener = EventSocket(["ipv4-route"])
    desired.remove_peer("node-2")
    await plane.apply(desired)
    desired.set_peer(peer(2))
    await plane.apply(desired)
    order = []
    while (buffer := listener.receive()) is not None:
        for kind, _, _, start, end in walk(buffer):
            seen = read_route(buffer, start, end)
            assert seen is not None
            order.append((NAMES[kind], seen.content == UNREACHABLE))
    listener.close()
    assert order == [("newroute", True), ("delroute", False), ("newroute", False), ("delroute", True)]


AROUND = NodeNetwork(
    devices={2: Device("eth0"), 3: Device("eth1"), 4: Device("cni0")},
    routes=(
        NodeRoute(Cidr.parse("10.90.0.0/16"), ((2, b""),), 0, True),
        NodeRoute(Cidr.parse("0.0.0.0/0"), ((2, parse_address("10.90.0.1")),)),
        NodeRoute(Cidr.parse("172.16.0.0/16"), ((3, b""),), 0, True),
        NodeRoute(Cidr.parse("10.42.1.0/24"), ((4, b""),), 0, True),
    ),
    addresses=((2, parse_address("10.90.0.11")), (4, parse_address("10.42.1.1"))),
    cidrs=(Cidr.parse("10.42.1.0/24"),),
    claimed=(parse_address("10.90.0.11"),),
    servers={parse_address("10.96.0.1"): "the API server"},
)


@pytest.mark.parametrize(
    ("own", "cluster", "made", "why"),
    [
        ("10.42.1.0/24", "10.42.0.0/16", ["10.42.0.0/16", "10.42.1.0/24"], ""),
        ("10.42.1.0/24", "10.0.0.0/9", ["10.42.1.0/24"], "it holds 10.96.0.1, the API server"),
        ("10.42.1.0/24", "10.88.0.0/14", ["10.42.1.0/24"], "it holds 10.90.0.0/16, a network of this node (eth0)"),
        ("10.90.1.0/24", "10.42.0.0/16", ["10.42.0.0/16"], "it lies in 10.90.0.0/16, a network of this node (eth0)"),
        ("10.42.1.0/24", "192.168.0.0/16", ["10.42.1.0/24"], "it holds 192.168.3.3, the address of a node"),
    ],
)
def test_none_takes_away_what_the_node_lives_by(own: str, cluster: str, made: list[str], why: str) -> None:
    lifelines = Lifelines()
    lifelines.see(AROUND)
    lifelines.move_node((), (parse_address("192.168.3.3"),))
    found = Holes(lifelines)
    found.set_rules(HoleRules((Cidr.parse(own),), (Cidr.parse(cluster),)))
    assert sorted(str(hole.prefix) for hole in found.table.desired) == made
    assert list(found.left_out.values()) == ([why] if why else [])


def test_services_in_a_cluster_cidr_are_reached_by_the_node_itself() -> None:
    found, own = Holes(Lifelines()), Cidr.parse("10.42.1.0/24")
    services = (Cidr.parse("10.96.0.0/12"),)
    found.set_rules(HoleRules((own,), (Cidr.parse("10.0.0.0/8"), Cidr.parse("192.168.0.0/16")), services))
    assert sorted(str(hole.prefix) for hole in found.table.desired) == ["10.42.1.0/24", "192.168.0.0/16"]
    assert found.left_out == {Cidr.parse("10.0.0.0/8"): "it overlaps 10.96.0.0/12, the addresses of Services"}


def test_where_it_is_not_known_what_services_have_peers_and_former_peers_have_their_own() -> None:
    found, own, cluster = Holes(Lifelines()), Cidr.parse("10.42.1.0/24"), Cidr.parse("10.0.0.0/8")
    found.set_rules(HoleRules((own,), (cluster,), None))
    found.set_unrouted("node-2", (Cidr.parse("10.42.2.0/24"),))
    found.given_up((Cidr.parse("10.42.3.0/24"),))
    assert sorted(str(hole.prefix) for hole in found.table.desired) == ["10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]
    assert found.left_out == {cluster: "it is not known which addresses are those of Services"}
    found.set_rules(HoleRules((own,), (cluster,), ()))
    assert (cluster in {hole.prefix for hole in found.table.desired}, found.left_out) == (True, {})


def test_where_the_cluster_cidr_is_shared_peers_and_former_peers_have_their_own() -> None:
    lifelines, now = Lifelines(), [0.0]
    lifelines.see(AROUND)
    found = Holes(lifelines, clock=lambda: now[0])
    found.set_rules(HoleRules((Cidr.parse("10.42.1.0/24"),), (Cidr.parse("10.0.0.0/8"),)))
    found.set_unrouted("node-2", (Cidr.parse("10.42.2.0/24"), Cidr.parse("10.90.2.0/24")))
    found.given_up((Cidr.parse("10.42.3.0/24"), Cidr.parse("10.90.0.0/24")))
    assert sorted(str(hole.prefix) for hole in found.table.desired) == ["10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]
    now[0] = holes.FORMER_SECONDS
    found.bring_up_to_date()
    assert sorted(str(hole.prefix) for hole in found.table.desired) == ["10.42.1.0/24", "10.42.2.0/24"]


def test_a_node_that_comes_into_one_by_the_default_route_takes_it_back() -> None:
    lifelines = Lifelines()
    lifelines.see(AROUND)
    found = Holes(lifelines)
    found.set_rules(HoleRules((), (Cidr.parse("192.168.0.0/16"),)))
    assert len(found.table.desired) == 1
    address = parse_address("192.168.3.3")
    lifelines.move_node((), (address,))
    found.moved((address,))
    found.bring_up_to_date()
    assert found.table.desired == {}
    lifelines.move_node((address,), ())
    found.moved((address,))
    found.bring_up_to_date()
    assert len(found.table.desired) == 1


def test_a_wider_claim_ends_what_lay_in_it() -> None:
    found = Holes(Lifelines())
    found.set_rules(HoleRules())
    found.given_up(map(Cidr.parse, ("10.3.1.0/24", "10.4.1.0/24")))
    found.claimed((Cidr.parse("10.3.0.0/16"),))
    assert [str(hole.prefix) for hole in found.table.desired] == ["10.4.1.0/24"]


def test_a_node_that_comes_into_an_own_or_a_peers_cidr_takes_that_back_too() -> None:
    lifelines, own, other = Lifelines(), Cidr.parse("10.42.1.0/24"), Cidr.parse("10.43.1.0/24")
    found = Holes(lifelines)
    found.set_rules(HoleRules((own,)))
    found.set_unrouted("node-2", (other,))
    for text, left in (("10.42.1.9", [str(other)]), ("10.43.1.9", [])):
        lifelines.move_node((), (parse_address(text),))
        found.moved((parse_address(text),))
        found.bring_up_to_date()
        assert [str(hole.prefix) for hole in found.table.desired] == left


def test_a_cidr_that_one_peer_without_a_way_takes_over_from_another_stays_unreachable() -> None:
    found, cidr = Holes(Lifelines()), Cidr.parse("10.43.1.0/24")
    found.set_rules(HoleRules())
    found.set_unrouted("node-2", (cidr,))
    found.set_unrouted("node-3", (cidr,))
    found.set_unrouted("node-2", ())
    found.bring_up_to_date()
    assert [str(hole.prefix) for hole in found.table.desired] == [str(cidr)]


def test_a_node_that_comes_into_a_former_peers_cidr_takes_that_back_too() -> None:
    lifelines, address = Lifelines(), parse_address("10.43.1.9")
    found = Holes(lifelines)
    found.set_rules(HoleRules())
    found.given_up(map(Cidr.parse, ("10.43.1.0/24", "10.44.0.0/16")))
    lifelines.move_node((), (address,))
    found.moved((address,))
    found.bring_up_to_date()
    assert [str(hole.prefix) for hole in found.table.desired] == ["10.44.0.0/16"]
    lifelines.move_node((address,), ())
    found.moved((address,))
    found.bring_up_to_date()
    assert [str(hole.prefix) for hole in found.table.desired] == ["10.44.0.0/16", "10.43.1.0/24"]


@pytest.mark.parametrize("leave", [10, 100, 1000])
@pytest.mark.parametrize("cluster", [(), ("172.16.0.0/12", "10.0.0.0/8")])
def test_a_node_that_leaves_costs_the_same_however_many_left_within_the_hour(
    leave: int, cluster: tuple[str, ...]
) -> None:
    """Also where nodes live inside a cluster CIDR, which ends nothing then."""
    asked: list[Cidr] = []
    now, lifelines = [0.0], Lifelines()

    def harm(prefix: Cidr) -> str:
        asked.append(prefix)
        return lifelines.harm(prefix)

    found = Holes(lifelines, harm, clock=lambda: now[0])
    stays = parse_address("10.200.0.9"), parse_address("172.16.255.9")
    lifelines.move_node((), stays)
    found.set_rules(HoleRules(OWN, tuple(map(Cidr.parse, cluster))))
    found.bring_up_to_date()
    assert found.left_out.keys() == {Cidr.parse(each) for each in cluster}
    asked.clear()
    for number in range(leave):
        now[0] += 1
        cidr, address = (
            Cidr.parse(f"10.{40 + number // 250}.{number % 250}.0/24"),
            bytes((172, 16, *divmod(number, 256))),
        )
        lifelines.move_node((), (address,))
        found.moved((address,))
        lifelines.move_node((address,), ())
        found.moved((address,))
        found.given_up((cidr,))
        found.bring_up_to_date()
    assert len(asked) == leave * (1 + (len(OWN) + len(cluster) if cluster else 0))
    assert len(found.table.desired) == len(OWN) + leave
    now[0] = holes.FORMER_SECONDS + 5
    found.bring_up_to_date()
    assert len(found.former) == leave - 5


@pytest.mark.parametrize("seed", range(8))
def test_what_is_decided_bit_by_bit_is_what_all_would_be_decided_as(seed: int) -> None:
    dice, lifelines = random.Random(seed), Lifelines()
    lifelines.see(AROUND)
    found = Holes(lifelines)
    cluster = tuple(map(Cidr.parse, dice.choice([(), ("10.40.0.0/13",), ("10.40.0.0/16", "10.44.0.0/16")])))
    found.set_rules(HoleRules((Cidr.parse("10.40.1.0/24"),), cluster))
    nodes: list[bytes] = []

    def cidr() -> Cidr:
        length = dice.choice((22, 24, 24, 26))
        return Cidr.of(bytes((10, dice.randrange(40, 46), dice.randrange(8), dice.choice((0, 64)))), length)

    for _ in range(300):
        match dice.randrange(6):
            case 0:
                nodes.append(address := bytes((10, dice.randrange(40, 46), dice.randrange(8), dice.randrange(256))))
                lifelines.move_node((), (address,))
                found.moved((address,))
            case 1 if nodes:
                address = nodes.pop(dice.randrange(len(nodes)))
                lifelines.move_node((address,), ())
                found.moved((address,))
            case 2:
                found.given_up((cidr(),))
            case 3:
                found.claimed((cidr(),))
            case 4:
                found.set_unrouted(f"node-{dice.randrange(5)}", dice.choice([(), (cidr(),), (cidr(), cidr())]))
        if dice.randrange(3):
            found.bring_up_to_date()
            decided, left_out = dict(found.table.desired), dict(found.left_out)
            found.review()
            assert (decided, left_out) == (found.table.desired, found.left_out)
