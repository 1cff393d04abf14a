"""The data path on a real kernel: what it makes, that a restart writes nothing, what it leaves alone."""

import asyncio
import errno
import socket
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from netloom.cidr import Cidr, Version
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired, Peer
from netloom.kernel.mesh.encapsulation import GENEVE, VXLAN
from netloom.kernel.mesh.keeper import MeshReport
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.rows import PeerRows
from netloom.kernel.mesh.tunnel_device import DeviceStep
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from tests.kernel.conftest import Planes
from tests.kernel.meshes import becomes, eventually, here, many, mesh, peer, running
from tests.kernel.netns import Namespace

MESH_OF_THREE = """\
link netloom_vxlan up mtu 1450 address 3a:72:55:8c:ab:f9 vxlan external dstport 8472
address 10.1.0.0/32
address fd00:1::/128
address fe80::3872:55ff:fe8c:abf9/64
neighbour 192.168.7.2 lladdr 96:73:f6:c0:a0:14 PERMANENT
neighbour 192.168.7.3 lladdr 9e:2a:2d:7c:5d:a9 PERMANENT
neighbour fe80::9473:f6ff:fec0:a014 lladdr 96:73:f6:c0:a0:14 PERMANENT
neighbour fe80::9c2a:2dff:fe7c:5da9 lladdr 9e:2a:2d:7c:5d:a9 PERMANENT
nexthop id 1848279016 encap ip id 1 dst 192.168.7.3 ttl 64 via fe80::9c2a:2dff:fe7c:5da9 dev netloom_vxlan \
scope link proto 158 onlink
nexthop id 1848463230 encap ip id 1 dst 192.168.7.2 ttl 64 via fe80::9473:f6ff:fec0:a014 dev netloom_vxlan \
scope link proto 158 onlink
nexthop id 1852444659 encap ip id 1 dst 192.168.7.2 ttl 64 via 192.168.7.2 dev netloom_vxlan \
scope link proto 158 onlink
nexthop id 1852653413 encap ip id 1 dst 192.168.7.3 ttl 64 via 192.168.7.3 dev netloom_vxlan \
scope link proto 158 onlink
route 10.2.0.0/24 nhid 1852444659
route 10.3.0.0/24 nhid 1852653413
route fd00:2::/64 nhid 1848463230
route fd00:3::/64 nhid 1848279016"""

PLAN = """\
sysctl -w net.ipv6.conf.eth0.accept_ra=2
sysctl -w net.ipv4.ip_forward=1
sysctl -w net.ipv6.conf.all.forwarding=1
ip link add netloom_vxlan address 3a:72:55:8c:ab:f9 mtu 1450 type vxlan external dstport 8472 nolearning
sysctl -w net.ipv4.conf.netloom_vxlan.rp_filter=0
sysctl -w net.ipv6.conf.netloom_vxlan.disable_ipv6=0
sysctl -w net.ipv6.conf.netloom_vxlan.accept_ra=0
ip link set netloom_vxlan addrgenmode none
ip link set netloom_vxlan up
ip address replace 10.1.0.0/32 dev netloom_vxlan
ip address replace fd00:1::/128 dev netloom_vxlan
ip address replace fe80::3872:55ff:fe8c:abf9/64 dev netloom_vxlan
ip neighbour replace 192.168.7.2 dev netloom_vxlan lladdr 96:73:f6:c0:a0:14 nud permanent
ip neighbour replace fe80::9473:f6ff:fec0:a014 dev netloom_vxlan lladdr 96:73:f6:c0:a0:14 nud permanent
ip nexthop add id 1848463230 encap ip id 1 dst 192.168.7.2 ttl 64 via fe80::9473:f6ff:fec0:a014 dev netloom_vxlan \
onlink proto 158
ip nexthop add id 1852444659 encap ip id 1 dst 192.168.7.2 ttl 64 via 192.168.7.2 dev netloom_vxlan onlink proto 158
ip route add 10.2.0.0/24 proto 158 nhid 1852444659
ip route add fd00:2::/64 proto 158 nhid 1848463230"""

