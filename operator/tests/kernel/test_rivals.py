"""Second routes under the key of one of ours: the first carries the traffic, whatever a dump shows last.

Ours (by protocol and metric) go, in whatever way it is found out that they are there. Others' stay, and are said.
"""

import socket
import zlib

import pytest

from netloom.cidr import Cidr
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.netlink.sockets import CommandSocket, Visit
from netloom.kernel.netlink.wire import HEADER_SIZE
from netloom.kernel.ownership import NEXTHOP_IDS
from tests.economy import spread
from tests.kernel.conftest import Planes
from tests.kernel.meshes import becomes, eventually, here, mesh, peer, running
from tests.kernel.netns import Namespace

NEXTHOP = 1852444659
"""Node 2's IPv4 nexthop object: a hash of its name."""
NEXTHOP6 = NEXTHOP_IDS[zlib.crc32(b"node-2", 16) % len(NEXTHOP_IDS)]

SECOND = {
    "in front": ["route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158"],
    "behind": ["route append 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158"],
    "two in front, one behind": [
        "route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158",
        "route prepend 10.2.0.0/24 dev eth0 proto 158",
        "route append 10.2.0.0/24 via 192.168.7.8 dev eth0 onlink proto 158",
    ],
    "of another type": ["route prepend blackhole 10.2.0.0/24 proto 158"],
    "of several ways": [
        "route prepend 10.2.0.0/24 proto 158 nexthop via 192.168.7.9 dev eth0 onlink "
        "nexthop via 192.168.7.8 dev eth0 onlink"
    ],
    "on our own nexthop, with a source": [f"route prepend 10.2.0.0/24 nhid {NEXTHOP} src 192.168.7.1 proto 158"],
    "with a TOS": ["route add 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink tos 8 proto 158"],
    "in front, and that is replaced": [
        "route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158",
        "route replace 10.2.0.0/24 via 192.168.7.8 dev eth0 onlink proto 158",
    ],
    "in front, and one is deleted": [
        "route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158",
        f"route delete 10.2.0.0/24 nhid {NEXTHOP}",
    ],
    "IPv6": ["-6 route append fd00:2::/64 via fd77::9 dev eth0 proto 158"],
    "IPv6, a sibling": [
        "-6 route append fd00:2::/64 via fd77::9 dev eth0 proto 158",
        "-6 route append fd00:2::/64 via fd77::8 dev eth0 proto 158",
    ],
    "IPv6, two ways at once": [
        "-6 route append fd00:2::/64 proto 158 nexthop via fd77::9 dev eth0 nexthop via fd77::8 dev eth0"
    ],
    "IPv6, by a device": ["-6 route append fd00:2::/64 dev eth0 proto 158"],
    "IPv6, by a better metric": ["-6 route add fd00:2::/64 via fd77::9 dev eth0 metric 7 proto 158"],
    "IPv6, and ours is deleted": [
        "-6 route append fd00:2::/64 via fd77::9 dev eth0 proto 158",
        "-6 route delete fd00:2::/64 proto 158 metric 1024",
    ],
    "IPv6, siblings where ours was": [
        "-6 route delete fd00:2::/64 proto 158 metric 1024",
        "-6 route add fd00:2::/64 proto 158 nexthop via fd77::9 dev eth0 nexthop via fd77::8 dev eth0",
        "-6 route append fd00:2::/64 via fd77::7 dev eth0 proto 158",
    ],
}


@pytest.fixture
def wired(node: Namespace) -> Namespace:
    node.ip("-6 address add fd77::1/64 dev eth0")
    return node


@pytest.mark.parametrize("commands", spread(SECOND.values()), ids=SECOND.keys())
async def test_a_second_one_of_ours_goes_by_its_event(wired: Namespace, planes: Planes, commands: list[str]) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    whole = wired.state()
    async with running(plane):
        for command in commands:
            wired.ip(command)
        await becomes(wired.state, whole)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert plane.report.repaired > 0
    assert plane.report.failures == ()


