"""Parts beside each other: each finds its own and nothing else, whatever the other does, and hears what concerns it."""

import asyncio
import contextlib
import errno
import importlib
import itertools
import pkgutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from netloom import kernel
from netloom.kernel import ownership
from netloom.kernel.endpoints.endpoint import Endpoints
from netloom.kernel.endpoints.part import EndpointsPart
from netloom.kernel.keeper import retries
from netloom.kernel.keeper.retries import Retries
from netloom.kernel.masquerade.part import MasqueradeTable
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.node_network_part import NodeNetworkKeeper, NodeNetworkPart
from netloom.kernel.mesh.row_readers import route_is_ours
from netloom.kernel.mesh.rows import DeviceState
from netloom.kernel.mesh.rows_part import MeshRows
from netloom.kernel.netlink import wire
from netloom.kernel.ownership import ENDPOINTS, MESH, PROBE, Ownership
from tests.kernel.conftest import Planes
from tests.kernel.faults import FaultyCommands
from tests.kernel.meshes import becomes, eventually, here, many, mesh, peer, running
from tests.kernel.netns import Namespace
from tests.kernel.nft import masquerading
from tests.kernel.pods import PodKeeper, PodRoutes, Pods
from tests.kernel.wired_pods import endpoints_of

SHOW = "route show proto 158"
PODS: Pods = {f"10.1.0.{number}": f"netloom_p{number}" for number in (5, 6)}


@pytest.fixture
def wired(node: Namespace) -> Namespace:
    """A node with the devices of two pods."""
    for number in (5, 6):
        node.ip(f"link add netloom_p{number} type veth peer name far{number}")
        node.ip(f"link set netloom_p{number} up")
        node.ip(f"link set far{number} up")
    return node


@contextlib.asynccontextmanager
async def pods_of(node: Namespace) -> AsyncIterator[tuple[PodKeeper, PodRoutes]]:
    part = PodRoutes(node)
    keeper = PodKeeper(part)
    await keeper.open()
    try:
        yield keeper, part
    finally:
        await keeper.close()


