"""Event loops without a clock and without files: time passes when the test says so.

asyncio's, and the one that operators run on: uvloop, with the rules of its timers (`tests.runtime.virtual`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.runtime.virtual import UvloopInVirtualTime


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs until nothing is left to do at the present moment. A loop that is not run is a process that is frozen."""

    def __init__(self, clock: "VirtualClock") -> None:
        super().__init__()
        self._clock = clock
        self._selector = _Nothing()
        self.set_exception_handler(self._failed)
        self.failures: list[dict[str, Any]] = []

    def time(self) -> float:
        return self._clock.now

    def settle(self) -> None:
        """Runs all that is ready, timers that are due included."""
        while self._ready or (self._scheduled and self._scheduled[0].when() <= self.time()):  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()

    def timers(self) -> list[float]:
        """When those end that are set."""
        return [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]

    def start(self, main: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task on this loop, which is not running yet."""
        return self.create_task(main)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context)

    # What BaseEventLoop leaves to its heirs

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class VirtualUvloop(UvloopInVirtualTime):
    """The same on uvloop."""

    def __init__(self, clock: "VirtualClock") -> None:
        super().__init__()
        self._world = clock
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.failures.append(context))

    def moment(self) -> float:
        return self._world.now

    def idle(self) -> None:
        if not self.end_timers():
            self.stop()

    def settle(self) -> None:
        """Runs all that is ready, timers that are due included."""
        if self.asked or self.end_timers():
            self.run_forever()

    def start(self, main: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task on this loop, which is not running yet."""
        return self.create_task(main)


LOOPS: dict[str, Callable[["VirtualClock"], Any]] = {"asyncio": VirtualLoop, "uvloop": VirtualUvloop}


class VirtualClock:
    """Seconds, the same for all loops of a test."""

    def __init__(self) -> None:
        self.now = 1000.0


class _Nothing:
    def select(self, timeout: float | None) -> list[Any]:
        return []
