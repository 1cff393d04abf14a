"""Tells the other nodes which encapsulations this one accepts, and by which it still sends: `spec.tunnels` of its own
NetloomNode, from which `encapsulations` works.

Written after what it says is so in the kernel, and only when it differs: every write of a node is sent to every agent.
"""

from collections.abc import Callable

import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedTunnel, NetloomNode
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
        tunnels = tuple(
            AcceptedTunnel(protocol=way.protocol, port=way.port, sending=way in wanted.sends) for way in wanted.accepts
        )
        if tunnels == node.spec.tunnels:
            return
        patch = {
            "metadata": {"name": key, "uid": node.metadata.uid},
            "spec": {"tunnels": [{"protocol": t.protocol, "port": t.port, "sending": t.sending} for t in tunnels]},
        }
        try:
            stored = await self._api.patch(NETLOOM_NODES, key, patch, kind="apply", field_manager=AGENT)
        except (Conflict, NotFound):
            return  # it was deleted, or re-created: the watch brings the next one
        log.info("announced", accepts=[str(way) for way in wanted.accepts], sends=sorted(map(str, wanted.sends)))
        self._nodes.put(stored)