async def test_routes_to_other_nodes_pods_are_told_to_the_mesh_alone(
    node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be they written or deleted; a peer's single address, which a pod here may have, to all."""
    heard: list[type] = []
    for part in (EndpointsPart, NodeNetworkPart, MeshRows):

        def hear(self: Any, kind: int, flags: int, buffer: bytes, *place: int, told: Any = part.hear) -> None:
            if kind in (wire.RTM_NEWROUTE, wire.RTM_DELROUTE) and route_is_ours(buffer, place[0]):
                heard.append(type(self))  # the kernel may add routes of its own meanwhile
            told(self, kind, flags, buffer, *place)

        monkeypatch.setattr(part, "hear", hear)
    plane = await planes.open()
    await plane.apply(mesh())
    async with contextlib.AsyncExitStack() as stack:
        around = NodeNetworkKeeper(lambda: None, resync_seconds=None)
        await around.open()
        stack.push_async_callback(around.close)
        keeper = await stack.enter_async_context(endpoints_of(node))
        await keeper.apply(Endpoints())
        await around.around()
        for each in (plane, keeper, around):
            await stack.enter_async_context(running(each))
        heard.clear()
        desired = mesh(*range(2, 50))
        await plane.apply(desired)
        node.batch([f"route delete 10.{number}.0.0/24" for number in range(2, 50)])
        await eventually(lambda: plane.stats["newroute"] == 2 * 48 + 48)
        desired.set_peer(peer(60, "10.60.0.9/32"))
        await plane.apply(desired)
        await eventually(lambda: {EndpointsPart, NodeNetworkPart} <= set(heard))
    assert Counter(heard) == {MeshRows: 48, EndpointsPart: 1, NodeNetworkPart: 1}


def test_no_two_parts_own_the_same() -> None:
    declared = {name: each for name, each in vars(ownership).items() if isinstance(each, Ownership)}
    assert len(declared) >= 8
    for one, other in itertools.combinations(declared.values(), 2):
        for kind in ("routes", "nexthops", "rules"):
            mine, theirs = getattr(one, kind), getattr(other, kind)
            assert not (mine and theirs) or mine.stop <= theirs.start or theirs.stop <= mine.start
        assert not set(one.tables) & set(other.tables)
        assert not set(one.chains) & set(other.chains)
    names = {"netloom_vxlan": MESH, "netloom_g7000": MESH, "netloom_probe": PROBE, "netloom_pa2b3c4": ENDPOINTS}
    for name, owner in names.items():
        assert [each for each in declared.values() if each.link(name)] == [owner]


def test_every_part_says_what_it_owns_by_one_of_the_declarations() -> None:
    """What it owns nothing of, it only reads."""
    declared = [each for each in vars(ownership).values() if isinstance(each, Ownership)]
    found = dict(_parts())
    assert len(found) >= 10
    for name, owns in found.items():
        assert owns in declared or owns == Ownership(), f"{name} owns what nobody declared"
    assert [each for each in declared if each not in found.values()] == [], "nobody's"


def _parts() -> Iterator[tuple[str, Ownership]]:
    for module in pkgutil.walk_packages(kernel.__path__, "netloom.kernel."):
        for name, each in vars(importlib.import_module(module.name)).items():
            owns = getattr(each, "owns", None)
            if isinstance(each, type) and each.__module__ == module.name and isinstance(owns, Ownership):
                yield name, owns


def test_what_is_pending_is_counted_as_it_is_listed() -> None:
    rows, table = MeshRows(Mesh(), retain_unknown=False), MasqueradeTable()
    rows.mesh.set_device_state(DeviceState({VXLAN: 7}))
    rows.want(many(5), Retries())
    table.want(masquerading(), Retries())
    for part in (rows, table):
        assert part.count_pending() == len(list(part.pending())) > 1


async def test_each_finds_its_own_in_whatever_order_they_come_and_go(wired: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    async with pods_of(wired) as (pods, part):
        await pods.apply(PODS)
        assert part.commands == ["route add 10.1.0.5 dev netloom_p5", "route add 10.1.0.6 dev netloom_p6"]
    whole = wired.state()
    assert whole.count(" proto 158 scope link metric 65536") == 2

    for mesh_first in (True, False):
        async with pods_of(wired) as (pods, part):
            if not mesh_first:
                await pods.apply(PODS)
            again = await planes.open()
            report = await again.apply(mesh())
            await pods.apply(PODS)
            assert report.written == {}
            assert part.commands == []
            assert wired.state() == whole
            async with running(again), running(pods):
                wired.batch([f"route delete {each.split()[0]}" for each in wired.ip(SHOW).splitlines()])
                await becomes(wired.state, whole)
            assert sorted(part.commands) == ["route add 10.1.0.5 dev netloom_p5", "route add 10.1.0.6 dev netloom_p6"]
        await again.close()

    async with pods_of(wired) as (pods, _part):
        plane = await planes.open()
        await plane.cleanup()
        assert "netloom_vxlan" not in wired.state()
        assert wired.state().count(" proto 158 scope link metric 65536") == 2
        await plane.apply(mesh())
        await pods.apply({})
        assert " metric 65536" not in wired.state()
        assert wired.owned().count("route ") == 4, "the mesh's two peers, both families"


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (OSError(errno.EBUSY, "injected"), "[Errno 16] injected"),
        (KeyError("fault"), "it crashed: KeyError('fault'). It is tried again; the log has the details"),
    ],
)
async def test_one_that_cannot_read_does_not_stop_another(wired: Namespace, fails: Exception, told: str) -> None:
    broken, sound = PodRoutes(wired), PodRoutes(wired)
    broken.fail = fails
    keeper = PodKeeper(broken, sound)
    await keeper.open()
    try:
        report = await keeper.apply(PODS)
        assert [(each.kind, each.error) for each in report.failures] == [("dump", told)]
        assert wired.state().count(" metric 65536") == 2
        broken.fail = None
        async with running(keeper):
            await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
    finally:
        await keeper.close()


async def test_what_cannot_be_read_when_a_resync_is_due_is_not_tried_without_a_pause(wired: Namespace) -> None:
    part = PodRoutes(wired)
    keeper = PodKeeper(part, resync_seconds=0.3)
    await keeper.open()
    try:
        await keeper.apply(PODS)
        part.fail = OSError(errno.EBUSY, "injected")
        async with running(keeper):
            await eventually(lambda: bool(keeper.report.failures))
            before = part.reads
            await asyncio.sleep(0.6)
            assert part.reads - before < 30, "two resyncs and some attempts by back-off"
            part.fail = None
            await eventually(lambda: keeper.report.in_sync, lambda: str(keeper.report))
    finally:
        await keeper.close()


OTHER = ("dump", "other routes to pods")


