"""A probe takes the way of pods' packets: what stops them stops it, and it is seen where."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from netloom.cidr import Address, parse_address
from netloom.kernel.keeper.part import Attempt, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from netloom.kernel.probe import part as probe_part
from netloom.kernel.probe import tun
from netloom.kernel.probe.examination import Evidence, Examination, ProbeTiming, Target
from netloom.kernel.probe.keeper import Egress, ProbeKeeper
from netloom.kernel.probe.part import DEVICE, ProbeDevice, ProbeFound, ProbeNode
from netloom.kernel.probe.prober import Prober
from tests.kernel.meshes import eventually, here, peer
from tests.kernel.netns import Lab, Namespace

QUICK = ProbeTiming(answer=0.25, tries=2)
FAMILIES = pytest.mark.parametrize("version", [4, 6])
SILENCE = pytest.mark.slow
"""For where questions are not answered: each takes all of its time, twice, and that is a second or two a test."""


def address_of(number: int, version: int) -> Address:
    return parse_address(f"10.{number}.0.255" if version == 4 else f"fd00:{number}::ffff:ffff:ffff:ffff")


def target_of(number: int, version: int) -> Target:
    own = parse_address(f"10.{number}.0.0" if version == 4 else f"fd00:{number}::")
    return Target(f"node-{number}", address_of(number, version), own, parse_address(f"192.168.7.{number}"))


class Node:
    """A node in the mesh, with its probe."""

    def __init__(self, number: int, place: Namespace, keeper: ProbeKeeper) -> None:
        self.number = number
        self.place = place
        self.keeper = keeper
        self.prober = Prober()

    async def start(self, *, device: bool = True) -> None:
        addresses = tuple(address_of(self.number, version) for version in (4, 6))
        await self.keeper.open()
        assert (await self.keeper.apply(ProbeNode(addresses if device else ()))).in_sync
        self.prober.addresses, self.prober.mtu = addresses, 1450
        self.prober.attach(self.keeper.device.descriptor)
        hosts = (f"10.{self.number}.0.0", f"fd00:{self.number}::", f"192.168.7.{self.number}")
        self.prober.listen_at([parse_address(host) for host in hosts])

    async def examine(self, number: int, version: int) -> Evidence:
        with self.place.entered():
            target = target_of(number, version)
            (way,) = await self.keeper.ways([target.address])
            if not way.port:
                target = replace(target, host=target.underlay)
            return await Examination(self.prober, target, way, QUICK).whole()

    async def close(self) -> None:
        self.prober.close()
        await self.keeper.close()

    def nft(self, rule: str, *, family: str = "inet", hook: str = "forward", policy: str = "accept") -> None:
        """A base chain somebody else made."""
        nft(
            self.place,
            f"table {family} foreign {{ chain c {{ type filter hook {hook} priority 0; policy {policy}; {rule}\n}}\n}}",
        )

    def unfilter(self) -> None:
        self.place.exec("nft delete table inet foreign")


def nft(place: Namespace, ruleset: str) -> None:
    path = Path(f"/tmp/{place.name}.nft")
    path.write_text(ruleset)
    try:
        place.exec(f"nft -f {path}")
    finally:
        path.unlink()


class Pair:
    """Two nodes and what is between them."""

    def __init__(self, switch: Namespace, one: Node, two: Node) -> None:
        self.switch, self.one, self.two = switch, one, two

    @contextlib.contextmanager
    def dropping(self, what: str, port: str) -> AsyncIterator[None]:  # type: ignore[misc]
        """What comes into the switch by this port is dropped meanwhile, if it is such."""
        chain = f"chain c {{ type filter hook ingress device {port} priority 0; {what} drop\n}}"
        nft(self.switch, f"table netdev foreign {{\n{chain}\n}}")
        try:
            yield
        finally:
            self.switch.exec("nft delete table netdev foreign")


@pytest.fixture
async def pair(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Both in the mesh, of which they are all. A parameter says by which encapsulation, if not VXLAN."""
    ways = (getattr(request, "param", VXLAN),)
    switch = lab.namespace("switch")
    switch.batch(["link add bridge type bridge", "link set bridge up"])
    nodes = []
    async with AsyncExitStack() as stack:
        for number in (1, 2):
            place = lab.namespace(f"node{number}")
            addresses = (f"192.168.7.{number}/24 dev eth0", f"fd07::{number}/64 dev eth0 nodad")
            lab.wire(place, "eth0", switch, f"port{number}", *(f"address add {each}" for each in addresses))
            switch.ip(f"link set port{number} master bridge")
            with place.entered():
                plane = MeshKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
                await plane.open()
                stack.push_async_callback(plane.close)
                name, address, cidrs = f"node-{number}", f"192.168.7.{number}", (f"10.{number}.0.0", f"fd00:{number}::")
                own = here(name, address, *cidrs, encapsulations=ways)
                other = peer(3 - number, encapsulations=ways, underlay6=f"fd07::{3 - number}")
                assert (await plane.apply(Desired(own, [other]))).in_sync
                node = Node(number, place, ProbeKeeper(resync_seconds=None))
                await node.start()
                stack.push_async_callback(node.close)
            nodes.append(node)
        yield Pair(switch, *nodes)


