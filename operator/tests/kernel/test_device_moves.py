"""Packets between two nodes, while somebody edits, renames or moves the tunnel's device of one of them.

What stops packets is undone on the event; what does not is left in place. Under another name or in another network
namespace the device is still ours: traffic comes back, or the report says what has its port. There are no resyncs.
"""

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from tests.economy import spread
from tests.kernel.faults import FaultyCommands
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import SOON, Lab
from tests.kernel.two import Two, view_of


@pytest.fixture
async def two(lab: Lab, tmp_path: Path) -> AsyncIterator[Two]:
    made = Two(lab, tmp_path)
    async with made.opened(2) as other:
        assert (await other.apply(view_of(2))).in_sync
        yield made


def again(two: Two, was: str) -> Callable[[], bool]:
    """The device as it was, and packets."""

    def is_so() -> bool:
        with contextlib.suppress(RuntimeError):  # it has another name by the time that it is asked about
            return two.here.owned() == was and two.passes(seconds=SOON)
        return False

    return is_so


STOPPING = {
    "no MACs are asked for": ["link set netloom_vxlan arp off"],
    "no carrier": ["link set netloom_vxlan protodown on"],
    "no carrier, for a reason": [
        "link set netloom_vxlan protodown_reason 3 on",
        "link set netloom_vxlan protodown on",
    ],
    "the peer's address is a network of the device": ["address add 10.1.0.0 peer 10.2.0.0/32 dev netloom_vxlan"],
    "a source that the peer cannot answer": ["route replace 10.2.0.0/24 nhid 1852444659 src 172.31.9.9 proto 158"],
}


@pytest.mark.parametrize("commands", spread(STOPPING.values()), ids=STOPPING)
async def test_an_edit_that_stops_packets_is_undone(two: Two, commands: list[str]) -> None:
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        two.here.ip("address add 172.31.9.9/32 dev eth0")
        was = two.here.owned()
        for command in commands:
            two.here.ip(command)
        await eventually(lambda: not two.passes(seconds=SOON))
        async with running(plane):
            await eventually(again(two, was))
            await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert "protodown" not in two.here.ip("-d link show netloom_vxlan")


async def test_what_was_edited_while_no_agent_ran_is_undone_at_its_start(two: Two) -> None:
    """Also what the kernel tells nobody of."""
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        before = two.here.state()
    for edit in (
        "route replace 10.2.0.0/24 nhid 1852444659 src 192.168.7.1 proto 158",
        "address change fd00:1::/128 dev netloom_vxlan valid_lft 60 preferred_lft 0",
        "link set netloom_vxlan arp off",
        "link set netloom_vxlan name vxlan9",
    ):
        two.here.ip(edit)
    two.here.sysctl("net.ipv6.conf.vxlan9.accept_ra", "1")
    async with two.opened() as restarted:
        assert (await restarted.apply(view_of(1))).in_sync
    await becomes(two.here.state, before)
    assert two.here.sysctl("net.ipv6.conf.netloom_vxlan.accept_ra") == "0"


LEFT = [
    "promisc on",
    "allmulticast on",
    "multicast off",
    "group 7",
    "alias somebody",
    "mode dormant",
    "txqueuelen 0",
    "gso_max_size 1500",
    "gso_max_segs 1",
    "type vxlan ttl 1",
    "type vxlan tos 4",
    "type vxlan df set",
    "type vxlan ageing 10",
    "type vxlan local 192.168.7.99",
    "type vxlan remote 192.168.7.99",
    "type vxlan dev eth0",
]


async def test_edits_that_stop_nothing_are_left_in_place(two: Two) -> None:
    """All of them at once; a way's TTL and what else is outside are in its nexthop."""
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        written = plane.stats
        async with running(plane):
            for edit in LEFT:
                two.here.ip(f"link set netloom_vxlan {edit}")
                assert two.passes(), edit
            assert two.here.pings("10.2.0.0", size=1450)
            await plane.apply(view_of(1))
        assert plane.stats == written
        assert plane.report.in_sync
    async with two.opened() as restarted:
        assert (await restarted.apply(view_of(1))).written == {}
    assert "alias somebody" in two.here.ip("link show netloom_vxlan")


RENAMED = {
    "another name": ["link set netloom_vxlan name flannel.1"],
    "another name of ours": ["link set netloom_vxlan name netloom_v9"],
    "another name and another MAC": [
        "link set netloom_vxlan address 02:00:00:00:00:99",
        "link set netloom_vxlan name vxlan9",
    ],
    "another name, and another device in its place": [
        "link set netloom_vxlan name vxlan9",
        "link add netloom_vxlan type vxlan id 7 dstport 4789 dev eth0",
    ],
    "another name, and down": ["link set netloom_vxlan down", "link set netloom_vxlan name vxlan9"],
}


@pytest.mark.parametrize("commands", spread(RENAMED.values()), ids=RENAMED)
async def test_a_device_that_was_renamed_has_its_name_back(two: Two, commands: list[str]) -> None:
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        was, index = two.here.owned(), two.here.ip_json("link show netloom_vxlan")[0]["ifindex"]
        for command in commands:
            two.here.ip(command)
        async with running(plane):
            await eventually(again(two, was))
            await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
        assert two.here.ip_json("link show netloom_vxlan")[0]["ifindex"] == index


