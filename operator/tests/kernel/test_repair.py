"""Whatever somebody does to what is ours is undone on the kernel's event.

Resyncs by time are off in all of these tests, so what comes back, comes back because of an event. What was there before
and after is compared whole, as `ip` prints it.
"""

import subprocess

import pytest

from netloom.cidr import format_address, parse_address
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from netloom.kernel.mesh.keeper import MeshReport
from tests.economy import spread
from tests.kernel.conftest import Planes
from tests.kernel.meshes import becomes, eventually, here, many, mesh, peer, running
from tests.kernel.netns import Namespace

NEXTHOP = 1852444659
"""Node 2's IPv4 nexthop object: a hash of its name."""

DRIFT = {
    "a route is deleted": ["route delete 10.2.0.0/24"],
    "an IPv6 route is deleted": ["route delete fd00:2::/64"],
    "a route is pointed elsewhere": ["route replace 10.2.0.0/24 via 192.168.7.99"],
    "a route is pointed elsewhere under our protocol": ["route replace 10.2.0.0/24 via 192.168.7.99 proto 158"],
    "an IPv6 route is pointed elsewhere": ["-6 route replace fd00:2::/64 dev eth0"],
    "a route is made a blackhole": ["route replace blackhole 10.2.0.0/24"],
    "a route is replaced, and that is deleted": ["route replace 10.2.0.0/24 dev eth0", "route delete 10.2.0.0/24"],
    "a route is added under our protocol": ["route add 10.99.0.0/24 dev eth0 proto 158"],
    "a route is added again with a metric": [f"route add 10.2.0.0/24 nhid {NEXTHOP} metric 7 proto 158"],
    "a route gets a source": [f"route replace 10.2.0.0/24 nhid {NEXTHOP} src 192.168.7.1 proto 158"],
    "an IPv6 route gets a source": ["route replace fd00:2::/64 nhid 1848463230 src fd00:1:: proto 158"],
    "an IPv6 route is to expire": ["route replace fd00:2::/64 nhid 1848463230 expires 60 proto 158"],
    "a neighbour is deleted": ["neighbour delete 192.168.7.2 dev netloom_vxlan"],
    "a neighbour gets another MAC": ["neighbour replace 192.168.7.2 lladdr 02:00:00:00:00:99 dev netloom_vxlan"],
    "a neighbour is no longer permanent": [
        "neighbour replace 192.168.7.2 lladdr 96:73:f6:c0:a0:14 dev netloom_vxlan nud stale"
    ],
    "an IPv6 neighbour is deleted": ["neighbour delete fe80::9473:f6ff:fec0:a014 dev netloom_vxlan"],
    "a neighbour is added": ["neighbour add 192.168.7.99 lladdr 02:00:00:00:00:99 dev netloom_vxlan nud permanent"],
    "a nexthop is deleted, and its routes with it": [f"nexthop delete id {NEXTHOP}"],
    "all nexthops are flushed": ["nexthop flush proto 158"],
    "a nexthop goes elsewhere": [
        f"nexthop replace id {NEXTHOP} encap ip id 1 dst 192.168.7.99 ttl 64 via 192.168.7.2 dev netloom_vxlan onlink "
        "proto 158"
    ],
    "a nexthop carries another VNI": [
        f"nexthop replace id {NEXTHOP} encap ip id 2 dst 192.168.7.2 ttl 64 via 192.168.7.2 dev netloom_vxlan onlink "
        "proto 158"
    ],
    "a nexthop is made native, by another protocol": [f"nexthop replace id {NEXTHOP} via 192.168.7.2 dev eth0"],
    "a nexthop is made a blackhole": [f"nexthop replace id {NEXTHOP} blackhole proto 158"],
    "a nexthop is added in our range": ["nexthop add id 1845493761 via 192.168.7.99 dev eth0 proto 158"],
    "an address is deleted": ["address delete 10.1.0.0/32 dev netloom_vxlan"],
    "the link-local address is deleted": ["address delete fe80::3872:55ff:fe8c:abf9/64 dev netloom_vxlan"],
    "an address is added": ["address add 10.99.0.1/24 dev netloom_vxlan"],
    "an address is added that leads a peer's CIDR to the device": [
        "address add 10.1.0.0 peer 10.2.0.0/24 dev netloom_vxlan"
    ],
    "an address is to expire": ["address change 10.1.0.0/32 dev netloom_vxlan valid_lft 60 preferred_lft 30"],
    "an IPv6 address is to be used no longer": [
        "address change fd00:1::/128 dev netloom_vxlan valid_lft 60 preferred_lft 0"
    ],
    "an IPv6 address gets a network": [
        "address delete fd00:1::/128 dev netloom_vxlan",
        "address add fd00:1::/64 dev netloom_vxlan nodad",
    ],
    "an IPv6 address gets another end": [
        "address delete fd00:1::/128 dev netloom_vxlan",
        "address add fd00:1:: peer fd00:2:: dev netloom_vxlan nodad",
    ],
    "all addresses are flushed": ["address flush dev netloom_vxlan"],
    "the device goes down": ["link set netloom_vxlan down"],
    "the device flaps": ["link set netloom_vxlan down", "link set netloom_vxlan up"],
    "the device asks nobody for MACs": ["link set netloom_vxlan arp off"],
    "the device has another name": ["link set netloom_vxlan name vxlan9"],
    "the device is deleted": ["link delete netloom_vxlan"],
    "the device is replaced by another of the name": [
        "link delete netloom_vxlan",
        "link add netloom_vxlan type vxlan id 5 dstport 4789 dev eth0",
    ],
    "the device is replaced by one that could serve": [
        "link delete netloom_vxlan",
        "link add netloom_vxlan type vxlan external dstport 8472 nolearning",
        "link set netloom_vxlan up",
    ],
    "the device gets another MTU": ["link set netloom_vxlan mtu 1300"],
    "the device gets another MAC": ["link set netloom_vxlan address 02:00:00:00:00:99"],
    "the device makes its own addresses": ["link set netloom_vxlan addrgenmode eui64"],
    "the device is put into a bridge": ["link set netloom_vxlan master bridge"],
    "the underlay's device flaps": ["link set eth0 down", "link set eth0 up"],
    "another device of our name appears": ["link add netloom_g7 type bridge"],
}


