"""The masquerade reconciler: from NetloomNetwork and NetloomNodes to which of this node's packets are masqueraded.

It depends on no other reconciler: tunnels may be blocked, or switched off, and pods still reach the world outside.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable

import structlog
from prometheus_client.core import Metric

from netloom.api.v1alpha1 import NETWORK_NAME, NetworkSpec
from netloom.cidr import Cidr, addresses_in
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.masquerade.keeper import MasqueradeKeeper
from netloom.kernel.masquerade.sets import MasqueradeRules, Masquerading
from netloom.kernel.mesh.connected_networks import connected_networks
from netloom.kernel.netlink.sockets import AnswerLost
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.kernel import NftablesFeature
from netloom_reconcilers.features.node import NodeContext, written_metric
from netloom_reconcilers.node.known.peers import pod_cidrs_of, pods_of, prefixes_of
from netloom_reconcilers.node.mesh.cluster_cidrs import cluster_cidrs, service_cidrs

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
"""Between looks at which networks this node is connected to; they matter only if they lie among the cluster's pods."""

_NETWORK = ""
"""Whose problems are those of the network; no node has an empty name."""


def rules_of(
    spec: NetworkSpec, pods: tuple[Cidr, ...], cluster: tuple[Cidr, ...] = ()
) -> tuple[MasqueradeRules, tuple[str, ...]]:
    """What the network's options make of this node's pod CIDRs, and sentences about what could not be read. `cluster`:
    CIDRs in which there are pods and nothing else, whether a node has the CIDR or not."""
    routing, masquerade = spec.routing, spec.masquerade
    excluded, problems = prefixes_of(
        f"NetloomNetwork {NETWORK_NAME}",
        ("spec.routing.ipv4NativeRoutingCIDR", filter(None, [routing.ipv4_native_routing_cidr])),
        ("spec.routing.ipv6NativeRoutingCIDR", filter(None, [routing.ipv6_native_routing_cidr])),
        ("spec.masquerade.nonMasqueradeCIDRs", masquerade.non_masquerade_cidrs),
    )
    excluded = tuple(dict.fromkeys((*excluded, *cluster)))
    return MasqueradeRules(pods=pods, ipv4=masquerade.ipv4, ipv6=masquerade.ipv6, excluded=excluded), problems


def unshared(
    cluster: Iterable[Cidr], pods: tuple[Cidr, ...], networks: Collection[Cidr], addresses: Collection[Cidr]
) -> tuple[Cidr, ...]:
    """Of the cluster CIDRs those in which there is nothing but pods. Who has an address there that is no pod's (a
    network of this node, a node) does not know the way to pods, and has to see this node's address. Services among
    `addresses`: no packet gets here that is still for one, but others may live beside them, as nothing there ends at
    this node (see `netloom.kernel.mesh.holes`)."""
    others = [network for network in networks if not any(pod.contains(network) for pod in pods)]
    return tuple(each for each in cluster if not any(each.overlaps(other) for other in (*others, *addresses)))


class MasqueradeFeature(NftablesFeature):
    """Which of this node's packets get its own address, in a table of nftables."""

    name = "masquerade"
    keeper_runs_as = "nftables"
    in_kernel = "nftables "
    keeper: MasqueradeKeeper
    _desired: Masquerading

    def __init__(
        self,
        context: NodeContext,
        keeper: MasqueradeKeeper | None = None,
        connected_networks: Callable[[], Awaitable[Collection[Cidr]]] = connected_networks,
    ) -> None:
        retain = context.retain_unknown
        self._connected_networks = connected_networks
        self._connected: Collection[Cidr] | None = None
        self._looked_at = 0.0
        self._cluster: tuple[Cidr, ...] = ()
        self._among_pods: dict[str, tuple[Cidr, ...]] = {}
        """By node, in which cluster CIDRs it has addresses itself; and of how many nodes each holds some."""
        self._holding_nodes: Counter[Cidr] = Counter()
        super().__init__(
            context, keeper or MasqueradeKeeper(on_report=lambda report: context.changed(), retain_unknown=retain)
        )

    def facts(self) -> dict[str, object]:
        """What is masqueraded."""
        report = self.keeper.report
        return {"masquerade": {"families": report.families, "elements": report.elements}}

    def metrics(self) -> Iterable[Metric]:
        """The table's figures, read off its report."""
        report = self.keeper.report
        yield written_metric("netloom_nftables_writes", "Requests written to nftables.", report)
        yield counter(
            "netloom_nftables_drift_repaired",
            "Parts of the nftables table that somebody had changed and that were put back.",
            report.repaired,
        )
        yield gauge("netloom_nftables_elements", "Elements of the nftables sets, two for a CIDR.", report.elements)
        yield gauge(
            "netloom_masquerade_errors",
            "What keeps masquerading from being as desired; the agent's /status names each.",
            len(self.errors()),
        )

    async def _apply(self) -> float | None:
        await self._look_around()
        desired = self.desired()
        if desired is not None:
            report = await self.keeper.apply(desired)
            self._is_in_place(families=report.families)
        return LOOK_SECONDS if self._cluster else None

    async def plan(self) -> list[PlannedChange]:
        """From the objects as they are."""
        await self._look_around()
        return await super().plan()

    async def _look_around(self) -> None:
        """Which networks this node is connected to. Where that cannot be read, what is known stays."""
        network, now = self._networks.get(NETWORK_NAME), time.monotonic()
        fresh = self._connected is not None and now < self._looked_at + LOOK_SECONDS / 2
        if network is None or fresh or not cluster_cidrs(network):
            return
        try:
            self._connected, self._looked_at = await self._connected_networks(), now
        except (AnswerLost, OSError) as error:
            log.warning("the networks of this node cannot be read", error=str(error))

    def desired(self) -> Masquerading | None:
        """Which packets are masqueraded."""
        if (objects := self._objects()) is None:
            return None
        network, node = objects
        cluster = cluster_cidrs(network)
        if cluster != self._cluster:
            self._cluster = cluster
            self._touched.update(self._nodes)
        touched, self._touched = self._touched, set()
        for name in touched | {self._node_name}:
            self._take(name)
        pods = pods_of(node)[0]
        services = service_cidrs(network)
        if services is None or self._connected is None:
            cluster = ()  # it is not known who lives there
        else:
            without_nodes = (each for each in cluster if not self._holding_nodes[each])
            cluster = unshared(without_nodes, pods, self._connected, services)
        self._desired.rules, problems = rules_of(network.spec, pods, cluster)
        self._report(_NETWORK, problems)
        return self._desired

    def _take(self, name: str) -> None:
        node = self._nodes.get(name)
        if name == self._node_name:
            node = self.own.effective(node)
        cidrs, problems = pod_cidrs_of(node) if node is not None else ((), ())
        self._desired.set_known(name, cidrs)
        texts = [each.ip for each in node.spec.addresses] if node is not None and self._cluster else ()
        addresses = [*map(Cidr.of, addresses_in(texts))]
        among = tuple(each for each in self._cluster if any(map(each.contains, addresses)))
        self._holding_nodes.update(among)
        self._holding_nodes.subtract(self._among_pods.pop(name, ()))
        if among:
            self._among_pods[name] = among
        self._report(name, problems)
