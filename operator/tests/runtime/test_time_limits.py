"""Time limits that are kept from run to run."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from netloom.runtime.time_limits import TimedSemaphore, TimeLimit, TimeLimits
from tests.runtime.virtual import in_virtual_time


def now() -> float:
    return round(asyncio.get_running_loop().time(), 2)


async def run(limit: TimeLimit | TimeLimits, work: Coroutine[Any, Any, Any]) -> str:
    with limit:
        await work
    return "done"


def timers() -> int:
    return len(asyncio.get_running_loop().timers())  # type: ignore[attr-defined]


@in_virtual_time
async def test_a_run_that_takes_too_long_ends_and_the_next_has_all_its_time():
    limit = TimeLimit(5)
    began = now()
    with pytest.raises(TimeoutError):
        await run(limit, asyncio.sleep(600))
    assert now() == began + 5
    assert await run(limit, asyncio.sleep(4)) == "done"
    with pytest.raises(TimeoutError):
        await run(limit, asyncio.sleep(600))
    assert now() == began + 14


@in_virtual_time
async def test_runs_share_one_timer_which_ends_by_itself():
    limit = TimeLimit(5)
    for _ in range(20):  # 40 seconds: the timer goes off in the middle of runs that still have time
        await run(limit, asyncio.sleep(2))
        assert timers() == 1
    await asyncio.sleep(5)
    assert timers() == 0


@in_virtual_time
async def test_who_is_cancelled_by_others_ends_for_them():
    limit = TimeLimit(5)
    task = asyncio.create_task(run(limit, asyncio.sleep(600)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run(limit, asyncio.sleep(4)) == "done"


@in_virtual_time
async def test_who_is_cancelled_by_others_as_its_time_ends_ends_for_them():
    limit = TimeLimit(5)

    async def ends_slowly() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(1)

    task = asyncio.create_task(run(limit, ends_slowly()))
    await asyncio.sleep(5.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 5.5


@in_virtual_time
async def test_what_was_raised_when_the_time_ended_is_not_hidden():
    async def fails() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise ValueError("why") from None

    with pytest.raises(ValueError, match="why"):
        await run(TimeLimit(5), fails())
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@in_virtual_time
async def test_of_two_around_each_other_the_shorter_counts():
    outer, inner = TimeLimit(5), TimeLimit(2)
    with outer:
        with pytest.raises(TimeoutError):
            await run(inner, asyncio.sleep(600))
        assert now() == 2
    with pytest.raises(TimeoutError):
        await run(inner, run(outer, asyncio.sleep(600)))
    with pytest.raises(TimeoutError):
        await run(outer, run(TimeLimit(600), asyncio.sleep(600)))


@in_virtual_time
async def test_each_of_several_tasks_has_its_own_time_and_no_more_timers_are_set_than_run_at_once():
    limits, ends = TimeLimits(5), []

    async def begins_after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        with pytest.raises(TimeoutError):
            await run(limits, asyncio.sleep(600))
        ends.append(now())

    for began in (0, 7):
        await asyncio.gather(*map(begins_after, (0, 1, 2)))
        assert ends[-3:] == [began + 5, began + 6, began + 7]
    for _ in range(20):
        await asyncio.gather(*(run(limits, asyncio.sleep(0.1)) for _ in range(3)))
        assert timers() <= 3


@in_virtual_time
async def test_who_waits_for_a_semaphore_has_all_the_time_when_it_gets_it():
    semaphore = TimedSemaphore(2, 5)
    ends: dict[str, tuple[str, float]] = {}

    async def hold(name: str, seconds: float) -> None:
        try:
            async with semaphore:
                await asyncio.sleep(seconds)
            ends[name] = "done", now()
        except TimeoutError:
            ends[name] = "late", now()

    names = {"a": 600, "b": 600, "c": 4, "d": 600, "e": 4}
    await asyncio.gather(*(hold(name, seconds) for name, seconds in names.items()))
    assert ends == {"a": ("late", 5), "b": ("late", 5), "c": ("done", 9), "d": ("late", 10), "e": ("done", 13)}


@in_virtual_time
async def test_who_is_cancelled_while_it_waits_for_a_semaphore_takes_nothing():
    semaphore = TimedSemaphore(1, 5)

    async def hold() -> None:
        async with semaphore:
            await asyncio.sleep(4)

    first, second = (asyncio.create_task(hold()) for _ in range(2))
    await asyncio.sleep(1)
    second.cancel()
    await asyncio.wait([first, second])
    assert second.cancelled()
    await hold()
    assert now() == 8
