"""Tells the cluster how this node is: conditions of its NetloomNode, `DataplaneReady` above all.

Written when it changes, never as a heartbeat: every write of a node is sent to every agent. So the message holds no
counts, and a fault has to last for a moment before it is told.

The operator writes `DataplaneReady=Unknown` when an agent was not heard of. An agent takes that back at once, but only
while it gives signs of life: else each would take back what the other wrote, for ever. An operator that says it again
all the same listens somewhere else (another --lease-namespace), and is contradicted ever more seldom.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from netloom.api.meta import DATAPLANE_READY, condition_of
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.api.words import some_sentences
from netloom.runtime.backoff import Backoff
from netloom.runtime.clock import boottime
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Conditions, Readiness
from netloom_reconcilers.signs_of_life import NOT_HEARD_OF

log = structlog.get_logger(__name__)

STABLE_SECONDS = 1.0
"""How long a readiness must stand before it is written."""
CONTRADICTED_SECONDS = 60.0, 1200.0
"""How long what the operator says again is left, for a start and at most."""


def readiness_of(reason: str, errors: list[str]) -> Readiness:
    """What is to be said of what is wrong, `reason` for short; nothing wrong is good."""
    if not errors:
        return Readiness(True, "InSync", "The kernel holds what is desired.")
    return Readiness(False, reason, " ".join(some_sentences(errors)))


@dataclass(eq=False)
class NodeStatusReconciler:
    """Writes the condition that `readiness` gives (None: nothing can be said yet)."""

    node_name: str
    nodes: Store[NetloomNode]
    conditions: Conditions
    readiness: Callable[[], Readiness | None]
    condition: str = DATAPLANE_READY
    spell: Callable[[], int] = lambda: 1
    """Number of the unbroken row of signs of life that this agent gives now; 0 while it gives none."""
    clock: Callable[[], float] = boottime

    def __post_init__(self) -> None:
        self._contradicted = 0
        """In which row that was last; not again before a moment, if it is the same."""
        self._not_before = -math.inf
        self._backoff = Backoff(*CONTRADICTED_SECONDS)
        name = "node-status" if self.condition == DATAPLANE_READY else f"node-status-{self.condition}"
        self.controller = Controller(name, self.reconcile)
        self.nodes.subscribe(lambda key, old, new: self.changed() if key == self.node_name else None)

    def changed(self) -> None:
        """Something that the readiness depends on may be different."""
        self.controller.enqueue_after(self.node_name, STABLE_SECONDS)

    async def reconcile(self, key: str) -> None:
        """Write the condition if it differs from what the object holds."""
        node, wanted = self.nodes.get(key), self.readiness()
        if node is None or wanted is None:
            return
        silent = self._is_told_silent(node)
        if silent and (wait := self._seconds_of_patience()):
            if wait < math.inf:
                self.controller.enqueue_after(key, wait)
            return
        stored = await self.conditions.set(NETLOOM_NODES, node, self.condition, wanted)
        if stored is None:
            return
        self.nodes.put(stored)
        if silent:
            self._note_contradiction()

    def _is_told_silent(self, node: NetloomNode) -> bool:
        held = condition_of(node.status.conditions, self.condition)
        return held is not None and (held.status, held.reason) == ("Unknown", NOT_HEARD_OF)

    def _seconds_of_patience(self) -> float:
        """For so long it may not say that it lives."""
        spell = self.spell()
        if not spell:
            return math.inf
        return max(0.0, self._not_before - self.clock()) if spell == self._contradicted else 0.0

    def _note_contradiction(self) -> None:
        spell = self.spell()
        if spell == self._contradicted:
            log.warning(
                "the operator does not hear this agent, which renews its Lease",
                advice="give agents and operator the same --lease-namespace",
            )
        else:
            self._contradicted = spell
            self._backoff.reset()
        self._not_before = self.clock() + self._backoff.next()
