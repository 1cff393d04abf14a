"""The labels of this node's own Node: one object is followed, not all Nodes, and only where there is a prefilter.

A Node that vanishes leaves its labels as they were: while its machine runs, what it drops shall not end by a mistake.
"""

import asyncio
from collections.abc import Callable, Mapping

from netloom.api.core import NODES, Node
from netloom.api.meta import ObjectMeta
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import EVERY_NODE, ListWatch


def _trimmed(node: Node) -> Node:
    meta = node.metadata
    return Node(metadata=ObjectMeta(name=meta.name, resource_version=meta.resource_version, labels=meta.labels))


class OwnLabels:
    """`labels`: None as long as they are not known."""

    def __init__(self, api: Api, node_name: str, changed: Callable[[], None]) -> None:
        self.labels: Mapping[str, str] | None = None
        self._changed = changed
        store: Store[Node] = Store(NODES)
        self._watch = ListWatch(
            api,
            store,
            field_selector=f"metadata.name={node_name}",
            changed=lambda old, new: old.metadata.labels != new.metadata.labels,
            trim=_trimmed,
            timing=EVERY_NODE,
        )
        store.subscribe(lambda key, old, new: self._take(new))
        self._wanted = asyncio.Event()

    def want(self) -> None:
        """There is somebody who asks for them."""
        self._wanted.set()

    async def load(self) -> None:
        """Read them once, for a command. Raises ApiError."""
        await self._watch.load()

    async def run(self) -> None:
        """Follows them for ever, from when they are wanted."""
        await self._wanted.wait()
        await self._watch.run()

    def _take(self, node: Node | None) -> None:
        if node is not None:
            self.labels = dict(node.metadata.labels)
            self._changed()
