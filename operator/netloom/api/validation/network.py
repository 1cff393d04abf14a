"""The NetloomNetwork, by itself."""

from collections.abc import Sequence

from netloom.api.cidrs import check_cidr, check_cidrs, check_mask_size, check_overlap
from netloom.api.ipam_modes import mode_named
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, ClusterPool, NetloomNetwork
from netloom.api.validation.ranges import check_ranges
from netloom.api.validation.selector import check_selector
from netloom.cidr import VERSIONS, Cidr, Version

TUNNEL_OVERHEAD = 50
"""Bytes that an encapsulated packet is longer than the packet of the pod, over an IPv4 network."""

IPV6_MTU = 1280
"""Bytes; the least that IPv6 works with (RFC 8200)."""

_POD_CIDRS: dict[Version, str] = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
_NATIVE_CIDRS: dict[Version, str] = {4: "10.0.0.0/8", 6: "fd00::/8"}


def validate_network(network: NetloomNetwork) -> list[Problem]:
    """Everything that is wrong with the network by itself."""
    name = f"NetloomNetwork {network.metadata.name}"
    problems: list[Problem] = []
    if network.metadata.name != NETWORK_NAME:
        message = "a cluster has one network, so a NetloomNetwork of another name would be ignored."
        problems.append(
            Problem(name, "metadata.name", network.metadata.name, "NotTheNetwork", message, 'Name it "default".')
        )
    problems += _mode(name, network)
    problems += _cluster_pool(name, network.spec.ipam.cluster_pool)
    problems += check_selector(network.spec.node_selector, object=name)
    return problems + _routing(name, network) + _mtu(name, network) + _masquerade(name, network) + _ranges(network)


def network_warnings(network: NetloomNetwork) -> list[Problem]:
    """What is legal and unwise about the network by itself: those of `validate_network` that nobody refuses."""
    name = f"NetloomNetwork {network.metadata.name}"
    problems = [problem for family in VERSIONS for problem in _native_cidr(name, family, network)]
    problems += _no_native_cidr(name, network)
    return [problem for problem in problems + _mtu(name, network) if problem.severity == "warning"]


def cluster_cidrs(network: NetloomNetwork) -> list[tuple[str, Cidr]]:
    """The cluster CIDRs in use, each with its field."""
    if not mode_named(network.spec.ipam.mode).from_network:
        return []
    return [
        (f"spec.ipam.clusterPool.ipv{family}PodCIDRList[{number}]", cidr)
        for family, (texts, _) in _lists(network.spec.ipam.cluster_pool).items()
        for number, text in enumerate(texts)
        if (cidr := Cidr.masked(text)) and cidr.version == family
    ]


def _mode(name: str, network: NetloomNetwork) -> list[Problem]:
    ipam, in_force = network.spec.ipam, network.status.ipam.mode
    problems: list[Problem] = []
    if in_force not in ("", ipam.mode):
        message = f"nodes hold addresses of mode {in_force}, which stays in force; mode {ipam.mode} is not followed."
        way_out = f"Set spec.ipam.mode to {in_force}, or remove every node first."
        problems.append(Problem(name, "spec.ipam.mode", ipam.mode, "ModeLocked", message, way_out))
    pool = ipam.cluster_pool
    if mode_named(ipam.mode).from_network and not pool.ipv4_pod_cidr_list and not pool.ipv6_pod_cidr_list:
        message = "IPAM mode cluster-pool has no CIDR to cut the nodes' pod CIDRs from, and no range is safe to guess."
        way_out = "Give at least one in ipv4PodCIDRList or ipv6PodCIDRList, for example 10.244.0.0/16."
        problems.append(Problem(name, "spec.ipam.clusterPool", "", "NoClusterCIDR", message, way_out))
    return problems


def _cluster_pool(name: str, pool: ClusterPool) -> list[Problem]:
    problems: list[Problem] = []
    for family, (texts, mask_size) in _lists(pool).items():
        field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList"
        mask_field = f"spec.ipam.clusterPool.ipv{family}MaskSize"
        problems += check_mask_size(
            texts, mask_size, family=family, object=name, field=mask_field, block="one node's block"
        )
        problems += check_cidrs(
            texts, object=name, field=field, example=_POD_CIDRS[family], family=family, for_pods=True
        )
        problems += check_overlap(texts, object=name, field=field, so="a node could be given the addresses of two")
    return problems


