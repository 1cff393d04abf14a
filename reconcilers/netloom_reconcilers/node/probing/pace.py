"""When it is told what is seen of pods' traffic: spread over the nodes, and of each seldom in a large cluster.

Each such write is sent to every agent, and one fault between the nodes is seen by all of them at once.
"""

import random
import time
from collections.abc import Callable

from netloom_reconcilers.conditions import Readiness

TOLD_PER_SECOND = 10.0
"""Nodes of the cluster that tell something else than before."""


class TellingPace:
    """See the module. `later(seconds)` has `tell` called again then. told: last."""

    def __init__(
        self,
        later: Callable[[float], object],
        share: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.told: Readiness | None = None
        self._later = later
        self._share = share()
        self._clock = clock
        self._told_at = float("-inf")
        self._turn: float | None = None

    def tell(self, wanted: Readiness | None, nodes: int) -> Readiness | None:
        """What is to be told now: `wanted` when its turn has come, what was told before until then, and while nothing
        is wanted. nodes: of the cluster."""
        if wanted is None or wanted == self.told:
            self._turn = None
            return self.told
        now, interval = self._clock(), nodes / TOLD_PER_SECOND
        if self._turn is None:
            self._turn = max(now + self._share * interval, self._told_at + interval)
            if self._turn > now:
                self._later(self._turn - now + 0.1)
        if now >= self._turn:
            self.told, self._told_at, self._turn = wanted, now, None
        return self.told
