"""What somebody does to a pod's device on the node, or to what stands on it, is undone by the kernel's event."""

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.cidr import parse_address
from netloom.kernel import sysctl
from netloom.kernel.endpoints import inside, remaking
from netloom.kernel.endpoints.adjusting import steps
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.endpoints.link_messages import End
from netloom.kernel.endpoints.wiring import Made, Wiring
from netloom.kernel.mac import format_mac
from tests.economy import spread
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import Pod, endpoints_of, forwarding_node, pod, switches


class Story:
    """A node with two pods, as it should be."""

    def __init__(self, node: Namespace, pods: list[Pod], keeper: EndpointsKeeper) -> None:
        self.node, self.pods, self.keeper = node, pods, keeper
        self.device = pods[0].endpoint.device
        self.whole = self.state()
        self.stats = dict(keeper.stats)

    def state(self) -> str:
        return self.node.state() + switches(self.node, self.device)

    def index(self) -> int:
        return int(self.node.ip_json(f"link show {self.device}")[0]["ifindex"])

    async def is_mended(self) -> None:
        await becomes(self.state, self.whole)
        await eventually(lambda: self.keeper.report.in_sync, lambda: str(self.keeper.report))
        for version in (".3", "::3"):
            assert self.pods[0].place.pings(("10.1.0" if version == ".3" else "fd00:1") + version)


@pytest.fixture
async def story(lab: Lab) -> AsyncIterator[Story]:
    node = forwarding_node(lab)
    node.ip("link add br0 address 02:00:00:00:00:05 type bridge")
    pods = [pod(lab, 1), pod(lab, 2)]
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        for each in pods:
            await each.add(keeper)
        async with running(keeper):
            yield Story(node, pods, keeper)


EDITS = {
    "route": ["route delete 10.1.0.2"],
    "route6": ["-6 route delete fd00:1::2"],
    "all routes": ["route flush proto 158", "-6 route flush proto 158"],
    "route to another device": ["route replace 10.1.0.2 dev lo proto 158 metric 65536"],
    "route6 to another device": ["-6 route replace fd00:1::2 dev lo proto 158 metric 65536"],
    "route with a source": ["route replace 10.1.0.2 dev DEVICE proto 158 metric 65536 src 127.0.0.1"],
    "route with an MTU": ["route replace 10.1.0.2 dev DEVICE proto 158 metric 65536 scope link mtu 900"],
    "route more": ["route add 10.9.0.0/24 dev DEVICE proto 158 metric 65599"],
    "route more under one key": ["route append 10.1.0.2 dev lo proto 158 metric 65536"],
    "neighbour": ["neighbour delete 10.1.0.2 dev DEVICE"],
    "neighbour6": ["neighbour delete fd00:1::2 dev DEVICE"],
    "neighbour's MAC": ["neighbour replace 10.1.0.2 dev DEVICE lladdr 02:00:00:00:00:01 nud permanent"],
    "neighbour's state": ["neighbour change 10.1.0.2 dev DEVICE lladdr 02:00:00:00:00:01 nud reachable"],
    "neighbour more": ["neighbour add 10.1.0.99 dev DEVICE lladdr 02:00:00:00:00:01 nud permanent"],
    "all neighbours": ["neighbour flush dev DEVICE nud permanent"],
    "down": ["link set DEVICE down"],
    "down and up": ["link set DEVICE down", "link set DEVICE up"],
    "mtu": ["link set DEVICE mtu 1400"],
    "mtu below what IPv6 needs": ["link set DEVICE mtu 1000"],
    "mac": ["link set DEVICE address 02:00:00:00:00:07"],
    "arp off": ["link set DEVICE arp off"],
    "arp off and on": ["link set DEVICE arp off", "link set DEVICE arp on"],
    "alias": ["link set DEVICE alias somebody's"],
    "renamed": ["link set DEVICE name foreign"],
    "master": ["link set DEVICE master br0"],
    "address": ["address add 10.9.9.9/24 dev DEVICE"],
    "address6": ["address add fd09::9/64 dev DEVICE nodad"],
    "link-local addresses": ["link set DEVICE addrgenmode eui64", "link set DEVICE down"],
    "deleted": ["link delete DEVICE"],
    "sysctl": ["!net/ipv4/conf/DEVICE/rp_filter=2"],
    "forwarding": ["!net/ipv4/conf/DEVICE/forwarding=0"],
    "IPv6 off": ["!net/ipv6/conf/DEVICE/disable_ipv6=1"],
}


