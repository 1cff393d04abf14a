"""What NetloomNodes mean for this node's mesh: this node, a peer, and in which words one cannot be used. Pure."""

from collections.abc import Collection, Sequence

import msgspec

from netloom.api.holdings import block_texts, home_blocks
from netloom.api.node_addresses import unusable
from netloom.api.v1alpha1 import CONTESTED, NETWORK_NAME, NetloomNetwork, NetloomNode, Routing
from netloom.cidr import WIDTH, Address, Cidr, CidrError, addresses_in, format_address, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import FurtherAddresses, MeshNode, Peer
from netloom.kernel.mesh.peer_claims import AddressConflict
from netloom.kernel.mesh.withheld import WithheldRoute, addresses_of
from netloom_reconcilers.features.node import Obstacle, missing
from netloom_reconcilers.node.known.peers import HELD, contested_ip, field_of, internal_ip, is_peer, pod_cidrs_of
from netloom_reconcilers.node.mesh.cluster_cidrs import hole_rules
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
        addresses=on_tunnel_devices(node, prefixes),
        devices=network.spec.devices,
        claimed=claimed_by(node),
        cidrs=prefixes,
        strict=routing.mode == "native" and not routing.direct_routing_skip_unreachable,
        holes=hole_rules(network, prefixes),
    )


def own_faults(node: MeshNode, network: NetloomNetwork, obj: NetloomNode, absent: Collection[Address]) -> list[str]:
    """Sentences on why others cannot send to this node, as its own object and its machine's devices are."""
    found, about = [], f"NetloomNode {obj.metadata.name}: spec.addresses"
    if node.local in absent:
        found.append(
            f"{about}: others send to {format_address(node.local)}, and no device of this machine has it: they reach "
            "this node only where a gateway translates it. Put it on a device, or let the kubelet report the machine's "
            "own (--node-ip)."
        )
    routing = network.spec.routing
    if node.strict and routing.auto_direct_node_routes and lacks_ipv6(obj):
        why = "has no IPv6 address of type InternalIP, and native routes to its IPv6 pod CIDRs need one."
        found.append(f"{about} {why} {_REPORT}")
    return found


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
    hears: bool = False
    """Whether agents announce anything to it: there is an API server between them."""


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
        f"NetloomNode {name}: {field_of(node, prefix)} {prefix} {_clash(prefix, node, local)}" for prefix in clashing
    ]
    prefixes = tuple(prefix for prefix in prefixes if prefix not in clashing)
    if underlay is None or not prefixes:
        return None, tuple(problems) if is_peer(node) else ()
    peer = Peer(
        name=name,
        underlay=underlay,
        mac=mac_of(name),
        cidrs=prefixes,
        since=node.metadata.creation_timestamp,
        encapsulations=encapsulations_to(announced(node).accepts, local.routing, able=local.able),
        underlay6=underlay6_of(node),
        held=node.metadata.creation_timestamp == HELD,
        speaks=speaks(node, local),
    )
    return peer, tuple(problems)


def further_addresses_of(node: NetloomNode, peer: Peer | None, local: LocalNode) -> FurtherAddresses | None:
    """What a remote node has of addresses beside those that are its peer's; None: nothing."""
    texts = [each.ip for each in node.spec.addresses if each.type in ("InternalIP", CONTESTED)]
    known = addresses_of(peer)
    if len(texts) == len(known):
        return None
    addresses = tuple(address for address in claimed_by(node) if address not in known and address != local.address)
    since = node.metadata.creation_timestamp
    return FurtherAddresses(addresses, since, since == HELD, speaks(node, local)) if addresses else None


def speaks(node: NetloomNode, local: LocalNode) -> bool:
    """Whether its own agent has said something, as far as any could."""
    return bool(node.spec.encapsulations) or not local.hears


def at_our_cost(node: NetloomNode, local: LocalNode) -> bool:
    """Whether this node itself goes without something by what the remote one says: an older node claims what it has, or
    another what its pods still live in. All else that is wrong with a remote node's object is that node's matter."""
    prefixes, _ = pod_cidrs_of(node)
    if any(prefix.overlaps(mine) for prefix in prefixes for mine in local.kept):
        return True
    claims = _underlay_of(node)[0] == local.address
    claims = claims or any(prefix.overlaps(mine) for prefix in prefixes for mine in local.cidrs)
    return claims and (node.metadata.creation_timestamp, node.metadata.name) < local.seniority


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


def on_tunnel_devices(node: NetloomNode, cidrs: Sequence[Cidr]) -> tuple[Address, ...]:
    """The node's own addresses in its pod CIDRs: the first of each. A CIDR of one or two addresses is used whole by
    pods, and lends one only where the node has no larger one of the family. Blocks of pools come and go, and pods may
    have the first address of one: there it is the home blocks' alone, which stay."""
    if node.spec.ipam.pools.allocated:
        return tuple(cidr.packed for cidr in home_blocks(node.spec.ipam))
    larger = [cidr for cidr in cidrs if cidr.length < WIDTH[cidr.version] - 1]
    known = {cidr.version for cidr in larger}
    lent = {cidr.version: cidr for cidr in reversed(cidrs) if cidr.version not in known}
    return tuple(cidr.packed for cidr in cidrs if cidr in larger or cidr == lent.get(cidr.version))


