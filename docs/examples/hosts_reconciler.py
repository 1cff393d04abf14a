"""Keeps a file in the form of hosts(5) equal to the cluster's nodes: the worked example of adding-a-reconciler.md."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from netloom.api.v1alpha1 import NetloomNode
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.runtime.controller import Controller
from netloom.runtime.manager import Run
from netloom.runtime.store import Store
from netloom_reconcilers.features.node import NodeContext, NodeFeature

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
        self.applied = False
        self.writes = 0
        self._nodes = nodes
        self._path = path
        # All nodes end in one file, so there is one key: a thousand changed nodes are one run, not a thousand.
        nodes.subscribe(lambda key, old, new: self.controller.enqueue(_THE_FILE))

    def due(self) -> str | None:
        """What is to be written; None if the file is as it should be. Raises OSError."""
        wanted = render(self._nodes.values())
        return None if self._path.exists() and self._path.read_text() == wanted else wanted

    async def reconcile(self, key: str) -> None:
        """Make the file what the cache says. Raises OSError; the framework tries again, later and later."""
        await self._nodes.wait_synced()
        wanted = self.due()
        if wanted is not None:
            staged = self._path.with_suffix(".new")
            staged.write_text(wanted)
            staged.replace(self._path)
            self.writes += 1
        self.applied = True


class HostsFeature(NodeFeature):
    """The file as a feature of the agent."""

    name = "hosts"

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context)
        self._path = context.run_dir / "hosts"
        self._reconciler = HostsReconciler(context.nodes, self._path)

    def components(self) -> Mapping[str, Run]:
        """Started by the agent, and started again when it crashes."""
        return {"hosts": self._reconciler.controller.run}

    @property
    def applied(self) -> bool:
        """/readyz says "nothing applied yet" until then."""
        return self._reconciler.applied

    def errors(self) -> list[str]:
        """For /status and the node's condition: which object, what was tried, and what stands in the way."""
        return [f"{self._path} cannot be written: {error}" for error in self._reconciler.controller.failing.values()]

    def facts(self) -> dict[str, object]:
        """For /status."""
        return {"hostsWrites": self._reconciler.writes}

    async def plan(self) -> list[PlannedChange]:
        """For `netloom plan`: the caches are filled, and nothing is written."""
        return [PlannedChange(f"write {self._path}")] if self._reconciler.due() is not None else []

    async def plan_cleanup(self) -> list[PlannedChange]:
        """For `netloom cleanup --dry-run`."""
        return [PlannedChange(f"remove {self._path}")] if self._path.exists() else []

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """For `netloom cleanup`: the file goes, and what would not go is named."""
        planned = await self.plan_cleanup()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            return [], [Failure(kind="file", key=str(self._path), error=str(error))]
        return planned, ()
