"""The work queue and the controller, in virtual time, and where it is about the loops' timers, in real time as well."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from prometheus_client import generate_latest

from netloom.runtime import metrics
from netloom.runtime.controller import Controller
from netloom.runtime.errors import Conflict, Forbidden, TooManyRequests
from netloom.runtime.queue import WorkQueue
from tests.runtime import virtual
from tests.runtime.scripted import until
from tests.runtime.virtual import in_virtual_time, on_both_loops


def now() -> float:
    return asyncio.get_running_loop().time()


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)


def exact(base: float = 1.0, cap: float = 60.0) -> WorkQueue:
    """Delays at their upper bound."""
    return WorkQueue(base, cap, draw=lambda: 1.0)


@in_virtual_time
async def test_a_key_that_waits_is_one_run():
    queue = WorkQueue()
    for key in "abab":
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


@in_virtual_time
async def test_a_key_added_while_it_runs_is_run_once_more_afterwards():
    queue = WorkQueue()
    queue.add("a")
    key = await queue.get()
    for _ in range(3):
        queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert len(queue) == 1
    queue.done(await queue.get())
    assert len(queue) == 0


@in_virtual_time
async def test_a_later_look_comes_at_its_time_and_the_earliest_counts():
    queue = WorkQueue()
    queue.add_after("a", 5)
    queue.add_after("a", 2)
    queue.add_after("a", 9)
    queue.add_after("b", 3)
    assert (await queue.get(), now()) == ("a", 2.0)
    assert (await queue.get(), now()) == ("b", 3.0)
    assert len(queue._due) == 0
    queue.done("a")
    queue.done("b")
    await passes(60)
    assert len(queue) == 0


@in_virtual_time
async def test_failures_wait_ever_longer_each_key_by_itself():
    queue = exact()
    delays = [queue.retry("a") for _ in range(8)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert queue.retry("b") == 1
    queue.forget("a")
    assert queue.retry("a") == 1
    assert queue.retry("c", at_least=7.0) == 7.0


@in_virtual_time
async def test_delays_are_jittered_down_to_half():
    queue = WorkQueue(1.0, 60.0, draw=random.Random(1).random)
    delays = [queue.retry(str(number)) for number in range(200)]
    assert all(0.5 <= delay < 1.0 for delay in delays)
    assert max(delays) - min(delays) > 0.4


@in_virtual_time
async def test_success_makes_a_waiting_retry_needless_but_not_a_wished_look():
    queue = exact()
    queue.retry("a")
    queue.add_after("a", 5)
    queue.add("a")
    key = await queue.get()
    queue.forget(key)
    queue.done(key)
    assert (await queue.get(), now()) == ("a", 5.0)


@in_virtual_time
async def test_ten_thousand_waiting_keys_need_one_timer():
    queue = WorkQueue(draw=random.Random(1).random)
    for number in range(10_000):
        queue.add_after(f"n{number}", 1 + number % 7)
        queue.retry(f"n{number}")
    assert len(asyncio.get_running_loop().timers()) == 1  # type: ignore[attr-defined]
    got = Counter([await queue.get() for _ in range(10_000)])
    assert set(got.values()) == {1}


@on_both_loops
def test_no_key_ever_runs_twice_at_once_and_none_is_lost(loop: Callable[[], Any]):
    for seed in range(20):
        virtual.run(_storm(random.Random(seed)), loop)


async def _storm(dice: random.Random) -> None:
    queue = WorkQueue(0.01, 1.0, draw=dice.random)
    running: set[str] = set()
    wanted: Counter[str] = Counter()
    seen: dict[str, int] = {}

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in running
            running.add(key)
            seen[key] = wanted[key]  # what it knew when it began
            await passes(dice.uniform(0, 0.2))
            running.discard(key)
            if dice.random() < 0.3:
                queue.retry(key)
            else:
                queue.forget(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(500):
        key = f"n{dice.randrange(10)}"
        wanted[key] += 1
        if dice.random() < 0.8:
            queue.add(key)
        else:
            queue.add_after(key, dice.uniform(0, 0.5))
        if dice.random() < 0.5:
            await passes(dice.uniform(0, 0.05))
    await passes(300)
    assert seen == wanted
    assert (len(queue), len(queue._due), len(queue._running)) == (0, 0, 0)
    for worker in workers:
        worker.cancel()
    for done in await asyncio.gather(*workers, return_exceptions=True):
        assert isinstance(done, asyncio.CancelledError)


@in_virtual_time
async def test_times_that_a_timer_cannot_tell_apart_lose_no_key():
    queue = WorkQueue()
    queue.add_after("a", 0.0004)
    queue.add_after("b", 0.0002)
    queue.add_after("c", 5.0104)
    queue.add_after("d", 5.0106)
    queue.add_after("e", 5.0106)
    got = [await queue.get() for _ in range(5)]
    assert (sorted(got[:2]), got[2:]) == (["a", "b"], ["c", "d", "e"])
    assert round(now(), 2) == 5.01
    assert (len(queue), len(queue._due), asyncio.get_running_loop().timers()) == (0, 0, [])  # type: ignore[attr-defined]


@in_virtual_time
async def test_who_was_woken_early_does_not_look_again_and_again():
    looks = 0
    due = now() + 0.0104

    async def reconcile(_key: str) -> float | None:
        nonlocal looks
        looks += 1
        return due - now() if now() < due else None

    async with Running(Controller("t8", reconcile)) as controller:
        controller.enqueue_after("a", 0.0104)
        await passes(1)
    assert 1 <= looks <= 2


async def test_a_thousand_keys_that_fail_and_fail_are_retried_for_ever():
    """On the real loops: their retries come so close that one is due before the timer for it is set."""
    attempts: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        attempts[key] += 1
        raise Forbidden(403, "Forbidden", "a policy denies it")

    async with Running(Controller("t9", reconcile, workers=50, queue=WorkQueue(0.001, 0.5))) as controller:
        for number in range(1000):
            controller.enqueue(f"n{number}")
        await until(lambda: len(attempts) == 1000 and min(attempts.values()) >= 8)
        assert len(controller.failing) == 1000


def test_uvloop_in_virtual_time_has_the_timers_of_uvloop():
    real, model = uvloop.new_event_loop(), virtual.VirtualUvloop()
    try:
        for seconds in (-1.0, 0.0, 0.0002, 0.0004, 0.0006, 0.0104, 7.0):
            says = [hasattr(loop.call_later(seconds, print), "when") for loop in (real, model)]
            assert says[0] == says[1], seconds
    finally:
        real.close()
        model.close()
    early = [virtual.run(_how_early(0.0104), virtual.VirtualUvloop)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        # A machine that is busy is late: one of many is enough.
        early += [next(seconds for _ in range(500) if (seconds := runner.run(_how_early(0.0104))) > 0)]
    assert all(0.0003 < seconds < 0.0005 for seconds in early)


async def _how_early(seconds: float) -> float:
    """By how much a timer ends before its time, on the loop's own clock."""
    due = now() + seconds
    await passes(seconds)
    return due - now()