@pytest.mark.parametrize("name", spread(EDITS))
async def test_it_is_undone(story: Story, name: str) -> None:
    index = story.index()
    for line in EDITS[name]:
        do(story.node, line.replace("DEVICE", story.device))
    await story.is_mended()
    assert (story.index() == index) == (name != "deleted"), "on the device that is there, if it is"


def do(node: Namespace, line: str) -> None:
    if line.startswith("!"):
        node.sysctl(*line[1:].split("="))
    else:
        node.ip(line)


async def test_the_switches_that_a_node_gives_to_each_new_device_are_no_drift(lab: Lab) -> None:
    """systemd-sysctl writes them. Who does so again is another."""
    node, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(node) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        whole = switches(node, one.endpoint.device)
        for repaired in (0, 1):
            node.sysctl(f"net/ipv4/conf/{one.endpoint.device}/rp_filter", "2")
            await becomes(lambda: switches(node, one.endpoint.device), whole)
            await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
            assert keeper.report.repaired == repaired


@pytest.mark.parametrize("switch", ["ipv4 accept_redirects", "ipv4 send_redirects", "ipv6 accept_ra"])
async def test_what_the_kernel_tells_nobody_is_undone_by_the_next_comparison(lab: Lab, switch: str) -> None:
    node, one, (family, name) = forwarding_node(lab), pod(lab, 1), switch.split()
    async with endpoints_of(node, resync_seconds=0.1) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        whole = switches(node, one.endpoint.device)
        async with running(keeper):
            node.sysctl(f"net/{family}/conf/{one.endpoint.device}/{name}", "1")
            assert switches(node, one.endpoint.device) != whole
            await becomes(lambda: switches(node, one.endpoint.device), whole)
            await eventually(lambda: keeper.report.in_sync and keeper.report.repaired == 1)


@pytest.mark.parametrize("told", ["first", "later"])
async def test_a_device_that_was_renamed_while_nobody_listened_is_known_again(lab: Lab, told: str) -> None:
    """It is the pod's yet: nothing is lost but its name. (Whoever cannot enter namespaces could not make it anew.)"""
    node, one, two = forwarding_node(lab), pod(lab, 1), pod(lab, 2)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        for each in (one, two):
            await each.add(keeper)
    story = Story(node, [one, two], keeper)
    index, found = story.index(), []
    async with endpoints_of(node) as keeper:
        found = await keeper.read_endpoints()
    for number, each in enumerate((one, two)):
        node.ip(f"link set {each.endpoint.device} name foreign{number}")
    async with endpoints_of(node) as keeper, running(keeper):
        assert await keeper.read_endpoints() == found
        if told == "later":
            await keeper.unwire("never-heard-of", "eth0")
        report = await keeper.apply(Endpoints([one.endpoint]))
        assert report.failures == ()
        assert story.index() == index
        assert await one.check(keeper) == []
        assert "lladdr" in node.ip("neighbour show dev foreign1 nud permanent"), "nobody has said what that is"
        await keeper.apply(Endpoints([one.endpoint, two.endpoint]))
        await eventually(lambda: story.state() == story.whole)


def test_a_device_gets_its_name_first_and_its_switches_then() -> None:
    endpoint = Endpoint(container="c1", interface="eth0", addresses=(parse_address("fd00::1"),))
    wrong = list(steps(endpoint, End("foreign", 5, accept_ra=1, disable_ipv6=1, switches=(1, 0, 0, 1))))
    assert wrong[0].text == f"ip link set foreign name {endpoint.device}"
    switches = [f"net/ipv6/conf/{endpoint.device}/{name}" for name in ("accept_ra", "disable_ipv6")]
    assert [step.switch for step in wrong if step.switch] == switches


