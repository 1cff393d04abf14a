"""The nodes reconciler: a NetloomNode for every Node, with its pod CIDRs in the first write.

A node's CIDR never changes while the node lives, and no two nodes ever hold overlapping ones; docs/allocation.md has
the protocol and the proof. What this module adds to the ledgers' rules is the look at the world that they ask for:
before a block is freed, or a NetloomNode deleted, the API server is asked whether the node is really gone, since a
cache may lag.

A Node that is re-created under its name keeps the CIDR, if its NetloomNode is still there or its block was not freed
yet: its pods may still be running. In mode `kubernetes` the new Node may come with other CIDRs; then the NetloomNode
of the old one is deleted first.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from netloom.api.core import NODES, Node
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.ipam import settings as ipam_settings
from netloom.ipam.book import REQUEST_SECONDS, Book, Free, Grant, Refusal, Taken, Want
from netloom.ipam.cidr import Cidr
from netloom.ipam.pool import Exhausted
from netloom.ipam.settings import Settings
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict, NotFound
from netloom.runtime.store import Store, Unsubscribe
from netloom_reconcilers import node_objects
from netloom_reconcilers.allocation_metrics import WRITES
from netloom_reconcilers.conditions import Conditions, said
from netloom_reconcilers.last_known import LastKnown
from netloom_reconcilers.ledgers import Ledgers
from netloom_reconcilers.writes import Requests, definite

log = structlog.get_logger(__name__)

_CREATES = WRITES.labels("NetloomNode", "create")

LAG_SECONDS = 1.0
"""When to look again where a cache lags behind what was read live; its event usually comes first."""
RECHECK_SECONDS = 60.0
"""When to look again at a node that was refused; what it waits for usually wakes it first."""


@dataclass(frozen=True, slots=True)
class Caches:
    """What the reconciler reads."""

    nodes: Store[Node]
    netloom_nodes: Store[NetloomNode]


class NodesReconciler:
    """One key is one node's name. `settings` follows the NetloomNetwork and is replaced from outside."""

    def __init__(
        self,
        api: Requests,
        caches: Caches,
        book: Book,
        ledgers: Ledgers,
        conditions: Conditions,
        addresses: LastKnown,
        clock: Callable[[], float],
        enqueue: Callable[[str], None],
        *,
        writers: int = 32,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when another set of nodes waits."""
        self.settings: Settings | None = None
        self.waiting: dict[str, Problem | Exhausted] = {}
        """Nodes that cannot be given what they need, and why."""
        self.addresses = addresses
        self._api = api
        self._nodes = caches.nodes
        self._netloom_nodes = caches.netloom_nodes
        self._book = book
        self._ledgers = ledgers
        self._conditions = conditions
        self._clock = clock
        self._enqueue = enqueue
        self._writers = asyncio.Semaphore(writers)
        self._changed = changed
        self._own: str | None = None

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [
            self.addresses.watch(),
            self._netloom_nodes.subscribe(self._held_changed),
            self._nodes.subscribe(lambda key, old, new: self._enqueue(key)),
        ]

    def wake(self, freed: int | None = None) -> None:
        """Something changed that nodes wait for; `freed`: only that many blocks came back."""
        for name, why in list(self.waiting.items()):
            if freed is not None and isinstance(why, Exhausted):
                if not freed:
                    continue
                freed -= 1
            self._enqueue(name)

    async def reconcile(self, name: str) -> float | None:
        """Makes the NetloomNode `name` what its Node asks for."""
        node, obj = self._nodes.get(name), self._netloom_nodes.get(name)
        if obj is not None and obj.metadata.deletion_timestamp:
            return None  # its removal will be an event
        if node is not None:
            return await (self._join(node) if obj is None else self._settle(node, obj))
        if obj is None:
            self._done(name)
            self._book.forget(name)
            return await self._release(name, self._book.entries_of(name), gone=True)
        if node_objects.owner_of(obj) is None:
            return await self._stray(obj)
        return await self._remove(obj)

    # A Node without a NetloomNode

    async def _join(self, node: Node) -> float | None:
        return await self._allocate(node, None)

    async def _allocate(self, node: Node, obj: NetloomNode | None) -> float | None:
        name = node.metadata.name
        settings = self.settings
        if settings is None:
            return self._wait(name, _about(name, "NoNetwork", "there is no NetloomNetwork.", "Create one."))
        want = self._want(node, settings)
        if isinstance(want, Problem):
            return await self._refuse(node, obj, want)
        stale = [cidr for cidr in self._book.entries_of(name) if want.cidrs and cidr not in want.cidrs]
        again = await self._release(name, stale, gone=False)
        decision = await self._ledgers.ask(want)
        if isinstance(decision, Grant):
            self._done(name)
            later = await self._write(node, obj, decision)
            if any(cidr not in decision.cidrs for cidr in self._book.entries_of(name)):
                # Operators that disagreed entered the node twice. Our own write is no event, so nothing else would
                # ever come back to free what it does not hold.
                return LAG_SECONDS
            return later if again is None else again
        assert decision is not None, "only adoptions end without a grant"
        return await self._refuse(node, obj, _problem(name, decision))

    def _want(self, node: Node, settings: Settings) -> Want | Problem:
        name = node.metadata.name
        if settings.mode not in ipam_settings.IMPLEMENTED:
            return ipam_settings.not_implemented(settings.mode)
        if settings.mode != "kubernetes":
            return Want(name, settings.mode)
        if not node.spec.pod_cidrs:
            message = "Node spec.podCIDRs is empty."
            return _about(name, "PodCIDRsMissing", message, _CONTROLLER_WRITES)
        cidrs = ipam_settings.dictated(name, node.spec.pod_cidrs)
        return cidrs if isinstance(cidrs, Problem) else Want(name, settings.mode, cidrs)

    async def _write(self, node: Node, obj: NetloomNode | None, grant: Grant) -> float | None:
        """Gives the node what was granted: the one write that must never happen without a mark in the ledger."""
        sent: float | None = None
        try:
            async with self._writers:
                now = self._clock()
                if now >= grant.deadline:
                    return 0.0
                sent = now
                async with asyncio.timeout(REQUEST_SECONDS):
                    written = await self._send(node, obj, grant.mode, grant.cidrs)
            sent = None
        except (AlreadyExists, Conflict, NotFound):
            sent = None
            await self._refresh(grant.node)
            return LAG_SECONDS
        except ApiError as error:
            if definite(error):
                sent = None
            raise
        finally:
            self._ledgers.settle(grant, sent)
        self._store(written)
        if obj is not None:
            await self._fine(written)
        return None

    async def _send(self, node: Node, obj: NetloomNode | None, mode: str, cidrs: Collection[Cidr]) -> NetloomNode:
        if obj is None:
            _CREATES.inc()
            return await self._api.create(NETLOOM_NODES, node_objects.built(node, mode, cidrs))
        WRITES.labels("NetloomNode", "patch").inc()
        patch = node_objects.difference(node, obj, mode, self.addresses.of(node, obj).addresses, cidrs)
        return await self._api.patch(NETLOOM_NODES, obj.metadata.name, patch)

    async def _refuse(self, node: Node, obj: NetloomNode | None, why: Problem | Exhausted) -> float | None:
        """Shows at the node why it gets nothing: on a NetloomNode without CIDRs, where there is none yet."""
        name = node.metadata.name
        again = self._wait(name, why)
        if isinstance(why, Problem) and why.reason in _SILENT:
            return again
        if obj is None:
            try:
                async with self._writers, asyncio.timeout(REQUEST_SECONDS):
                    obj = await self._send(node, None, self._mode, ())
            except AlreadyExists:
                await self._refresh(name)
                return LAG_SECONDS
            self._store(obj)
        await self._complain(obj, why)
        return again

    # A Node with its NetloomNode

    async def _settle(self, node: Node, obj: NetloomNode) -> float | None:
        owner = node_objects.owner_of(obj)
        if owner is not None and owner.uid != node.metadata.uid:
            live = await self._live_node(node.metadata.name)
            if live is None or live.metadata.uid != node.metadata.uid:
                return LAG_SECONDS
            if owner.uid != live.metadata.uid and self._cannot_keep(live, obj):
                if not live.spec.pod_cidrs and (why := self._differs(live, obj)):
                    return await self._reported(obj, why)  # which it will get decides what becomes of the object
                return await self._delete(obj)
        if not obj.spec.ipam.pod_cidrs:
            return await self._allocate(node, obj)
        why = await self._doubt(node, obj)
        known = self.addresses.of(node, obj)
        patch = node_objects.difference(node, obj, self._mode, known.addresses)
        if patch:
            written = await self._follow(obj, patch)
            if written is None:
                return LAG_SECONDS
            obj = written
        told = await self.addresses.tell(obj, known)
        if told is not None:
            self._store(told)
            obj = told
        if why is not None:
            return await self._reported(obj, why)
        self._done(obj.metadata.name)
        await self._fine(obj)
        extra = [cidr for cidr in self._book.entries_of(obj.metadata.name) if cidr not in node_objects.held(obj)]
        return await self._release(obj.metadata.name, extra, gone=False)

    async def _doubt(self, node: Node, obj: NetloomNode) -> Problem | None:
        """What is wrong with the CIDRs that a node holds; they stay as they are."""
        return node_objects.unusable(obj) or await self._adopt(obj) or self._differs(node, obj)

    def _cannot_keep(self, node: Node, obj: NetloomNode) -> bool:
        """Whether a re-created Node brings other CIDRs than those of its predecessor's NetloomNode."""
        if self._mode != "kubernetes" or not obj.spec.ipam.pod_cidrs:
            return False
        cidrs = ipam_settings.dictated(node.metadata.name, node.spec.pod_cidrs)
        return isinstance(cidrs, Problem) or set(cidrs) != set(node_objects.held(obj))

    def _differs(self, node: Node, obj: NetloomNode) -> Problem | None:
        if not self._cannot_keep(node, obj):
            return None
        message = (
            f"Node spec.podCIDRs is {', '.join(node.spec.pod_cidrs) or 'empty'}, but the NetloomNode holds "
            f"{', '.join(obj.spec.ipam.pod_cidrs)}, which is not changed while the node lives."
        )
        way_out = "Delete the Node and let it join again." if node.spec.pod_cidrs else _CONTROLLER_WRITES
        return _about(node.metadata.name, "PodCIDRsDiffer", message, way_out)

    async def _follow(self, obj: NetloomNode, patch: dict[str, object]) -> NetloomNode | None:
        """Writes addresses, owner or mode as they are now; None where somebody else wrote in between."""
        WRITES.labels("NetloomNode", "patch").inc()
        try:
            written = await self._api.patch(NETLOOM_NODES, obj.metadata.name, patch)
        except (Conflict, NotFound):
            await self._refresh(obj.metadata.name)
            return None
        self._store(written)
        return written

    async def _adopt(self, obj: NetloomNode) -> Problem | None:
        """Enters what the object holds into the ledgers, where it is missing there."""
        name = obj.metadata.name
        loose = self._book.loose(name)
        if not loose or self._mode not in ipam_settings.IMPLEMENTED:
            return None
        if obj.spec.ipam.mode not in ("", self._mode):
            message = f"it holds addresses of IPAM mode {obj.spec.ipam.mode}, and the mode in force is {self._mode}."
            return _about(
                name, "ModeLocked", message, "Remove the Node (and this object with it), and let it join again."
            )
        since = obj.metadata.creation_timestamp
        decision = await self._ledgers.ask(Want(name, self._mode, loose, adopt=True, since=since))
        assert not isinstance(decision, Grant), "an adoption is no grant"
        if decision is None:
            return None
        problem = _problem(name, decision)
        assert isinstance(problem, Problem), "an adoption takes nothing from a pool"
        return problem

    # A NetloomNode without a Node

    async def _stray(self, obj: NetloomNode) -> float | None:
        """Made by hand: its CIDRs are respected, and it is for its maker to delete."""
        name = obj.metadata.name
        if await self._live_node(name) is not None:
            return LAG_SECONDS
        why = node_objects.unusable(obj) or await self._adopt(obj)
        if why is None:
            message = f"there is no Node {name}, and nobody else gets the CIDRs of this NetloomNode."
            why = _about(name, "NoSuchNode", message, "Delete it to give them back, or let the Node join.")
        return await self._reported(obj, why)

    async def _remove(self, obj: NetloomNode) -> float | None:
        """Deletes the NetloomNode of a Node that is gone, which the cache alone is not believed."""
        if await self._live_node(obj.metadata.name) is not None:
            return LAG_SECONDS
        return await self._delete(obj)

    async def _delete(self, obj: NetloomNode) -> float | None:
        meta = obj.metadata
        WRITES.labels("NetloomNode", "delete").inc()
        try:
            await self._api.delete(NETLOOM_NODES, meta.name, uid=meta.uid, resource_version=meta.resource_version)
        except Conflict:
            await self._refresh(meta.name)
        except NotFound:
            pass
        return LAG_SECONDS

    async def _release(self, name: str, cidrs: Collection[Cidr], *, gone: bool) -> float | None:
        """Frees blocks of a node that does not hold them; `gone`: only if there is no such Node. When to look again."""
        if not cidrs:
            return None
        wait = max(self._book.freeable(name, cidr, self._clock()) for cidr in cidrs)
        if wait > 0:
            return min(wait, RECHECK_SECONDS)
        # The ledger must be read before the node: what is free in it from then on stays so (see Book.freeable).
        frees = [Free(name, cidr, self._book.lineage(cidr)) for cidr in cidrs]
        if gone and await self._live_node(name) is not None:
            return LAG_SECONDS
        obj = await self._live_netloom_node(name)
        if obj is not None and any(cidr.overlaps(other) for cidr in cidrs for other in node_objects.held(obj)):
            return LAG_SECONDS
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(self._ledgers.free(free)) for free in frees]
        return None if all(result.result() for result in results) else LAG_SECONDS

    # Live reads

    async def _live_node(self, name: str) -> Node | None:
        try:
            node = await self._api.get(NODES, name)
        except NotFound:
            return None
        self._nodes.put(node)
        return node

    async def _live_netloom_node(self, name: str) -> NetloomNode | None:
        try:
            obj = await self._api.get(NETLOOM_NODES, name)
        except NotFound:
            return None
        self._netloom_nodes.put(obj)
        return obj

    async def _refresh(self, name: str) -> None:
        """The cache was wrong: what is there is read now, what is not there any more the watch will tell."""
        await self._live_netloom_node(name)

    # Caches

    def _held_changed(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if old is None or new is None or old.spec.ipam.pod_cidrs != new.spec.ipam.pod_cidrs:
            loose = self._book.loose(key)
            self._book.hold(key, node_objects.held(new) if new is not None else ())
            if set(loose).difference(self._book.loose(key)):
                self.wake()  # no ledger knew of that space, so none will tell that it is free
            if new is None:
                self._ledgers.look()
        if key != self._own:
            self._enqueue(key)

    def _store(self, written: NetloomNode) -> None:
        """Our own write needs no second look."""
        self._own = written.metadata.name
        self._netloom_nodes.put(written)
        self._own = None

    # What people see

    def _wait(self, name: str, why: Problem | Exhausted) -> float | None:
        if self.waiting.get(name) != why:
            self.waiting[name] = why
            self._changed()
        if isinstance(why, Exhausted) or why.reason in _WOKEN:
            return None
        return LAG_SECONDS if why.reason in _PASSING else RECHECK_SECONDS

    def _done(self, name: str) -> None:
        if self.waiting.pop(name, None) is not None:
            self._changed()

    async def _reported(self, obj: NetloomNode, why: Problem) -> float | None:
        again = self._wait(obj.metadata.name, why)
        if why.reason not in _SILENT:
            await self._complain(obj, why)
        return again

    async def _complain(self, obj: NetloomNode, why: Problem | Exhausted) -> None:
        reason = why.reason if isinstance(why, Problem) else "ClusterPoolExhausted"
        message = said(why, f"NetloomNode {obj.metadata.name}") if isinstance(why, Problem) else f"{why}."
        written = await self._conditions.node(obj, "False", reason, message)
        if written is not None:
            self._store(written)

    async def _fine(self, obj: NetloomNode) -> None:
        """Takes back an earlier complaint. A node that never had one costs no write."""
        if any(each.type == "Allocated" and each.status != "True" for each in obj.status.conditions):
            written = await self._conditions.node(obj, "True", "Allocated", "it holds the CIDRs it needs")
            if written is not None:
                self._store(written)

    @property
    def _mode(self) -> str:
        return self.settings.mode if self.settings else ""


_CONTROLLER_WRITES = "In IPAM mode kubernetes, kube-controller-manager writes it, if run with --allocate-node-cidrs."

_WOKEN = frozenset({"NoNetwork", "PodCIDRsMissing", "IPAMModeNotImplemented", "NoClusterCIDR"})
"""Reasons that end with an event."""
_PASSING = frozenset({"LedgerBusy", "ModeChanged", "NetworkBusy", "NetworkChanged"})
"""Reasons that pass by themselves."""
_SILENT = _WOKEN | _PASSING
"""Reasons that the NetloomNetwork tells: no object per node is written for them."""


def _about(name: str, reason: str, message: str, way_out: str) -> Problem:
    return Problem(f"NetloomNode {name}", "", "", reason, message, way_out)


def _problem(name: str, refusal: Refusal) -> Problem | Exhausted:
    if isinstance(refusal, Exhausted):
        return refusal
    if isinstance(refusal, Taken):
        return _about(name, "PodCIDRConflict", f"{refusal}.", "Neither is changed; remove one of the two nodes.")
    return _about(name, refusal.reason, f"{refusal.message}.", "It is tried again.")
