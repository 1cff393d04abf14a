"""Every request type refused with every plausible errno, once and for good; answers and dumps that go wrong.

A change from one mesh to another needs all ten types of requests. Whatever is refused: the rest is done, the refusal
is reported, foreign state is untouched, and once the fault is gone the kernel holds exactly what it would hold
without it.
"""

import errno
import time
from types import SimpleNamespace

import pytest

from netloom.kernel.keeper import retries
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.mesh.row_messages import encode_nexthops
from tests.economy import first
from tests.kernel.conftest import Planes
from tests.kernel.faults import FOR_EVER, FaultyCommands
from tests.kernel.meshes import becomes, eventually, here, peer, running
from tests.kernel.netns import Namespace

ERRNOS = ["EEXIST", "ENOENT", "EINVAL", "ENOBUFS", "EPERM", "ENETUNREACH", "ENODEV", "EBUSY"]

NEXTHOP = 1852444659
"""Node 2's IPv4 nexthop object: a hash of its name."""

KIND_OF = {
    "newlink": "link",
    "dellink": "link",
    "newaddr": "address",
    "deladdr": "address",
    "newneigh": "neighbour",
    "delneigh": "neighbour",
    "newnexthop": "nexthop",
    "delnexthop": "nexthop",
    "newroute": "route",
    "delroute": "route",
}

BEFORE = Desired(here(mtu=1400), [peer(2), peer(3)])


def after() -> Desired:
    """One peer left, one stayed, one came; another MTU; another own address."""
    return Desired(here("node-1", "192.168.7.1", "10.1.0.0", "fd00:11::"), [peer(3), peer(4)])


@pytest.fixture
def foreign(node: Namespace) -> Namespace:
    """A node with something on it that is not ours."""
    node.ip("nexthop add id 77 via 192.168.7.77 dev eth0")
    node.ip("route add 10.78.0.0/24 nhid 77")
    return node


class Story:
    """From BEFORE to `after()`, with a fault on the way; what the outcome has to be is taken from a run without."""

    def __init__(self, node: Namespace, plane: MeshKeeper, commands: FaultyCommands, wanted: str) -> None:
        self.node, self.plane, self.commands, self.wanted = node, plane, commands, wanted

    @classmethod
    async def begin(cls, node: Namespace, planes: Planes) -> "Story":
        commands: list[FaultyCommands] = []

        def make() -> FaultyCommands:
            commands.append(FaultyCommands())
            return commands[-1]

        # With resyncs by time: a kernel that says "no such route" of a route that is there is believed at first.
        plane = await planes.open(commands=make, resync_seconds=0.1)
        await plane.apply(after())
        wanted = node.state()
        await plane.cleanup()
        return cls(node, plane, commands[0], wanted)

    async def reset(self) -> None:
        self.commands.heal()
        await self.plane.apply(BEFORE)
        self.node.ip("link add netloom_v1 type bridge")

    async def ends_well(self) -> None:
        await becomes(self.node.state, self.wanted)
        await eventually(lambda: self.plane.report.in_sync, lambda: str(self.plane.report))


@pytest.mark.slow
@pytest.mark.parametrize("request_type", KIND_OF)
async def test_refused_once(foreign: Namespace, planes: Planes, request_type: str) -> None:
    story = await Story.begin(foreign, planes)
    for name in ERRNOS:
        await story.reset()
        refused = story.commands.refused
        story.commands.refuse(request_type, getattr(errno, name), times=1)
        async with running(story.plane):
            await story.plane.apply(after())
            await story.ends_well()
        assert story.commands.refused == refused + 1, "the fault was met"


@pytest.mark.slow
@pytest.mark.parametrize("request_type", KIND_OF)
async def test_refused_for_good(foreign: Namespace, planes: Planes, request_type: str) -> None:
    story = await Story.begin(foreign, planes)
    for name in ERRNOS:
        await story.reset()
        story.commands.refuse(request_type, getattr(errno, name))
        report = await story.plane.apply(after())
        state = story.node.state()
        if request_type == "delroute":
            assert "10.2.0.0/24" not in state, "its nexthop went, and took it along"
        elif not (request_type.startswith("del") and name in ("ENOENT", "ENODEV")):
            assert KIND_OF[request_type] in {failure.kind for failure in report.failures}, name
            assert all(failure.errno == getattr(errno, name) for failure in report.failures)
        assert "10.78.0.0/24 nhid 77" in state
        if KIND_OF[request_type] in ("neighbour", "address"):
            assert "10.4.0.0/24 nhid" in state, "what does not depend on it is done"
            assert "10.2.0.0/24" not in state
        story.commands.heal()
        async with running(story.plane):
            await story.ends_well()