@pytest.mark.parametrize("commands", spread(DRIFT.values()), ids=DRIFT.keys())
async def test_drift_is_repaired_by_the_event(node: Namespace, planes: Planes, commands: list[str]) -> None:
    node.ip("link add bridge address 02:00:00:00:00:01 type bridge")
    plane = await planes.open()
    await plane.apply(mesh())
    before = node.state()
    async with running(plane):
        for command in commands:
            node.ip(command)
        await becomes(node.state, before)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert plane.report.contended == ()


async def test_a_nexthop_makes_way_for_somebody_elses_that_has_its_id_now(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    before = node.state()
    foreign = f"id {NEXTHOP} via 192.168.7.77 dev eth0 scope link proto static"
    async with running(plane):
        node.batch([f"nexthop delete id {NEXTHOP}", f"nexthop add id {NEXTHOP} via 192.168.7.77 dev eth0 proto static"])
        await becomes(node.state, _with_another_id(before, foreign))
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))


def _with_another_id(state: str, foreign: str) -> str:
    return "\n".join(sorted([*state.replace(str(NEXTHOP), str(NEXTHOP + 1)).splitlines(), foreign]))


@pytest.mark.parametrize("commands", [["down"], ["down", "up"]])
async def test_an_ipv4_mesh_loses_its_routes_in_silence_when_the_device_goes_down(
    node: Namespace, planes: Planes, commands: list[str]
) -> None:
    plane = await planes.open()
    await plane.apply(Desired(here("node-1", "192.168.7.1", "10.1.0.0"), [peer(2), peer(3)]))
    before = node.state()
    async with running(plane):
        for command in commands:
            node.ip(f"link set netloom_vxlan {command}")
        await becomes(node.state, before)
        await eventually(lambda: plane.report.in_sync)
    assert plane.report.failures == ()


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.ipv4.conf.netloom_vxlan.rp_filter", "1"),
        ("net.ipv4.conf.netloom_vxlan.rp_filter", "2"),
        ("net.ipv4.conf.netloom_vxlan.forwarding", "0"),
        ("net.ipv4.conf.eth0.forwarding", "0"),
        ("net.ipv4.conf.default.forwarding", "0"),
    ],
)
async def test_a_switch_is_put_back(node: Namespace, planes: Planes, switch: str, value: str) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    before = node.sysctl(switch)
    assert before != value
    async with running(plane):
        node.sysctl(switch, value)
        await becomes(lambda: node.sysctl(switch), before)


