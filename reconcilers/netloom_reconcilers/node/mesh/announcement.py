"""Tells the other nodes which encapsulations this one accepts, and in which it still sends: `spec.encapsulations` of
its own NetloomNode, from which `encapsulations` works.

Written after what it says is so in the kernel, and only when it differs: every write of a node is sent to every agent.
"""

from collections.abc import Callable

import msgspec
import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedEncapsulation, NetloomNode
from netloom.runtime.controller import Controller
from netloom.runtime.errors import Conflict, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import AGENT
from netloom_reconcilers.node.mesh.encapsulations import Announcement
from netloom_reconcilers.writes import Patches

log = structlog.get_logger(__name__)


class AnnouncementReconciler:
    """Writes what `announcement` gives (None: nothing can be said yet)."""

    def __init__(
        self, node_name: str, nodes: Store[NetloomNode], api: Patches, announcement: Callable[[], Announcement | None]
    ) -> None:
        self.controller = Controller("announcement", self.reconcile)
        self._node_name = node_name
        self._nodes = nodes
        self._api = api
        self._announcement = announcement
        nodes.subscribe(lambda key, old, new: self.changed() if key == node_name else None)

    def changed(self) -> None:
        """What is to be said may be different."""
        self.controller.enqueue(self._node_name)

    async def reconcile(self, key: str) -> None:
        """Write it if the object says something else."""
        node, wanted = self._nodes.get(key), self._announcement()
        if node is None or wanted is None:
            return
        said = tuple(
            AcceptedEncapsulation(protocol=each.protocol, port=each.port, sending=each in wanted.sends)
            for each in wanted.accepts
        )
        if said == node.spec.encapsulations:
            return
        patch = {
            "metadata": {"name": key, "uid": node.metadata.uid},
            "spec": {"encapsulations": [msgspec.to_builtins(each) | {"sending": each.sending} for each in said]},
        }
        try:
            stored = await self._api.patch(NETLOOM_NODES, key, patch, kind="apply", field_manager=AGENT)
        except (Conflict, NotFound):
            return  # it was deleted, or re-created: the watch brings the next one
        log.info(
            "announced",
            accepts=[str(encapsulation) for encapsulation in wanted.accepts],
            sends=sorted(map(str, wanted.sends)),
        )
        self._nodes.put(stored)
