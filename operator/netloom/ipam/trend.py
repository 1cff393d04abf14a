"""How fast something is used up: of the last hour, so that one burst does not count for ever, nor a quiet minute."""

from collections import deque

SPACING_SECONDS = 30.0
WINDOW_SECONDS = 3600.0
LEAST_SECONDS = 120.0
"""Of less than this nothing is concluded."""


class Trend:
    """Of a number that is told now and then; times in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, used: int) -> None:
        """As of now; more than two samples within `SPACING_SECONDS` are one."""
        samples = self._samples
        if len(samples) > 1 and samples[-1][0] - samples[-2][0] < SPACING_SECONDS:
            samples.pop()
        samples.append((now, used))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()

    def seconds_to(self, limit: int) -> float | None:
        """Until it reaches the limit, if it goes on so; None where it does not grow, or too little is known."""
        if len(self._samples) < 2:
            return None
        (begin, least), (now, used) = self._samples[0], self._samples[-1]
        begin = max(begin, now - WINDOW_SECONDS)  # until the second sample nothing changed
        if used <= least or now - begin < LEAST_SECONDS:
            return None
        return max(0.0, limit - used) * (now - begin) / (used - least)
