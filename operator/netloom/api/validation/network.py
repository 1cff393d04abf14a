"""The NetloomNetwork: by itself, beside the nodes that there are, and what a change of it breaks."""

from collections.abc import Iterable, Sequence

from netloom.api.cidrs import (
    FAMILIES,
    Family,
    Network,
    NodeAddresses,
    check_cidr,
    check_mask_size,
    check_nodes_outside,
    check_overlap,
    parse_cidr,
    parse_cidrs,
)
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, ClusterPool, IPAMMode, NetloomNetwork
from netloom.api.validation.ranges import check_ranges
from netloom.api.words import (
    CIDR_IN_USE,
    CIDR_WAY_OUT,
    MASK_IN_USE,
    MASK_WAY_OUT,
    MODE_LOCKED,
    MODE_WAY_OUT,
    NODES_HOLD,
)

TUNNEL_OVERHEAD = 50
"""Bytes that an encapsulated packet is longer than the packet of the pod, over an IPv4 network."""

IPV6_MTU = 1280
"""Bytes; the least that IPv6 works with (RFC 8200)."""

NO_TUNNELS: dict[IPAMMode, str] = {
    "crd": "nodes then hold single addresses given from outside, and a tunnel needs whole pod CIDRs.",
    "eni": "the VPC itself routes the addresses of pods, and expects their packets unwrapped.",
    "azure": "the VNet itself routes the addresses of pods, and expects their packets unwrapped.",
    "gke": "the VPC itself routes the pod CIDRs, and expects their packets unwrapped.",
}
"""IPAM modes that tunnels do not work with, and why."""

_POD_CIDRS: dict[Family, str] = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
_NATIVE_CIDRS: dict[Family, str] = {4: "10.0.0.0/8", 6: "fd00::/8"}


def validate_network(network: NetloomNetwork, *, node_addresses: NodeAddresses | None = None) -> list[Problem]:
    """Everything that is wrong with the network, by itself and beside the nodes that there are."""
    name = f"NetloomNetwork {network.metadata.name}"
    problems: list[Problem] = []
    if network.metadata.name != NETWORK_NAME:
        message = "a cluster has one network, so a NetloomNetwork of another name would be ignored."
        problems.append(
            Problem(name, "metadata.name", network.metadata.name, "NotTheNetwork", message, 'Name it "default".')
        )
    problems += _mode(name, network)
    problems += _cluster_pool(name, network.spec.ipam.cluster_pool)
    if network.spec.ipam.mode == "cluster-pool":
        problems += check_nodes_outside(
            cluster_cidrs(network), node_addresses or {}, object=name, reason="ClusterCIDROverlapsNodes"
        )
    return problems + _routing(name, network) + _mtu(name, network) + _masquerade(name, network) + _ranges(network)


def network_warnings(network: NetloomNetwork) -> list[Problem]:
    """What is legal and unwise about the network by itself: those of `validate_network` that nobody refuses."""
    name = f"NetloomNetwork {network.metadata.name}"
    problems = [problem for family in FAMILIES for problem in _native_cidr(name, family, network)]
    return [problem for problem in problems + _mtu(name, network) if problem.severity == "warning"]


def validate_network_update(old: NetloomNetwork, new: NetloomNetwork) -> list[Problem]:
    """What a change of the network breaks while nodes hold addresses of it."""
    name = f"NetloomNetwork {new.metadata.name}"
    problems: list[Problem] = []
    in_force, wanted = new.status.ipam.mode, new.spec.ipam.mode
    in_use = new.status.ipam.in_use or NODES_HOLD
    if wanted != old.spec.ipam.mode and in_force not in ("", wanted):
        message = MODE_LOCKED.format(in_use=in_use, mode=in_force, wanted=wanted)
        way_out = MODE_WAY_OUT.format(mode=in_force, wanted=wanted)
        problems.append(Problem(name, "spec.ipam.mode", wanted, "ModeLocked", message, way_out))
    before = old.status.ipam.mode
    if before and in_force not in ("", before):
        message = f"the mode in force cannot go from {before} to {in_force} at once."
        way_out = "Clear it first, after the last address came back."
        problems.append(Problem(name, "status.ipam.mode", in_force, "ModeLocked", message, way_out))
    if in_force == "cluster-pool":
        regions = [region for text in new.status.ipam.regions if (region := parse_cidr(text))]
        for family in FAMILIES:
            pools = old.spec.ipam.cluster_pool, new.spec.ipam.cluster_pool
            problems += _pool_update(name, family, *pools, regions, in_use)
    return problems


