"""The work queue: which keys are due, each of them at most once at a time.

It holds keys and nothing else, so a reconciler cannot come to depend on what an event said. The rules are client-go's:
a key that is added while it waits is one run, not two; a key that is added while it runs is run once more afterwards; a
key that fails waits longer each time, by itself. One timer serves all waiting keys: a task for each would cost 5,000
tasks when an API server goes away under 5,000 nodes.
"""

import asyncio
import heapq
import random
from collections.abc import Callable

from netloom.runtime.backoff import exponential

TICK_SECONDS = 0.001
"""What a loop's timers can tell apart: uvloop's count whole milliseconds, and end up to one of them early. Less is not
worth a timer: whoever looks again "in 0.2 ms" because it was woken early would look dozens of times until then."""


class WorkQueue:
    """Keys that are due, for one event loop. `base`, `cap`: bounds of a failing key's back-off in seconds."""

    def __init__(self, base: float = 0.1, cap: float = 60.0, draw: Callable[[], float] = random.random) -> None:
        self._base = base
        self._cap = cap
        self._draw = draw
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._dirty: set[str] = set()
        self._running: set[str] = set()
        self._failures: dict[str, int] = {}
        # A retry and a wished-for look are separate: success makes the one needless and not the other.
        self._due: dict[tuple[str, bool], float] = {}  # (key, is a retry) -> when
        self._heap: list[tuple[float, str, bool]] = []  # may hold entries that _due no longer knows
        # When the timer ends is kept here: a loop need not say it (uvloop's handles of what is due at once cannot).
        self._timer: asyncio.Handle | None = None
        self._armed = float("inf")

    def __len__(self) -> int:
        """Keys that are due now, without those that run."""
        return self._ready.qsize()

    def add(self, key: str) -> None:
        """The key is due now."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._running:
            self._ready.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """The key is due in `seconds`; if it is waiting already, the earlier time counts."""
        self._schedule(key, seconds, retry=False)

    def retry(self, key: str, at_least: float = 0.0) -> float:
        """The key failed: it is due again after its back-off. Returns the seconds until then."""
        attempt = self._failures.get(key, 0)
        self._failures[key] = attempt + 1
        delay = max(at_least, exponential(self._base, self._cap, attempt, self._draw))
        self._schedule(key, delay, retry=True)
        return delay

    def forget(self, key: str) -> None:
        """The key succeeded: its back-off begins anew, and a retry that is still waiting is not needed."""
        self._failures.pop(key, None)
        self._due.pop((key, True), None)

    async def get(self) -> str:
        """The next due key; it counts as running until `done`."""
        key = await self._ready.get()
        self._dirty.discard(key)
        self._running.add(key)
        return key

    def done(self, key: str) -> None:
        """The run is over; if the key was added meanwhile, it is due again."""
        self._running.discard(key)
        if key in self._dirty:
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Stops the timer; nothing becomes due any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._armed = None, float("inf")

    def _schedule(self, key: str, seconds: float, retry: bool) -> None:
        if seconds <= 0:
            self.add(key)
            return
        when = asyncio.get_running_loop().time() + max(seconds, TICK_SECONDS)
        if self._due.get((key, retry), when) < when:
            return
        self._due[key, retry] = when
        heapq.heappush(self._heap, (when, key, retry))
        if when < self._armed:
            self._arm()

    def _arm(self) -> None:
        """Sets the one timer to the earliest time that is still meant."""
        self.close()
        while self._heap and not self._meant(*self._heap[0]):
            heapq.heappop(self._heap)
        if self._heap:
            self._armed = self._heap[0][0]
            self._timer = asyncio.get_running_loop().call_at(self._armed, self._fire)

    def _meant(self, when: float, key: str, retry: bool) -> bool:
        return self._due.get((key, retry)) == when

    def _fire(self) -> None:
        # A timer that ended early has ended all the same: what it was set for is due.
        now = max(asyncio.get_running_loop().time(), self._armed)
        while self._heap and self._heap[0][0] <= now:
            when, key, retry = heapq.heappop(self._heap)
            if self._meant(when, key, retry):
                del self._due[key, retry]
                self.add(key)
        self._arm()
