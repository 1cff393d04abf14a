"""Leader election: whatever the network, the API server and the clocks do, two never work at the same time.

Most of it runs in virtual time against a lease in memory whose requests are delayed, lost, or carried out without an
answer. What needs a real process (a blocked event loop, a frozen process) gets one.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from netloom.api.coordination import LEASES, Lease, LeaseSpec
from netloom.api.meta import ObjectMeta
from netloom.runtime.client import Api
from netloom.runtime.clock import ServerClock
from netloom.runtime.errors import AlreadyExists, Conflict, NotFound, Unavailable
from netloom.runtime.leader import EXIT_LEASE_LOST, MARGIN, LeaderElector, LeaseLost
from netloom.runtime.wire import encode
from tests.economy import seeds
from tests.runtime import scripted, virtual
from tests.runtime.scripted import ScriptedApi, until
from tests.runtime.virtual import in_virtual_time, on_both_loops

PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
LEASE, DEADLINE, RETRY = 15.0, 10.0, 2.0


@dataclass
class LeaseServer:
    """One Lease behind compare-and-swap, and a network between it and each client."""

    lease: Lease | None = None
    version: int = 0
    network: Callable[[str], tuple[float, float]] = lambda _who: (0.0, 0.0)
    """Seconds that a request of this client takes to the server and its answer back; infinity is a loss."""
    requests: int = 0

    def client(self, who: str) -> "LeaseClient":
        return LeaseClient(self, who)

    def write(self, lease: Lease) -> Lease:
        self.version += 1
        meta = msgspec.structs.replace(lease.metadata, resource_version=str(self.version))
        self.lease = msgspec.structs.replace(lease, metadata=meta)
        return self.lease


@dataclass
class LeaseClient:
    """What the elector uses of `Api`."""

    server: LeaseServer
    who: str
    clock: ServerClock = field(default_factory=ServerClock)

    async def get(self, _res: object, _name: str, _namespace: str) -> Lease:
        return await self._send(self._get)

    async def create(self, _res: object, lease: Lease) -> Lease:
        return await self._send(lambda: self._create(lease))

    async def replace(self, _res: object, lease: Lease) -> Lease:
        return await self._send(lambda: self._replace(lease))

    async def _send(self, act: Callable[[], Lease]) -> Lease:
        there, back = self.server.network(self.who)
        self.server.requests += 1

        async def carry() -> Lease:
            await asyncio.sleep(there)
            return act()

        try:
            async with asyncio.timeout(15.0):
                if there == float("inf"):
                    await _pass(there)  # lost: nothing is left of it when its sender gives it up
                # One that its sender gave up may still be carried out: the loop holds its task until then.
                task = asyncio.ensure_future(carry())
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                answer = await asyncio.shield(task)
                await _pass(back)
                return answer
        except TimeoutError:
            raise Unavailable(0, "Timeout", "no answer") from None

    def _get(self) -> Lease:
        if self.server.lease is None:
            raise NotFound(404, "NotFound", "no lease")
        return self.server.lease

    def _create(self, lease: Lease) -> Lease:
        if self.server.lease is not None:
            raise AlreadyExists(409, "AlreadyExists", "it is there")
        return self.server.write(lease)

    def _replace(self, lease: Lease) -> Lease:
        if self._get().metadata.resource_version != lease.metadata.resource_version:
            raise Conflict(409, "Conflict", "somebody was faster")
        return self.server.write(lease)


async def _pass(seconds: float) -> None:
    if seconds == float("inf"):
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(seconds)


@dataclass
class Stage:
    """Who works when, in true time."""

    working: set[str] = field(default_factory=set)
    history: list[tuple[float, str, str]] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)

    def work(self, who: str, farewell: float = 0.0) -> Callable[[], Awaitable[None]]:
        """Work that takes `farewell` seconds to end when cancelled."""

        async def lead() -> None:
            self._begin(who)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                try:
                    await asyncio.sleep(farewell)
                finally:
                    self._end(who)

        return lead

    def _begin(self, who: str) -> None:
        now = asyncio.get_running_loop().time()
        if self.working:
            self.overlaps.append(f"at {now}, {who} begins while {self.working} works")
        self.working.add(who)
        self.history.append((now, who, "begins"))

    def _end(self, who: str) -> None:
        self.working.discard(who)
        self.history.append((asyncio.get_running_loop().time(), who, "ends"))


def elector(server: LeaseServer, who: str, stage: Stage, clock: Callable[[], float] | None = None) -> LeaderElector:
    return LeaderElector(
        server.client(who),  # type: ignore[arg-type]
        "operator",
        "kube-system",
        who,
        lease_seconds=LEASE,
        renew_deadline=DEADLINE,
        retry=RETRY,
        clock=clock or asyncio.get_running_loop().time,
        exit=stage.exits.append,
    )


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def now() -> float:
    return asyncio.get_running_loop().time()


async def passes(seconds: float) -> None:
    """Virtual time passes."""
    await asyncio.sleep(seconds)


@in_virtual_time
async def test_the_first_leads_at_once_and_the_second_when_the_first_gives_it_back():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    await passes(1)
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(60)
    await end(one)
    await passes(RETRY + 0.1)
    assert [(who, what) for _, who, what in stage.history] == [("one", "begins"), ("one", "ends"), ("two", "begins")]
    assert stage.history[0][0] == 0.0
    assert server.lease is not None
    assert server.lease.spec.lease_transitions == 1
    assert server.lease.spec.lease_duration_seconds == 15
    await end(two)
    assert server.lease.spec.holder_identity == ""
    # 63 s: a renewal each 2 s, a look each 2 s, and some at the ends.
    assert server.requests <= 2 * 63 / RETRY + 10


@in_virtual_time
async def test_a_holder_that_dies_is_succeeded_after_its_lease():
    server, stage = LeaseServer(), Stage()
    server.write(Lease(metadata=ObjectMeta(name="operator"), spec=LeaseSpec(holder_identity="dead_1")))
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(LEASE - 0.1)
    assert not stage.working
    await passes(RETRY)
    assert stage.working == {"two"}
    await end(two)


@in_virtual_time
async def test_a_holder_without_answers_has_ended_before_another_begins():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one", farewell=4.0)))
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(31)
    server.network = lambda who: (float("inf"), 0.0) if who == "one" else (0.0, 0.0)
    await passes(60)
    with pytest.raises(LeaseLost, match="could not be renewed in time"):
        await one
    (_, _, _), (ended, _, what), (begun, who, _) = stage.history
    assert (what, who) == ("ends", "two")
    assert ended < begun
    assert ended <= 31 + DEADLINE + 4.0
    assert not stage.exits
    await end(two)


@in_virtual_time
async def test_a_lease_whose_answers_are_lost_is_given_up_all_the_same():
    """The renewals arrive, and nobody else could lead; but the holder cannot know."""
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    await passes(31)
    server.network = lambda _who: (0.0, float("inf"))
    await passes(DEADLINE + 1)
    assert not stage.working
    with pytest.raises(LeaseLost):
        await one


@in_virtual_time
async def test_a_short_outage_is_survived():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(31)
    server.network = lambda _who: (float("inf"), 0.0)
    await passes(4)
    server.network = lambda _who: (0.0, 0.0)
    await passes(60)
    assert [(who, what) for _, who, what in stage.history] == [("one", "begins")]
    await end(one, two)


@in_virtual_time
async def test_work_that_does_not_end_ends_the_process_before_the_lease():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one", farewell=1e6)))
    await passes(31)
    server.network = lambda _who: (float("inf"), 0.0)
    await passes(DEADLINE + 1)
    assert not stage.exits
    # The watchdog is a thread of its own and looks every half second of real time at the virtual clock.
    await passes(LEASE - DEADLINE)
    _block_until(lambda: stage.exits)
    assert stage.exits == [EXIT_LEASE_LOST]
    one.cancel()


def _block_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits in real time for a thread, the event loop standing still."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.01)


@in_virtual_time
async def test_the_lease_is_renewed_until_slow_work_has_ended():
    """A graceful stop that takes longer than the lease: nobody may begin meanwhile."""
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one", farewell=40.0)))
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(10)
    one.cancel()
    await passes(20)
    one.cancel()  # impatience does not help
    await passes(60)
    assert one.cancelled()
    assert [(who, what) for _, who, what in stage.history] == [("one", "begins"), ("one", "ends"), ("two", "begins")]
    await end(two)


@in_virtual_time
async def test_work_that_returns_gives_the_lease_back():
    server, stage = LeaseServer(), Stage()

    async def work() -> None:
        await passes(5)

    await elector(server, "one", stage).run(work)
    assert server.lease is not None
    assert server.lease.spec.holder_identity == ""


@in_virtual_time
async def test_the_lease_is_given_back_though_a_renewal_was_cut_off():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    await passes(1)
    server.network = lambda who: (0.2, 0.2)
    await passes(RETRY - 1 + 0.3)  # written, and its answer is on the way
    await end(one)
    assert server.lease is not None
    assert server.lease.spec.holder_identity == ""


@in_virtual_time
async def test_work_that_crashes_gives_the_lease_back_and_is_heard():
    server, stage = LeaseServer(), Stage()

    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await elector(server, "one", stage).run(work)
    assert server.lease is not None
    assert server.lease.spec.holder_identity == ""


@in_virtual_time
async def test_a_deleted_lease_ends_the_holder_and_is_waited_for_by_those_who_saw_it():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one", farewell=3.0)))
    two = asyncio.create_task(elector(server, "two", stage).run(stage.work("two")))
    await passes(30)
    server.lease = None
    await passes(RETRY + 3.1)
    assert not stage.working
    with pytest.raises(LeaseLost, match="deleted"):
        await one
    await passes(LEASE)
    assert stage.working == {"two"}
    await end(two)


@in_virtual_time
async def test_a_lease_taken_by_force_ends_the_holder_at_its_next_renewal():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    await passes(30)
    assert server.lease is not None
    spec = msgspec.structs.replace(server.lease.spec, holder_identity="kubectl-edit")
    server.write(msgspec.structs.replace(server.lease, spec=spec))
    with pytest.raises(LeaseLost, match="taken by kubectl-edit"):
        async with asyncio.timeout(RETRY + 1):
            await one
    assert not stage.working
    assert server.lease.spec.holder_identity == "kubectl-edit"


@in_virtual_time
async def test_a_lost_lease_ends_a_term_in_one_line_and_the_next_is_competed_for_at_once():
    """Taken, deleted, out of reach: an ordinary event each, which no supervisor hears of."""
    server, stage = LeaseServer(), Stage()
    with structlog.testing.capture_logs() as said:
        one = asyncio.create_task(elector(server, "one", stage).compete(stage.work("one")))
        await passes(31)
        assert server.lease is not None
        spec = msgspec.structs.replace(server.lease.spec, holder_identity="kubectl-edit")
        server.write(msgspec.structs.replace(server.lease, spec=spec))
        await passes(LEASE + 2 * RETRY)
        server.lease = None
        await passes(2 * RETRY)
        server.network = lambda _who: (float("inf"), 0.0)
        await passes(DEADLINE + 2 * RETRY)
        server.network = lambda _who: (0.0, 0.0)
        await passes(2 * LEASE)
        assert stage.working == {"one"}
        await end(one)
    assert [what for _, _, what in stage.history] == ["begins", "ends"] * 4
    lost = [line["why"] for line in said if line["event"] == "not leading any more"]
    assert lost == [
        "lease operator was taken by kubectl-edit",
        "lease operator was deleted",
        "lease operator could not be renewed in time: no answer",
    ]
    loud = {line["event"] for line in said if line["log_level"] not in ("debug", "info")}
    assert loud == {"not leading any more", "lease not readable"}
    assert not any("exc_info" in line for line in said)


@in_virtual_time
async def test_another_write_to_the_lease_is_no_reason_to_end():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "one", stage).run(stage.work("one")))
    for _ in range(10):
        await passes(3.3)
        assert server.lease is not None
        server.write(server.lease)  # somebody annotates it
    assert stage.working == {"one"}
    await end(one)


@in_virtual_time
async def test_a_process_of_the_same_name_waits_for_its_predecessor():
    server, stage = LeaseServer(), Stage()
    one = asyncio.create_task(elector(server, "operator-0", stage).run(stage.work("predecessor")))
    await passes(10)
    server.network = lambda _who: (float("inf"), 0.0)
    await passes(1)
    server.network = lambda _who: (0.0, 0.0)
    two = asyncio.create_task(elector(server, "operator-0", stage).run(stage.work("successor")))
    await passes(30)
    assert stage.working == {"predecessor"}
    await end(one, two)


@pytest.mark.parametrize("numbers", [(15.0, 14.5, 2.0), (15.0, 15.0, 2.0), (15.0, 2.0, 2.0), (15.0, 10.0, 0.0)])
def test_a_lease_that_leaves_no_time_is_refused(numbers: tuple[float, float, float]):
    lease, deadline, retry = numbers
    with pytest.raises(ValueError, match="5 % to spare"):
        LeaderElector(None, "l", "n", "i", lease_seconds=lease, renew_deadline=deadline, retry=retry)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", seeds(25))
@on_both_loops
def test_two_never_work_at_the_same_time(seed: int, loop: Callable[[], Any]):
    """Three candidates for half an hour: slow, lost, late and unanswered requests, partitions, clocks that are set,
    that run 1 % fast or slow, crashes, graceful stops, restarts, and work that takes its time to end."""
    random.seed(seed)  # the elector's own dice
    virtual.run(_history(random.Random(seed)), loop)


async def _history(dice: random.Random) -> None:
    server, stage = LeaseServer(), Stage()
    cut: set[str] = set()
    calm = False

    def network(who: str) -> tuple[float, float]:
        if calm:
            return 0.01, 0.01
        if who in cut or dice.random() < 0.05:
            return (float("inf"), 0.0) if dice.random() < 0.5 else (0.01, float("inf"))
        if dice.random() < 0.1:
            return dice.uniform(0, 40), 0.0  # late, perhaps long after its sender gave it up
        if dice.random() < 0.3:
            return 0.0, dice.uniform(0, 5)  # carried out at once, but its sender hears of it late
        return 0.01, 0.01

    server.network = network

    clock = asyncio.get_running_loop().time

    async def process(who: str) -> None:
        while True:
            rate, offset = dice.uniform(0.99, 1.01), dice.uniform(-1e6, 1e6)
            begun = now()
            # The most that work may take to end, on a clock that runs slow: beyond that the process is ended.
            farewell = dice.choice([0.0, 0.99 * (LEASE * (1 - MARGIN) - DEADLINE)])
            one = elector(server, who, stage, clock=lambda: (clock() - begun) * rate + offset)  # noqa: B023
            task = asyncio.create_task(one.run(stage.work(who, farewell)))
            try:
                await asyncio.wait([task], timeout=dice.uniform(20, 300))
            finally:
                await end(task)
            if not task.cancelled():
                assert isinstance(task.exception(), LeaseLost)
            await passes(dice.uniform(0, 5))

    processes = [asyncio.create_task(process(who)) for who in ("a", "b", "c")]
    for _ in range(60):
        await passes(dice.uniform(5, 60))
        cut.symmetric_difference_update(dice.sample(["a", "b", "c"], dice.randint(0, 2)))
    calm = True
    cut.clear()
    led = {who for _, who, what in stage.history if what == "begins"}
    await passes(60)
    assert len(stage.history) > 10, "hardly anybody led"
    assert led == {"a", "b", "c"}
    recently = [moment for moment, _, _ in stage.history if moment > now() - 60]
    assert stage.working or recently, "nobody leads although all is calm"
    await end(*processes)
    for task in processes:
        assert task.cancelled() or task.result() is None
    assert not stage.exits
    assert not stage.overlaps


# With the real client, and real processes


def real(api: Api, who: str, lease: float = 1.0) -> LeaderElector:
    return LeaderElector(
        api, "operator", "kube-system", who, lease_seconds=lease, renew_deadline=lease / 2, retry=lease / 5
    )


class Work:
    """Work without an end."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def __call__(self) -> None:
        self.began.set()
        await asyncio.Event().wait()


