"""Writes how prefilters fare into this node's NetloomNode: its `status.prefilter` and condition `PrefilterReady`.

Every write of a node is sent to every agent. So there is one when something other than the counts of packets is
different, and one an hour for these: metrics have them as they are. Of a device that comes and goes for ever, it is
some writes, and then one now and then. Where no prefilter selects the node nothing is
written; what was said is taken back once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from netloom.api.prefilter import NodePrefilter
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.allowance import Allowance, Pace
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.events import EventRecorder
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Conditions, manager_of, withdraw
from netloom_reconcilers.node.prefilter.telling import readiness_of, uncounted

CONDITION = "PrefilterReady"
STABLE_SECONDS = 1.0
"""How long something must be so before it is told."""
COUNT_SECONDS = 3600.0
"""Between writes of which only counts are the reason."""
PACE = Pace(most=10, seconds=20.0)
"""Writes at once, and after how long there is another."""
_MANAGER = manager_of("prefilter")


@dataclass(eq=False)
class PrefilterReporter:
    """status: how it is now; None: nothing can be said yet."""

    node_name: str
    nodes: Store[NetloomNode]
    api: Api
    events: EventRecorder
    status: Callable[[], NodePrefilter | None]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.controller = Controller("prefilter-report", self.reconcile)
        self._conditions = Conditions(self.api, self.events, _MANAGER)
        self._counted_at = float("-inf")
        self._allowance = Allowance(self.clock(), PACE.most)
        self.nodes.subscribe(lambda key, old, new: self.changed() if key == self.node_name else None)

    def changed(self) -> None:
        """What is to be said may be different."""
        self.controller.enqueue_after(self.node_name, STABLE_SECONDS)

    async def reconcile(self, key: str) -> float | None:
        """Write it if the object says something else."""
        node, status = self.nodes.get(key), self.status()
        if node is None or status is None:
            return None
        if not status.filters:
            await self._take_back(node)
            return None
        said, now = node.status.prefilter, self.clock()
        if uncounted(status, said) == said and now < self._counted_at + COUNT_SECONDS:
            status = said
        if status != said and (seconds := self._allowance.wait(now, PACE)):
            return seconds
        readiness = readiness_of(status)
        stored = await self._conditions.set(NETLOOM_NODES, node, CONDITION, readiness, prefilter=status)
        if stored is not None:
            self._counted_at = now
            self._allowance.take()
            self.nodes.put(stored)
        return COUNT_SECONDS

    async def _take_back(self, node: NetloomNode) -> None:
        if has_words(node) and (stored := await withdraw(self.api, NETLOOM_NODES, node, _MANAGER)) is not None:
            self.nodes.put(stored)


def has_words(node: NetloomNode) -> bool:
    """Whether anything is said of prefilters there."""
    return node.status.prefilter is not None or any(each.type == CONDITION for each in node.status.conditions)