# The controller


class Running:
    """A controller in a task."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    async def __aenter__(self) -> Controller:
        self.task = asyncio.create_task(self.controller.run())
        return self.controller

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        assert self.task.cancelled()


@in_virtual_time
async def test_a_failing_key_is_retried_with_growing_pauses_and_others_go_on():
    runs: list[tuple[float, str]] = []

    async def reconcile(key: str) -> None:
        runs.append((now(), key))
        if key == "bad" and len(runs) < 5:
            raise ValueError("no")

    async with Running(Controller("t1", reconcile, queue=exact())) as controller:
        controller.enqueue("bad")
        controller.enqueue("good")
        await passes(0.5)
        assert controller.failing == {"bad": "no"}
        await passes(60)
        assert runs == [(0, "bad"), (0, "good"), (1, "bad"), (3, "bad"), (7, "bad")]
        assert not controller.failing


@in_virtual_time
async def test_a_returned_time_is_the_time_of_the_next_look():
    runs: list[float] = []

    async def reconcile(_key: str) -> float | None:
        runs.append(now())
        return 10.0 if len(runs) < 3 else None

    async with Running(Controller("t2", reconcile)) as controller:
        controller.enqueue("a")
        await passes(100)
    assert runs == [0, 10, 20]


@in_virtual_time
async def test_retry_after_of_the_server_is_obeyed():
    runs: list[float] = []

    async def reconcile(_key: str) -> None:
        runs.append(now())
        if len(runs) == 1:
            raise TooManyRequests(429, "TooManyRequests", "slow down", retry_after=30.0)

    async with Running(Controller("t3", reconcile, queue=exact())) as controller:
        controller.enqueue("a")
        await passes(100)
    assert runs == [0, 30]


@in_virtual_time
async def test_a_run_that_hangs_is_ended_and_retried():
    runs: list[float] = []

    async def reconcile(_key: str) -> None:
        runs.append(now())
        if len(runs) == 1:
            await asyncio.get_running_loop().create_future()

    async with Running(Controller("t4", reconcile, queue=exact(), timeout=5.0)) as controller:
        controller.enqueue("a")
        await passes(5.5)
        assert controller.failing == {"a": "TimeoutError"}
        await passes(10)
    assert runs == [0, 6]


@in_virtual_time
async def test_a_run_that_cancels_itself_takes_no_worker_away():
    runs: list[float] = []

    async def reconcile(_key: str) -> None:
        runs.append(now())
        if len(runs) == 1:
            raise asyncio.CancelledError

    async with Running(Controller("t7", reconcile, queue=exact())) as controller:
        controller.enqueue("a")
        await passes(10)
    assert runs == [0, 1]


@in_virtual_time
async def test_workers_run_at_once_but_never_one_key_twice():
    most = 0
    running: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        nonlocal most
        running[key] += 1
        assert running[key] == 1
        most = max(most, running.total())
        await passes(1)
        running[key] -= 1

    async with Running(Controller("t5", reconcile, workers=3)) as controller:
        for number in range(30):
            controller.enqueue(f"n{number % 5}")
        await passes(0.5)
        for number in range(5):
            controller.enqueue(f"n{number}")
        await passes(60)
        assert not controller.failing
    assert most == 3


@in_virtual_time
async def test_a_stop_in_the_middle_of_a_run_is_a_cancellation():
    ended: list[str] = []

    async def reconcile(_key: str) -> None:
        try:
            await passes(100)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with Running(Controller("t6", reconcile)) as controller:
        controller.enqueue("a")
        await passes(1)
    assert ended == ["cancelled"]


@pytest.mark.parametrize("error", [None, ValueError("x"), Conflict(409, "Conflict", "x")])
@on_both_loops
def test_runs_are_counted(error: Exception | None, loop: Callable[[], Any]):
    name = f"counted-{type(error).__name__}-{loop.__name__}"

    async def scene() -> None:
        async def reconcile(_key: str) -> None:
            if error:
                raise error

        async with Running(Controller(name, reconcile)) as controller:
            controller.enqueue("a")
            await passes(0.01)
            text = generate_latest(metrics.REGISTRY).decode()
            assert f'netloom_failing_keys{{controller="{name}"}} {1.0 if error else 0.0}' in text

    virtual.run(scene(), loop)
    text = generate_latest(metrics.REGISTRY).decode()
    assert f'netloom_reconciles_total{{controller="{name}",result="{"error" if error else "success"}"}} 1.0' in text
    assert f'netloom_reconcile_seconds_count{{controller="{name}"}} 1.0' in text