async def test_a_step_that_does_nothing_is_said(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """As writing a switch is that somebody else has taken over, or that the kernel does not have."""
    monkeypatch.setattr(sysctl, "write", lambda _name, _value: None)
    story.node.sysctl(f"net/ipv6/conf/{story.device}/accept_ra", "1")
    await story.keeper.apply(Endpoints(each.endpoint for each in story.pods))
    story.keeper._doubt()
    story.node.ip(f"link set {story.device} mtu 1400")
    await eventually(lambda: bool(story.keeper.report.failures))
    assert (
        story.keeper.report.failures[0].error == f"`sysctl -w net.ipv6.conf.{story.device}.accept_ra=0` had no effect"
    )
    monkeypatch.undo()
    await story.is_mended()


async def test_a_descriptor_that_is_no_socket_is_not_kept(lab: Lab) -> None:
    with pod(lab, 1).handed_over() as (netns, _):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            with pytest.raises(OSError, match=r"not a socket|non-socket"):
                inside.InsideSocket(netns)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_where_no_thread_can_be_made_a_repair_waits(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes: the keeper goes on."""
    starts = []

    def refuse(thread: threading.Thread) -> None:
        starts.append(thread.name)
        raise RuntimeError("can't start new thread")

    story.keeper._part.kept_sockets.close_all()  # as after a restart
    monkeypatch.setattr(threading.Thread, "start", refuse)
    story.node.ip(f"link delete {story.device}")
    await eventually(lambda: bool(story.keeper.report.failures))
    monkeypatch.undo()
    assert starts == ["netloom-netns"]
    assert "no thread can be made" in story.keeper.report.failures[0].error
    await story.is_mended()


AS_IT_IS_MADE = {
    "sysctl": "!net/ipv4/conf/DEVICE/rp_filter=2",
    "forwarding": "!net/ipv4/conf/DEVICE/forwarding=0",
    "mtu": "link set DEVICE mtu 1400",
    "address": "address add 10.9.9.9/24 dev DEVICE",
    "neighbour": "neighbour delete 10.1.0.2 dev DEVICE",
    "neighbour more": "neighbour add 10.1.0.99 dev DEVICE lladdr 02:00:00:00:00:01 nud permanent",
    "route": "route delete 10.1.0.2",
    "route6": "-6 route delete fd00:1::2",
    "route elsewhere": "route replace 10.1.0.2 dev lo proto 158 metric 65536",
    "deleted": "link delete DEVICE",
}


@pytest.mark.parametrize("name", spread(AS_IT_IS_MADE))
async def test_what_is_done_to_a_device_that_nobody_knows_yet_is_undone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After its maker has looked at it for the last time: as udev does, which has systemd-sysctl write to new ones."""
    node, one, line = forwarding_node(lab), pod(lab, 1), ""
    make = Wiring.make

    def make_and_meddle(wiring: Wiring) -> Made:
        nonlocal line
        made, now, line = make(wiring), line, ""  # once
        if now:
            do(node, now)
        return made

    monkeypatch.setattr(Wiring, "make", make_and_meddle)
    async with endpoints_of(node) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        story = Story(node, [one, pod(lab, 2)], keeper)
        await one.delete(keeper)
        await eventually(lambda: not keeper.report.leaving)
    async with endpoints_of(node) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await keeper.prune()
        line = AS_IT_IS_MADE[name].replace("DEVICE", one.endpoint.device)
        await one.add(keeper)
        await becomes(story.state, story.whole)
        await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
        assert await one.check(keeper) == []


async def test_a_device_that_somebody_moved_away_is_made_anew(story: Story, lab: Lab) -> None:
    elsewhere = lab.namespace("elsewhere")
    story.node.ip(f"link set {story.device} netns {elsewhere.name}")
    await story.is_mended()
    assert "netloom_p" not in elsewhere.ip("link"), "with the pod's end the other went"


@pytest.mark.usefixtures("looks_often")
@pytest.mark.parametrize("gone", ["path", "namespace"])
async def test_a_device_that_cannot_be_made_anew_is_named_with_the_way_out(lab: Lab, gone: str) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    if gone == "path":
        one.endpoint = replace(one.endpoint, netns="")
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        async with running(keeper):
            device, path = one.endpoint.device, one.endpoint.netns
            if gone == "namespace":
                lab.remove(one.place)
            else:
                node.ip(f"link delete {device}")
            await eventually(lambda: bool(keeper.report.failures))
            (failure,) = keeper.report.failures
            assert (failure.kind, failure.key, failure.peer) == ("link", device, "default/pod-1")
            way_out = "delete the pod, and whoever keeps it makes another"
            whole = {
                "path": f"and where its network namespace is is not known: {way_out}",
                "namespace": f"and its network namespace {path} cannot be seen from here (No such file or directory): "
                "it is gone, too, or that directory is not mounted where the agent runs: "
                f"if the pod still runs, {way_out}",
            }
            assert failure.error == f"eth0 of default/pod-1: its device {device} is gone, {whole[gone]}"
            assert await one.delete(keeper)
            await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))