@FAMILIES
async def test_all_is_well(pair: Pair, version: int) -> None:
    found = await pair.one.examine(2, version)
    assert found.passes
    assert (found.way, found.size) == (Egress("netloom_vxlan", "vxlan", 8472, 1450), 1450)
    assert pair.two.prober.answers == 1, "one packet there, one back"


@SILENCE
@FAMILIES
@pytest.mark.parametrize("pair", [NO_ENCAPSULATION], indirect=True)
async def test_without_tunnels(pair: Pair, version: int) -> None:
    found = await pair.one.examine(2, version)
    assert found.passes
    assert (found.way, found.size) == (Egress("eth0", "native", 0, 1500), 1500)
    pair.two.nft("", policy="drop")
    with pair.two.place.entered():
        await pair.two.prober.loop(4 if version == 4 else 16, 0.2)
    found = await pair.one.examine(2, version)
    assert (found.largest, found.host, found.forwards, found.peer_forwards) == (0, "answered", True, False)


async def test_a_bridge_that_holds_the_whole_block_is_in_nobodys_way(pair: Pair) -> None:
    for node in (pair.one, pair.two):
        node.place.ip("link add cni0 type bridge")
        node.place.ip("link set cni0 up")
        node.place.ip(f"address add 10.{node.number}.0.1/24 dev cni0")
        assert f"broadcast 10.{node.number}.0.255 dev cni0" in node.place.ip("route show table local")
    assert (await pair.one.examine(2, 4)).passes


@SILENCE
@FAMILIES
@pytest.mark.parametrize("side", [1, 2])
async def test_a_forward_hook_that_drops(pair: Pair, version: int, side: int) -> None:
    culprit = pair.one if side == 1 else pair.two
    culprit.nft("", policy="drop")
    with culprit.place.entered():
        await culprit.prober.loop(4 if version == 4 else 16, 0.2)
    found = await pair.one.examine(2, version)
    assert found.largest == 0
    assert found.host == "answered", "what the nodes send themselves passes"
    assert not found.seen
    assert (found.forwards, found.peer_forwards) == ((False, True) if side == 1 else (True, False))
    culprit.unfilter()
    assert (await pair.one.examine(2, version)).passes


@pytest.mark.parametrize("side", [1, 2])
async def test_a_forward_hook_that_refuses_is_named_by_its_address(pair: Pair, side: int) -> None:
    culprit = pair.one if side == 1 else pair.two
    culprit.nft("reject with icmpx admin-prohibited;")
    found = await pair.one.examine(2, 4)
    assert found.rejected is not None
    assert found.rejected.kind == "filter"
    assert found.rejected.by == parse_address("192.168.7.1" if side == 1 else "10.2.0.0")


@SILENCE
@FAMILIES
@pytest.mark.parametrize("side", [1, 2])
async def test_a_forward_hook_that_lets_pass_what_is_established_is_seen(pair: Pair, version: int, side: int) -> None:
    culprit = pair.one if side == 1 else pair.two
    culprit.nft("ct state established,related accept;")
    assert (await pair.one.examine(2, version)).passes
    culprit.place.exec("nft add chain inet foreign c { policy drop; }")
    found = await pair.one.examine(2, version)
    assert (found.largest, found.host) == (0, "answered"), "a pod's new connection does not pass either"
    assert found.forwards is (side == 2)


async def test_a_node_sees_that_its_forward_hook_lets_pass_only_what_is_established(pair: Pair) -> None:
    pair.one.nft("ct state established,related accept;")
    with pair.one.place.entered():
        assert await pair.one.prober.loop(4, 0.25)
        pair.one.place.exec("nft add chain inet foreign c { policy drop; }")
        assert await pair.one.prober.loop(4, 0.25) is None


@SILENCE
async def test_a_forward_hook_that_drops_only_answers(pair: Pair) -> None:
    pair.two.nft("ip saddr 10.2.0.0/16 drop;")
    found = await pair.one.examine(2, 4)
    assert (found.host, found.seen, found.forwards) == ("answered", True, True)


