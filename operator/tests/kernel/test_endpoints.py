"""Pods' interfaces are made whole, or not at all; and go without a trace."""

import asyncio
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from netloom.cidr import Cidr, parse_address
from netloom.kernel.endpoints import keeper as keeping
from netloom.kernel.endpoints.alias import Alias, alias_of, read_alias, says
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, FoundEndpoint, WiringFailed
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.endpoints.reaping import delete_ends
from netloom.kernel.endpoints.rows import Rows
from netloom.kernel.endpoints.wiring import Made
from netloom.kernel.mac import format_mac
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import Pod, endpoints_of, forwarding_node, pod, shown, switches

MAC = bytes.fromhex("020000000009")
NO_NAME = "cannot be the name of a device: 1 to 15 bytes without blanks, '/', ':' and '%'"


class Node:
    """A node with its endpoints' keeper."""

    def __init__(self, place: Namespace, keeper: EndpointsKeeper) -> None:
        self.place, self.keeper = place, keeper

    async def is_rid(self) -> None:
        """Of all that was on its way out."""
        await eventually(lambda: not self.keeper.report.leaving, lambda: str(self.keeper.report))


@pytest.fixture
async def here(lab: Lab) -> AsyncIterator[Node]:
    """A node that knows of all its endpoints: there are none."""
    place = forwarding_node(lab)
    place.ip("address add 192.0.2.1/32 dev lo")
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await keeper.prune()
        async with running(keeper):
            yield Node(place, keeper)


# ------------------------------------------------------------------------------------------------------ what is made


async def test_both_ends(here: Node, lab: Lab) -> None:
    one, before = pod(lab, 1, mtu=1450), here.place.state()
    wired = await one.add(here.keeper)
    device, mac, host_mac = one.endpoint.device, format_mac(wired.pod_mac), format_mac(wired.host_mac)
    assert (wired.device, wired.mtu) == (device, 1450)
    assert shown(here.place) == "\n".join(
        (
            f"link {device} up mtu 1450 address {host_mac} addrgenmode none",
            f"neighbour 10.1.0.2 lladdr {mac} dev {device}",
            f"neighbour fd00:1::2 lladdr {mac} dev {device}",
            f"route 10.1.0.2 proto 158 scope link metric 65536 dev {device}",
            f"route fd00:1::2 proto 158 metric 65536 pref medium dev {device}",
        )
    )
    assert switches(here.place, device) == "\n".join(
        (
            "ipv4 forwarding 1",
            "ipv4 rp_filter 1",
            "ipv4 accept_redirects 0",
            "ipv4 send_redirects 0",
            "ipv6 accept_ra 0",
            "ipv6 disable_ipv6 0",
        )
    )
    link_local = "fe80::" + str(socket.inet_ntop(socket.AF_INET6, _link_local(wired.pod_mac))).removeprefix("fe80::")
    assert shown(one.place, "eth0") == "\n".join(
        (
            f"link eth0 up mtu 1450 address {mac} addrgenmode none",
            "address 10.1.0.2/32 dev eth0 scope global",
            "address fd00:1::2/128 dev eth0 scope global",
            f"address {link_local}/64 dev eth0 scope link",
            f"neighbour 169.254.1.1 lladdr {host_mac} dev eth0",
            f"neighbour fe80::1 lladdr {host_mac} dev eth0",
            "route default via 169.254.1.1 proto static onlink dev eth0",
            "route default via fe80::1 proto static metric 1024 onlink pref medium dev eth0",
        )
    )
    assert await one.check(here.keeper) == []
    assert await one.delete(here.keeper)
    await here.is_rid()
    assert here.place.state() == before
    assert "eth0" not in one.place.ip("link show")


def _link_local(mac: bytes) -> bytes:
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


@pytest.mark.parametrize(("own", "other"), [("10.1.0.7", "10.1.0.8"), ("fd00:1::7", "fd00:1::8")])
async def test_one_family_alone(here: Node, lab: Lab, own: str, other: str) -> None:
    one, two = pod(lab, 1, own), pod(lab, 2, other)
    for each in (one, two):
        await each.add(here.keeper)
        assert await each.check(here.keeper) == []
    assert one.place.pings(other)
    assert len(shown(here.place).splitlines()) == 6


