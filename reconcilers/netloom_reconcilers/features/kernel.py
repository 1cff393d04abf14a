"""What the reconcilers share that make kernel state of this node from the NetloomNetwork and all NetloomNodes.

There is one key; the names of the nodes that changed are remembered beside it, so that a change of one costs one. Where
the objects give no answer (no network, no NetloomNode of this name) the kernel stays as it is: a mistake in the API
must not take the pods' network away.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import msgspec
import structlog

from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.kernel.keeper.keeper import Keeper
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.known.peers import Nodes

log = structlog.get_logger(__name__)

_KEY = "kernel"


class Obstacle(msgspec.Struct, frozen=True):
    """Why there is nothing to apply: a reason for the condition, and a sentence with the way out."""

    reason: str
    message: str


class KernelReconciler(ABC):
    """Hands the whole desired state over. `blocked` and `problems` (sentences, by the node whose object has them) say
    what keeps it from being whole; `on_change` is called after every run. `name`: the controller's."""

    name: ClassVar[str]

    def __init__(
        self,
        node_name: str,
        networks: Store[NetloomNetwork],
        nodes: Nodes,
        keeper: Keeper[Any, Any],
        own: OwnNode | None = None,
    ) -> None:
        self.controller = Controller(self.name, self.reconcile)
        self.own = own or OwnNode(node_name)
        self.applied = asyncio.Event()
        self.blocked: Obstacle | None = None
        self.problems: dict[str, tuple[str, ...]] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._node_name = node_name
        self._networks = networks
        self._nodes = nodes
        self._keeper = keeper
        self._desired = keeper.nothing()
        self._touched: set[str] = set()
        networks.subscribe(lambda key, old, new: self._again())
        nodes.subscribe(lambda key, old, new: self._again(key))

    def _again(self, *names: str) -> None:
        self._touched.update(names)
        self.controller.enqueue(_KEY)

    async def reconcile(self, key: str = _KEY) -> float | None:
        """Make the kernel what the objects say; what it refuses is in the report, and tried again by itself. Returns
        after how many seconds to look again at what is to be given up."""
        await self._networks.wait_synced()
        await self._nodes.wait_synced()
        look = await self.own.look(self._said())
        again = await self._apply()
        self.on_change()
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

    def _is_blocked(self, obstacle: Obstacle | None) -> bool:
        """Notes what there is to say of it."""
        if obstacle is not None and obstacle != self.blocked:
            log.warning("the kernel stays as it is", of=self.name, why=obstacle.message)
        self.blocked = obstacle
        return obstacle is not None

    def _is_in_place(self, **facts: object) -> None:
        if not self.applied.is_set():
            self.applied.set()
            log.info("all is in place", of=self.name, node=self._node_name, **facts)

    def _report(self, name: str, problems: tuple[str, ...]) -> None:
        if not problems:
            self.problems.pop(name, None)
        elif self.problems.get(name) != problems:
            self.problems[name] = problems
            log.warning("something is left out", of=self.name, whose=name, problems=problems)

    def errors(self, report: Any, about: str = "", more: Iterable[str] = ()) -> list[str]:
        """All that keeps it from being whole, as sentences; empty if nothing does. `about` comes before what the kernel
        refused, `more` after it."""
        found = [self.blocked.message] if self.blocked else []
        found += [problem for problems in self.problems.values() for problem in problems]
        found += [f"{about}{failure.kind} {failure.key}: {failure.error}" for failure in report.failures]
        found += more
        found += [f"{about}{item}: somebody else keeps changing it; its repair is delayed" for item in report.contended]
        return found
