"""When an entry that failed, or that somebody keeps changing, is tried again.

The first repairs are immediate: drift is repaired in milliseconds. An entry that fails, or drifts again and again
because another program fights for it, waits longer each time, so that neither the kernel nor the log is flooded.
"""

from collections.abc import Hashable, Iterable

import msgspec

FIRST_SECONDS, LONGEST_SECONDS = 0.1, 30.0
FREE_REPAIRS = 10
"""Repairs of one entry that are not delayed."""
QUIET_SECONDS = 20.0
"""After that long without a failure or repair, what was before is forgotten."""
TICK_SECONDS = 0.001
"""The shortest sleep that is worth it: an event loop's timers end up to a millisecond early."""


class Delay(msgspec.Struct):
    """How often an entry has failed or been repaired in a row, and when (monotonic seconds) it may be tried again."""

    strikes: int = 0
    failures: int = 0
    until: float = 0.0
    last: float = 0.0

    @property
    def forgiven(self) -> float:
        """When, if nothing happens until then, all this is forgotten (monotonic seconds)."""
        return max(self.last, self.until) + QUIET_SECONDS


class Backoff:
    """Delays by entry. Knows no clock: the caller says what time it is.

    `held` and `next` complete each other at one and the same moment: what is not held then is to be tried now, and the
    rest is waited for. Asked at two moments, an entry whose time came between them is in neither.
    """

    def __init__(self) -> None:
        self._delays: dict[Hashable, Delay] = {}

    def __len__(self) -> int:
        return len(self._delays)

    def failed(self, key: Hashable, now: float) -> Delay:
        """The entry could not be written."""
        delay = self._delay(key, now)
        delay.failures += 1
        delay.until = now + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (delay.failures - 1))
        return delay

    def repaired(self, key: Hashable, now: float) -> Delay:
        """The entry was changed by somebody, and is to be written again."""
        delay = self._delay(key, now)
        delay.strikes += 1
        delay.failures, delay.until = 0, 0.0
        if delay.strikes > FREE_REPAIRS:
            delay.until = now + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (delay.strikes - FREE_REPAIRS - 1))
        return delay

    def written(self, key: Hashable) -> None:
        """The entry was written."""
        delay = self._delays.get(key)
        if delay is not None:
            delay.failures = 0
            if not delay.strikes:
                del self._delays[key]

    def forget(self, keys: Iterable[Hashable]) -> None:
        """What is wanted of these entries has changed: try them at once."""
        for key in keys:
            self._delays.pop(key, None)

    def clear(self) -> None:
        """Everything that is wanted has changed."""
        self._delays.clear()

    def contended(self, now: float) -> list[Hashable]:
        """Entries that somebody changes again and again."""
        return [key for key, delay in self._delays.items() if _fought(delay) and delay.forgiven > now]

    def held(self, now: float) -> set[Hashable]:
        """Entries that have to wait."""
        return {key for key, delay in self._delays.items() if delay.until > now}

    def next(self, now: float) -> float | None:
        """When the next of the waiting entries may be tried, or the next fight is over."""
        tries = [delay.until for delay in self._delays.values() if delay.until > now]
        peace = [delay.forgiven for delay in self._delays.values() if _fought(delay)]
        return min(tries + peace, default=None)

    def expire(self, now: float) -> None:
        """Forget the entries that have been quiet for long."""
        for key in [key for key, delay in self._delays.items() if delay.forgiven <= now]:
            del self._delays[key]

    def _delay(self, key: Hashable, now: float) -> Delay:
        delay = self._delays.get(key)
        if delay is None or delay.forgiven <= now:
            delay = self._delays[key] = Delay()
        delay.last = now
        return delay


def _fought(delay: Delay) -> bool:
    return delay.strikes > FREE_REPAIRS
