"""A feature that makes kernel state of this node from the NetloomNetwork and all NetloomNodes: a keeper, and what says
what is to be in it.

There is one key; the names of the nodes that changed are remembered beside it, so that a change of one costs one. Where
the objects give no answer (no network, no NetloomNode of this name) the kernel stays as it is: a mistake in the API
must not take the pods' network away.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import structlog

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ConfigError
from netloom.runtime.manager import Run
from netloom_reconcilers.features.node import NodeContext, NodeFeature, Obstacle, missing

log = structlog.get_logger(__name__)

_KEY = "kernel"


class KernelFeature(NodeFeature, ABC):
    """Hands the whole desired state over to its keeper. `obstacle` and `problems` (sentences, by the node whose object
    has them) say what keeps it from being whole; `context.changed` is called after every run. What is wrong with
    another node's object is that node's matter, and a warning here, unless its name is in `at_our_cost`: this node goes
    without something then."""

    keeper: Keeper[Any, Any]
    keeper_runs_as: ClassVar[str]
    in_kernel: ClassVar[str] = ""
    """What comes before what the kernel refused."""
    counts_changes: ClassVar[bool] = True
    """Whether `desired` takes what is in `_touched`: the names of nodes that changed since it last did."""

    def __init__(self, context: NodeContext, keeper: Keeper[Any, Any]) -> None:
        super().__init__(context)
        self.keeper = keeper
        self.own = context.own
        self.controller = Controller(self.name, self.reconcile)
        self.problems: dict[str, tuple[str, ...]] = {}
        self.at_our_cost: set[str] = set()
        self._node_name = context.node_name
        self._networks = context.networks
        self._nodes = context.peers
        self._desired = keeper.nothing()
        self._applied = False
        self._touched: set[str] = set()
        self._networks.subscribe(lambda key, old, new: self._again())
        self._nodes.subscribe(lambda key, old, new: self._again(key))

    def components(self) -> Mapping[str, Run]:
        """The reconciler, and the kernel's side."""
        return {self.name: self.controller.run, self.keeper_runs_as: self.keeper.run}

    @property
    def applied(self) -> bool:
        """Whether there was something to apply."""
        return self._applied

    def _again(self, *names: str) -> None:
        if self.counts_changes:
            self._touched.update(names)
        self.controller.enqueue(_KEY)

    async def reconcile(self, key: str = _KEY) -> float | None:
        """Make the kernel what the objects say; what it refuses is in the report, and tried again by itself. Returns
        after how many seconds to look again at what is to be given up."""
        await self._networks.wait_synced()
        await self._nodes.wait_synced()
        look = await self.own.look(self._said())
        again = await self._apply()
        self.context.changed()
        return min((each for each in (again, look) if each is not None), default=None)

    @abstractmethod
    async def _apply(self) -> float | None:
        """Hand `desired` over, if there is any. Returns as `reconcile`."""

    @abstractmethod
    def desired(self) -> Any:
        """The whole desired state, brought up to date with the caches; None where the objects give no answer."""

    def _said(self) -> NetloomNode | None:
        """This node's object as it is; `own.effective` makes of it what counts."""
        return self._nodes.get(self._node_name)

    def _objects(self) -> tuple[NetloomNetwork, NetloomNode] | None:
        """The network, and this node's object as it counts; None where one is missing, which is the obstacle then."""
        network, node = self._networks.get(NETWORK_NAME), self.own.effective(self._said())
        if network is None or node is None:
            self._is_blocked(missing(network, self._node_name))
            return None
        self._is_blocked(None)
        return network, node

    def _is_blocked(self, obstacle: Obstacle | None) -> bool:
        """Notes what there is to say of it."""
        if obstacle is not None and obstacle != self.obstacle:
            log.warning("the kernel stays as it is", of=self.name, why=obstacle.message)
        self.obstacle = obstacle
        return obstacle is not None

    def _is_in_place(self, **facts: object) -> None:
        if not self._applied:
            self._applied = True
            log.info("all is in place", of=self.name, node=self._node_name, **facts)

    def _report(self, name: str, problems: tuple[str, ...]) -> None:
        if not problems:
            self.problems.pop(name, None)
        elif self.problems.get(name) != problems:
            self.problems[name] = problems
            log.warning("something is left out", of=self.name, whose=name, problems=problems)

    def errors(self, report: Any = None) -> list[str]:
        """All that keeps it from being whole, as sentences; empty if nothing does. report: the keeper's, if not its
        present one."""
        report, about = report or self.keeper.report, self.in_kernel
        found = [self.obstacle.message] if self.obstacle else []
        found += [problem for name in self.problems if self._is_ours(name) for problem in self.problems[name]]
        found += [f"{about}{failure}" for failure in report.failures]
        found += self._found_wrong(report)
        found += [f"{about}{item}: somebody else keeps changing it; its repair is delayed" for item in report.contended]
        return found

    def _found_wrong(self, report: Any) -> Iterable[str]:
        """Of errors, what a report says besides what the kernel refused."""
        return ()

    def warnings(self) -> list[str]:
        """What other nodes' objects lack, as sentences."""
        return [problem for name in self.problems if not self._is_ours(name) for problem in self.problems[name]]

    def _is_ours(self, name: str) -> bool:
        return name in ("", self._node_name) or name in self.at_our_cost

    async def plan(self) -> list[PlannedChange]:
        """From the objects as they are."""
        desired = self.desired()
        if desired is None:
            raise ConfigError(self.obstacle.message if self.obstacle else "there is nothing to do")
        return await self.keeper.plan(desired)


class NftablesFeature(KernelFeature, ABC):
    """One whose keeper owns something in nftables."""

    async def plan_cleanup(self) -> list[PlannedChange]:
        """All that it owns. A kernel that has no nftables has none of ours."""
        try:
            return await super().plan_cleanup()
        except KernelUnsupported:
            return []

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """The same, done."""
        try:
            return await super().cleanup()
        except KernelUnsupported:
            return [], ()