async def test_one_that_cannot_be_read_waits_whatever_comes_and_holds_nobody_up(
    wired: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events do not have it tried again, nor does what it wanted to do by now; what is due beside it is done."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 30.0)
    broken, sound = PodRoutes(wired), PodRoutes(wired, OTHER)
    keeper = PodKeeper(broken, sound)
    await keeper.open()
    try:
        await keeper.apply(PODS)
        broken.fail, broken.at = OSError(errno.EBUSY, "injected"), 0.0
        async with running(keeper):
            await eventually(lambda: bool(keeper.report.failures))
            before = broken.reads
            for _ in range(10):
                sound.stirs, done = 2, len(sound.commands)
                wired.ip("route delete 10.1.0.5 proto 158")
                await eventually(lambda done=done: len(sound.commands) > done and not sound.stirs)  # type: ignore[misc]
            assert broken.reads == before
            broken.fail = None
            await keeper.apply(PODS)
            assert keeper.report.in_sync, "who has something new to say need not wait"
    finally:
        await keeper.close()


async def test_what_is_left_to_be_done_needs_no_event(wired: Namespace) -> None:
    """Whoever runs it may sleep already, with nothing to wake up for."""
    part = PodRoutes(wired)
    keeper = PodKeeper(part)
    await keeper.open()
    try:
        await keeper.apply(PODS)
        async with running(keeper):
            part.stirs = 10
            wired.ip("route delete 10.1.0.5 proto 158")
            await eventually(lambda: not part.stirs and not part.due, lambda: f"{part.stirs} rounds are left")

            part.routes.unwant("10.1.0.6")
            part.refusals = 1
            await keeper.prune()
            await eventually(lambda: "10.1.0.6" not in wired.ip(SHOW), lambda: str(keeper.report))

            part.at = time.monotonic() + 0.1
            await keeper.apply({"10.1.0.5": "netloom_p5"})
            await eventually(lambda: part.at == float("inf"), "asked again at its time")
    finally:
        await keeper.close()


async def test_an_entry_that_is_fought_over_waits_from_the_event_that_shows_it(
    wired: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are taken in during a pass: what they show has to wait in that very pass."""
    monkeypatch.setattr(retries, "FREE_REPAIRS", 0)
    monkeypatch.setattr(retries, "FIRST_SECONDS", 30.0)
    part = PodRoutes(wired)
    keeper = PodKeeper(part)
    await keeper.open()
    try:
        await keeper.apply(PODS)
        async with running(keeper):
            done = len(part.commands)
            wired.ip("route delete 10.1.0.5 proto 158")
            await eventually(lambda: bool(keeper.report.contended), lambda: str(keeper.report))
            assert keeper.report.pending == 1
            assert len(part.commands) == done
    finally:
        await keeper.close()


class Unwalked(dict):  # type: ignore[type-arg]
    """Counts how often all of it is walked."""

    walks = 0

    def items(self):  # type: ignore[no-untyped-def]
        self.walks += 1
        return super().items()

    def values(self):  # type: ignore[no-untyped-def]
        self.walks += 1
        return super().values()


@pytest.mark.parametrize("encapsulations", [(VXLAN,), (NO_ENCAPSULATION, VXLAN)], ids=str)
async def test_what_happens_to_a_pods_device_walks_over_no_peers(
    wired: Namespace, planes: Planes, encapsulations: tuple[object, ...]
) -> None:
    commands = FaultyCommands()
    plane = await planes.open(commands=lambda: commands)
    await plane.apply(
        Desired(
            here(encapsulations=encapsulations),
            [peer(number, encapsulations=encapsulations) for number in range(2, 50)],
        )
    )  # type: ignore[arg-type]
    fib_lookups = plane._mesh.fib._results = Unwalked(plane._mesh.fib._results)
    nexthops = plane._mesh.nexthops.desired = Unwalked(plane._mesh.nexthops.desired)
    asked, written, compared = commands.asked, plane.stats, plane.report.compared
    async with running(plane):
        wired.ip("address add 169.254.1.1/32 dev netloom_p5")
        wired.ip("address delete 169.254.1.1/32 dev netloom_p5")
        wired.ip("link add pod7 type veth peer name far7")
        wired.ip("link set far7 up")
        wired.ip("link set pod7 up")
        wired.ip("address add 10.77.0.1/32 dev pod7")
        wired.ip("link set pod7 down")
        wired.ip("link delete pod7")
        # A change of ours is done after all of these were read.
        wired.ip("route delete 10.2.0.0/24")
        await eventually(lambda: plane.report.repaired == 1)
    assert (fib_lookups.walks, nexthops.walks) == (0, 0)
    assert commands.asked == asked, "nor was the kernel asked for a way"
    assert plane.stats == written | {"newroute": written["newroute"] + 1}
    assert plane.report.compared == compared


async def test_the_end_of_a_fight_is_told(node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "QUIET_SECONDS", 1.0)
    told: list[MeshReport] = []
    plane: MeshKeeper = await planes.open(on_report=told.append)
    await plane.apply(mesh())
    async with running(plane):
        for _ in range(30):
            with contextlib.suppress(RuntimeError):
                node.ip("route delete 10.2.0.0/24")
            await eventually(lambda: "10.2.0.0/24" in node.ip("route") or bool(plane.report.contended))
            if plane.report.contended:
                break
        await eventually(lambda: told[-1].contended != ())
        written = plane.stats["newroute"]
        await eventually(lambda: told[-1].contended == (), lambda: str(told[-1]))
        assert plane.stats["newroute"] <= written + 1, "the route that was held back"
        assert told[-1].in_sync


async def test_a_large_mesh_beside_pods_is_read_without_them(wired: Namespace, planes: Planes) -> None:
    async with pods_of(wired) as (pods, _part):
        await pods.apply(PODS)
        plane = await planes.open()
        desired = many(300)
        await plane.apply(desired)
        again = await planes.open()
        assert (await again.apply(desired)).written == {}
        assert again._mesh.routes.kernel.keys() == desired_routes(desired)


def desired_routes(desired: Desired) -> set[object]:
    return {prefix for each in desired.peers.values() for prefix in each.cidrs}
