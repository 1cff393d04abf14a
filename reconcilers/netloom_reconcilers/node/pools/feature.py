"""IPAM mode multi-pool on a node, as a feature of the agent: which pool a pod gets, what the node asks for, what it
gives back. Beside `addresses`, whose allocator gives of it; without that, or without a cluster, it does nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import structlog
from prometheus_client.core import Metric

from netloom.api.core import PODS
from netloom.api.events import ObjectReference
from netloom.api.holdings import held_cidrs
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.cidr import Cidr, Version, format_address
from netloom.ipam.address_stock import NO_POOL
from netloom.ipam.node_allocator import Owner, Shortage
from netloom.runtime.manager import Run
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.node import NodeContext, NodeFeature
from netloom_reconcilers.node.addresses.service import NoAddress
from netloom_reconcilers.node.addresses.wire import Why
from netloom_reconcilers.node.pools import telling
from netloom_reconcilers.node.pools.asking import PoolReconciler
from netloom_reconcilers.node.pools.blocks import held
from netloom_reconcilers.node.pools.choosing import PoolChooser
from netloom_reconcilers.node.pools.following import Following
from netloom_reconcilers.node.pools.why import PodFacts, why

log = structlog.get_logger(__name__)


class PoolsFeature(NodeFeature):
    """See the module."""

    name = "pools"

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context)
        self.refused: Counter[str] = Counter()
        """Pods that got no pool, by reason."""
        self._refusals: dict[str, tuple[str, str]] = {}
        service, api = context.addresses, context.api
        self._reconciler: PoolReconciler | None = None
        if service is None or api is None:
            return
        self._service = service
        self._following = Following(context.node_name, api, context.networks, context.pools)
        self._chooser = PoolChooser(
            context.node_name,
            api,
            context.networks,
            context.pools,
            self._following.pods,
            lambda: self._following.pods_fault,
        )
        self._reconciler = PoolReconciler(
            context.node_name,
            api,
            context.nodes,
            context.networks,
            context.pools,
            service,
            context.own,
            is_on=lambda: self._following.is_on,
            holder=self._holder,
            told=context.changed,
            idle_seconds=context.give_back_after,
        )
        self._without_pools, service.pool_of = service.pool_of, self._pool_of
        self._explain_without, service.explain = service.explain, self._explain
        service.why = self.why

    def components(self) -> Mapping[str, Run]:
        """The reconciler, and the watches of what is read in this mode alone."""
        if self._reconciler is None:
            return {}
        return {self.name: self._reconciler.controller.run, "watches of pools and pods": self._following.run}

    def changed(self) -> None:
        """CIDRs may be kept that are to be entered again."""
        if self._reconciler is not None and self.context.own.kept:
            self._reconciler.changed()

    async def _pool_of(self, owner: Owner, asked: str | None, uid: str) -> Mapping[str, frozenset[Version]] | Problem:
        if not self._following.is_on:
            return await self._without_pools(owner, asked, uid)
        found = await self._chooser.pool_of(owner, asked or "", uid)
        if isinstance(found, Problem):
            self._refuse(owner, found)
            return found
        self._refusals.pop(owner.name, None)
        return found.pools

    def _refuse(self, owner: Owner, problem: Problem) -> None:
        """Told once, as an Event of the pod; the kubelet tries again, and is told each time."""
        self.refused[problem.reason] += 1
        pod = self._following.pods.get(owner.name)
        told = pod.metadata.uid if pod is not None else "", str(problem)
        if self._refusals.get(owner.name) == told:
            return
        self._refusals[owner.name] = told
        if len(self._refusals) > _MOST:
            del self._refusals[next(iter(self._refusals))]
        log.warning("a pod gets no pool", pod=owner.name, why=str(problem))
        if pod is not None and self.context.events is not None:
            self.context.events.event(ObjectReference.of(PODS, pod), "Warning", problem.reason, str(problem))

    def _explain(self, owner: Owner | None, shortage: Shortage) -> str:
        node, reconciler = self.context.nodes.get(self.context.node_name), self._reconciler
        if shortage.pool == NO_POOL or not self._following.is_on or node is None or reconciler is None:
            return self._explain_without(owner, shortage)
        return telling.shortage(
            node,
            self.context.pools.get(shortage.pool),
            owner.name if owner is not None else "a pod",
            shortage,
            reconciler.waiting_seconds(shortage.pool),
        )

    async def why(self, name: str) -> Why:
        """Why a pod of this node has what it has, or nothing. Raises NoAddress."""
        network, reconciler = self.context.networks.get(NETWORK_NAME), self._reconciler
        if network is None or reconciler is None:
            raise NoAddress("NotReady", "the objects are not read yet.")
        pod = await self._chooser.pod(name)
        if isinstance(pod, Problem):
            raise NoAddress(pod.reason, str(pod), passing=False)
        choice = await self._chooser.pool_of(Owner(name)) if self._following.is_on else None
        held = [each for owner, each in self._service.allocator.held() if owner.name == name]
        waited = dict.fromkeys(self._service.allocator.waited_for())
        known = PodFacts(
            pod,
            network,
            self.context.nodes.get(self.context.node_name),
            choice,
            dict(self.context.pools.items()),
            [format_address(address) for each in held for address in each.addresses],
            {pool: reconciler.waiting_seconds(pool) for pool in waited},
        )
        return why(known)

    def _holder(self, cidr: Cidr) -> str:
        """Another node whose object holds addresses of a CIDR; asked only when a block of this one is missing."""
        for name in self.context.nodes:
            node = self.context.nodes.get(name)
            theirs = held_cidrs(node.spec.ipam) if name != self.context.node_name and node is not None else ()
            if any(map(cidr.overlaps, theirs)):
                return name
        return ""

    def errors(self) -> list[str]:
        """What pods have and the node should not, and what it cannot ask for."""
        reconciler, node = self._reconciler, self.context.nodes.get(self.context.node_name)
        if reconciler is None or node is None or not self._following.is_on:
            return []
        found = list(reconciler.problems)
        about = f"NetloomNode {self.context.node_name}: spec.ipam.pools cannot be written"
        found += [f"{about}: {why}. It is tried again." for why in reconciler.controller.failing.values()]
        found += telling.capped(self.context.node_name, reconciler.step.capped)
        if self.context.pools.synced.is_set():
            found += telling.unknown(self.context.node_name, held(node.spec.ipam), self.context.pools)
        fault = self._following.fault
        if fault and self.context.pools.synced.is_set() is False:
            found.append(f"Node {self.context.node_name}: the NetloomIPPools cannot be read: {fault}")
        return found

    def facts(self) -> dict[str, object]:
        """For /status."""
        reconciler = self._reconciler
        if reconciler is None or not self._following.is_on:
            return {}
        asked = {each.pool: [each.needed.ipv4_addrs, each.needed.ipv6_addrs] for each in reconciler.step.requested}
        return {"pools": {"requested": asked, "writes": reconciler.writes, "refused": self.refused}}

    def metrics(self) -> Iterable[Metric]:
        """What is asked, and whom no pool was found for."""
        reconciler = self._reconciler
        if reconciler is None or not self._following.is_on:
            return
        asked = {(each.pool, "ipv4"): each.needed.ipv4_addrs for each in reconciler.step.requested}
        asked |= {(each.pool, "ipv6"): each.needed.ipv6_addrs for each in reconciler.step.requested}
        text = "Addresses that this node asks of each NetloomIPPool, with those that it holds."
        yield gauge("netloom_node_addresses_requested", text, asked, "pool", "family")
        text = "Writes of this node's NetloomNode about its pools."
        yield counter("netloom_node_pool_writes", text, reconciler.writes)
        text = "Requests for addresses of pods for which there is no pool."
        yield counter("netloom_pods_without_pool", text, self.refused, "reason")


_MOST = 256
