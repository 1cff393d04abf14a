"""The allocation as a feature of the operator."""

from typing import ClassVar

from netloom.api.core import NODES
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS
from netloom_reconcilers.cluster.allocation.stores import Stores, netloom_node_changed, node_changed
from netloom_reconcilers.cluster.allocation.term import Allocation
from netloom_reconcilers.features.cluster import ClusterContext


class AllocationFeature:
    """Each term is an incarnation of its own."""

    name: ClassVar[str] = "allocation"

    def __init__(self, context: ClusterContext) -> None:
        self._context, caches = context, context.caches
        self._stores = Stores(
            networks=caches.store(NETWORKS),
            nodes=caches.store(NODES, node_changed),
            netloom_nodes=caches.store(NETLOOM_NODES, netloom_node_changed),
        )

    def begin(self) -> Allocation:
        """A new incarnation."""
        context = self._context
        return Allocation(context.api, self._stores, context.events, crashes=context.crashes)