@SILENCE
@FAMILIES
async def test_a_firewall_between_the_nodes_that_drops_the_tunnels_port(pair: Pair, version: int) -> None:
    with pair.dropping("udp dport 8472", "port1"):
        found = await pair.one.examine(2, version)
    assert (found.largest, found.host, found.ping, found.forwards) == (0, "silent", True, True)
    assert not found.port_refused


@SILENCE
async def test_a_node_that_refuses_the_tunnels_port(pair: Pair) -> None:
    pair.two.nft("udp dport 8472 reject;", hook="input")
    found = await pair.one.examine(2, 4)
    assert (found.host, found.ping, found.port_refused) == ("silent", True, True)


@SILENCE
@FAMILIES
async def test_a_network_between_the_nodes_that_carries_less(pair: Pair, version: int) -> None:
    for port in ("port1", "port2"):
        pair.switch.ip(f"link set {port} mtu 1400")
    found = await pair.one.examine(2, version)
    assert not found.passes
    assert found.largest in (1350, 1354), "a bridge's port lets a VLAN tag more through"


@SILENCE
async def test_one_way_loss_is_told_by_the_one_whose_packets_vanish(pair: Pair) -> None:
    with pair.dropping("ip saddr 192.168.7.1 udp dport 8472", "port1"):
        found, theirs = await asyncio.gather(pair.one.examine(2, 4), pair.two.examine(1, 4))
    assert found.heard, "the peer's questions arrive, and only this node's do not"
    assert not theirs.heard
    assert found.largest == theirs.largest == 0


@SILENCE
async def test_a_peer_without_an_agent_is_told_from_packets_that_are_lost(pair: Pair) -> None:
    await pair.two.close()
    found = await pair.one.examine(2, 4)
    assert (found.largest, found.host) == (0, "refused")
    await pair.two.keeper.open()


@SILENCE
async def test_a_peer_that_is_gone(pair: Pair) -> None:
    pair.switch.ip("link set port2 down")
    found = await pair.one.examine(2, 4)
    assert (found.largest, found.host, found.ping) == (0, "silent", False)


async def test_a_peer_whose_pods_take_less_is_sent_no_more(pair: Pair) -> None:
    pair.two.place.ip("link set netloom_vxlan mtu 1400")
    pair.two.prober.mtu = 1400
    found = await pair.one.examine(2, 4)
    assert found.passes


async def test_without_a_device_only_the_nodes_own_way_is_looked_at(pair: Pair) -> None:
    pair.one.prober.attach(None)
    found = await pair.one.examine(2, 4)
    assert found.passes
    assert not found.device
    pair.two.nft("", policy="drop")
    assert (await pair.one.examine(2, 4)).passes, "it cannot see that"


@SILENCE
async def test_a_peer_without_a_device_says_so(pair: Pair) -> None:
    pair.two.prober.attach(None)
    found = await pair.one.examine(2, 4)
    assert (found.largest, found.host, found.forwards, found.peer_device) == (0, "answered", True, False)
    assert (await pair.two.examine(1, 4)).peer_device


async def test_what_anybody_sends_is_answered_by_measure_and_otherwise_ignored(pair: Pair) -> None:
    pair.one.prober.addresses = (parse_address("10.1.0.255"),)
    for junk in (b"", b"NLPR", bytes(2000)):
        pair.one.prober._take(junk)
    assert pair.one.prober.answers == 0
    asked = [pair.one.prober.ask(address_of(2, 4), 200, 0.5) for _ in range(400)]
    answers = await asyncio.gather(*asked)
    assert pair.two.prober.answers <= 201
    assert any(answers)
    while pair.two.prober._of_pods.take():
        pass
    with pair.one.place.entered():
        found = await pair.one.prober.ask_host(parse_address("10.2.0.0"), bytes(8), 2.0)
    assert found is not None, "who floods the pods' way does not silence the nodes' own"


async def test_the_device_is_made_once_found_again_and_repaired(lab: Lab) -> None:
    place = lab.namespace("node")
    node = ProbeNode((address_of(1, 4), address_of(1, 6)))
    with place.entered():
        for writes in (5, 0):
            keeper = ProbeKeeper(resync_seconds=None)
            await keeper.open()
            planned = await keeper.plan(node)
            report = await keeper.apply(node)
            assert sum(report.written.values()) == writes
            assert len(planned) == (6 if writes else 0)
            assert await keeper.plan(node) == []
            before = routes_on(place)
            await keeper.close()
        keeper = ProbeKeeper(resync_seconds=None)
        await keeper.open()
        await keeper.apply(node)
        task = asyncio.create_task(keeper.run())
        place.ip(f"link delete {DEVICE}")
        await eventually(lambda: routes_on(place) == before)
        place.ip(f"address add 10.1.0.77/24 dev {DEVICE}")
        await eventually(lambda: routes_on(place) == before and "inet" not in place.ip(f"address show dev {DEVICE}"))
        place.ip(f"link set {DEVICE} mtu 1000")  # below 1280 there is no IPv6, and above it begins anew
        await eventually(lambda: routes_on(place) == before and "inet" not in place.ip(f"address show dev {DEVICE}"))
        task.cancel()
        assert [change.text for change in await keeper.plan_cleanup()] == [f"ip link delete {DEVICE}"]
        await keeper.cleanup()
        await keeper.close()
        assert DEVICE not in place.ip("link show")


