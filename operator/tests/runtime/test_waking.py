"""An alarm rings at the first of the times that it was set to, and has one timer."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from netloom.runtime.queue import TICK_SECONDS
from netloom.runtime.waking import Alarm
from tests.runtime.virtual import in_virtual_time, on_both_loops, run


def timers() -> int:
    """That the loop keeps."""
    return len(asyncio.get_running_loop().timers())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("set_to", "rings"), [([3], 3), ([1, 2], 1), ([2, 1], 1), ([2, 0, 5], 0), ([-1], 0)])
@on_both_loops
def test_it_rings_once_at_the_first_of_its_times(loop: Callable[[], Any], set_to: list[float], rings: float) -> None:
    async def scene() -> None:
        rang: list[float] = []
        alarm = Alarm(lambda: rang.append(asyncio.get_running_loop().time()))
        for each in set_to:
            alarm.set(each)
            assert timers() == 1
        await asyncio.sleep(10)
        assert rang == [pytest.approx(max(rings, TICK_SECONDS), abs=0.001)]
        assert timers() == 0

    run(scene(), loop)


@in_virtual_time
async def test_it_may_be_set_again_when_it_rings() -> None:
    rang: list[float] = []

    def ring() -> None:
        rang.append(asyncio.get_running_loop().time())
        if len(rang) < 3:
            alarm.set(1)

    alarm = Alarm(ring)
    alarm.set(1)
    await asyncio.sleep(10)
    assert rang == pytest.approx([1, 2, 3], abs=0.003)