@pytest.mark.parametrize(
    "which",
    spread(
        [
            "in front",
            "two in front, one behind",
            "on our own nexthop, with a source",
            "in front, and one is deleted",
            "IPv6, two ways at once",
            "IPv6, by a device",
            "IPv6, siblings where ours was",
        ]
    ),
)
async def test_a_restart_finds_it_and_the_plan_says_so(wired: Namespace, planes: Planes, which: str) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    whole = wired.state()
    await plane.close()
    for command in SECOND[which]:
        wired.ip(command)
    assert wired.state() != whole
    plane = await planes.open()
    changes = await plane.plan(mesh())
    assert changes
    report = await plane.apply(mesh())
    assert wired.state() == whole
    assert report.failures == ()
    assert report.in_sync
    await plane.close()
    plane = await planes.open()
    assert await plane.plan(mesh()) == []
    assert (await plane.apply(mesh())).written == {}


@pytest.mark.parametrize("which", ["two in front, one behind", "IPv6, a sibling"])
async def test_a_comparison_finds_it(wired: Namespace, planes: Planes, which: str) -> None:
    """No event is heard: the data path does not run."""
    plane = await planes.open()
    await plane.apply(mesh())
    whole = wired.state()
    for command in SECOND[which]:
        wired.ip(command)
    plane._rows.doubt()
    plane._listener.close()  # type: ignore[union-attr]
    plane._listener = None
    await plane.apply(mesh())
    assert wired.state() == whole