def cluster_cidrs(network: NetloomNetwork | None) -> list[tuple[str, Network]]:
    """The cluster CIDRs in use, each with its field."""
    if network is None or network.spec.ipam.mode != "cluster-pool":
        return []
    return [
        (f"spec.ipam.clusterPool.ipv{family}PodCIDRList[{number}]", cidr)
        for family, (texts, _) in _lists(network.spec.ipam.cluster_pool).items()
        for number, text in enumerate(texts)
        if (cidr := parse_cidr(text)) and cidr.version == family
    ]


def _mode(name: str, network: NetloomNetwork) -> list[Problem]:
    ipam, in_force = network.spec.ipam, network.status.ipam.mode
    problems: list[Problem] = []
    if in_force not in ("", ipam.mode):
        message = f"nodes hold addresses of mode {in_force}, which stays in force; mode {ipam.mode} is not followed."
        way_out = f"Set spec.ipam.mode to {in_force}, or remove every node first."
        problems.append(Problem(name, "spec.ipam.mode", ipam.mode, "ModeLocked", message, way_out))
    pool = ipam.cluster_pool
    if ipam.mode == "cluster-pool" and not pool.ipv4_pod_cidr_list and not pool.ipv6_pod_cidr_list:
        message = "IPAM mode cluster-pool has no CIDR to cut the nodes' pod CIDRs from, and no range is safe to guess."
        way_out = "Give at least one in ipv4PodCIDRList or ipv6PodCIDRList, for example 10.244.0.0/16."
        problems.append(Problem(name, "spec.ipam.clusterPool", "", "NoClusterCIDR", message, way_out))
    return problems


def _cluster_pool(name: str, pool: ClusterPool) -> list[Problem]:
    problems: list[Problem] = []
    for family, (texts, mask_size) in _lists(pool).items():
        field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList"
        _, wrong = parse_cidrs(
            texts, object=name, field=field, example=_POD_CIDRS[family], family=family, for_pods=True
        )
        mask_field = f"spec.ipam.clusterPool.ipv{family}MaskSize"
        problems += check_mask_size(
            texts, mask_size, family=family, object=name, field=mask_field, block="one node's block"
        )
        problems += wrong
        problems += check_overlap(texts, object=name, field=field, so="a node could be given the addresses of two")
    return problems


def _pool_update(
    name: str, family: Family, old: ClusterPool, new: ClusterPool, regions: Sequence[Network], in_use: str
) -> list[Problem]:
    (before, old_size), (after, new_size) = _lists(old)[family], _lists(new)[family]
    problems: list[Problem] = []
    lost = next((cidr for cidr in before if _lost(cidr, after, regions)), None)
    if lost is not None:
        field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList"
        message = CIDR_IN_USE.format(cidr=lost, in_use=in_use)
        problems.append(Problem(name, field, lost, "CIDRInUse", message, CIDR_WAY_OUT))
    if before and old_size != new_size:
        field = f"spec.ipam.clusterPool.ipv{family}MaskSize"
        message = MASK_IN_USE.format(in_use=in_use)
        problems.append(Problem(name, field, str(new_size), "CIDRInUse", message, MASK_WAY_OUT))
    return problems


def _lost(text: str, after: Iterable[str], regions: Sequence[Network]) -> bool:
    """Whether addresses may be in use of a CIDR that is not in the list any more, nor one that holds all of it.

    regions: outside them nothing was ever given; empty where that is not known.
    """
    cidr = parse_cidr(text)
    if cidr is None or any(larger and _contains(larger, cidr) for larger in map(parse_cidr, after)):
        return False
    return not regions or any(region.overlaps(cidr) for region in regions)


def _contains(larger: Network, cidr: Network) -> bool:
    return larger.prefixlen <= cidr.prefixlen and larger.overlaps(cidr)