@pytest.mark.parametrize("request_type", ["newlink", "newaddr", "newneigh", "newnexthop", "newroute"])
async def test_a_timer_that_ends_early_loses_no_retry(
    node: Namespace, planes: Planes, request_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No resync and no event wakes it up: what is not tried when its time has come is never tried."""
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: time.monotonic() - 0.002))
    commands = FaultyCommands()
    plane = await planes.open(commands=lambda: commands)
    monkeypatch.setattr(plane, "_listen", plane._drain)
    plane._ignore()
    commands.refuse(request_type, errno.EBUSY, times=1)
    async with running(plane):
        report = await plane.apply(after())
        assert [failure.kind for failure in report.failures] == [KIND_OF[request_type]]
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    assert commands.refused == 1


async def test_one_refused_nexthop_does_not_stop_the_others(
    node: Namespace, planes: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_SECONDS", 10.0)  # not over before the second look, however busy the machine
    story = await Story.begin(node, planes)
    story.commands.refuse("newnexthop", errno.EINVAL, times=1)
    written = story.plane.stats["newroute"]
    desired = Desired(here(), [peer(n, f"10.{n}.0.0/24") for n in range(2, 12)])
    report = await story.plane.apply(desired)
    assert [(f.kind, f.errno) for f in report.failures] == [("nexthop", errno.EINVAL)]
    held_back = report.failures[0].peer
    routes = node.ip("route show proto 158")
    assert len(routes.splitlines()) == 9
    assert f"10.{held_back.removeprefix('node-')}.0.0/24" not in routes
    tried = story.plane.stats["newroute"] - written
    desired.set_peer(peer(30, "10.30.0.0/24"))
    await story.plane.apply(desired)
    assert story.plane.stats["newroute"] - written == tried + 1, "a route waits for its nexthop's back-off"


@pytest.mark.parametrize("request_type", ["newroute", "delneigh", "newneigh"])
async def test_what_keeps_failing_is_tried_less_and_less_often(
    node: Namespace, planes: Planes, request_type: str
) -> None:
    story = await Story.begin(node, planes)
    await story.plane.apply(BEFORE)
    story.commands.refuse(request_type, errno.EPERM)
    async with running(story.plane):
        await story.plane.apply(after())
        await eventually(lambda: max((f.attempts for f in story.plane.report.failures), default=0) >= 4)
        # Two entries (one of each family) of one peer; each attempt doubles the delay.
        assert story.commands.refused <= 12
        assert not story.plane.report.in_sync


async def test_what_is_refused_shows_that_more_is_wrong(node: Namespace, planes: Planes) -> None:
    """A loss that no event told of (here: our own socket's doing) is found by the first refusal it causes."""
    plane = await planes.open()
    desired = Desired(here(), [peer(2, "10.2.0.0/24"), peer(3, "10.3.0.0/24")])
    await plane.apply(desired)
    before = node.state()
    deletions = encode_nexthops([(NEXTHOP, None, None)])
    assert plane._connect().commands.execute(deletions) == {}
    assert node.state() != before
    desired.set_peer(peer(2, "10.2.0.0/24", "10.22.0.0/24"))
    await plane.apply(desired)
    async with running(plane):
        await eventually(lambda: plane.report.in_sync, lambda: str(plane.report))
    desired.set_peer(peer(2, "10.2.0.0/24"))
    await plane.apply(desired)
    assert node.state() == before


@pytest.mark.parametrize("after_doing", first(1, [True, False]))
async def test_lost_answers(foreign: Namespace, planes: Planes, after_doing: bool) -> None:
    story = await Story.begin(foreign, planes)
    for skipped in range(6):
        await story.reset()
        waits = skipped

        def lose_the_next_but(commands: FaultyCommands = story.commands) -> None:
            nonlocal waits
            if waits == 0:
                commands.lose_answers(1, after_doing=after_doing)
            waits -= 1

        story.commands.before_batch = lose_the_next_but
        async with running(story.plane):
            await story.plane.apply(after())
            await story.ends_well()


@pytest.mark.parametrize("times", [1, 3, 100])
async def test_interrupted_dumps(foreign: Namespace, planes: Planes, times: int) -> None:
    story = await Story.begin(foreign, planes)
    await story.reset()
    story.commands.interrupt_dumps(times)
    async with running(story.plane):
        await story.plane.apply(after())
        await story.ends_well()


@pytest.mark.parametrize("name", ["EBUSY", "ENOBUFS", "EPERM"])
async def test_failing_dumps_are_reported_and_nothing_is_written_blindly(
    foreign: Namespace, planes: Planes, name: str
) -> None:
    story = await Story.begin(foreign, planes)
    await story.reset()
    before = story.node.state()
    story.commands.fail_dumps(getattr(errno, name), FOR_EVER)
    report = await story.plane.apply(after())
    assert [failure.kind for failure in report.failures] == ["dump"]
    assert story.node.state() == before
    story.commands.heal()
    async with running(story.plane):
        await story.ends_well()


@pytest.mark.parametrize("batch", first(2, range(8)))
async def test_the_device_is_deleted_between_two_batches(foreign: Namespace, planes: Planes, batch: int) -> None:
    story = await Story.begin(foreign, planes)
    await story.reset()
    countdown = batch

    def delete() -> None:
        nonlocal countdown
        if countdown == 0:
            foreign.ip("link delete netloom_vxlan")
        countdown -= 1

    story.commands.before_batch = delete
    async with running(story.plane):
        await story.plane.apply(after())
        await story.ends_well()
    assert countdown < 0


@pytest.mark.parametrize("name", ["ENOBUFS", "EPERM", "EBUSY"])
async def test_a_mesh_whose_ways_cannot_be_asked_for_stays_and_is_made_when_they_can(
    foreign: Namespace, planes: Planes, name: str
) -> None:
    """Which way a peer is on decides where its rows go: without an answer none is moved."""
    story = await Story.begin(foreign, planes)
    await story.reset()
    native = Desired(
        here(encapsulations=(VXLAN, NO_ENCAPSULATION)),
        [peer(n, f"10.{n}.0.0/24", encapsulations=(NO_ENCAPSULATION,)) for n in (5, 6)],
    )
    before = foreign.ip("route show proto 158")
    story.commands.fail_questions(getattr(errno, name), FOR_EVER)
    report = await story.plane.apply(native)
    assert [failure.kind for failure in report.failures] == ["dump"]
    assert foreign.ip("route show proto 158") == before
    story.commands.heal()

    def devices() -> list[str]:
        return [line.split(" dev ")[1].split()[0] for line in foreign.ip("route show proto 158").splitlines()]

    async with running(story.plane):
        await eventually(lambda: devices() == ["eth0", "eth0"], lambda: str(devices()))
