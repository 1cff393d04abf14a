"""What NetloomNodes mean for this node's mesh: this node, a peer, and in which words one cannot be used. Pure."""

import msgspec

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode, Routing
from netloom.cidr import Address, Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import MeshNode, Peer
from netloom_reconcilers.features.node import Obstacle
from netloom_reconcilers.node.known.peers import HELD, internal_ip, prefixes_of
from netloom_reconcilers.node.mesh.encapsulations import announced, encapsulations_to


def node_of(network: NetloomNetwork | None, node: NetloomNode | None, node_name: str) -> MeshNode | Obstacle:
    """This node, but for the encapsulations, which are its peers' business."""
    if network is None or node is None:
        return missing(network, node_name)
    local, problems = _underlay_of(node)
    if local is None:
        return Obstacle("NoAddress", problems[0])
    prefixes, bad = pod_cidrs_of(node)
    if bad:
        return Obstacle("InvalidPodCIDR", " ".join(bad))
    routing = network.spec.routing
    return MeshNode(
        local=local,
        mac=mac_of(node_name),
        mtu=network.spec.mtu,
        addresses=tuple(prefix.packed for prefix in prefixes),
        devices=network.spec.devices,
        strict=routing.mode == "native" and not routing.direct_routing_skip_unreachable,
    )


class LocalNode(msgspec.Struct, frozen=True):
    """What of this node matters for each of its peers. `able`: it has all tunnels that the network's spec wants."""

    routing: Routing = Routing()
    address: Address = b""
    cidrs: tuple[Cidr, ...] = ()
    able: bool = True
    kept: tuple[Cidr, ...] = ()
    """Of the CIDRs, those that only pods hold on to; see `own_node`."""
    seniority: tuple[str, str] = ("", "")
    """When its object was made, and its name: of two that hold a CIDR, the younger (greater) goes."""


def peer_of(node: NetloomNode, local: LocalNode) -> tuple[Peer | None, tuple[str, ...]]:
    """A remote node as a peer (None while it has no address or no pod CIDR), and sentences on what cannot be used."""
    underlay, problems = _underlay_of(node)
    prefixes, bad = pod_cidrs_of(node)
    problems += bad
    name = node.metadata.name
    if underlay is not None and underlay == local.address:
        problems.append(
            f"NetloomNode {name}: spec.addresses has this node's own address, so nothing can be sent to it. Give one "
            "of the two nodes another address, or delete the Node that does not exist any more."
        )
        underlay = None
    clashing = [prefix for prefix in prefixes if any(prefix.overlaps(mine) for mine in local.cidrs)]
    problems += [
        f"NetloomNode {name}: spec.ipam.podCIDRs {prefix} {_clash(prefix, node, local)}" for prefix in clashing
    ]
    prefixes = tuple(prefix for prefix in prefixes if prefix not in clashing)
    if underlay is None or not prefixes:
        return None, tuple(problems) if node.spec.ipam.pod_cidrs else ()
    peer = Peer(
        name=name,
        underlay=underlay,
        mac=mac_of(name),
        cidrs=prefixes,
        since=node.metadata.creation_timestamp,
        encapsulations=encapsulations_to(announced(node).accepts, local.routing, able=local.able),
        underlay6=underlay6_of(node),
        held=node.metadata.creation_timestamp == HELD,
    )
    return peer, tuple(problems)


def _clash(prefix: Cidr, node: NetloomNode, local: LocalNode) -> str:
    if any(prefix.overlaps(mine) for mine in local.cidrs if mine not in local.kept):
        _, younger = max((node.metadata.creation_timestamp, node.metadata.name), local.seniority)
        return (
            f"overlaps a pod CIDR of this node, and is not routed. Drain {younger}, the younger of the two nodes, and "
            "delete its Node."
        )
    return (
        "is still used by pods of this node, whose own NetloomNode does not hold it any more, and is not routed from "
        "here. Drain this node; see docs/allocation.md."
    )


def missing(network: NetloomNetwork | None, node_name: str) -> Obstacle:
    """That there is no network, or else no NetloomNode of this node."""
    if network is None:
        return Obstacle("NoNetwork", f'there is no NetloomNetwork "{NETWORK_NAME}": apply one')
    return Obstacle("NoNode", f"there is no NetloomNode {node_name}: the operator makes it once a Node exists")


def _underlay_of(node: NetloomNode) -> tuple[Address | None, list[str]]:
    """The node's first internal IPv4 address: the underlay is IPv4."""
    try:
        if ip := internal_ip(node):
            return parse_address(ip), []
        why = " has no IPv4 address of type InternalIP, and tunnels need one. Let the kubelet report it."
    except ValueError as error:
        why = f": {error}"
    return None, [f"NetloomNode {node.metadata.name}: spec.addresses{why}"]


def underlay6_of(node: NetloomNode) -> Address:
    """Its first internal IPv6 address, empty if it has none: native routes to its IPv6 pod CIDRs go there."""
    ip = internal_ip(node, ipv6=True)
    try:
        return parse_address(ip) if ip else b""
    except ValueError:
        return b""


def pod_cidrs_of(node: NetloomNode) -> tuple[tuple[Cidr, ...], tuple[str, ...]]:
    """Its pod CIDRs, and sentences about what could not be read."""
    return prefixes_of(f"NetloomNode {node.metadata.name}", ("spec.ipam.podCIDRs", node.spec.ipam.pod_cidrs))


def unreachable(name: str, node: NetloomNode | None) -> str:
    """A sentence about a peer that can only be reached natively, and is not on a network of this node."""
    if node is not None and not underlay6_of(node) and any(":" in cidr for cidr in node.spec.ipam.pod_cidrs):
        why = "has no IPv6 address of type InternalIP, and native routes to its IPv6 pod CIDRs need one"
    else:
        why = "has no address on a network of this node, and autoDirectNodeRoutes needs that"
    return (
        f"NetloomNode {name}: spec.addresses {why}; it is not routed. In NetloomNetwork {NETWORK_NAME}, set "
        "spec.routing.directRoutingSkipUnreachable to leave such nodes to a router or BGP daemon, or mode hybrid."
    )
