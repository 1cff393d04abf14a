"""Tells the operator which of this node's addresses are on no device of its machine: `status.absentAddresses`.

A Node may report a virtual IP that keepalived or kube-vip has moved to another machine; no Node says which machine has
it, only the machine does. The operator passes such an address over where the node has another.

In most clusters nothing is ever absent, and nothing is written. As every write of a node is sent to every agent, an
address that went is told after a moment, one that is back only when it has stayed: whatever an address does, its node
is written twice a minute at most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.errors import Conflict, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import manager_of

log = structlog.get_logger(__name__)

GONE_SECONDS, BACK_SECONDS = 1.0, 60.0
"""How long an address must be away, or back, before that is told."""


@dataclass(eq=False)
class AbsenceReconciler:
    """Writes what `absent` gives (None: nothing can be said yet)."""

    node_name: str
    nodes: Store[NetloomNode]
    api: Api
    absent: Callable[[], frozenset[str] | None]
    clock: Callable[[], float] = time.monotonic
    _back: dict[str, float] = field(default_factory=dict)
    """Since when addresses that are told to be absent are there again."""

    def __post_init__(self) -> None:
        self.controller = Controller("absent-addresses", self.reconcile)

    def changed(self) -> None:
        """What is to be said may be different."""
        self.controller.enqueue_after(self.node_name, GONE_SECONDS)

    async def reconcile(self, key: str) -> float | None:
        """Write it if the object says something else. Seconds until what came back has stayed."""
        node, absent = self.nodes.get(key), self.absent()
        if node is None or absent is None:
            return None
        now, said = self.clock(), frozenset(node.status.absent_addresses)
        self._back = {each: self._back.get(each, now) for each in said - absent}
        wait = {each: since + BACK_SECONDS - now for each, since in self._back.items() if since + BACK_SECONDS > now}
        wanted = absent | wait.keys()
        if wanted != said:
            patch = {
                "metadata": {"name": key, "uid": node.metadata.uid},
                "status": {"absentAddresses": sorted(wanted)},
            }
            try:
                stored = await self.api.patch(
                    NETLOOM_NODES, key, patch, subresource="status", kind="apply", field_manager=manager_of("addresses")
                )
            except (Conflict, NotFound):
                return None  # it was deleted, or re-created: the watch brings the next one
            log.info("told which addresses no device has", addresses=sorted(wanted))
            self.nodes.put(stored)
        return min(wait.values(), default=None)
