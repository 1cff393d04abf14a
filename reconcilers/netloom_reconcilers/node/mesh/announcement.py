"""Tells the other nodes which encapsulations this one accepts, and in which it still sends: `spec.encapsulations` of
its own NetloomNode, from which `encapsulations` works; and in `spec.sourceAddresses` from where it sends besides the
addresses that its Node reports.

Written after what it says is so in the kernel, and only when it differs: every write of a node is sent to every agent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedEncapsulation, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import AGENT, apply
from netloom_reconcilers.node.mesh.encapsulations import Announcement

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class AnnouncementReconciler:
    """Writes what `announcement` gives (None: nothing can be said yet)."""

    node_name: str
    nodes: Store[NetloomNode]
    api: Api
    announcement: Callable[[], Announcement | None]

    def __post_init__(self) -> None:
        self.controller = Controller("announcement", self.reconcile)
        self.nodes.subscribe(lambda key, old, new: self.changed() if key == self.node_name else None)

    def changed(self) -> None:
        """What is to be said may be different."""
        self.controller.enqueue(self.node_name)

    async def reconcile(self, key: str) -> None:
        """Write it if the object says something else."""
        node, wanted = self.nodes.get(key), self.announcement()
        if node is None or wanted is None:
            return
        said = tuple(
            AcceptedEncapsulation(protocol=each.protocol, port=each.port, sending=each in wanted.sends)
            for each in wanted.accepts
        )
        if (said, wanted.sources) == (node.spec.encapsulations, node.spec.source_addresses):
            return
        spec: dict[str, object] = {
            "encapsulations": [msgspec.to_builtins(each) | {"sending": each.sending} for each in said]
        }
        if wanted.sources:
            spec["sourceAddresses"] = wanted.sources
        if (stored := await apply(self.api, NETLOOM_NODES, node, AGENT, spec=spec)) is not None:
            log.info("announced", accepts=list(map(str, wanted.accepts)), sends=sorted(map(str, wanted.sends)))
            self.nodes.put(stored)
