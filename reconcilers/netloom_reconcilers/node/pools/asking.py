"""Writes what this node wants of its pools, and takes out of its object the blocks that it does not need any more.

Both go by one patch of the own NetloomNode. A block is given back in this order: the allocator closes it, and writes
that down, so nothing is given of it whatever happens next; then the patch takes it out, fenced by the version of the
object in which it was seen. A patch that got no answer may still be executed: the block stays closed until the object
is seen without it, or for `LATE_SECONDS` more. The operator frees it when the object does not hold it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.cidr import Cidr
from netloom.ipam.node_allocator import NodeAllocator
from netloom.ipam.pool_demand import DEBOUNCE, IDLE_SECONDS, Demand, DemandStep
from netloom.runtime.client import Api
from netloom.runtime.clock import boottime
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError, Conflict, NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import manager_of
from netloom_reconcilers.node.addresses.service import AddressService, NoAddress
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.pools.blocks import Allocated, held, knows, missing, rewritten, staying, views

log = structlog.get_logger(__name__)

LATE_SECONDS = 120.0
"""How long after it was sent a patch without an answer may be executed; the API server gives requests up after 60 s."""
BATCH_SECONDS = 0.01
"""What a pod that waits is let wait for others that come with it."""
AGAIN_SECONDS = 0.25
"""After a write that met another one: the cache hears of that in a moment."""
UNWRITTEN_SECONDS = 5.0
"""Until it is tried again to close a block, where that could not be written down."""
HEAL_SECONDS = 30.0
"""Between two attempts to enter one block again. Whoever takes it out again and again is not answered each time."""
MANAGER = manager_of("pools")


@dataclass(eq=False, repr=False)
class PoolReconciler:
    """See the module. is_on: whether nodes draw on pools. holder: another node that has addresses of a CIDR, or ""."""

    node_name: str
    api: Api
    nodes: Store[NetloomNode]
    networks: Store[NetloomNetwork]
    pools: Store[NetloomIPPool]
    service: AddressService
    own: OwnNode
    is_on: Callable[[], bool]
    holder: Callable[[Cidr], str] = lambda _cidr: ""
    told: Callable[[], None] = lambda: None
    idle_seconds: float = IDLE_SECONDS
    clock: Callable[[], float] = boottime
    step: DemandStep = field(default_factory=lambda: DemandStep(requested=()))
    """Of the last look."""
    problems: tuple[str, ...] = ()
    """Of blocks that pods use and that cannot be entered again."""
    writes: int = 0
    waiting_since: dict[str, float] = field(default_factory=dict)
    """By pool, for which somebody waits."""
    _late: dict[Cidr, float] = field(default_factory=dict)
    """Blocks that patches without an answer take out, and when these were sent."""
    _healed: dict[Cidr, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.demand = Demand(self.idle_seconds)
        self.controller = Controller("pools", self.reconcile)
        self.service.listeners.append(self.changed)
        again = self.controller.enqueue
        self.nodes.subscribe(lambda key, old, new: again(key) if key == self.node_name else None)
        self.networks.subscribe(lambda key, old, new: again(self.node_name))
        self.pools.subscribe(lambda key, old, new: again(self.node_name))

    def changed(self) -> None:
        """Of the allocator something is different."""
        self._again(BATCH_SECONDS if self.allocator.has_waiters else DEBOUNCE / 2)

    def _again(self, seconds: float) -> None:
        self.controller.enqueue_after(self.node_name, seconds)

    @property
    def allocator(self) -> NodeAllocator:
        """The node's."""
        return self.service.allocator

    async def reconcile(self, key: str) -> float | None:
        """One look, and one write if there is anything to write. Returns after how many seconds to look again."""
        for store in (self.nodes, self.networks):
            await store.wait_synced()
        if not self.is_on():
            return None
        await self.pools.wait_synced()
        node, network = self.nodes.get(key), self.networks.get(NETWORK_NAME)
        if node is None or network is None or self.service.obstacle:
            return None  # it is not known what is used: whoever finds out tells
        blocks = held(node.spec.ipam)
        every = [cidr for cidrs in blocks.values() for cidr in cidrs]
        if any(not knows(self.allocator, each) and each not in self.allocator.stock.overlapping for each in every):
            return None  # the allocator is about to hear of it, and tells
        now = self.clock()
        self._resolve_late(every, now)
        self.waiting_since = {pool: self.waiting_since.get(pool, now) for pool in self.allocator.waited_for()}
        default, known = network.spec.ipam.multi_pool.default_pool, dict(self.pools.items())
        self.step = step = self.demand.look(
            views(self.allocator, blocks, known, default, now),
            node.spec.ipam.pools.requested,
            staying(node.spec.ipam, blocks, known, default),
            now,
        )
        kept = {cidr: what for text, what in self.own.kept.items() if (cidr := Cidr.masked(text)) is not None}
        lacking = missing(self.node_name, self.allocator, kept, known, self.holder)
        self._tell(lacking.problems)
        back = self._due(lacking.blocks, now)
        gone = await self._close(step.surplus, every, now)
        turned = bool(blocks.get(default)) and next(iter(blocks)) != default and self._is_room(blocks[default])
        front = default if turned else next(iter(blocks), default)
        if gone or back or turned:
            await self._write(node, step, now, gone, rewritten(blocks, gone, back, front))
        elif step.is_due and not step.surplus:
            await self._write(node, step, now)
        again = [step.again, self._next(now, lacking.blocks), UNWRITTEN_SECONDS if step.surplus and not gone else None]
        return min((each for each in again if each is not None), default=None)

    def _is_room(self, blocks: tuple[Cidr, ...]) -> bool:
        """Whether the node can have addresses of its own in the first of these of each family: where pods may have the
        first and last one as well, these may be taken. From then on they are not given, which the allocator is told
        by who provides."""
        firsts = {each.version: each for each in reversed(blocks)}.values()
        ends = [(each.packed, each.packed_last) for each in firsts]
        return all(first in self.allocator.stock.supply.taken for first, _ in ends) and not any(
            self.allocator.user(each) for pair in ends for each in pair
        )

    def waiting_seconds(self, pool: str) -> float:
        """For how long somebody waits for this pool."""
        now = self.clock()
        return now - self.waiting_since.get(pool, now)

    def _resolve_late(self, every: Collection[Cidr], now: float) -> None:
        """What came of patches without an answer."""
        for cidr, at in list(self._late.items()):
            if cidr not in every:
                del self._late[cidr]
            elif now >= at + LATE_SECONDS:
                del self._late[cidr]
                self._reopen([cidr])

    def _reopen(self, cidrs: Collection[Cidr]) -> None:
        for cidr in cidrs:
            self.allocator.reopen(cidr)
        self.own.take_back(cidrs)

    def _next(self, now: float, lacking: Allocated) -> float | None:
        waits = [at + LATE_SECONDS - now for at in self._late.values()]
        waits += [
            self._healed[each] + HEAL_SECONDS - now
            for cidrs in lacking.values()
            for each in cidrs
            if each in self._healed
        ]
        return max(0.0, min(waits)) if waits else None

    def _due(self, lacking: Allocated, now: float) -> Allocated:
        """Of what the object lacks, what is entered now."""
        every = {cidr for cidrs in lacking.values() for cidr in cidrs}
        self._healed = {each: at for each, at in self._healed.items() if now < at + HEAL_SECONDS}
        due = {pool: tuple(each for each in cidrs if each not in self._healed) for pool, cidrs in lacking.items()}
        self._healed |= dict.fromkeys(every - self._healed.keys(), now)
        return {pool: cidrs for pool, cidrs in due.items() if cidrs}

    async def _close(self, surplus: Collection[Cidr], every: Collection[Cidr], now: float) -> tuple[Cidr, ...]:
        """The blocks that are to go by the next write: they are closed, and that is written down. An earlier life may
        have closed some, and not known what came of it."""
        before = [each for each in every if each in self.allocator.closed and each not in self._late]
        fresh = [each for each in surplus if self.allocator.close(each, now)]
        try:
            await self.service.written()
        except NoAddress:
            self._reopen(fresh)  # what cannot be written down may be forgotten
            return ()
        self.own.give_back((*before, *fresh))
        return (*before, *fresh)

    async def _write(
        self, node: NetloomNode, step: DemandStep, now: float, gone: tuple[Cidr, ...] = (), allocated: Any = None
    ) -> None:
        meta = {"name": node.metadata.name, "uid": node.metadata.uid}
        pools: dict[str, Any] = {"requested": msgspec.to_builtins(step.requested)}
        if allocated is not None:
            meta["resourceVersion"] = node.metadata.resource_version
            pools["allocated"] = msgspec.to_builtins(allocated)
        patch = {"metadata": meta, "spec": {"ipam": {"pools": pools}}}
        self.writes += 1
        try:
            stored = await self.api.patch(NETLOOM_NODES, node.metadata.name, patch, field_manager=MANAGER)
        except NotFound:
            return  # it was deleted: the watch brings the next one
        except Conflict:
            self._again(AGAIN_SECONDS)
            return
        except Unavailable:
            self._late |= dict.fromkeys(gone, now)
            raise
        except ApiError:
            # Of an earlier life's, another patch may be on its way.
            self._reopen([each for each in gone if each in step.surplus])
            self._late |= {each: now for each in gone if each not in step.surplus}
            raise
        log.info(
            "told what this node wants of its pools",
            requested={each.pool: [each.needed.ipv4_addrs, each.needed.ipv6_addrs] for each in step.requested},
            given_back=list(map(str, gone)),
        )
        self.nodes.put(stored)

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems != self.problems:
            self.problems = problems
            for each in problems:
                log.warning("a block that pods use is not this node's", why=each)
            self.told()