def _routing(name: str, network: NetloomNetwork) -> list[Problem]:
    routing, ipam_mode = network.spec.routing, network.spec.ipam.mode
    problems: list[Problem] = []
    if routing.mode != "native" and ipam_mode in NO_TUNNELS:
        message = f"routing mode {routing.mode} does not work with IPAM mode {ipam_mode}: {NO_TUNNELS[ipam_mode]}"
        way_out = "Set spec.routing.mode to native."
        problems.append(Problem(name, "spec.routing.mode", routing.mode, "TunnelNotPossible", message, way_out))
    if routing.auto_direct_node_routes and routing.mode == "tunnel":
        message = (
            "autoDirectNodeRoutes does not work with routing mode tunnel: "
            "pod traffic goes through the tunnels, so direct routes would never be used."
        )
        way_out = "Set spec.routing.mode to native or hybrid, or leave autoDirectNodeRoutes off."
        field = "spec.routing.autoDirectNodeRoutes"
        problems.append(Problem(name, field, "true", "DirectRoutesNotPossible", message, way_out))
    if routing.direct_routing_skip_unreachable and not routing.auto_direct_node_routes:
        message = (
            "directRoutingSkipUnreachable says which direct routes to leave out, "
            "and without autoDirectNodeRoutes there are none."
        )
        way_out = "Set autoDirectNodeRoutes as well, or leave this off."
        field = "spec.routing.directRoutingSkipUnreachable"
        problems.append(Problem(name, field, "true", "DirectRoutesNotPossible", message, way_out))
    for family in FAMILIES:
        problems += _native_cidr(name, family, network)
    return problems


def _native_cidr(name: str, family: Family, network: NetloomNetwork) -> list[Problem]:
    routing = network.spec.routing
    text = routing.ipv4_native_routing_cidr if family == 4 else routing.ipv6_native_routing_cidr
    if not text:
        return []
    field = f"spec.routing.ipv{family}NativeRoutingCIDR"
    native, problems = check_cidr(text, object=name, field=field, example=_NATIVE_CIDRS[family], family=family)
    masquerade = network.spec.masquerade.ipv4 if family == 4 else network.spec.masquerade.ipv6
    if native is None or not masquerade or network.spec.routing.mode == "tunnel":
        return problems
    outside = [
        str(cidr) for _, cidr in cluster_cidrs(network) if cidr.version == family and not _contains(native, cidr)
    ]
    if outside:
        message = f"it does not cover {', '.join(outside)}, so packets to pods there may be masqueraded."
        way_out = "Give a CIDR that holds all cluster CIDRs."
        problems.append(Problem(name, field, text, "NativeCIDRTooSmall", message, way_out, "warning"))
    return problems


def _mtu(name: str, network: NetloomNetwork) -> list[Problem]:
    mtu, tunnels = network.spec.mtu, network.spec.routing.mode != "native"
    if mtu <= 0:
        return []
    if mtu < IPV6_MTU:
        message = "below 1280 bytes IPv6 does not work (RFC 8200)."
        way_out = "Give at least 1280, or 0 to take the devices' MTU."
        return [Problem(name, "spec.mtu", str(mtu), "MTUTooSmall", message, way_out)]
    least = IPV6_MTU + TUNNEL_OVERHEAD
    if tunnels and network.spec.ipam.cluster_pool.ipv6_pod_cidr_list and mtu < least:
        message = f"tunnels take {TUNNEL_OVERHEAD} bytes of it, and pods with IPv6 addresses need {IPV6_MTU}."
        way_out = f"Give at least {least}, or 0 to take the devices' MTU."
        return [Problem(name, "spec.mtu", str(mtu), "MTUTooSmall", message, way_out, "warning")]
    return []


def _masquerade(name: str, network: NetloomNetwork) -> list[Problem]:
    field = "spec.masquerade.nonMasqueradeCIDRs"
    texts = network.spec.masquerade.non_masquerade_cidrs
    return parse_cidrs(texts, object=name, field=field, example="192.168.0.0/16")[1]


def _ranges(network: NetloomNetwork) -> list[Problem]:
    pool = network.spec.ipam.cluster_pool
    numbers = {
        "spec.ipam.clusterPool.ipv4MaskSize": pool.ipv4_mask_size,
        "spec.ipam.clusterPool.ipv6MaskSize": pool.ipv6_mask_size,
        "spec.routing.tunnelPort": network.spec.routing.tunnel_port,
        "spec.mtu": network.spec.mtu,
    }
    return check_ranges("NetloomNetwork", network.metadata.name, numbers)


def _lists(pool: ClusterPool) -> dict[Family, tuple[Sequence[str], int]]:
    return {4: (pool.ipv4_pod_cidr_list, pool.ipv4_mask_size), 6: (pool.ipv6_pod_cidr_list, pool.ipv6_mask_size)}
