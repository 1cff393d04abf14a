"""How often something is written: some times at once, and then now and then.

What changes once is told when it changes. What changes for ever (a device that comes and goes) would be a write each
time, and where every agent is sent it, times the number of nodes: of such, what holds when a write is allowed again is
told.
"""

from typing import NamedTuple


class Pace(NamedTuple):
    """most: writes in hand at most. seconds: after how long there is another."""

    most: float
    seconds: float


class Allowance:
    """in_hand: writes at the beginning."""

    def __init__(self, now: float, in_hand: float) -> None:
        self._in_hand = in_hand
        self._then = now

    def wait(self, now: float, pace: Pace) -> float:
        """Seconds until a write is allowed, at a pace that may be another each time; 0.0: now."""
        self._in_hand = min(pace.most, self._in_hand + (now - self._then) / pace.seconds)
        self._then = now
        return max(0.0, (1 - self._in_hand) * pace.seconds)

    def take(self) -> None:
        """It is written."""
        self._in_hand -= 1

    def take_if_any(self, now: float, pace: Pace) -> bool:
        """Whether a write is allowed now; it counts as written then."""
        if self.wait(now, pace):
            return False
        self.take()
        return True