async def test_what_the_plan_says_of_one_can_be_typed(wired: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    whole = wired.state()
    for command in SECOND["two in front, one behind"] + SECOND["of another type"]:
        wired.ip(command)
    changes = [change.text for change in await plane.plan(mesh())]
    assert "ip route delete 10.2.0.0/24 via 192.168.7.9 dev eth0 metric 0 tos 0 proto 158" in changes
    assert len(changes) == 4
    for change in changes:
        wired.ip(change.removeprefix("ip "))
    assert wired.state() == whole


async def test_one_that_comes_again_and_again_is_put_off_and_said(wired: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        for _ in range(14):
            if not plane.report.contended:
                wired.ip("route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink proto 158")
            await eventually(lambda: "192.168.7.9" not in wired.ip("route") or bool(plane.report.contended))
        await eventually(lambda: bool(plane.report.contended), lambda: str(plane.report))
    assert "10.2.0.0/24 via 192.168.7.9 dev eth0" in plane.report.contended[0]


FOREIGN = {
    "in front": ("route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink", True),
    "by a TOS": ("route add 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink tos 8", True),
    "more specific": ("route add 10.2.0.7/32 via 192.168.7.9 dev eth0 onlink proto static", False),
    "IPv6, by a better metric": ("-6 route add fd00:2::/64 via fd77::9 dev eth0 metric 32 proto bird", True),
    "IPv6, more specific": ("-6 route add blackhole fd00:2::7/128", False),
}


@pytest.mark.parametrize("restart", [False, True], ids=["by its event", "at a restart"])
@pytest.mark.parametrize(("command", "whole"), FOREIGN.values(), ids=FOREIGN.keys())
async def test_another_ones_is_left_alone_and_said_until_it_goes(
    wired: Namespace, planes: Planes, command: str, whole: bool, restart: bool
) -> None:
    told: list[object] = []
    plane = await planes.open(on_report=lambda report: told.append(report.rivals))
    await plane.apply(mesh())
    before = wired.state()
    if restart:
        await plane.close()
        wired.ip(command)
        taken = wired.state()
        plane = await planes.open(on_report=lambda report: told.append(report.rivals))
        assert (await plane.apply(mesh())).written == {}
    async with running(plane):
        if not restart:
            wired.ip(command)
            taken = wired.state()
        await eventually(lambda: len(plane.report.rivals) == 1, lambda: str(plane.report))
        (rival,) = plane.report.rivals
        assert (rival.peer, rival.whole) == ("node-2", whole)
        assert wired.state() == taken
        wired.ip(rival.route.command.removeprefix("ip "))
        await eventually(lambda: plane.report.rivals == (), lambda: str(plane.report))
        await eventually(lambda: bool(told) and told[-1] == ())
    assert wired.state() == before, "its own words delete it, and nothing else"


@pytest.mark.parametrize("gone", ["link delete vpn", "link set vpn down"])
async def test_another_ones_that_goes_with_its_device_is_said_no_longer(
    wired: Namespace, planes: Planes, gone: str
) -> None:
    """The kernel says nothing of an IPv4 route that does."""
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        wired.batch(
            [
                "link add vpn type veth peer name far",
                "link set far up",
                "link set vpn up",
                "route add 10.2.0.0/25 dev vpn",
            ]
        )
        await eventually(lambda: len(plane.report.rivals) == 1, lambda: str(plane.report))
        wired.ip(gone)
        await eventually(lambda: plane.report.rivals == (), lambda: str(plane.report))


@pytest.mark.parametrize(
    "command",
    [
        "route append 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink",
        "route add 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink metric 100",
        "-6 route append fd00:2::/64 via fd77::9 dev eth0 proto static",
        "-6 route add fd00:2::/64 via fd77::9 dev eth0 metric 2000",
        "route add 10.0.0.0/8 via 192.168.7.9 dev eth0 onlink",
        "address add 10.2.0.9/29 dev eth0",
        "route add 10.9.0.0/24 via 192.168.7.9 dev eth0 onlink",
    ],
)
async def test_one_that_takes_nothing_is_not_said(wired: Namespace, planes: Planes, command: str) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    async with running(plane):
        wired.ip(command)
        wired.ip("route prepend 10.3.0.0/24 via 192.168.7.9 dev eth0 onlink")
        await eventually(lambda: [rival.peer for rival in plane.report.rivals] == ["node-3"])
    await plane.close()
    plane = await planes.open()
    assert [rival.peer for rival in (await plane.apply(mesh())).rivals] == ["node-3"]


@pytest.mark.parametrize(
    ("command", "prefix"),
    [
        ("route prepend 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink", "10.2.0.0/24"),
        ("-6 route append fd00:2::/64 dev eth0 proto static", "fd00:2::/64"),
    ],
)
async def test_nothing_of_ours_takes_the_place_of_another_ones_in_front(
    wired: Namespace, planes: Planes, command: str, prefix: str
) -> None:
    """The CIDR moves to another peer; a request that replaces would hit the first route of the key."""
    desired = Desired(here(), [peer(2, "10.2.0.0/24", "fd00:2::/64"), peer(3, "10.3.0.0/24", "fd00:3::/64")])
    plane = await planes.open()
    await plane.apply(desired)
    if "-6" in command:
        wired.ip("-6 route delete fd00:2::/64 proto 158")
        wired.ip(command)
        wired.ip(f"-6 route append fd00:2::/64 nhid {NEXTHOP6} proto 158")
    else:
        wired.ip(command)
    show = f"{'-6' if '-6' in command else '-4'} route show {prefix}"
    foreign, ours = wired.ip(show).splitlines()
    assert "proto 158" not in foreign
    async with running(plane):
        await eventually(lambda: len(plane.report.rivals) == 1, lambda: str(plane.report))
        desired.remove_peer("node-2")
        desired.set_peer(peer(3, "10.2.0.0/24", "fd00:2::/64"))
        await plane.apply(desired)
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert wired.ip(show).splitlines()[0] == foreign
    moved = wired.ip(show).splitlines()[1:]
    assert len(moved) == 1
    assert moved[0] != ours
    assert str(Cidr.parse(prefix)) in moved[0]


class WithoutIPv6(CommandSocket):
    """As of a kernel without IPv6: asked for a family that it does not have, it shows all families."""

    def dump(self, request: bytes, visit: Visit) -> bool:
        if request[HEADER_SIZE] == socket.AF_INET6:
            request = request[:HEADER_SIZE] + bytes([socket.AF_UNSPEC]) + request[HEADER_SIZE + 1 :]
        return super().dump(request, visit)


async def test_what_a_kernel_without_ipv6_shows_twice_is_no_second_route(node: Namespace, planes: Planes) -> None:
    plane = await planes.open(commands=WithoutIPv6)
    await plane.apply(mesh(2))
    before = node.state()
    again = await planes.open(commands=WithoutIPv6)
    await again.apply(mesh(2))
    assert node.state() == before
    assert again.stats == {}


async def test_one_that_was_there_first_and_comes_behind_is_not_said(wired: Namespace, planes: Planes) -> None:
    """A routing daemon's, whose metric is above ours in IPv4."""
    plane = await planes.open()
    await plane.apply(mesh(3))
    async with running(plane):
        wired.ip("route add 10.2.0.0/24 via 192.168.7.9 dev eth0 onlink metric 32 proto bird")
        await plane.apply(mesh(2, 3))
        assert plane.report.rivals == ()
        assert plane.report.in_sync