async def test_one_deleted_route_of_many_costs_one_request(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(many(500))
    before, compared, written = node.state(), plane.report.compared, plane.stats
    async with running(plane):
        node.ip("route delete 10.100.0.7")
        await becomes(node.state, before)
        await eventually(lambda: plane.report.repaired == 1)
    assert plane.stats == written | {"newroute": written["newroute"] + 1}
    assert plane.report.compared == compared


@pytest.mark.parametrize(
    "command", ["route delete {0}", "nexthop delete id {1}", "neighbour delete {2} dev netloom_vxlan"]
)
async def test_everything_of_a_kind_is_deleted_at_once(node: Namespace, planes: Planes, command: str) -> None:
    plane = await planes.open()
    await plane.apply(many(1000))
    before = node.state()
    routes = [line.split() for line in node.ip("route show proto 158").splitlines()]
    gateways = [words[words.index("via") + 1] for words in routes]
    async with running(plane):
        lines = [command.format(words[0], words[2], content) for words, content in zip(routes, gateways, strict=True)]
        # In another process, so that repair and deletion run at the same time.
        with subprocess.Popen(["ip", "-n", node.name, "-batch", "-"], stdin=subprocess.PIPE, text=True) as process:
            assert process.stdin
            process.stdin.write("\n".join(lines))
            process.stdin.close()
            await eventually(lambda: process.poll() is not None)
        await becomes(node.state, before)
    assert plane.report.failures == ()


async def test_lost_events_end_in_a_comparison(node: Namespace, planes: Planes) -> None:
    """An event buffer that is too small for what happens while the event loop is busy."""
    plane = await planes.open(event_buffer=4096)
    await plane.apply(many(200))
    before, compared = node.state(), plane.report.compared
    async with running(plane):
        routes = [line.split()[0] for line in node.ip("route show proto 158").splitlines()]
        node.batch([f"route delete {route}" for route in routes])  # blocks the event loop until all is done
        await becomes(node.state, before)
    assert plane.report.compared > compared
    assert plane.report.in_sync


async def test_the_mtu_follows_the_underlay(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        for mtu in (9000, 1400):
            node.ip(f"link set eth0 mtu {mtu}")
            await eventually(lambda: f"up mtu {mtu - 50} " in node.owned(), node.owned)  # noqa: B023
            await eventually(lambda: plane.report.mtu == mtu - 50)  # noqa: B023


async def test_ipv6_ends_where_the_mtu_is_too_small_for_it_and_comes_back(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    before = node.owned()
    async with running(plane):
        node.ip("link set eth0 mtu 1300")
        await eventually(lambda: bool(plane.report.failures))
        await eventually(lambda: ":" not in node.ip("-6 route show proto 158"))
        assert list(map(str, plane.report.failures)) == [
            "mtu netloom_vxlan: 1250 bytes are less than the 1280 that IPv6 needs (eth0 has 1300, less 50 for the "
            "tunnel), so IPv6 packets of pods do not pass. Let the network between the nodes carry 1330"
        ]
        await eventually(lambda: plane.report.pending == 1, lambda: str(plane.report))
        node.ip("link set eth0 mtu 1500")
        await becomes(node.owned, before)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))


async def test_the_mtu_follows_the_nodes_address_to_another_device(node: Namespace, planes: Planes) -> None:
    node.ip("link add jumbo mtu 9000 type veth peer name far")
    node.ip("link set jumbo up")
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        node.ip("address delete 192.168.7.1/24 dev eth0")
        node.ip("address add 192.168.7.1/24 dev jumbo")
        await eventually(lambda: "mtu 8950 " in node.owned(), node.owned)
        await eventually(lambda: plane.report.underlay == ("jumbo",))


async def test_a_fight_is_bounded_and_reported(node: Namespace, planes: Planes) -> None:
    """Somebody deletes a route whenever it is there."""
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        for _ in range(30):
            subprocess.run(["ip", "-n", node.name, "route", "delete", "10.2.0.0/24"], check=False, capture_output=True)
            await eventually(lambda: "10.2.0.0/24" in node.owned() or bool(plane.report.contended))
            if plane.report.contended:
                break
    assert plane.report.contended == ("route 10.2.0.0/24 of node-2",)
    assert plane.stats["newroute"] < 20


async def test_a_device_that_flaps_is_no_fight_over_its_routes(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    before = node.state()
    async with running(plane):
        for _ in range(15):
            node.ip("link set netloom_vxlan down")
            node.ip("link set netloom_vxlan up")
            await eventually(lambda: "route 10.2.0.0/24 nhid" in node.owned())
        await becomes(node.state, before)
    assert not [item for item in plane.report.contended if item.startswith(("route", "neighbour", "nexthop"))]


async def test_a_foreign_route_that_goes_away_makes_room_at_once(node: Namespace, planes: Planes) -> None:
    node.ip("route add 10.2.0.0/24 via 192.168.7.99")
    plane = await planes.open()
    assert not (await plane.apply(mesh())).in_sync
    async with running(plane):
        node.ip("route delete 10.2.0.0/24")
        await eventually(lambda: "route 10.2.0.0/24 nhid" in node.owned(), node.owned)
        await eventually(lambda: plane.report.in_sync)


async def test_a_port_that_becomes_free_is_taken(node: Namespace, planes: Planes) -> None:
    node.ip("link add other type vxlan external dstport 8472")
    node.ip("link set other up")
    plane = await planes.open()
    assert not (await plane.apply(mesh())).in_sync
    async with running(plane):
        node.ip("link delete other")
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert "route 10.2.0.0/24 nhid" in node.owned()


async def test_events_of_others_are_none_of_our_business(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(Desired(here(), [peer(2)]))
    written, compared = plane.stats, plane.report.compared
    async with running(plane):
        node.ip("link add other type veth peer name far")
        node.ip("link set far up")
        node.ip("link set other up")
        node.ip("address add 10.55.0.1/24 dev other")
        node.ip("neighbour add 10.55.0.2 lladdr 02:00:00:00:00:55 dev other nud permanent")
        node.ip("nexthop add id 5 via 10.55.0.3 dev other")
        node.ip("route add 10.56.0.0/24 nhid 5")
        node.ip("route replace 10.57.0.0/24 via 10.55.0.4 proto bird")
        node.ip("link delete other")
        # A change of ours is done after all of these were read.
        node.ip("route delete 10.2.0.0/24")
        await eventually(lambda: plane.report.repaired == 1)
    assert plane.stats == written | {"newroute": written["newroute"] + 1}
    assert plane.report.compared == compared


async def test_an_address_of_the_node_that_no_device_has_is_told_by_the_event(node: Namespace, planes: Planes) -> None:
    """Of all that it is said to have; nothing is written for it, and it is on whatever device."""
    told: list[tuple[str, ...]] = []
    vip, own = "192.168.7.100", "192.168.7.1"
    claimed = tuple(map(parse_address, (vip, own, "fd00:7::1")))
    plane = await planes.open(on_report=lambda report: told.append(tuple(map(format_address, report.absent))))
    await plane.apply(Desired(here(local=vip, claimed=claimed), [peer(2), peer(3)]))
    assert told[-1] == (vip, "fd00:7::1")
    written, wanted = plane.stats, plane.report.in_sync
    async with running(plane):
        for command, then in (
            (f"address add {vip}/32 dev lo", ("fd00:7::1",)),
            (f"address delete {vip}/32 dev lo", (vip, "fd00:7::1")),
            ("address add fd00:7::1/64 dev eth0 nodad", (vip,)),
            (f"address add {vip}/32 dev eth0", ()),
            (f"address delete {own}/24 dev eth0", (own,)),
        ):
            node.ip(command)
            await eventually(lambda then=then: told[-1] == then, lambda: str(told))  # type: ignore[misc]
    assert (plane.stats, plane.report.in_sync) == (written, wanted)


async def test_a_routes_mtu_survives_what_the_kernel_makes_of_it_when_the_device_is_resized(
    node: Namespace, planes: Planes
) -> None:
    """An IPv6 route that has its device's MTU has the device's new one afterwards, and no event says so."""
    node.ip("-6 address add fd07::1/64 dev eth0 nodad")
    plane, native = await planes.open(), (NO_ENCAPSULATION,)
    own = here(encapsulations=native, mtu=1400)
    await plane.apply(Desired(own, [peer(2, encapsulations=native, underlay6="fd07::2")]))
    before = node.state()
    assert "fd00:2::/64 nhid" in before
    async with running(plane):
        node.ip("link set eth0 mtu 1400")
        node.ip("link set eth0 mtu 1500")
        await becomes(node.state, before)


async def test_so_it_does_when_something_else_was_told_of_the_device_before(node: Namespace, planes: Planes) -> None:
    node.ip("-6 address add fd07::1/64 dev eth0 nodad")
    plane, native = await planes.open(), (NO_ENCAPSULATION,)
    desired = Desired(here(encapsulations=native, mtu=1400), [peer(2, encapsulations=native, underlay6="fd07::2")])
    await plane.apply(desired)
    before = node.state()
    for command in ("address add 192.168.7.9/24 dev eth0", "link set eth0 mtu 1400", "link set eth0 mtu 1500"):
        node.ip(command)
    node.ip("address delete 192.168.7.9/24 dev eth0")
    assert node.state() != before
    await plane.apply(desired)
    assert node.state() == before


async def test_an_mtu_that_goes_does_not_stay_on_a_route_that_somebody_edited(node: Namespace, planes: Planes) -> None:
    """The kernel gives a route the metrics of another on the same nexthop, also of that which it replaces."""
    plane, native = await planes.open(), (NO_ENCAPSULATION,)
    desired = Desired(here(encapsulations=native, mtu=1400), [peer(2, encapsulations=native)])
    await plane.apply(desired)
    (route,) = node.ip("route show proto 158").splitlines()
    assert route.endswith("mtu 1400 ")
    node.ip(f"nexthop replace id {route.split()[2]} blackhole proto 158")
    node.ip("link set eth0 mtu 1400")
    await plane.apply(desired)
    assert node.ip("route show proto 158") == route.replace("mtu 1400 ", "") + "\n"


async def test_the_networks_that_devices_are_on_are_told_by_the_event(node: Namespace, planes: Planes) -> None:
    """Nothing is written for them; neither our own devices' are told, nor what each device makes for itself."""
    told: list[str] = []

    def tell(report: MeshReport) -> None:
        told.append(" ".join(map(str, report.connected)))

    plane = await planes.open(on_report=tell)
    await plane.apply(Desired(here(), [peer(2)]))
    assert told[-1] == "192.168.7.0/24"
    written, reports = plane.stats, len(told)
    async with running(plane):
        for command, then in (
            ("link add docker0 type bridge", "192.168.7.0/24"),
            ("link set docker0 up", "192.168.7.0/24"),
            ("address add 172.17.0.1/16 dev docker0", "172.17.0.0/16 192.168.7.0/24"),
            ("address add 10.9.9.9/32 dev docker0", "172.17.0.0/16 192.168.7.0/24"),
            ("link delete docker0", "192.168.7.0/24"),
        ):
            node.ip(command)
            await eventually(lambda then=then: told[-1] == then, lambda: str(told))  # type: ignore[misc]
    assert plane.stats == written
    assert len(told) - reports == 2