def _underlay_of(node: NetloomNode) -> tuple[Address | None, list[str]]:
    """The node's first internal IPv4 address: the underlay is IPv4."""
    about, ip = f"NetloomNode {node.metadata.name}: spec.addresses", internal_ip(node)
    if not ip:
        if taken := contested_ip(node):
            return None, [f"{about}: {taken} is another node's, too, which has it: nothing is sent to this one. {_SEE}"]
        return None, [f"{about} has no IPv4 address of type InternalIP, and tunnels need one. {_REPORT}"]
    try:
        address = parse_address(ip)
    except CidrError as error:
        return None, [f"{about}: {error}. {_REPORT}"]
    if what := unusable(address):
        return None, [f"{about}: {ip} is {what}, and no other node can send to it. {_REPORT}"]
    return address, []


_REPORT = "Let the kubelet report it (--node-ip)."
_SEE = "Its condition AddressReported names it, and says what to do."


def claimed_by(node: NetloomNode) -> tuple[Address, ...]:
    """All addresses of its own that it is said to have, whoever else is, too."""
    texts = [each.ip for each in node.spec.addresses if each.type in ("InternalIP", CONTESTED)]
    return tuple(address for address in addresses_in(texts) if not unusable(address))


def underlay6_of(node: NetloomNode) -> Address:
    """Its first internal IPv6 address, empty if it has none: native routes to its IPv6 pod CIDRs go there."""
    ip = internal_ip(node, ipv6=True)
    try:
        address = parse_address(ip) if ip else b""
    except CidrError:
        return b""
    return b"" if address and unusable(address) else address


def conflict_text(conflict: AddressConflict) -> str:
    """A sentence about what two peers claim. By age alone it is not known which of them lives."""
    claim, holder, peer = conflict.claim, conflict.holder, conflict.peer
    what = f"{claim} is claimed by {holder} and {peer}; {holder} is older and keeps it."
    if conflict.kind == "CIDR":
        return f"{what} Drain {peer}, and delete its Node."
    if conflict.kind == "MAC":
        return f"{what} It is made from the names of the nodes: give {peer} another."
    return f"{what} Delete the Node of the two that is gone, or give one of them another address."


def lacks_ipv6(node: NetloomNode) -> bool:
    """Whether it has IPv6 pod CIDRs, and no address to which native routes to them could go."""
    return not underlay6_of(node) and any(":" in cidr for cidr in block_texts(node.spec.ipam))


def withheld_text(route: WithheldRoute, node: NetloomNode | None) -> str:
    """A sentence about a pod CIDR of `node`, the peer, that would cut this node off."""
    return (
        f"{_whose(route.peer, node, route.cidr)} is not routed from here, as a route to it would cut this node off: "
        f"{route.why}. {_ELSEWHERE.format(route.peer)}"
    )


def misplaced_text(own: NetloomNode, route: WithheldRoute) -> str:
    """A sentence about a pod CIDR of this node's own, over what it lives by itself."""
    name = own.metadata.name
    return (
        f"{_whose(name, own, route.cidr)} cannot be routed by nodes on the same network: {route.why}. "
        f"{_ELSEWHERE.format(name)}"
    )


def _whose(name: str, node: NetloomNode | None, cidr: str) -> str:
    field = field_of(node, Cidr.parse(cidr)) if node is not None else "spec.ipam"
    return f"NetloomNode {name}: {field} {cidr}"


_ELSEWHERE = (
    "If that is due to a device which is left over (a bridge, a VPN), remove it. Else let pod CIDRs come from outside "
    "the networks of the machines, then drain {0} and delete its Node, and restart its kubelet when its NetloomNode is "
    "gone: it gets others."
)


def unreachable(name: str) -> str:
    """A sentence about a peer that can only be reached natively, and is not on a network of this node."""
    return _not_routed(name, "has no address on a network of this node, and autoDirectNodeRoutes needs that")


def without_ipv6(name: str) -> str:
    """A sentence about one whose IPv6 pod CIDRs can be reached by no address of its own."""
    return _not_routed(name, "has no IPv6 address of type InternalIP, and native routes to its IPv6 pod CIDRs need one")


def _not_routed(name: str, why: str) -> str:
    return (
        f"NetloomNode {name}: spec.addresses {why}; it is not routed. In NetloomNetwork {NETWORK_NAME}, set "
        "spec.routing.directRoutingSkipUnreachable to leave such nodes to a router or BGP daemon, or mode hybrid."
    )