async def test_pods_reach_each_other_and_the_node_at_once(here: Node, lab: Lab) -> None:
    """No address is tentative, and nobody is asked for a MAC."""
    for place in (here.place, *(pods := [pod(lab, 1), pod(lab, 2)])):
        place = place if isinstance(place, Namespace) else place.place
        for scope in ("all", "default"):
            place.sysctl(f"net.ipv6.conf.{scope}.accept_dad", "1")
    here.place.ip("address add fd00:99::1/128 dev lo nodad")
    for each in pods:
        await each.add(here.keeper)
        assert "tentative" not in each.place.ip("-6 address show dev eth0")
    one, two = pods
    for target in ("10.1.0.3", "fd00:1::3", "192.0.2.1", "fd00:99::1"):
        assert one.place.pings(target)
        assert one.place.pings(target, size=1500)
    for target in ("10.1.0.2", "fd00:1::3"):
        assert here.place.pings(target), "as the kubelet's probes do"
    assert not two.place.pings("10.1.0.99")
    assert "REACHABLE" not in one.place.ip("neighbour")


async def test_both_can_send_when_an_add_returns(here: Node, lab: Lab) -> None:
    """The kernel has to give a device its queue first, and drops what is sent before. It is asked by an old call, as a
    question by netlink has it done."""
    one = pod(lab, 1)
    for number in range(20):
        one.endpoint = replace(one.endpoint, container=f"{number:064x}")
        await one.add(here.keeper)
        assert runs(one.place, "eth0")
        assert runs(here.place, one.endpoint.device)
        await one.delete(here.keeper)


