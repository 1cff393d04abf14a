"""The writes of one NetloomNode: its blocks under a grant, what follows its Node, and what people see of it.

The answer to each is in the cache when it returns, and is no event: who wrote comes back to the node by itself.
"""

from collections.abc import Collection
from typing import TypeVar

from netloom.api.core import Node
from netloom.api.ipam_modes import mode_named
from netloom.api.meta import ALLOCATED, Object
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETLOOM_NODES, Address, NetloomNode
from netloom.ipam.marks import REQUEST_SECONDS
from netloom.ipam.plan import Block, Grant
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict, NotFound
from netloom.runtime.store import Store
from netloom.runtime.time_limits import TimedSemaphore
from netloom_reconcilers.cluster.allocation import node_objects, waiting
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.last_known_addresses import LastKnownAddresses
from netloom_reconcilers.cluster.allocation.metrics import WRITES
from netloom_reconcilers.cluster.allocation.refused_writes import RefusedWrites
from netloom_reconcilers.cluster.allocation.waiting import LAG_SECONDS, Reason, WaitingNodes
from netloom_reconcilers.conditions import Readiness, said

T = TypeVar("T", bound=Object)

_CREATES = WRITES.labels("NetloomNode", "create")
CONFLICT_SECONDS = 0.05
"""When to try again what met somebody else's write; the newer version is known by then."""
_DEFINITE = frozenset({400, 401, 403, 404, 409, 422, 429})
"""Statuses that say: the request was not executed, and will not be. After any other failure it may be, later."""


class NodeWrites(Member):
    """What returns seconds says when to look at the node again; None: an event will tell."""

    def __init__(
        self,
        incarnation: Incarnation,
        commits: CommitQueue,
        configuration: AllocationConfiguration,
        addresses: LastKnownAddresses,
        waiting_nodes: WaitingNodes,
        refused: RefusedWrites,
        writers: int,
    ) -> None:
        """`writers`: how many NetloomNodes are given their blocks at the same time."""
        super().__init__(incarnation)
        self._commits = commits
        self._configuration = configuration
        self._addresses = addresses
        self._waiting = waiting_nodes
        self._refused = refused
        self._writers = TimedSemaphore(writers, REQUEST_SECONDS)
        self._own: str | None = None
        self._creating: set[str] = set()
        """Nodes whose NetloomNode is being made: who does that comes back to it, whatever the watch tells first."""

    def is_own(self, name: str, *, new: bool) -> bool:
        """Whether a change of the NetloomNode, which is `new` in the cache, is of a write here."""
        return name == self._own or (new and name in self._creating)

    async def give(self, node: Node, obj: NetloomNode | None, grant: Grant, *, fine: bool) -> float | None:
        """Gives the node what was granted: the one write that must never happen without a mark in the ledger."""
        sent: float | None = None
        try:
            async with self._writers:
                now = self._clock()
                if now >= grant.deadline:
                    return 0.0
                sent = now
                known = self._addresses.of(node, obj)
                written = await self._send(node, obj, grant.mode, grant.blocks, known.addresses)
            sent = None
        except (AlreadyExists, Conflict, NotFound):
            sent = None
            await self.live(self._netloom_nodes, grant.node)
            return CONFLICT_SECONDS
        except ApiError as error:
            if error.status in _DEFINITE:
                sent = None
            raise
        finally:
            self._commits.finish(grant, sent)
        self.store(written)
        if obj is not None and fine:
            await self.fine(written)
        return LAG_SECONDS if known.loss else None

    async def _send(
        self,
        node: Node,
        obj: NetloomNode | None,
        mode: str,
        given: Collection[Block],
        addresses: tuple[Address, ...],
    ) -> NetloomNode:
        name = node.metadata.name
        try:
            if obj is None:
                _CREATES.inc()
                self._creating.add(name)
                written = await self._api.create(NETLOOM_NODES, node_objects.built(node, mode, given, addresses))
            else:
                WRITES.labels("NetloomNode", "patch").inc()
                patch = node_objects.difference(node, obj, mode, addresses, given)
                written = await self._api.patch(NETLOOM_NODES, name, patch)
        except ApiError as error:
            self._refused.note(name, error)
            raise
        finally:
            self._creating.discard(name)
        self._refused.note(name, None)
        return written

    async def patch(self, obj: NetloomNode, patch: dict[str, object]) -> NetloomNode | None:
        """Writes addresses, owner or mode as they are now; None where somebody else wrote in between."""
        WRITES.labels("NetloomNode", "patch").inc()
        try:
            written = await self._api.patch(NETLOOM_NODES, obj.metadata.name, patch)
        except (Conflict, NotFound):
            await self.live(self._netloom_nodes, obj.metadata.name)
            return None
        self.store(written)
        return written

    async def delete(self, obj: NetloomNode) -> float | None:
        """Deletes this very version of the object."""
        meta = obj.metadata
        WRITES.labels("NetloomNode", "delete").inc()
        try:
            await self._api.delete(NETLOOM_NODES, meta.name, uid=meta.uid, resource_version=meta.resource_version)
        except Conflict:
            await self.live(self._netloom_nodes, meta.name)
        except NotFound:
            pass
        return LAG_SECONDS

    def forget(self, name: str) -> None:
        """The node is gone, or given nothing: that a write of it was refused matters no more."""
        self._refused.note(name, None)

    async def live(self, store: Store[T], name: str) -> T | None:
        """As the API server has it, which the cache has then, too."""
        try:
            obj = await self._api.get(store.resource, name)
        except NotFound:
            return None
        store.put(obj)
        return obj

    def store(self, written: NetloomNode) -> None:
        """Our own write needs no second look."""
        self._own = written.metadata.name
        self._netloom_nodes.put(written)
        self._own = None

    # What people see

    async def refuse(self, about: Node | NetloomNode, why: Reason) -> float | None:
        """Shows at the NetloomNode why it waits; for a Node that has none yet, one without CIDRs is made."""
        name = about.metadata.name
        again = self._waiting.add(name, why)
        if waiting.told_by_network(why):
            return again
        obj = await self.make(about) if isinstance(about, Node) else about
        if obj is None:
            return LAG_SECONDS
        message = said(why, f"NetloomNode {name}") if isinstance(why, Problem) else f"{why}."
        await self._tell(obj, False, waiting.reason_of(why), message)
        return again

    async def make(self, node: Node) -> NetloomNode | None:
        """A NetloomNode without blocks; None where somebody else has made one."""
        try:
            async with self._writers:
                addresses = self._addresses.of(node, None).addresses
                obj = await self._send(node, None, self._configuration.mode, (), addresses)
        except AlreadyExists:
            await self.live(self._netloom_nodes, node.metadata.name)
            return None
        self.store(obj)
        return obj

    async def fine(self, obj: NetloomNode) -> None:
        """Takes back an earlier complaint. A node that never had one costs no write."""
        if any(each.type == ALLOCATED and each.status != "True" for each in obj.status.conditions):
            what = (
                "addresses, and nothing is wrong with them"
                if mode_named(self._configuration.mode).from_outside
                else "the CIDRs it needs"
            )
            await self._tell(obj, True, "Allocated", f"it holds {what}")

    async def _tell(self, obj: NetloomNode, good: bool, reason: str, message: str) -> None:
        written = await self._conditions.set(NETLOOM_NODES, obj, ALLOCATED, Readiness(good, reason, message))
        if written is not None:
            self.store(written)
