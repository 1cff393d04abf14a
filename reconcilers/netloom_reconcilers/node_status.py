"""Tells the cluster how this node's data path is: the condition `DataplaneReady` of its NetloomNode.

Written when it changes, never as a heartbeat: every write of a node is sent to every agent. So the message holds no
counts, and a fault has to last for a moment before it is told. The condition is written by server-side apply, which
leaves the operator's conditions on the same object alone.
"""

from collections.abc import Callable
from typing import NamedTuple

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Conditions

CONDITION = "DataplaneReady"
SETTLE_SECONDS = 1.0
"""How long a verdict must stand before it is written."""
_NAMED = 3
"""Errors that the message names; the agent's own /status names all."""


class Verdict(NamedTuple):
    """How the data path is: what the condition says, but for the time."""

    ready: bool
    reason: str
    message: str


def verdict_of(reason: str, errors: list[str]) -> Verdict:
    """The verdict on what is wrong, `reason` for short; nothing wrong is good."""
    if not errors:
        return Verdict(True, "InSync", "The kernel holds what is desired.")
    more = f" And {len(errors) - _NAMED} more." if len(errors) > _NAMED else ""
    return Verdict(False, reason, " ".join(errors[:_NAMED]) + more)


class NodeStatusReconciler:
    """Writes the condition that `verdict` gives (None: nothing can be said yet)."""

    def __init__(
        self,
        node_name: str,
        nodes: Store[NetloomNode],
        conditions: Conditions,
        verdict: Callable[[], Verdict | None],
    ) -> None:
        self.controller = Controller("node-status", self.reconcile)
        self._node_name = node_name
        self._nodes = nodes
        self._conditions = conditions
        self._verdict = verdict
        nodes.subscribe(lambda key, old, new: self.changed() if key == node_name else None)

    def changed(self) -> None:
        """Something that the verdict depends on may be different."""
        self.controller.enqueue_after(self._node_name, SETTLE_SECONDS)

    async def reconcile(self, key: str) -> None:
        """Write the condition if it differs from what the object holds."""
        node, wanted = self._nodes.get(key), self._verdict()
        if node is None or wanted is None:
            return
        stored = await self._conditions.set(
            NETLOOM_NODES, node, CONDITION, "True" if wanted.ready else "False", wanted.reason, wanted.message
        )
        if stored is not None:
            self._nodes.put(stored)