@pytest.mark.parametrize("commands", [RENAMED["another name"], RENAMED["another name, and down"]])
async def test_a_restart_knows_a_renamed_device_by_what_it_is(two: Two, commands: list[str]) -> None:
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        was = two.here.owned()
    for command in commands:
        two.here.ip(command)
    async with two.opened() as restarted:
        name = commands[-1].split()[-1]
        planned = [change.text for change in await restarted.plan(view_of(1))]
        assert f"ip link set {name} name netloom_vxlan" in planned
        assert not any("link add" in text for text in planned)
        assert (await restarted.apply(view_of(1))).in_sync
    assert again(two, was)()


async def test_a_renamed_device_that_no_tunnel_needs_any_more_goes(two: Two) -> None:
    async with two.opened() as plane:
        await plane.apply(view_of(1))
    two.here.ip("link set netloom_vxlan name vxlan9")
    two.here.ip("link add theirs type vxlan external dstport 8475")
    async with two.opened() as restarted:
        assert (await restarted.apply(view_of(1, encapsulations=(NO_ENCAPSULATION,)))).in_sync
    assert [link["ifname"] for link in two.here.ip_json("link show type vxlan")] == ["theirs"]


async def test_a_kernel_that_renames_no_device_that_is_up(two: Two) -> None:
    """Linux before 6.2: EBUSY."""
    with two.here.entered():
        commands = FaultyCommands()
    async with two.opened(commands=lambda: commands) as plane:
        await plane.apply(view_of(1))
        was = two.here.owned()
        two.here.ip("link set netloom_vxlan name vxlan9")
        commands.refuse("newlink", errno.EBUSY, times=1)
        async with running(plane):
            await eventually(again(two, was))
            await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))


@pytest.mark.parametrize("state", ["down", "up"])
async def test_a_device_that_was_moved_away_leaves_its_port(two: Two, state: str) -> None:
    """The kernel would make no other here while it is there, up or down: it is deleted there."""
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        was = two.here.owned()
        two.here.ip(f"link set netloom_vxlan netns {two.elsewhere.name}")
        two.elsewhere.ip(f"link set netloom_vxlan {state}")
        async with running(plane):
            await eventually(again(two, was))
            await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert "vxlan" not in two.elsewhere.ip("link")


async def test_a_restart_finds_a_device_that_was_moved_and_renamed(two: Two) -> None:
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        was = two.here.owned()
    two.here.ip("link set netloom_vxlan name vxlan9")
    two.here.ip(f"link set vxlan9 netns {two.elsewhere.name}")
    two.elsewhere.ip("link set vxlan9 up")
    async with two.opened() as restarted:
        planned = [change.text for change in await restarted.plan(view_of(1))]
        assert any(text.startswith("ip link delete vxlan9 in network namespace ") for text in planned)
        assert (await restarted.apply(view_of(1))).in_sync
    assert again(two, was)()
    assert "vxlan9" not in two.elsewhere.ip("link")


async def test_nothing_that_only_looks_like_ours_is_touched_elsewhere(two: Two, lab: Lab) -> None:
    """Another agent of the same node name has a device of our MAC in a namespace that this one knows; and a device of
    somebody else's was made here and moved there."""
    lab.wire(two.here, "cable", two.elsewhere, "cable")
    async with two.opened() as plane:
        await plane.apply(view_of(1))
        mac = two.here.ip_json("link show netloom_vxlan")[0]["address"]
        await plane.cleanup()
    two.elsewhere.ip(f"link add netloom_vxlan address {mac} type vxlan external dstport 8472 nolearning")
    two.here.ip("link add theirs type vxlan external dstport 8472")
    two.here.ip(f"link set theirs netns {two.elsewhere.name} name moved")
    async with two.opened() as plane:
        (failure,) = (await plane.apply(view_of(1))).failures
        assert failure.error.startswith("UDP port 8472 is in use by the vxlan device moved in network namespace "), (
            failure.error
        )
        there = two.elsewhere.ip("link")
        assert "netloom_vxlan" in there
        assert "moved" in there
        two.elsewhere.ip("link delete moved")
        assert (await plane.apply(view_of(1))).in_sync
    assert two.passes()


async def test_a_device_that_somebody_made_elsewhere_receives_there(two: Two) -> None:
    """Of our name and kind, but its UDP port is in the namespace in which it was made."""
    two.elsewhere.ip("link add netloom_vxlan type vxlan external dstport 8472 nolearning")
    two.elsewhere.ip(f"link set netloom_vxlan netns {two.here.name}")
    async with two.opened() as plane:
        (deletion,) = [change for change in await plane.plan(view_of(1)) if "link delete" in change.text]
        assert deletion.why == "it was made in another network namespace, and receives there"
        assert (await plane.apply(view_of(1))).in_sync
    assert two.passes()


async def test_what_has_the_port_is_named(two: Two) -> None:
    async with two.opened() as plane:
        two.here.ip("link add other type vxlan external dstport 8472")
        (failure,) = (await plane.apply(view_of(1))).failures
        assert failure.error.startswith("UDP port 8472 is in use by the vxlan device other (EEXIST: ")
        two.here.ip("link delete other")
        with two.here.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.bind(("", 8472))
            (failure,) = (await plane.apply(view_of(1))).failures
            name = Path("/proc/self/comm").read_text().strip()
            assert f"in use by the program {name} (process {os.getpid()})" in failure.error
        async with running(plane):
            await becomes(lambda: str(plane.report.in_sync), "True")
    assert two.passes()