@pytest.mark.slow
async def test_a_renamed_device_is_heard_and_replaced(lab: Lab) -> None:
    place = lab.namespace("node")
    with place.entered():
        keeper = ProbeKeeper(resync_seconds=None)
        await keeper.open()
        await keeper.apply(ProbeNode((address_of(1, 4),)))
        task = asyncio.create_task(keeper.run())
        before = routes_on(place)
        await asyncio.sleep(1.5)  # until the kernel has told what it tells of a new device by itself
        place.ip(f"link set {DEVICE} name foreign")
        await eventually(lambda: routes_on(place) == before)
        assert "foreign" not in place.ip("-br link")
        task.cancel()
        await keeper.close()


async def test_that_the_device_is_to_forward_is_heard(lab: Lab) -> None:
    place = lab.namespace("node")
    places = [f"net/ipv4/conf/{name}/forwarding" for name in ("default", DEVICE)]
    place.sysctl("net/ipv4/ip_forward", "1")
    place.sysctl(places[0], "0")
    with place.entered():
        keeper = ProbeKeeper(resync_seconds=None)
        await keeper.open()
        await keeper.apply(ProbeNode((address_of(1, 4),)))
        assert place.sysctl(places[1]) == "0", "as pods' devices that are made now"
        task = asyncio.create_task(keeper.run())
        for wanted in ("1", "0") * 3:  # the kernel tells of a new device once or twice by itself
            place.sysctl(places[0], wanted)
            await eventually(lambda wanted=wanted: place.sysctl(places[1]) == wanted)  # type: ignore[misc]
        for _ in range(4):
            place.sysctl(places[1], "1")
            await eventually(lambda: place.sysctl(places[1]) == "0")
        task.cancel()
        await keeper.close()


async def test_what_is_in_doubt_is_looked_at_soon(lab: Lab) -> None:
    place = lab.namespace("node")
    with place.entered():
        keeper = ProbeKeeper(resync_seconds=None)
        await keeper.open()
        await keeper.apply(ProbeNode((address_of(1, 4),)))
        task = asyncio.create_task(keeper.run())
        before = routes_on(place)
        for _ in range(4):  # as above
            place.ip(f"route flush table local dev {DEVICE}")
            assert routes_on(place) != before
            keeper.look_again()
            await eventually(lambda: routes_on(place) == before)
        task.cancel()
        await keeper.close()


def routes_on(place: Namespace) -> str:
    with contextlib.suppress(RuntimeError):
        return place.ip(f"route show table local dev {DEVICE}") + place.ip(f"-6 route show table local dev {DEVICE}")
    return ""


async def test_a_machine_without_tun_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom.kernel.probe.tun.PATH", "/dev/net/none")
    place = lab.namespace("node")
    with place.entered():
        keeper = ProbeKeeper(resync_seconds=None)
        await keeper.open()
        report = await keeper.apply(ProbeNode((address_of(1, 4),)))
        assert report.in_sync
        assert "mount /dev/net/none into the agent's container" in keeper.device.lacking
        await keeper.close()


async def test_what_is_pending_can_be_counted_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks how things are does it beside the thread that works on the device."""
    begun: list[Iterator[Item]] = []

    class Refusing:
        def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
            begun.append(iter(part.pending()))
            next(begun[-1], None)
            return {0: KernelRefusal(errno.EPERM)}

    monkeypatch.setattr(probe_part, "look", lambda commands: ProbeFound())
    monkeypatch.setattr(tun, "open_tun", lambda name: os.open("/dev/null", os.O_RDONLY))
    part = ProbeDevice()
    part.want(ProbeNode((bytes([10, 1, 0, 255]), bytes([10, 1, 1, 255]))), Retries())
    thread = KernelThread("netloom-test")
    try:
        outcome = await part.update(Worker(cast(CommandSocket, Refusing()), thread), Attempt())
    finally:
        part.close()
        await thread.close()
    assert [each.item[0] for each in outcome.refused] == ["link", "route", "route"]
    assert [len(list(rest)) for rest in begun] == [0, 0, 1]
    assert part.count_pending() == 3