@pytest.mark.parametrize("restarted", [False, True], ids=["same life", "restarted"])
async def test_a_path_that_leads_to_another_pod_by_now_is_not_followed(
    lab: Lab, tmp_path: Path, restarted: bool
) -> None:
    """Nor is it where somebody has overwritten the device's alias, in which it stands, meanwhile."""
    node, one, other, path = forwarding_node(lab), pod(lab, 1), lab.namespace("other"), tmp_path / "pod"
    path.symlink_to(one.endpoint.netns)
    itself = path.readlink()
    one.endpoint = replace(one.endpoint, netns=str(path))
    async with contextlib.AsyncExitStack() as stack:
        keeper = await stack.enter_async_context(endpoints_of(node))
        await keeper.apply(Endpoints())
        await one.add(keeper)
        if restarted:
            await stack.aclose()
            keeper = await stack.enter_async_context(endpoints_of(node))
            await keeper.apply(Endpoints([one.endpoint]))
        await stack.enter_async_context(running(keeper))
        node.ip(f"link set {one.endpoint.device} alias somebody's")
        await eventually(lambda: keeper.report.repaired == 1)
        inside = other.state()
        path.unlink()
        path.symlink_to(f"/run/netns/{other.name}")
        node.ip(f"link delete {one.endpoint.device}")
        await eventually(lambda: bool(keeper.report.failures))
        assert f"{path} leads, or may lead, to another network namespace by now" in keeper.report.failures[0].error
        assert other.state() == inside
        path.unlink()
        path.symlink_to(itself)
        await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
        assert await one.check(keeper) == []


def test_a_path_of_a_process_is_followed_in_the_life_alone_that_was_given_it() -> None:
    """Where the kernel gives namespaces no numbers of their own, a path is all that is known."""
    assert not remaking._is_the_same("/proc/5/ns/net", 0, 7)
    assert not remaking._is_the_same("/proc/5/ns/net", 0, 0)
    assert remaking._is_the_same("/run/netns/x", 0, 7)


async def test_a_path_that_is_no_namespace_stops_nobody(lab: Lab, tmp_path: Path) -> None:
    """Who opens a FIFO waits for somebody who writes to it: all other pods would, too."""
    node, one, two, fifo = forwarding_node(lab), pod(lab, 1), pod(lab, 2), tmp_path / "fifo"
    os.mkfifo(fifo)
    one.endpoint = replace(one.endpoint, netns=str(fifo))
    async with endpoints_of(node) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        node.ip(f"link delete {one.endpoint.device}")
        try:
            await eventually(lambda: bool(keeper.report.failures))
            await two.add(keeper)
        finally:
            os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # lets go who waits
        assert "cannot be entered" in keeper.report.failures[0].error


