"""Puts the parts of the allocation together: one incarnation, from its first read of the ledgers to its end.

Every term of leadership is a new incarnation with a new name and empty memory: the marks it left behind in an
earlier life are a stranger's to it, and are waited out like any other's.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from netloom.api.core import Node
from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.ipam.book import Book
from netloom.runtime.cancellation import last_words
from netloom.runtime.clock import boottime
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError
from netloom.runtime.store import Store
from netloom_reconcilers import allocation_metrics, in_use
from netloom_reconcilers.conditions import ADDRESSES, Conditions, Recorder
from netloom_reconcilers.in_use import InUse
from netloom_reconcilers.last_known import LastKnown
from netloom_reconcilers.ledgers import Ledgers, Pace
from netloom_reconcilers.lock import ModeLock
from netloom_reconcilers.network import NetworkReconciler
from netloom_reconcilers.nodes import Caches, NodesReconciler
from netloom_reconcilers.writes import Requests

log = structlog.get_logger(__name__)

RUN_SECONDS = 600.0
"""How long a node may wait for its batch: while the API server is away, waiting is all there is to do."""
LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Stores:
    """The caches that allocation reads; somebody else fills them."""

    networks: Store[NetloomNetwork]
    nodes: Store[Node]
    netloom_nodes: Store[NetloomNode]


@dataclass(frozen=True, slots=True)
class Limits:
    """Concurrency. `workers` must exceed a batch, the low water and the writers together, or batches stay small."""

    workers: int = 400
    writers: int = 32


class Allocation:
    """One incarnation of the allocation; `run` it once."""

    def __init__(
        self,
        api: Requests,
        stores: Stores,
        events: Recorder,
        *,
        incarnation: str = "",
        clock: Callable[[], float] = boottime,
        pace: Pace | None = None,
        limits: Limits | None = None,
        crashes: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`crashes` gives what crashed in this process of late, as sentences; call `look` when that changed."""
        limits = limits or Limits()
        self.stores = stores
        self.book = Book(incarnation or uuid.uuid4().hex[:12])
        self.lock = ModeLock(api, stores.networks, stores.netloom_nodes)
        self.ledgers = Ledgers(
            api,
            self.book,
            self.lock,
            stores.netloom_nodes,
            clock,
            pace=pace,
            settle=self._settle,
            freed=self._freed,
            changed=self._committed,
        )
        conditions = Conditions(api, events, on_write=allocation_metrics.count_apply)
        caches = Caches(stores.nodes, stores.netloom_nodes)
        self.nodes = Controller("nodes", self._node, limits.workers, timeout=RUN_SECONDS)
        self.network = Controller("network", self._network)
        self._reconciler = NodesReconciler(
            api,
            caches,
            self.book,
            self.ledgers,
            conditions,
            LastKnown(
                stores.nodes,
                Conditions(api, events, ADDRESSES, on_write=allocation_metrics.count_apply),
                self.nodes.enqueue,
            ),
            clock,
            self.nodes.enqueue,
            writers=limits.writers,
            changed=lambda: self._follower.changed(),
        )
        self._follower = NetworkReconciler(
            stores.networks,
            caches,
            self.book,
            self.ledgers,
            self._reconciler,
            conditions,
            clock,
            self.network.enqueue_after,
            crashes,
        )
        self._in_use = InUse(stores.networks, self.book, self.lock, self.ledgers, clock, self.network.enqueue_after)

    async def run(self) -> None:
        """Works until it is cancelled."""
        for store in (self.stores.networks, self.stores.nodes, self.stores.netloom_nodes):
            await store.wait_synced()
        # The network first: what nodes are given depends on it.
        leave = [*self._follower.watch(), *self._reconciler.watch(), self._in_use.watch()]
        leave.append(self.stores.netloom_nodes.on_replace(self.ledgers.doubt))
        allocation_metrics.BLOCKS.source = self.book.usage
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.ledgers.run(), name="ledgers")
                group.create_task(self.network.run(), name="network")
                await self.ledgers.loaded.wait()
                group.create_task(self.nodes.run(), name="nodes")
        finally:
            allocation_metrics.BLOCKS.source = tuple
            for unsubscribe in leave:
                unsubscribe()

    def look(self) -> None:
        """`crashes` changed."""
        self._follower.changed()

    async def tell_crash(self, crash: str) -> None:
        """The last words of an incarnation that crashed, at the NetloomNetwork, if the API server takes them."""
        try:
            async with last_words(LAST_WORDS_SECONDS):
                await self._follower.tell_crash(crash)
        except (ApiError, TimeoutError) as error:
            log.warning("the crash is not told", error=str(error) or "no answer")

    @property
    def trouble(self) -> str:
        """What keeps allocation from working, "" if nothing; for the readiness check."""
        return str(self.ledgers.trouble) if self.ledgers.trouble else ""

    def _settle(self, names: Iterable[str]) -> None:
        for name in names:
            self.nodes.enqueue(name)

    def _freed(self, count: int | None) -> None:
        self._reconciler.wake(count)

    def _committed(self) -> None:
        self._follower.committed()
        self._in_use.changed()

    async def _node(self, name: str) -> float | None:
        return await self._reconciler.reconcile(name)

    async def _network(self, name: str) -> float | None:
        return await (self._in_use.reconcile() if name == in_use.KEY else self._follower.reconcile(name))


def node_changed(old: Node, new: Node) -> bool:
    """Whether allocation has to look again. Not at heartbeats: 5,000 nodes write 500 of them a second."""
    return (
        old.metadata.uid != new.metadata.uid
        or old.spec.pod_cidrs != new.spec.pod_cidrs
        or old.status.addresses != new.status.addresses
    )


def netloom_node_changed(old: NetloomNode, new: NetloomNode) -> bool:
    """Whether allocation has to look again. Not at a status: two operators that disagree would answer each other."""
    return (
        old.spec != new.spec
        or old.metadata.uid != new.metadata.uid
        or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        or old.metadata.owner_references != new.metadata.owner_references
    )
