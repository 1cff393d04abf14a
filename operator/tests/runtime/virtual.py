"""Event loops whose clock jumps to the next timer whenever nothing else is to be done.

Minutes of leases and time-outs pass in milliseconds, in an order that depends on nothing but the program: the same
seed gives the same history. There are two: asyncio's, whose timers are exact, and uvloop's, on which the roles run and
whose timers are not: they count whole milliseconds, so they end up to half of one early by the loop's own clock, and
what is due in less than that is no timer at all but a plain handle, which cannot say when it ends.
"""

import asyncio
import contextvars
import functools
import heapq
import itertools
import math
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

T = TypeVar("T")


class Deadlock(Exception):
    """Everything waits, and no timer is set."""


class _Jumping(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def timers(self) -> list[float]:
        """When those end that are set."""
        return [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


class _Timer:
    """What uvloop gives for a timer; `ends` in milliseconds."""

    __slots__ = ("_call", "_cancelled", "_context", "ends")

    def __init__(self, ends: int, call: Callable[[], object], context: contextvars.Context) -> None:
        self.ends = ends
        self._call = call
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self.ends / 1000

    def end(self) -> None:
        if not self._cancelled:
            self._context.run(self._call)


class UvloopInVirtualTime(uvloop.Loop):  # type: ignore[misc]
    """uvloop with a clock of its own. `moment` is that clock, and `idle` is called when nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[int, int, _Timer]] = []
        self._order = itertools.count()
        self.asked = True
        """Whether somebody called `call_soon` since the loop last looked."""

    def moment(self) -> float:
        raise NotImplementedError

    def idle(self) -> None:
        raise NotImplementedError

    def time(self) -> float:
        return self._milliseconds() / 1000

    def timers(self) -> list[float]:
        """When those end that are set."""
        return [timer.when() for _, _, timer in self._timers if not timer.cancelled()]

    def first(self) -> float | None:
        """When the first of them ends; None if none is set."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][2].when() if self._timers else None

    def end_timers(self) -> bool:
        """Ends the timers that are due; whether there were any."""
        due = False
        while self._timers and (self._timers[0][0] <= self._milliseconds() or self._timers[0][2].cancelled()):
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                due = True
                self.call_soon(timer.end)
        return due

    def _milliseconds(self) -> int:
        return math.floor(self.moment() * 1000 + 1e-6)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        ticks = math.floor(max(0.0, delay) * 1000 + 0.5)
        if not ticks:
            return self.call_soon(callback, *args, context=context)
        call = functools.partial(callback, *args)
        timer = _Timer(self._milliseconds() + ticks, call, context or contextvars.copy_context())
        heapq.heappush(self._timers, (timer.ends, next(self._order), timer))
        return timer

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        self.asked = True
        return super().call_soon(callback, *args, context=context)

    def stop(self) -> None:
        self._stopped = True
        super().stop()

    def run_forever(self) -> None:
        self.asked, self._stopped = True, False
        self._look()
        try:
            super().run_forever()
        finally:
            self._looking.cancel()

    def _look(self) -> None:
        """Comes round once in each turn of the loop, last of all that was ready then. Nobody asked for anything since
        it was here: nothing is ready."""
        if not self.asked and not self._stopped:
            self.idle()
        self.asked = False
        self._looking = super().call_soon(self._look)


class VirtualUvloop(UvloopInVirtualTime):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._deadlock = False

    def moment(self) -> float:
        return self._now

    def idle(self) -> None:
        if (end := self.first()) is not None:
            self._now = max(self._now, end)
            self.end_timers()
        else:
            self._deadlock = True
            self.stop()

    def run_forever(self) -> None:
        super().run_forever()
        if self._deadlock:
            raise Deadlock


LOOPS: dict[str, Callable[[], Any]] = {"asyncio": VirtualLoop, "uvloop": VirtualUvloop}

on_both_loops = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
"""For a test that calls `run(..., loop)` itself."""


def run(main: Coroutine[Any, Any, T], loop: Callable[[], Any]) -> T:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


def in_virtual_time(scene: Callable[[], Awaitable[None]]) -> Callable[[Any], None]:
    """A test whose clock is virtual, on both loops."""

    @on_both_loops
    def test(loop: Callable[[], Any]) -> None:
        run(scene(), loop)  # type: ignore[arg-type]

    test.__name__, test.__doc__ = scene.__name__, scene.__doc__
    return test
