"""The surroundings reconciler: what others set on this node, and pods' packets depend on.

It owns nothing in the kernel. What it finds are errors where packets of pods do not pass, and warnings where some may
not. Peers are counted and walked over only when something calls for it, so their coming and going costs nothing here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import Metric

from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import addresses_in
from netloom.kernel.surroundings.detours import Remote
from netloom.kernel.surroundings.keeper import SurroundingsKeeper
from netloom.kernel.surroundings.part import Surroundings
from netloom.kernel.surroundings.tables import memory_of_machine
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.kernel import KernelFeature
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node import surroundings_findings as findings
from netloom_reconcilers.node.known.peers import pod_cidrs_of, pods_of

_KEY = "kernel"
SETTLE_SECONDS = 3.0
"""After peers came or went it is looked again, once for all of them."""


class SurroundingsFeature(KernelFeature):
    """See the module."""

    name = "surroundings"
    keeper_runs_as = "look around"
    counts_changes = False
    keeper: SurroundingsKeeper
    _desired: Surroundings

    def __init__(self, context: NodeContext) -> None:
        keeper = SurroundingsKeeper(run_directory=context.run_dir, on_report=lambda report: context.changed())
        super().__init__(context, keeper)
        self._memory = memory_of_machine()
        self._nodes.subscribe(self._peer_changed)

    def _again(self, *names: str) -> None:
        """Of other nodes only that they came or went matters."""
        if not names or self._node_name in names:
            super()._again()

    def _peer_changed(self, _name: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if old is None or new is None:
            self.controller.enqueue_after(_KEY, SETTLE_SECONDS)

    async def _apply(self) -> None:
        desired = self.desired()
        if desired is not None:
            await self.keeper.apply(desired)
            self._is_in_place()

    def desired(self) -> Surroundings | None:
        """For whom to look."""
        if (objects := self._objects()) is None:
            return None
        network, node = objects
        self._desired = Surroundings(
            own=pods_of(node)[0],
            remotes=self._remotes,
            peers=len(self._nodes),
            native=network.spec.routing.mode != "tunnel",
            raise_limits=network.spec.limits.raises,
        )
        return self._desired

    def _remotes(self) -> Iterator[Remote]:
        for name in self._nodes:
            node = self._nodes.get(name)
            if node is None or name == self._node_name:
                continue
            addresses = tuple(addresses_in(each.ip for each in node.spec.addresses))
            for cidr in pod_cidrs_of(node)[0]:
                yield Remote(name, cidr, addresses)

    def _found_wrong(self, report: Any) -> list[str]:
        """What keeps packets of pods from passing, as sentences."""
        return findings.errors(report.found, self._memory)

    def warnings(self) -> list[str]:
        """What may come to that, or concerns only some of them."""
        return [*super().warnings(), *findings.warnings(self.keeper.report.found, self._memory)]

    def facts(self) -> dict[str, object]:
        """The figures."""
        return {"surroundings": findings.figures(self.keeper.report.found)}

    def metrics(self) -> Iterable[Metric]:
        """The same."""
        found = self.keeper.report.found
        yield gauge(
            "netloom_rule_detours", "Policy rules that lead packets of pods past their route.", len(found.detours)
        )
        tables = {table.family: table for table in found.tables.neighbours}
        needed = {family: table.needed for family, table in tables.items()}
        limits = {family: table.thresholds[2] for family, table in tables.items()}
        refused = {family: table.refused for family, table in tables.items()}
        text = "Neighbours that the node has or is to have, by family."
        yield gauge("netloom_neighbours_needed", text, needed, "family")
        yield gauge("netloom_neighbours_limit", "gc_thresh3 of the kernel, by family.", limits, "family")
        text = "Neighbours that the kernel had no room for, by family."
        yield counter("netloom_neighbours_refused", text, refused, "family")
        if (tracked := found.tables.conntrack) is not None:
            yield gauge("netloom_conntrack_entries", "Tracked connections.", tracked.count)
            yield gauge("netloom_conntrack_limit", "How many there may be.", tracked.limit)
            yield counter("netloom_conntrack_dropped", "Packets that connection tracking dropped.", tracked.dropped)
