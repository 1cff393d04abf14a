"""How long to wait before trying again.

Exponential, with a cap, and jittered: after an outage of the API server thousands of agents come back, and without
jitter they come back in step. A source of randomness can be given, so that a test sees the same delays twice.
"""

import random
from collections.abc import Callable


class Backoff:
    """Delays in seconds: base, 2 x base, 4 x base ... up to cap, each times a factor drawn from [1/2, 1)."""

    __slots__ = ("_draw", "attempt", "base", "cap")

    def __init__(self, base: float, cap: float, draw: Callable[[], float] = random.random) -> None:
        self.base = base
        self.cap = cap
        self.attempt = 0
        self._draw = draw

    def next(self) -> float:
        """The delay before the next attempt; each call without `reset` between them waits longer."""
        delay = exponential(self.base, self.cap, self.attempt, self._draw)
        self.attempt += 1
        return delay

    @property
    def longest(self) -> float:
        """What the next delay may be at most."""
        return exponential(self.base, self.cap, self.attempt, lambda: 1.0)

    def reset(self) -> None:
        """Something worked: begin anew at `base`."""
        self.attempt = 0


def exponential(base: float, cap: float, attempt: int, draw: Callable[[], float]) -> float:
    """The jittered delay before attempt number `attempt` (0 = the first repetition)."""
    # 2**62 is far beyond any cap; the bound keeps the float finite for a key that fails for years.
    return min(cap, base * 2.0 ** min(attempt, 62)) * (0.5 + draw() / 2)