async def test_the_record_is_what_others_expect(server: ScriptedApi, api: Api):
    one, work = real(api, "one", lease=15.0), Work()
    task = asyncio.create_task(one.run(work))
    await until(work.began.is_set)
    spec = server.objects[PATH]["operator"]["spec"]
    assert spec["holderIdentity"] == one.identity
    assert one.identity.startswith("one_")
    assert spec["leaseDurationSeconds"] == 15
    assert spec["renewTime"] == spec["acquireTime"]
    assert len(spec["renewTime"]) == len("2026-01-02T03:04:05.678901Z")
    await end(task)
    assert "holderIdentity" not in server.objects[PATH]["operator"]["spec"]
    assert [call.verb for call in server.calls] == ["get", "create", "update"]


async def test_a_released_lease_is_taken_at_the_next_look(server: ScriptedApi, api: Api):
    one, two, first, second = real(api, "one"), real(api, "two"), Work(), Work()
    tasks = [asyncio.create_task(one.run(first))]
    await until(first.began.is_set)
    tasks.append(asyncio.create_task(two.run(second)))
    await end(tasks[0])
    await until(second.began.is_set)
    await end(tasks[1])
    assert server.objects[PATH]["operator"]["spec"]["leaseTransitions"] == 1


async def test_an_unreachable_lease_is_asked_for_with_pauses(server: ScriptedApi, api: Api):
    server.on("get", *[scripted.refuse_in_text(503, "no")] * 3)
    one, work = real(api, "one", lease=0.5), Work()
    task = asyncio.create_task(one.run(work))
    await until(work.began.is_set)
    await end(task)
    assert server.count("get") == 4


