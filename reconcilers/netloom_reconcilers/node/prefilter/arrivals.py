"""When lists are taken that come one after another, as they do where somebody creates 25 ConfigMaps.

Whatever is there could be taken at once, and the rest when it comes: then a million entries in 25 lists are merged and
written up to as many times over, each time more of them, and the last list waits for the ones before. So where one list
follows another and others are still missing, it waits for these: as long as they come quickly, and no longer than for
lists that an agent waits for as it starts. What comes alone waits for nothing, nor does the last that was missing, nor
a change of a list that was there. Pure.
"""

import time
from collections.abc import Callable

SETTLE_SECONDS = 1.0
"""Two that are not further apart come one after another."""
PATIENCE_SECONDS = 10.0
"""For so long what is dropped waits for lists that are not there yet; then it goes on without."""


class Arrivals:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = float("-inf")
        self._waiting_since: float | None = None

    def came(self) -> None:
        """A list is there that was missing."""
        now = self._clock()
        if self._waiting_since is None and now - self._last <= SETTLE_SECONDS:
            self._waiting_since = now
        self._last = now

    def wait(self, *, missing: bool) -> float:
        """Seconds for which to wait for more; 0: what is there is to be taken now. missing: whether a list is."""
        if self._waiting_since is None:
            return 0.0
        until = min(self._last + SETTLE_SECONDS, self._waiting_since + PATIENCE_SECONDS)
        left = until - self._clock() if missing else 0.0
        if left > 0:
            return left
        self._waiting_since = None
        return 0.0
