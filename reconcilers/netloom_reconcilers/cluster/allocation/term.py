"""Puts the parts of the allocation together: one incarnation, from its first read of the ledgers to its end.

Every term of leadership is a new incarnation with a new name and empty memory: the marks it left behind in an
earlier life are a stranger's to it, and are waited out like any other's.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from typing import ClassVar, assert_never

import structlog

from netloom.api.core import NODES
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, POOLS
from netloom.ipam.allocator import Allocator
from netloom.runtime.cancellation import last_words
from netloom.runtime.client import Api
from netloom.runtime.clock import boottime
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError
from netloom.runtime.events import EventRecorder
from netloom_reconcilers.cluster.allocation import metrics
from netloom_reconcilers.cluster.allocation.commit_queue import BatchPolicy, CommitQueue
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import (
    BlocksFreed,
    Changed,
    Event,
    Incarnation,
    NodesAffected,
    PoolsAffected,
    Stores,
    netloom_node_changed,
    node_changed,
    pool_changed,
)
from netloom_reconcilers.cluster.allocation.last_known_addresses import LastKnownAddresses
from netloom_reconcilers.cluster.allocation.ledger_reader import LedgerReader
from netloom_reconcilers.cluster.allocation.ledger_writer import LedgerWriter
from netloom_reconcilers.cluster.allocation.left_out import LeftOut
from netloom_reconcilers.cluster.allocation.lock import ModeLock
from netloom_reconcilers.cluster.allocation.node_writes import NodeWrites
from netloom_reconcilers.cluster.allocation.outside_addresses import OutsideAddresses
from netloom_reconcilers.cluster.allocation.refused_writes import RefusedWrites
from netloom_reconcilers.cluster.allocation.reserved import Reserved, Services
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRanges
from netloom_reconcilers.cluster.allocation.waiting import WaitingNodes
from netloom_reconcilers.cluster.network import (
    GATHER_SECONDS,
    IN_USE_KEY,
    QUIET_SECONDS,
    RETELL_SECONDS,
    InUseReconciler,
    NetworkReconciler,
)
from netloom_reconcilers.cluster.nodes import NodesReconciler
from netloom_reconcilers.cluster.pools import PoolsReconciler
from netloom_reconcilers.conditions import ADDRESSES, OPERATOR, Conditions
from netloom_reconcilers.features.cluster import ClusterContext, Told

log = structlog.get_logger(__name__)

RUN_SECONDS = 600.0
"""How long a node may wait for its batch: while the API server is away, waiting is all there is to do."""
LAST_WORDS_SECONDS = 5.0


class Allocation:
    """One incarnation of the allocation; `run` it once."""

    def __init__(
        self,
        api: Api,
        stores: Stores,
        events: EventRecorder,
        *,
        incarnation: str = "",
        clock: Callable[[], float] = boottime,
        policy: BatchPolicy | None = None,
        crashes: Callable[[], Iterable[str]] = tuple,
        services: Services | None = None,
    ) -> None:
        """`crashes` gives what crashed in this process of late, as sentences; call `look` when that changed."""
        policy = policy or BatchPolicy()
        conditions, addressing = (
            Conditions(api, events, manager, lambda kind: metrics.WRITES.labels(kind, "apply").inc(), fenced=True)
            for manager in (OPERATOR, ADDRESSES)
        )
        self._stores = stores
        self._allocator = Allocator(incarnation or uuid.uuid4().hex[:12])
        shared = Incarnation(api, stores, self._allocator, conditions, self._react, clock)
        lock = ModeLock(shared)
        self._reader = LedgerReader(shared, lock)
        refused = RefusedWrites(shared)
        self._commits = CommitQueue(shared, lock, self._reader, LedgerWriter(shared, lock), refused, policy)
        self._left_out = LeftOut(shared)
        self._addresses = LastKnownAddresses(shared, addressing, self._left_out)
        self._services = services or ServiceRanges(api)
        self._configuration = AllocationConfiguration(shared, Reserved(shared, self._services))
        self._waiting = WaitingNodes(self._react)
        self._outside = OutsideAddresses(shared, lock, self._services, self._addresses.claimants)
        writes = NodeWrites(
            shared, self._commits, self._configuration, self._addresses, self._waiting, refused, policy.writers
        )
        self._nodes = NodesReconciler(
            shared,
            self._commits,
            self._configuration,
            self._addresses,
            self._left_out,
            self._outside,
            self._waiting,
            writes,
        )
        self._network = NetworkReconciler(
            shared, lock, self._configuration, self._left_out, self._waiting, refused, crashes
        )
        self._in_use = InUseReconciler(shared, lock, self._commits, self._configuration, self._left_out, self._waiting)
        self._pools = PoolsReconciler(shared, self._configuration)
        self.nodes = Controller("nodes", self._nodes.reconcile, policy.workers, timeout=RUN_SECONDS)
        self.network = Controller("network", self._reconcile_network)
        self.pools = Controller("pools", self._pools.reconcile)

    def _react(self, event: Event) -> None:
        """Who does what about an event: nothing but queueing keys and taking notes."""
        match event:
            case NodesAffected(names):
                self._enqueue(names)
            case BlocksFreed(count, blocks):
                self._enqueue(self._waiting.woken(count))
                self._enqueue(self._pools.takers(blocks))
            case PoolsAffected(names):
                for name in names:
                    self.pools.enqueue_after(name, GATHER_SECONDS)
            case Changed.SETTINGS:
                self._enqueue([*self._waiting.woken(), *self._nodes.lacking()])
                self._pools.settings_changed()
                self.look()
                self.network.enqueue_after(IN_USE_KEY, QUIET_SECONDS)
            case Changed.NETWORK:
                self._commits.wake()
                self.look()
                self.network.enqueue_after(IN_USE_KEY, QUIET_SECONDS)
            case Changed.LEDGERS:
                self._in_use.ledgers_changed()
                self.network.enqueue_after(NETWORK_NAME, RETELL_SECONDS)
                self.network.enqueue_after(IN_USE_KEY, QUIET_SECONDS)
            case Changed.RESERVED:
                self._enqueue(self._allocator.singles.nodes())
                self._pools.reserved_changed()
                self.look()
                self.network.enqueue_after(IN_USE_KEY, QUIET_SECONDS)
            case Changed.WAITING | Changed.LEFT_OUT:
                self.look()
                self.network.enqueue_after(IN_USE_KEY, QUIET_SECONDS)
            case _:
                assert_never(event)

    def _enqueue(self, names: Iterable[str]) -> None:
        for name in names:
            self.nodes.enqueue(name)

    async def run(self) -> None:
        """Works until it is cancelled."""
        stores = self._stores
        for store in (stores.networks, stores.nodes, stores.netloom_nodes, stores.pools):
            await store.wait_synced()
        # The network first: what nodes are given depends on it.
        leave = [*self._left_out.watch(), *self._configuration.watch(), *self._addresses.watch(), *self._nodes.watch()]
        leave += [*self._pools.watch(), *self._outside.watch()]
        leave.append(self._stores.netloom_nodes.on_replace(self._relisted))
        metrics.BLOCKS.source = self._allocator.blocks.usage
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commits.run(), name="ledgers")
                group.create_task(self.network.run(), name="network")
                group.create_task(self._services.run(), name="services")
                await self._commits.loaded.wait()
                await self._services.answered()
                group.create_task(self.nodes.run(), name="nodes")
                group.create_task(self.pools.run(), name="pools")
        finally:
            metrics.BLOCKS.source = tuple
            metrics.POOL_METRICS.forget()
            for unsubscribe in leave:
                unsubscribe()

    def look(self) -> None:
        """There may be news to tell at the network: of `crashes`, say."""
        self.network.enqueue_after(NETWORK_NAME, GATHER_SECONDS)

    async def tell_crash(self, crash: str) -> None:
        """The last words of an incarnation that crashed, at the NetloomNetwork, if the API server takes them."""
        try:
            async with last_words(LAST_WORDS_SECONDS):
                await self._network.tell_crash(crash)
        except (ApiError, TimeoutError) as error:
            log.warning("the crash is not told", error=str(error) or "no answer")

    @property
    def fault(self) -> str:
        """What keeps allocation from working, "" if nothing; for the readiness check."""
        return str(self._commits.failure) if self._commits.failure else ""

    def _relisted(self) -> None:
        self._reader.distrust_all()
        self._commits.wake()

    async def _reconcile_network(self, name: str) -> float | None:
        return await (self._in_use.reconcile() if name == IN_USE_KEY else self._network.reconcile(name))


class AllocationFeature:
    """The allocation as a feature of the operator: each term is an incarnation of its own."""

    name: ClassVar[str] = "allocation"
    told: ClassVar[Told] = ()
    """Nodes hold what they were given, whether it is on or off."""

    def __init__(self, context: ClusterContext) -> None:
        self._context, caches = context, context.caches
        self._stores = Stores(
            networks=caches.store(NETWORKS),
            nodes=caches.store(NODES, node_changed),
            netloom_nodes=caches.store(NETLOOM_NODES, netloom_node_changed),
            pools=caches.store(POOLS, pool_changed),
        )

    def begin(self) -> Allocation:
        """A new incarnation."""
        context = self._context
        return Allocation(context.api, self._stores, context.events, crashes=context.crashes)