CHILD = """
import asyncio, sys, time
from netloom.runtime.client import Api
from netloom.runtime.leader import LeaderElector
from netloom.runtime import log, loop

async def main():
    log.configure("json")
    async with await Api.connect(sys.argv[1], timeout=1.0) as api:
        times = {"lease_seconds": 1.0, "renew_deadline": 0.5, "retry": 0.1}
        elector = LeaderElector(api, "operator", "kube-system", "child", **times)

        async def lead():
            print("leading", flush=True)
            if sys.argv[2] == "block":
                time.sleep(60)
            while True:
                await asyncio.sleep(0.01)
                print("work", flush=True)

        await elector.run(lead)

loop.run(main())
"""


@contextlib.asynccontextmanager
async def child(kubeconfig: str, how: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, kubeconfig, how,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"leading\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.slow
async def test_a_blocked_event_loop_ends_the_process_before_another_leads(
    server: ScriptedApi, api: Api, kubeconfig: str
):
    async with child(kubeconfig, "block") as process:
        two = real(api, "two")
        alive: list[bool] = []

        async def lead() -> None:
            alive.append(_runs(process.pid))

        async with asyncio.timeout(20):
            await two.run(lead)
        assert alive == [False]
        assert await process.wait() == EXIT_LEASE_LOST
        assert process.stderr is not None
        said = json.loads((await process.stderr.read()).splitlines()[-1])
        assert said["event"] == "lease ran out before the work of its holder had ended, exiting"


@pytest.mark.slow
async def test_a_frozen_process_ends_when_it_thaws(server: ScriptedApi, api: Api, kubeconfig: str):
    async with child(kubeconfig, "work") as process:
        assert process.stdout is not None
        for _ in range(3):
            assert await process.stdout.readline() == b"work\n"
        process.send_signal(signal.SIGSTOP)
        two, work = real(api, "two"), Work()
        task = asyncio.create_task(two.run(work))
        await until(work.began.is_set, "the other leads")
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            assert await process.wait() != 0
        assert server.objects[PATH]["operator"]["spec"]["holderIdentity"] == two.identity
        await end(task)


def test_leases_lose_no_field():
    """A replacement that forgot a field would remove it."""
    given = {
        "metadata": {"name": "l", "namespace": "n", "resourceVersion": "1"},
        "spec": {
            "holderIdentity": "h", "leaseDurationSeconds": 1, "acquireTime": "t", "renewTime": "t",
            "leaseTransitions": 3, "strategy": "OldestEmulationVersion", "preferredHolder": "p",
        },
    }  # fmt: skip
    encoded = json.loads(encode(LEASES, msgspec.convert(given, Lease)))
    assert {**given, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease"} == encoded
