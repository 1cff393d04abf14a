"""Takes back what was said of a node by features that its agent has no more: nobody keeps it up to date, and that all
is well would be believed for ever."""

from collections.abc import Sequence

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import manager_of, withdraw
from netloom_reconcilers.features.node import NodeFeature


class Withdrawing:
    """features: those that are off."""

    def __init__(
        self, node_name: str, nodes: Store[NetloomNode], api: Api, features: Sequence[type[NodeFeature]]
    ) -> None:
        self.controller = Controller("words of features that are off", self.reconcile)
        self._nodes = nodes
        self._api = api
        self._features = features
        nodes.subscribe(lambda key, old, new: self.controller.enqueue(key) if key == node_name else None)

    async def reconcile(self, key: str) -> None:
        """If there are any words."""
        for each in self._features:
            node = self._nodes.get(key)
            if node is not None and each.has_words(node):
                stored = await withdraw(self._api, NETLOOM_NODES, node, manager_of(each.name))
                if stored is not None:
                    self._nodes.put(stored)
