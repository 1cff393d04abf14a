"""Time limits of what is done again and again.

`asyncio.timeout` sets a timer for each run and takes it back, as do aiohttp's time-outs, which costs 5 to 10 µs. Here a
timer stays until it goes off, and is then set for the run that is on.
"""

import asyncio
from types import TracebackType

from netloom.runtime.queue import TICK_SECONDS


class TimeLimit:
    """A context for one run after the other, by any tasks of one loop: raises TimeoutError where one took `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        """Whose run is on; None between runs."""
        self._before = 0
        """Requests to cancel that task, as it began."""
        self._expired = False

    def __enter__(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        assert self._task is None, "one run at a time"
        self._task, self._before, self._expired = task, task.cancelling(), False
        self._until = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(self._until, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._expired or task is None:
            return
        # Who was cancelled by others as well ends for them.
        if task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() + TICK_SECONDS < self._until:
            self._timer = loop.call_at(self._until, self._look)
        else:
            self._expired = True
            self._task.cancel()


class TimeLimits:
    """A TimeLimit for runs of several tasks at the same time, each of which has one run at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._free: list[TimeLimit] = []
        self._used: dict[asyncio.Task[object] | None, TimeLimit] = {}

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task not in self._used, "one run at a time"
        limit = self._used[task] = self._free.pop() if self._free else TimeLimit(self.seconds)
        limit.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        limit = self._used.pop(asyncio.current_task())
        self._free.append(limit)
        limit.__exit__(kind, error, where)


class TimedSemaphore:
    """An asyncio.Semaphore of `count`, whose holders get a TimeoutError when they have held it for `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        self._free = asyncio.Semaphore(count)
        self._limits = TimeLimits(seconds)

    async def __aenter__(self) -> None:
        await self._free.acquire()
        self._limits.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._free.release()
        self._limits.__exit__(kind, error, where)