async def test_an_add_that_met_the_device_of_an_earlier_container_is_done_again(
    here: Node, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That device goes while the answer that it is there is on its way."""
    one, keeper, met = pod(lab, 1), here.keeper, threading.Event()
    wire, delete = keeper._wire, keeper._delete

    async def wired(*asked: Any) -> Made:
        try:
            return await wire(*asked)
        except WiringFailed:
            met.set()
            await keeper._reaped()
            raise

    def deleted(names: list[str]) -> dict[str, KernelRefusal]:
        met.wait(10)
        return delete(names)

    monkeypatch.setattr(keeper, "_wire", wired)
    monkeypatch.setattr(keeper, "_delete", deleted)
    await one.add(keeper)
    await one.delete(keeper)
    one.endpoint = replace(one.endpoint, container="another")
    await one.add(keeper)
    assert met.is_set()


def runs(place: Namespace, device: str) -> bool:
    """Whether the device has IFF_RUNNING."""
    with place.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sH22x", device.encode(), 0))  # SIOCGIFFLAGS
    return bool(struct.unpack_from("H", answer, 16)[0] & 0x40)


async def test_the_node_is_seen_by_its_own_address(here: Node, lab: Lab) -> None:
    one = pod(lab, 1)
    await one.add(here.keeper)
    assert "src 192.0.2.1 " in here.place.ip("route get 10.1.0.2")


async def test_a_pod_cannot_send_with_somebody_elses_address_nor_configure_the_node(here: Node, lab: Lab) -> None:
    here.place.sysctl("net.ipv6.conf.all.forwarding", "0")  # where a node forwards, the kernel takes none anyway
    one, two = pod(lab, 1), pod(lab, 2)
    for each in (one, two):
        await each.add(here.keeper)
    one.place.ip("address add 10.1.0.77/32 dev eth0")
    assert not one.place.pings("10.1.0.3", source="10.1.0.77")
    assert echoes(two.place) == 0, "that no answer came would be so in any case: to that address nothing leads"
    assert one.place.pings("10.1.0.3")
    assert echoes(two.place) == 1
    one.place.advertise_router("eth0", "2001:db8:5::")
    assert one.place.pings("10.1.0.3"), "what came before it has been taken in"
    assert "proto ra" not in here.place.ip("-6 route")


def echoes(place: Namespace) -> int:
    """Pings of IPv4 that have come in there."""
    with place.entered():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, counts = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(counts[names.index("InEchos")])


async def test_a_pod_reaches_itself_by_its_service(here: Node, lab: Lab) -> None:
    one = pod(lab, 1)
    await one.add(here.keeper)
    here.place.exec(
        "nft -f -",
        given="""table ip service {
            chain there { type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.9 dnat to 10.1.0.2
            }
            chain back { type nat hook postrouting priority srcnat;
                ip saddr 10.1.0.2 ip daddr 10.1.0.2 masquerade
            }
        }""",
    )
    assert one.place.pings("10.96.0.9")


async def test_ipv6_that_is_off_in_the_pod_is_switched_on(here: Node, lab: Lab) -> None:
    """As container runtimes leave it where their own network has none."""
    one, two = pod(lab, 1), pod(lab, 2)
    for scope in ("all", "default"):
        one.place.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", "1")
    for scope in ("default",):
        here.place.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", "1")
    for each in (one, two):
        await each.add(here.keeper)
    assert one.place.pings("fd00:1::3")


# ----------------------------------------------------------------------------------------------------- what is refused


async def refused(pod: Pod, keeper: EndpointsKeeper) -> tuple[str, str]:
    with pytest.raises(WiringFailed) as caught:
        await pod.add(keeper)
    assert caught.value.sentence == str(caught.value)
    assert caught.value.sentence.startswith(f"{pod.endpoint.interface} of {pod.endpoint.pod}: ")
    return caught.value.reason, caught.value.sentence.partition(": ")[2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"interface": "eth0/1"}, f"'eth0/1' {NO_NAME}"),
        ({"interface": "eth%d"}, f"'eth%d' {NO_NAME}"),
        ({"interface": "a" * 16}, f"'{'a' * 16}' {NO_NAME}"),
        ({"container": ""}, "'' is no container id: 1 to 128 letters, digits, dots, dashes and underscores"),
        ({"mtu": 65536}, "an MTU of 65536 is out of range: from 1280 (IPv6) to 65535; see spec.mtu"),
        ({"mtu": 1279}, "an MTU of 1279 is out of range: from 1280 (IPv6) to 65535; see spec.mtu"),
        ({"mac": b"\x01\0\0\0\0\x05"}, "01:00:00:00:00:05 cannot be a device's MAC: 6 bytes, of no group"),
        ({"mac": b"\x02\0\0"}, "02:00:00 cannot be a device's MAC: 6 bytes, of no group"),
        ({"addresses": ()}, "one address of each family at most, and one at least, not none"),
        ({"addresses": (b"\x0a\x01\x00\x05", b"\x0a\x01\x00\x06")},
         "one address of each family at most, and one at least, not 10.1.0.5, 10.1.0.6"),
    ],
)  # fmt: skip
async def test_what_cannot_be(here: Node, lab: Lab, changes: dict[str, object], sentence: str) -> None:
    one, before = pod(lab, 1), here.place.state()
    one.endpoint = replace(one.endpoint, **changes)
    assert await refused(one, here.keeper) == ("invalid", sentence)
    assert here.place.state() == before


async def test_an_interface_that_the_pod_has_already(here: Node, lab: Lab) -> None:
    one, before = pod(lab, 1), here.place.state()
    one.place.ip("link add eth0 address 02:00:00:00:00:05 type bridge")
    inside = one.place.state()
    reason, sentence = await refused(one, here.keeper)
    assert reason == "interface-taken"
    assert sentence.startswith("the pod has a device eth0 already (bridge, 02:00:00:00:00:05), which is not Netloom's")
    assert (here.place.state(), one.place.state()) == (before, inside)


@pytest.mark.parametrize("addresses", [("10.1.0.7",), ("fd00:1::7",)])
async def test_a_second_way_out_of_a_pod(here: Node, lab: Lab, addresses: tuple[str, ...]) -> None:
    one = pod(lab, 1)
    await one.add(here.keeper)
    before, inside = here.place.state(), one.place.state()
    given = tuple(map(parse_address, addresses))
    more = Pod(one.place, replace(one.endpoint, interface="net1", addresses=given))
    assert await refused(more, here.keeper) == (
        "interface-taken",
        "the pod has a default route already (by eth0): Netloom makes one interface of a pod, which has it; leave the "
        "other network's plugin without one",
    )
    assert (here.place.state(), one.place.state()) == (before, inside)


@pytest.mark.parametrize("address", ["192.0.2.1", "10.1.0.3", "10.77.0.5"])
async def test_an_address_that_somebody_has(here: Node, lab: Lab, address: str) -> None:
    other = pod(lab, 2)
    await other.add(here.keeper)
    here.place.ip("link add foreign type bridge")
    here.place.ip("link set foreign up")
    here.place.ip("route add 10.77.0.5/32 dev foreign")
    one, before = pod(lab, 1, address), shown(here.place)
    inside = one.place.state()
    reason, sentence = await refused(one, here.keeper)
    assert reason == "address-taken"
    assert (
        sentence
        == {
            "192.0.2.1": "192.0.2.1 is an address of the node itself (ip address show to 192.0.2.1); a pod with it "
            "would get no packet",
            "10.1.0.3": "10.1.0.3 is the address of eth0 of default/pod-2 already",
            "10.77.0.5": "10.77.0.5 leads to foreign all the same, by somebody's route or rule "
            "(`ip route get 10.77.0.5`); a pod with it would get no packet",
        }[address]
    )
    assert (shown(here.place), one.place.state()) == (before, inside)
    assert other.place.pings("192.0.2.1")


async def test_a_second_add(here: Node, lab: Lab) -> None:
    one = pod(lab, 1)
    await one.add(here.keeper)
    before = here.place.state()
    device = one.endpoint.device
    assert await refused(one, here.keeper) == (
        "already-there",
        f"container {one.endpoint.container} has it already, as {device}: a DEL has to come before another ADD",
    )
    assert here.place.state() == before
    assert await one.check(here.keeper) == []


async def test_a_lack_of_descriptors_is_no_pod_that_is_gone(
    here: Node, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime takes the latter for an interface that needs no DEL."""
    one = pod(lab, 1)

    def none_left(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", none_left)
        with pytest.raises(WiringFailed, match="no free file descriptors") as caught:
            await one.add(here.keeper)
    assert caught.value.reason == "lost"
    await one.add(here.keeper)


async def test_what_is_no_namespace(here: Node, lab: Lab, tmp_path: Path) -> None:
    one, two, before = pod(lab, 1), pod(lab, 2), here.place.state()
    file = (tmp_path / "file").open("w")
    with one.handed_over() as (netns, inside), two.handed_over() as (_, other), file:
        for given, sentence in (
            ((file.fileno(), inside), "the socket is of another network namespace than"),
            ((netns, other), "the socket is of another network namespace than"),
            ((netns, netns), "cannot be used"),
            ((-1, inside), "cannot be used"),
        ):
            with pytest.raises(WiringFailed, match=sentence) as caught:
                await here.keeper.wire(one.endpoint, *given)
            assert caught.value.reason == "namespace-gone"
    itself = Pod(here.place, one.endpoint)
    with itself.handed_over() as given, pytest.raises(WiringFailed, match="is the node's own: a pod with hostNetwork"):
        await here.keeper.wire(one.endpoint, *given)
    assert here.place.state() == before


# ------------------------------------------------------------------------------------------------------ what is removed


async def test_a_removal_can_be_repeated_and_concerns_its_own_alone(here: Node, lab: Lab) -> None:
    one, two = pod(lab, 1), pod(lab, 2)
    for each in (one, two):
        await each.add(here.keeper)
    assert await one.delete(here.keeper)
    assert "10.1.0.2" not in here.place.ip("route"), "when it returns no route leads there"
    assert "fd00:1::2" not in here.place.ip("-6 route")
    assert not await one.delete(here.keeper)
    assert not await here.keeper.unwire("never-heard-of", "eth0")
    await here.is_rid()
    assert await two.check(here.keeper) == []


async def test_an_address_is_anothers_at_once(here: Node, lab: Lab) -> None:
    """Before the device that had it is gone; and in the very namespace, under the same name, by another container."""
    one = pod(lab, 1)
    await one.add(here.keeper)
    for number in range(2, 6):
        await one.delete(here.keeper)
        one.endpoint = replace(one.endpoint, container=f"{number:064x}")
        await one.add(here.keeper)
        assert await one.check(here.keeper) == []
    for number in range(10, 60):  # the kernel lets the earlier device go at whatever moment
        await one.delete(here.keeper)
        await asyncio.sleep(0.0005 * (number % 50))
        one.endpoint = replace(one.endpoint, container=f"{number:064x}")
        await one.add(here.keeper)
    assert await one.check(here.keeper) == []
    two = pod(lab, 7, "10.1.0.2", "fd00:1::2")
    await one.delete(here.keeper)
    await two.add(here.keeper)
    assert two.place.pings("192.0.2.1")
    await here.is_rid()
    assert len(shown(here.place).splitlines()) == 5


@pytest.mark.usefixtures("looks_often")
async def test_what_goes_with_the_pods_namespace(here: Node, lab: Lab) -> None:
    """Nobody has to say so; but that the endpoint is wanted, it is told, while nobody has deleted it."""
    one = pod(lab, 1)
    await one.add(here.keeper)
    lab.remove(one.place)
    await eventually(lambda: bool(here.keeper.report.failures))
    (failure,) = here.keeper.report.failures
    assert failure.peer == "default/pod-1"
    assert f"its device {one.endpoint.device} is gone, and its network namespace" in failure.error
    assert await one.delete(here.keeper)
    await eventually(lambda: here.keeper.report.in_sync, lambda: str(here.keeper.report))
    assert shown(here.place) == ""


async def test_who_is_cancelled_leaves_nothing(here: Node, lab: Lab) -> None:
    one, before = pod(lab, 1), here.place.state()
    for _ in range(5):
        task = asyncio.create_task(one.add(here.keeper))
        while not here.keeper._lock.locked():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.is_rid()
        await eventually(lambda: here.place.state() == before)
    await one.add(here.keeper)
    assert await one.check(here.keeper) == []


async def test_who_is_cancelled_twice_waits_for_the_thread_all_the_same(lab: Lab) -> None:
    """It still uses the descriptors, whose numbers would be those of another pod's namespace soon."""
    place, one, may_go_on = forwarding_node(lab), pod(lab, 1), threading.Event()
    before = place.state()

    class Slow(CommandSocket):
        def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
            may_go_on.wait()
            return super().execute(messages)

    async with endpoints_of(place, commands=Slow) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await keeper.prune()
        task = asyncio.create_task(one.add(keeper))
        while not keeper._lock.locked():
            await asyncio.sleep(0)
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        gave_up = task.done()
        may_go_on.set()
        assert not gave_up
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: keeper.report.in_sync and not keeper.report.leaving, lambda: str(keeper.report))
        assert place.state() == before


async def test_a_removal_that_is_cancelled_is_done_all_the_same(lab: Lab) -> None:
    """Before all endpoints are known, too, when what nobody explains stays."""
    place, one, may_go_on = forwarding_node(lab), pod(lab, 1), threading.Event()
    may_go_on.set()

    class Slow(CommandSocket):
        def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
            may_go_on.wait()
            return super().execute(messages)

    async with endpoints_of(place, commands=Slow) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        may_go_on.clear()
        task = asyncio.create_task(one.delete(keeper))
        while not keeper._lock.locked():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: shown(place) == "", lambda: shown(place))


