"""Waiting for whoever sets an event, and no longer than some time; and being called once a time has come."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from netloom.runtime.queue import TICK_SECONDS


async def wait(woken: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set, or the time is over; None: it never is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()


class Alarm:
    """Calls `ring` at the first of the times that it was set to since it rang last.

    By one timer, however often it is set: each of uvloop's is half a KiB until it ends. It may ring a millisecond
    early, as those do; who has to wait on sets it again.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring
        self._at = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Ring in so many seconds, if not before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, TICK_SECONDS)
        if at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at, self._timer = at, loop.call_at(at, self._end)

    def _end(self) -> None:
        self._at, self._timer = float("inf"), None
        self._ring()
