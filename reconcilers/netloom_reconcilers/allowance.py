"""How often something is written that every agent is sent: some times at once, and then now and then.

What changes once is told when it changes. What changes for ever (a device that comes and goes) would be a write each
time, times the number of nodes: of such, what holds when a write is allowed again is told.
"""


class Allowance:
    """most: writes in hand at the beginning, and at most. seconds: after how long there is another."""

    def __init__(self, most: float, seconds: float, now: float) -> None:
        self._most = most
        self._seconds = seconds
        self._in_hand = most
        self._then = now

    def wait(self, now: float) -> float:
        """Seconds until a write is allowed; 0.0: now."""
        self._in_hand = min(self._most, self._in_hand + (now - self._then) / self._seconds)
        self._then = now
        return max(0.0, (1 - self._in_hand) * self._seconds)

    def take(self) -> None:
        """It is written."""
        self._in_hand -= 1