async def test_a_container_id_that_is_used_again_while_its_first_device_is_being_deleted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has deleted it with the namespace: who was to do so must not delete the second by its name."""
    place, one, may_go_on = forwarding_node(lab), pod(lab, 1), threading.Event()

    def delete_late(commands: CommandSocket, names: Sequence[str]) -> dict[str, KernelRefusal]:
        may_go_on.wait()
        return delete_ends(commands, names)

    monkeypatch.setattr(keeping, "delete_ends", delete_late)
    async with endpoints_of(place) as keeper, running(keeper):
        await keeper.apply(Endpoints())
        await one.add(keeper)
        await one.delete(keeper)
        lab.remove(one.place)
        await eventually(lambda: not keeper.report.leaving)
        again = pod(lab, 1)
        adding = asyncio.create_task(again.add(keeper))
        await asyncio.wait([adding], timeout=0.3)
        may_go_on.set()
        await adding
        await keeper._reaped()
        await eventually(lambda: keeper.report.in_sync and not keeper.report.leaving, lambda: str(keeper.report))
        assert await again.check(keeper) == []
        assert keeper.report.repaired == 0


async def test_another_pods_device_under_the_name_is_left_alone(lab: Lab) -> None:
    """Its container has the same name of a device by chance, and is of an earlier life."""
    place, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
    place.batch([f"link set {one.endpoint.device} address 02:00:00:00:00:07 alias '{2:064x} eth0'"])
    before = place.state()
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        assert not await one.delete(keeper)
        await keeper._reaped()
        assert place.state() == before


async def test_a_route_that_somebody_led_elsewhere_goes_with_the_pod(lab: Lab) -> None:
    """Whether its keeper has heard of it or not: nothing leads nowhere, and nothing is in the way of the next pod."""
    place, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        for _ in range(2):
            await one.add(keeper)
            place.ip("route replace 10.1.0.2 dev lo proto 158 metric 65536")
            place.ip("-6 route replace fd00:1::2 dev lo proto 158 metric 65536")
            await one.delete(keeper)
            assert "10.1.0.2" not in place.ip("route")
            assert "fd00:1::2" not in place.ip("-6 route")
        place.ip("route add 10.1.0.2 dev lo proto 158 metric 65536")
        await one.add(keeper)
        assert await one.check(keeper) == []


async def test_check_with_the_mac_that_add_has_told(here: Node, lab: Lab) -> None:
    """As a result has it, whether it was asked for or not."""
    for one in (pod(lab, 1), pod(lab, 2, mac=MAC)):
        wired = await one.add(here.keeper)
        said = Pod(one.place, replace(one.endpoint, mac=wired.pod_mac))
        assert await said.check(here.keeper) == []


# --------------------------------------------------------------------------------------------------------- restarts


async def test_a_restart_writes_nothing_and_finds_all(lab: Lab) -> None:
    place = forwarding_node(lab)
    pods = [pod(lab, 1), pod(lab, 2, mac=MAC), pod(lab, 3, mac=MAC, netns="")]
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        for each in pods:
            await each.add(keeper)
    before = place.state()
    async with endpoints_of(place) as keeper:
        assert await keeper.read_endpoints() == sorted(map(found_endpoint_of, pods), key=lambda each: each.device)
        desired = Endpoints(each.endpoint for each in pods)
        assert await keeper.plan(desired) == []
        report = await keeper.apply(desired)
        await keeper.prune()
        assert (report.written, report.repaired, keeper.stats) == ({}, 0, {})
        assert place.state() == before


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        ("", Alias()),
        ("somebody's", Alias()),
        ("c1 eth0", Alias("c1", "eth0")),
        ("c1 eth0 /run/netns/x", Alias("c1", "eth0", b"", "/run/netns/x")),
        ("c1 eth0 02:00:00:00:00:09", Alias("c1", "eth0", MAC)),
        ("c1 eth0 02:00:00:00:00:09 /run/netns/x", Alias("c1", "eth0", MAC, "/run/netns/x")),
        ("c1 eth0 /run/netns/x@4097", Alias("c1", "eth0", b"", "/run/netns/x", 4097)),
        ("c1 eth0 02:00:00:00:00:09 /run/x@3@0", Alias("c1", "eth0", MAC, "/run/x@3")),
        ("c1 eth0 /run/netns/x 02:00:00:00:00:09", Alias()),
        ("c1 eth0 /run/netns/x and more", Alias()),
        ("a device of somebody else", Alias()),
    ],
)
def test_what_an_alias_says(alias: str, said: Alias) -> None:
    assert read_alias(alias) == said
    if said.container:
        about = {"container": said.container, "interface": said.interface, "mac": said.mac, "netns": said.netns}
        endpoint = Endpoint(addresses=(), **about)  # type: ignore[arg-type]
        assert alias_of(endpoint, said.cookie) == alias
        assert says(endpoint, alias)
        assert not says(replace(endpoint, interface="eth1"), alias)


def found_endpoint_of(pod: Pod) -> FoundEndpoint:
    end = pod.endpoint
    return FoundEndpoint(
        device=end.device,
        container=end.container,
        interface=end.interface,
        netns=end.netns,
        addresses=end.addresses,
        mtu=1500,
        mac=end.mac,
    )


async def test_what_nobody_explains_stays_until_all_are_known(lab: Lab) -> None:
    place, (one, two) = forwarding_node(lab), (pod(lab, 1), pod(lab, 2))
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        for each in (one, two):
            await each.add(keeper)
    before = place.state()
    async with endpoints_of(place) as keeper:
        assert (await keeper.apply(Endpoints([one.endpoint]))).in_sync
        assert keeper.retained == 1
        async with running(keeper):
            place.ip(f"link set {two.endpoint.device} down")
            place.ip(f"link set {one.endpoint.device} mtu 1400")
            await eventually(lambda: keeper.report.repaired == 1)
            place.ip(f"link set {two.endpoint.device} up")
        assert one.place.pings("10.1.0.2")
        for line in ("10.1.0.3", "fd00:1::3"):
            place.ip(f"route replace {line} dev {two.endpoint.device} proto 158 scope link metric 65536")
        await keeper.prune()
        assert keeper.retained == 0
        assert (await keeper.read_endpoints()) == [found_endpoint_of(one)]
        assert before != place.state()
        assert len(shown(place).splitlines()) == 5


async def test_a_pod_that_comes_back_before_all_are_known(lab: Lab) -> None:
    """An ADD of what an agent had half done when it was killed, which nobody has written down."""
    place, one = forwarding_node(lab), pod(lab, 1)
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
    before = place.state()
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        assert place.state() == before
        assert keeper.retained == 0
        assert await one.check(keeper) == []
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        assert await one.delete(keeper), "a DEL of what is only in the kernel"
        await eventually(lambda: not keeper.report.leaving)
        assert shown(place) == ""


async def test_an_address_of_a_pod_that_is_not_known_yet(lab: Lab) -> None:
    place, one, two = forwarding_node(lab), pod(lab, 1), pod(lab, 2, "10.1.0.2")
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        assert await refused(two, keeper) == (
            "address-taken",
            f"10.1.0.2 leads to {one.endpoint.device}, the device of a pod of which nothing else is known (yet)",
        )
        assert await keeper.read_endpoints() == [found_endpoint_of(one)]


@pytest.mark.parametrize("version", ["", "-6 "])
async def test_the_route_of_a_pod_that_is_not_known_yet_stays_whoever_leads_its_packets_elsewhere(
    lab: Lab, version: str
) -> None:
    address = "fd00:1::2" if version else "10.1.0.2"
    place, one, two = forwarding_node(lab), pod(lab, 1), pod(lab, 2, address)
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
    place.ip(f"{version}route add {address} dev lo metric 5 proto static")
    before = place.state()
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        assert (await refused(two, keeper))[0] == "address-taken"
        assert place.state() == before


async def test_cleanup_removes_all_and_says_so_before(lab: Lab) -> None:
    place, (one, two) = forwarding_node(lab), (pod(lab, 1), pod(lab, 2))
    before = place.state()
    async with endpoints_of(place) as keeper:
        await keeper.apply(Endpoints())
        for each in (one, two):
            await each.add(keeper)
    async with endpoints_of(place) as keeper:
        planned = [change.text for change in await keeper.plan_cleanup()]
        for each in (one, two):
            assert f"ip link delete {each.endpoint.device}" in planned
            assert f"ip route delete 10.1.0.{2 if each is one else 3}/32 dev {each.endpoint.device}" in planned
        assert (await keeper.cleanup()).in_sync
        assert await keeper.plan_cleanup() == []
    assert place.state() == before


# ------------------------------------------------------------------------------------------------------------- cost


async def test_one_pod_among_many_costs_what_one_costs(here: Node, lab: Lab) -> None:
    pods = [pod(lab, number) for number in range(60)]
    costs = set()
    for each in pods:
        before = sum(here.keeper.stats.values())
        await each.add(here.keeper)
        costs.add(sum(here.keeper.stats.values()) - before)
    assert costs == {7}
    read = here.keeper.report.compared
    for each in pods:
        await each.delete(here.keeper)
    await here.is_rid()
    await eventually(lambda: here.keeper.report.in_sync)
    assert here.keeper.report.compared == read, "nothing was read as a whole"
    assert here.keeper.report.repaired == 0
    assert shown(here.place) == ""


async def test_many_at_once(here: Node, lab: Lab) -> None:
    pods, before = [pod(lab, number) for number in range(30)], here.place.state()
    for _ in range(3):
        await asyncio.gather(*(each.add(here.keeper) for each in pods))
        assert pods[0].place.pings("10.1.0.30")
        await asyncio.gather(*(each.delete(here.keeper) for each in pods))
    await here.is_rid()
    assert here.place.state() == before
    assert here.keeper.report.repaired == 0
    assert here.keeper.report.endpoints == 0


def test_an_address_that_went_from_one_to_another_is_the_others_in_whatever_order_it_is_told() -> None:
    rows, address = Rows(), parse_address("10.1.0.1")
    one = Endpoint(container="c1", interface="eth0", addresses=(address,))
    two = replace(one, container="c2")
    rows.want("one", one, 5)
    rows.want("two", two, 6)
    rows.want("one", replace(one, addresses=()), 5)
    assert rows.owners == {Cidr.of(address): "two"}


def test_names_are_made_of_container_and_interface_alone() -> None:
    """An agent of another version has to find them."""
    end = Endpoint(container="c1", interface="eth0", addresses=(parse_address("10.1.0.1"),))
    macs = "ae:7d:08:a6:f2:bf", "9e:e4:66:e8:13:5a"
    assert (end.device, format_mac(end.host_mac), format_mac(end.pod_mac)) == ("netloom_pok4l2u", *macs)
