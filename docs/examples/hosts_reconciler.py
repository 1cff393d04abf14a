"""Keeps a file in the form of hosts(5) equal to the cluster's nodes: the worked example of adding-a-reconciler.md."""

from collections.abc import Iterable
from pathlib import Path

from netloom.api.v1alpha1 import NetloomNode
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store

_THE_FILE = "hosts"


def render(nodes: Iterable[NetloomNode]) -> str:
    """One line per internal address, in the order of the nodes' names: equal nodes give equal text."""
    lines = [
        f"{address.ip} {node.metadata.name}"
        for node in sorted(nodes, key=lambda node: node.metadata.name)
        for address in node.spec.addresses
        if address.type == "InternalIP"
    ]
    return "".join(f"{line}\n" for line in lines)


class HostsReconciler:
    """Owns `path`, the whole file, and nothing else. `writes` counts how often it had to be written."""

    def __init__(self, nodes: Store[NetloomNode], path: Path) -> None:
        self.controller = Controller("hosts", self.reconcile)
        self.writes = 0
        self._nodes = nodes
        self._path = path
        # All nodes end in one file, so there is one key: a thousand changed nodes are one run, not a thousand.
        nodes.subscribe(lambda key, old, new: self.controller.enqueue(_THE_FILE))

    async def reconcile(self, key: str) -> None:
        """Make the file what the cache says. Raises OSError; the framework tries again, later and later."""
        await self._nodes.wait_synced()
        wanted = render(self._nodes.values())
        if self._path.exists() and self._path.read_text() == wanted:
            return
        staged = self._path.with_suffix(".new")
        staged.write_text(wanted)
        staged.replace(self._path)
        self.writes += 1