async def test_without_the_right_to_enter_a_namespace_it_is_said(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    story.keeper._part.kept_sockets.close_all()  # as after a restart
    monkeypatch.setattr(inside, "_enter", refused)
    story.node.ip(f"link delete {story.device}")
    await eventually(lambda: bool(story.keeper.report.failures))
    (failure,) = story.keeper.report.failures
    assert failure.error == (
        f"eth0 of default/pod-1: its device {story.device} is gone, and entering its network namespace to make it anew "
        "takes the capability SYS_ADMIN, as the agent was started again since the pod came: delete the pod, and "
        "whoever keeps it makes another"
    )


async def test_somebodys_device_under_the_name_is_replaced(story: Story) -> None:
    story.node.batch([f"link delete {story.device}", f"link add {story.device} type bridge"])
    await story.is_mended()


async def test_a_foreign_route_in_its_place_is_left_alone_and_said(story: Story) -> None:
    story.node.ip("route replace 10.1.0.2 dev lo proto static metric 65536")
    await eventually(lambda: bool(story.keeper.report.failures))
    (failure,) = story.keeper.report.failures
    assert (failure.kind, failure.error) == ("route", "EEXIST: File exists")
    story.node.ip("route delete 10.1.0.2 dev lo proto static metric 65536")
    await story.is_mended()


@pytest.mark.parametrize(
    ("line", "where", "by"),
    [
        ("route add 10.1.0.2 dev lo proto 99", "lo", ": 10.1.0.2/32 dev lo metric 0 table 254 proto 99."),
        ("-6 route add fd00:1::2 dev lo metric 7", "lo", ": fd00:1::2/128 dev lo metric 7 table 254 proto 3."),
        ("route add unreachable 10.1.0.2 metric 65535", "nowhere", "`)"),
    ],
)
async def test_what_takes_a_pods_packets_before_our_route_does_is_left_alone_and_said(
    story: Story, line: str, where: str, by: str
) -> None:
    story.node.ip(line)
    await eventually(lambda: bool(story.keeper.report.failures))
    taken = story.state()
    (failure,) = story.keeper.report.failures
    assert (failure.kind, failure.peer) == ("route", "default/pod-1")
    assert failure.error.startswith(f"packets go to {where} all the same, by somebody's address, route or rule (`ip ")
    assert by in failure.error
    assert failure.error.endswith("The pod gets none until whoever set that takes it away")
    assert not story.keeper.report.in_sync
    await story.keeper.apply(story.keeper._part.desired)
    assert story.state() == taken
    story.node.ip(line.replace("route add", "route delete"))
    await story.is_mended()


async def test_what_takes_a_pods_packets_is_found_by_a_comparison_too_and_goes_with_the_pod(lab: Lab) -> None:
    """Of addresses and rules no event is heard."""
    node, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
    node.ip("address add 10.1.0.2/32 dev lo")
    async with endpoints_of(node) as keeper, running(keeper):
        report = await keeper.apply(Endpoints([one.endpoint]))
        assert [failure.error.partition(" all")[0] for failure in report.failures] == ["packets go to the node itself"]
        await one.delete(keeper)
        await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))


async def test_check_names_what_is_wrong_on_both_sides(lab: Lab) -> None:
    node, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        device = one.endpoint.device
        assert await one.check(keeper) == []
        node.batch(
            [f"link set {device} mtu 1400", "route delete 10.1.0.2", f"neighbour flush dev {device} nud permanent"]
        )
        node.ip("route add default dev lo")
        one.place.ip("-6 route delete default")
        one.place.ip("address delete fd00:1::2/128 dev eth0")
        one.place.ip("neighbour replace 169.254.1.1 dev eth0 lladdr 02:00:00:00:00:09 nud permanent")
        host, mac = format_mac(one.endpoint.host_mac), format_mac(one.endpoint.pod_mac)
        assert await one.check(keeper) == [
            f"its device on the node needs `ip link set {device} mtu 1500`",
            f"10.1.0.2 leads to lo and not to {device}",
            f"the permanent neighbour 10.1.0.2 on the node is missing, not {mac}",
            f"the permanent neighbour fd00:1::2 on the node is missing, not {mac}",
            f"the permanent neighbour 169.254.1.1 in the pod is 02:00:00:00:00:09, not {host}",
            "fd00:1::2 is not on eth0 in the pod",
            "the pod has no default route by eth0: `ip -6 route add default via fe80::1 dev eth0 onlink`",
        ]
        one.place.ip("-6 route add default via fe80::1 dev eth0 onlink")
        assert "default" not in " ".join(await one.check(keeper)), "the advice is one"
        one.place.ip("link delete eth0")
        assert await one.check(keeper) == [
            f"{device}, its device on the node, is gone",
            "eth0 is gone from the pod",
        ]