REMOVAL = """\
ip route delete 10.2.0.0/24 proto 158
ip route delete fd00:2::/64 proto 158
ip nexthop delete id 1848463230
ip nexthop delete id 1852444659
ip link delete netloom_vxlan"""


async def test_a_mesh_in_the_kernel_as_ip_shows_it(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    report = await plane.apply(mesh(2, 3))
    assert node.owned() == MESH_OF_THREE
    assert report == MeshReport(
        peers=2,
        mtu=1450,
        mtu_source="eth0 has 1500, less 50 for the tunnel",
        underlay=("eth0",),
        tunnels=(VXLAN,),
        connected=(Cidr.parse("192.168.7.0/24"),),
        written=plane.stats,
        compared=report.compared,
        reading_seconds=report.reading_seconds,
    )


async def test_a_restart_writes_nothing(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh())
    before = node.state()
    restarted = await planes.open()
    report = await restarted.apply(mesh())
    assert report.in_sync
    assert report.written == {}
    assert node.state() == before


async def test_ids_that_were_moved_on_are_found_again(node: Namespace, planes: Planes) -> None:
    """A nexthop whose id was taken is kept under its other id by a restarted agent, though its own is free by then."""
    plane = await planes.open()
    await plane.apply(mesh(2))
    taken = node.ip("nexthop").split()[1]
    await plane.cleanup()
    node.ip(f"nexthop add id {taken} blackhole")
    await (await planes.open()).apply(mesh(2))
    node.ip(f"nexthop delete id {taken}")
    moved = node.state()
    restarted = await planes.open()
    assert (await restarted.apply(mesh(2))).written == {}
    assert node.state() == moved
    assert f"id {taken} " not in moved


@pytest.mark.parametrize("peers", [10, 2000])
async def test_one_peers_change_costs_the_same_at_any_size(node: Namespace, planes: Planes, peers: int) -> None:
    plane = await planes.open()
    desired = many(peers)
    await plane.apply(desired)

    async def cost() -> dict[str, int]:
        before = plane.stats
        assert (await plane.apply(desired)).in_sync
        return {kind: n - before.get(kind, 0) for kind, n in plane.stats.items() if n != before.get(kind, 0)}

    desired.set_peer(peer(200, "10.200.0.0/24"))
    assert await cost() == {"newneigh": 1, "newnexthop": 1, "newroute": 1}
    desired.set_peer(peer(200, "10.200.0.0/24", "10.201.0.0/24"))
    assert await cost() == {"newroute": 1}
    desired.remove_peer("node-200")
    assert await cost() == {"delroute": 2, "delnexthop": 1, "delneigh": 1}
    assert await cost() == {}
    assert plane.report.compared == 2, "once at open, once for the new device: a change compares nothing"


async def test_ten_thousand_requests_are_not_ten_thousand_sends(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(Desired(here()))
    desired = many(2000)
    await plane.apply(desired)
    assert plane.stats["newroute"] == plane.stats["newnexthop"] == plane.stats["newneigh"] == 2000
    assert len(node.ip("route show proto 158").splitlines()) == 2000


async def test_a_cidr_moves_from_one_peer_to_another_in_one_request(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    desired = Desired(here(), [peer(2, "10.9.0.0/24"), peer(3)])
    await plane.apply(desired)
    before = plane.stats
    desired.set_peer(peer(2, "10.2.0.0/24"))
    desired.set_peer(peer(3, "10.3.0.0/24", "10.9.0.0/24"))
    await plane.apply(desired)
    assert "10.9.0.0/24" in node.ip("route show proto 158")
    assert "via 192.168.7.3" in node.ip("route get 10.9.0.1")
    assert plane.stats["newroute"] - before["newroute"] == 2
    assert plane.stats["delroute"] == 1, "of fd00:3::/64"


async def test_the_plan_says_what_apply_does(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    planned = await plane.plan(mesh(2))
    assert plane.stats == {}
    assert "\n".join(change.text for change in planned) == PLAN
    await plane.apply(mesh(2))
    assert await plane.plan(mesh(2)) == []
    removal = await plane.plan(Desired())
    assert "\n".join(change.text for change in removal) == REMOVAL


async def test_what_the_plan_says_can_be_typed(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    for change in await plane.plan(mesh()):
        node.exec(change.text)
    typed = node.owned()
    report = await (await planes.open()).apply(mesh())
    assert report.written == {}
    assert node.owned() == typed


FOREIGN = [
    "link add other type vxlan id 77 dstport 4789 dev eth0",
    "link set other up",
    "address add 10.77.0.1/24 dev other",
    "neighbour add 10.77.0.2 lladdr 02:00:00:00:00:77 dev other nud permanent",
    "nexthop add id 77 via 192.168.7.77 dev eth0",
    "nexthop add id 1845493770 via 192.168.7.78 dev eth0 proto 42",
    "route add 10.78.0.0/24 nhid 77",
    "route add 10.79.0.0/24 via 192.168.7.79 proto 42",
    "route add 10.80.0.0/24 via 192.168.7.79 table 200 proto 158",
    "-6 route add fd00:78::/64 dev eth0 proto 42",
]


async def test_cleanup_removes_what_is_owned_and_nothing_else(node: Namespace, planes: Planes, tmp_path: Path) -> None:
    for line in FOREIGN:
        node.ip(line)
    before = node.state()
    switches = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
    assert [node.sysctl(name) for name in switches] == ["0", "0"]
    plane = await planes.open()
    await plane.apply(mesh())
    assert [node.sysctl(name) for name in switches] == ["1", "1"]
    assert all(line in node.state() for line in before.splitlines() if "ff00::" not in line)
    other = await planes.open()
    await other.cleanup()
    assert node.state() == before
    assert [node.sysctl(name) for name in switches] == ["1", "1"], "packets may pass between other devices"
    node.ip("link delete other")
    await other.cleanup()
    assert [node.sysctl(name) for name in switches] == ["0", "0"]
    assert not (tmp_path / "run" / "sysctl.json").exists()


async def test_a_default_route_from_a_router_advertisement_is_not_lost(node: Namespace, planes: Planes) -> None:
    """With forwarding on, the kernel takes router advertisements only where accept_ra is 2."""
    plane = await planes.open()
    await plane.apply(mesh())
    assert node.sysctl("net.ipv6.conf.eth0.accept_ra") == "2"
    await plane.cleanup()
    assert node.sysctl("net.ipv6.conf.eth0.accept_ra") == "1"
    node.sysctl("net.ipv6.conf.eth0.accept_ra", "0")
    await plane.apply(mesh())
    assert node.sysctl("net.ipv6.conf.eth0.accept_ra") == "0", "somebody's choice"


async def test_a_switch_that_was_on_stays_on(node: Namespace, planes: Planes) -> None:
    node.sysctl("net.ipv4.ip_forward", "1")
    plane = await planes.open()
    await plane.apply(mesh())
    await plane.cleanup()
    assert node.sysctl("net.ipv4.ip_forward") == "1"


@pytest.mark.parametrize(
    ("foreign", "why"),
    [
        ("link add netloom_vxlan type bridge", "it is a bridge device, not vxlan"),
        ("link add netloom_vxlan type vxlan id 7 dstport 4789 dev eth0", "it has a fixed VNI (not external)"),
        ("link add netloom_vxlan type vxlan external dstport 4789 nolearning", "its UDP port is 4789, not 8472"),
        ("link add netloom_vxlan type vxlan external dstport 8472 learning", "it is set to learning"),
        ("link add netloom_vxlan type veth peer name other", "it is a veth device, not vxlan"),
    ],
)
async def test_a_device_of_our_name_that_cannot_serve_is_made_anew(
    node: Namespace, planes: Planes, foreign: str, why: str
) -> None:
    node.ip(foreign)
    plane = await planes.open()
    deletion = next(c for c in await plane.plan(mesh()) if c.text == "ip link delete netloom_vxlan")
    assert deletion.why == why
    assert (await plane.apply(mesh())).in_sync
    assert node.owned() == MESH_OF_THREE


async def test_a_port_that_is_taken_is_named_and_nothing_flaps(node: Namespace, planes: Planes) -> None:
    node.ip("link add other type vxlan external dstport 8472")
    node.ip("link set other up")
    plane = await planes.open()
    report = await plane.apply(mesh())
    assert [(f.kind, f.key) for f in report.failures] == [("link", "netloom_vxlan")]
    assert "UDP port 8472 is in use by the vxlan device other" in report.failures[0].error
    assert plane.stats == {"newlink": 1}
    assert "other" in node.ip("link")
    node.ip("link delete other")
    assert (await plane.apply(mesh())).in_sync


async def test_a_port_that_a_program_has_is_named_and_comes_back(node: Namespace, planes: Planes) -> None:
    """The kernel says so only when the device goes up."""
    plane = await planes.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("", 8472))
        report = await plane.apply(mesh())
        (failure,) = report.failures
        assert failure.error.startswith("UDP port 8472 is in use by the program ")
        assert " (EADDRINUSE: " in failure.error
        assert report.tunnels == ()
    async with running(plane):
        await becomes(node.owned, MESH_OF_THREE)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))


@pytest.mark.parametrize(
    ("refusal", "taken"),
    [
        (KernelRefusal(errno.EEXIST), True),
        (KernelRefusal(errno.EBUSY), True),
        (KernelRefusal(errno.EPERM, "There can be only one externally controlled device on a destination port"), True),
        (KernelRefusal(errno.EPERM), False),
        (KernelRefusal(errno.ENOBUFS), False),
    ],
    ids=str,
)
def test_what_a_refused_device_means(refusal: KernelRefusal, taken: bool) -> None:
    step = DeviceStep(
        "link", "netloom_geneve", "link add netloom_geneve type geneve external dstport 6081", b"", creates=True
    )
    assert device.taken_port(step, [GENEVE], refusal) == (GENEVE if taken else None)


async def test_a_foreign_route_in_the_way_is_named_and_left_alone(node: Namespace, planes: Planes) -> None:
    node.ip("route add 10.2.0.0/24 via 192.168.7.99")
    plane = await planes.open()
    report = await plane.apply(mesh())
    assert [(f.kind, f.key, f.peer) for f in report.failures] == [("route", "10.2.0.0/24", "node-2")]
    assert "via 192.168.7.99" in node.ip("route show 10.2.0.0/24")
    assert "fd00:2::/64" in node.owned(), "the peer's other routes are there"


async def test_two_peers_one_cidr_the_older_has_it(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    young = peer(2, "10.9.0.0/24", since="2026-02-01")
    old = peer(3, "10.9.0.0/24", since="2026-01-01")
    desired = Desired(here(), [young, old])
    report = await plane.apply(desired)
    assert [(c.claim, c.holder, c.peer) for c in report.conflicts] == [("10.9.0.0/24", "node-3", "node-2")]
    assert "via 192.168.7.3 " in node.ip("route show 10.9.0.0/24")
    desired.remove_peer("node-3")
    report = await plane.apply(desired)
    assert report.in_sync
    assert "via 192.168.7.2 " in node.ip("route show 10.9.0.0/24")


@pytest.mark.parametrize("underlay", [1500, 9000, 1400])
async def test_the_mtu_is_the_underlays_less_50(node: Namespace, planes: Planes, underlay: int) -> None:
    node.ip(f"link set eth0 mtu {underlay}")
    plane = await planes.open()
    report = await plane.apply(mesh())
    assert (report.mtu, report.underlay) == (underlay - 50, ("eth0",))
    assert f"mtu {underlay - 50} " in node.owned()


async def test_an_mtu_that_is_asked_for_wins(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    assert (await plane.apply(Desired(here(mtu=1400)))).mtu == 1350
    assert "mtu 1350 " in node.owned()


async def test_ipv4_only_makes_nothing_of_ipv6(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    report = await plane.apply(Desired(here("node-1", "192.168.7.1", "10.1.0.0"), [peer(2)]))
    assert report.in_sync
    assert "fe80" not in node.owned()
    assert "fd00" not in node.owned()
    assert node.sysctl("net.ipv6.conf.all.forwarding") == "0"


async def test_the_first_address_is_the_source_of_the_nodes_own_packets(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(Desired(here("node-1", "192.168.7.1", "10.1.0.0", "10.4.0.0"), [peer(2, "10.2.0.0/24")]))
    assert " src 10.1.0.0 " in node.ip("route get 10.2.0.5")
    desired = Desired(here("node-1", "192.168.7.1", "10.9.0.0", "10.1.0.0"), [peer(2, "10.2.0.0/24")])
    await plane.apply(desired)
    assert " src 10.9.0.0 " in node.ip("route get 10.2.0.5")
    assert [line for line in node.owned().splitlines() if line.startswith("address 10.")] == [
        "address 10.9.0.0/32",
        "address 10.1.0.0/32",
    ]
    state = node.state()
    again = await planes.open()
    await again.apply(desired)
    assert (again.stats, node.state()) == ({}, state)


async def test_from_which_other_addresses_the_node_may_send(node: Namespace, planes: Planes) -> None:
    """Those of further networks of its devices, and of whatever device where a route names them; a virtual IP is no
    network's, and its own is known anyway."""
    node.ip("address add 192.168.7.200/32 dev eth0")
    node.ip("address add 10.9.0.1/24 dev eth0")
    plane = await planes.open()
    report = await plane.apply(mesh())
    assert report.sources == (bytes([10, 9, 0, 1]),)
    async with running(plane):
        node.ip("address add 10.8.0.1/24 dev eth0")
        await eventually(lambda: plane.report.sources == (bytes([10, 8, 0, 1]), bytes([10, 9, 0, 1])))
        node.ip("address delete 10.8.0.1/24 dev eth0")
        node.ip("address delete 10.9.0.1/24 dev eth0")
        await eventually(lambda: plane.report.sources == ())
        node.ip("address add 10.7.0.1/32 dev lo")
        node.ip("route add 192.168.7.2/32 dev eth0 src 10.7.0.1")
        await eventually(lambda: plane.report.sources == (bytes([10, 7, 0, 1]),))
        node.ip("route delete 192.168.7.2/32 dev eth0")
        await eventually(lambda: plane.report.sources == ())


async def test_what_was_sent_is_pending_until_the_kernel_has_answered(
    node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer is counted as soon as it is known: who asks meanwhile must not hear that all is well."""
    plane = await planes.open()
    assert (await plane.apply(many(1))).in_sync
    asked, answer, execute = threading.Event(), threading.Event(), CommandSocket.execute

    def slow(commands: CommandSocket, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        asked.set()
        answer.wait(10)
        return execute(commands, messages)

    monkeypatch.setattr(CommandSocket, "execute", slow)
    applying = asyncio.create_task(plane.apply(many(2)))
    await asyncio.to_thread(asked.wait, 10)
    await asyncio.sleep(0)
    assert (plane.report.peers, plane.report.pending) == (2, 3)
    answer.set()
    assert (await applying).pending == 0


async def test_a_first_start_works_out_each_peer_once(
    node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out: Counter[str] = Counter()
    rows_of = Mesh._rows_of

    def counting(mesh: Mesh, peer: Peer, near: Mapping[Version, Collection[int]]) -> PeerRows:
        worked_out[peer.name] += 1
        return rows_of(mesh, peer, near)

    monkeypatch.setattr(Mesh, "_rows_of", counting)
    plane = await planes.open()
    assert (await plane.apply(many(20))).in_sync
    assert worked_out == {f"peer-{number}": 1 for number in range(20)}