def _routing(name: str, network: NetloomNetwork) -> list[Problem]:
    routing, ipam = network.spec.routing, mode_named(network.spec.ipam.mode)
    problems: list[Problem] = []
    if routing.mode != "native" and ipam.no_tunnels:
        message = f"routing mode {routing.mode} does not work with IPAM mode {ipam.name}: {ipam.no_tunnels}"
        way_out = "Set spec.routing.mode to native."
        problems.append(Problem(name, "spec.routing.mode", routing.mode, "TunnelNotPossible", message, way_out))
    if ipam.native_cidr and not routing.ipv4_native_routing_cidr:
        message = f"IPAM mode {ipam.name} needs it: {ipam.native_cidr}"
        way_out = "Give a CIDR that holds the VPC's networks and all pod CIDRs, such as 10.0.0.0/8."
        field = "spec.routing.ipv4NativeRoutingCIDR"
        problems.append(Problem(name, field, "", "NativeCIDRMissing", message, way_out))
    if routing.auto_direct_node_routes and ipam.no_direct_routes:
        message = f"autoDirectNodeRoutes does not work with IPAM mode {ipam.name}: {ipam.no_direct_routes}"
        way_out = "Leave autoDirectNodeRoutes off."
        field = "spec.routing.autoDirectNodeRoutes"
        problems.append(Problem(name, field, "true", "DirectRoutesNotPossible", message, way_out))
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
    for family in VERSIONS:
        problems += _native_cidr(name, family, network)
    return problems + _no_native_cidr(name, network)


def _no_native_cidr(name: str, network: NetloomNetwork) -> list[Problem]:
    """Of the pods of other nodes that hold single addresses, nothing but this tells an agent."""
    routing, masquerade, mode = network.spec.routing, network.spec.masquerade, mode_named(network.spec.ipam.mode)
    given = routing.ipv4_native_routing_cidr or routing.ipv6_native_routing_cidr
    if not mode.from_outside or given or not (masquerade.ipv4 or masquerade.ipv6):
        return []
    message = (
        f"in IPAM mode {mode.name} nothing else tells which addresses the network routes, so packets to pods of other "
        "nodes are masqueraded as well."
    )
    way_out = "Give a CIDR that holds all pods' addresses, such as 10.0.0.0/8; or switch masquerading off."
    field = "spec.routing.ipv4NativeRoutingCIDR"
    return [Problem(name, field, "", "NativeCIDRMissing", message, way_out, "warning")]


def _native_cidr(name: str, family: Version, network: NetloomNetwork) -> list[Problem]:
    routing = network.spec.routing
    text = routing.ipv4_native_routing_cidr if family == 4 else routing.ipv6_native_routing_cidr
    if not text:
        return []
    field = f"spec.routing.ipv{family}NativeRoutingCIDR"
    native, problems = check_cidr(text, object=name, field=field, example=_NATIVE_CIDRS[family], family=family)
    masquerade = network.spec.masquerade.ipv4 if family == 4 else network.spec.masquerade.ipv6
    if native is None or not masquerade or network.spec.routing.mode == "tunnel":
        return problems
    outside = [str(cidr) for _, cidr in cluster_cidrs(network) if cidr.version == family and not native.contains(cidr)]
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
    return check_cidrs(texts, object=name, field=field, example="192.168.0.0/16")


def _ranges(network: NetloomNetwork) -> list[Problem]:
    pool = network.spec.ipam.cluster_pool
    numbers = {
        "spec.ipam.clusterPool.ipv4MaskSize": pool.ipv4_mask_size,
        "spec.ipam.clusterPool.ipv6MaskSize": pool.ipv6_mask_size,
        "spec.routing.tunnelPort": network.spec.routing.tunnel_port,
        "spec.mtu": network.spec.mtu,
    }
    return check_ranges("NetloomNetwork", network.metadata.name, numbers)


def _lists(pool: ClusterPool) -> dict[Version, tuple[Sequence[str], int]]:
    return {4: (pool.ipv4_pod_cidr_list, pool.ipv4_mask_size), 6: (pool.ipv6_pod_cidr_list, pool.ipv6_mask_size)}
