"""The CIDRs from which nodes get their blocks, as far as the NetloomNetwork says so. Pure."""

from netloom.api.ipam_modes import mode_of
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork
from netloom.cidr import Cidr
from netloom.kernel.mesh.holes import HoleRules
from netloom_reconcilers.node.known.peers import prefixes_of


def cluster_cidrs(network: NetloomNetwork) -> tuple[Cidr, ...]:
    """The lists of cluster-pool. They cannot get smaller while nodes hold parts of them, so all that was ever given out
    lies in them. (The ledgers' own ranges are no substitute: each is a fixed part of the address space, and wider.)

    Where Kubernetes gives out the CIDRs, the range is an argument of its controller manager, which nothing tells.
    """
    if not mode_of(network).from_network:
        return ()
    pool = network.spec.ipam.cluster_pool
    found, _ = prefixes_of(
        f"NetloomNetwork {NETWORK_NAME}",
        ("spec.ipam.clusterPool.ipv4PodCIDRList", pool.ipv4_pod_cidr_list),
        ("spec.ipam.clusterPool.ipv6PodCIDRList", pool.ipv6_pod_cidr_list),
    )
    return tuple(dict.fromkeys(found))


def service_cidrs(network: NetloomNetwork) -> tuple[Cidr, ...] | None:
    """Those of Services among the cluster CIDRs; None: not known, as no operator told (yet), or it may not read it."""
    told = network.status.ipam.service_cidrs
    return None if told is None else prefixes_of("", ("status.ipam.serviceCIDRs", told))[0]


def hole_rules(network: NetloomNetwork, own: tuple[Cidr, ...]) -> HoleRules:
    """Where packets for pods that nobody has end on this node, which has the CIDRs `own`."""
    routing = network.spec.routing
    skips = not routing.auto_direct_node_routes or routing.direct_routing_skip_unreachable
    ipv6 = any(prefix.version == 6 for prefix in own)
    cluster = tuple(prefix for prefix in cluster_cidrs(network) if prefix.version == 4 or ipv6)
    return HoleRules(own, cluster, service_cidrs(network), carried=routing.mode == "native" and skips)
