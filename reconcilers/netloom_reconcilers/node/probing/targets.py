"""Which addresses of a node the probe uses, as its object says. Pure."""

from msgspec.structs import replace

from netloom.api.holdings import home_blocks
from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import Address, Cidr, CidrError, parse_address
from netloom.kernel.probe.examination import Target
from netloom.kernel.probe.keeper import Egress
from netloom_reconcilers.node.known.peers import internal_ip


def addresses_of(node: NetloomNode) -> dict[int, Address]:
    """The addresses that stand for a pod of the node, by their length: the last of its first CIDR of each family. An
    IPv4 CIDR of fewer than four addresses has none to spare; in IPv6 IPAMs give pods the last one, too, so only of a
    CIDR that they hardly go through to its end."""
    lasts = {size: cidr.packed_last for size, cidr in _first_cidrs(node).items() if _has_room(cidr)}
    return dict(sorted(lasts.items()))


def hosts_of(node: NetloomNode) -> list[Address]:
    """Addresses of the node itself, at which its agent answers, too: in the tunnels, the first of its CIDRs of each
    family; without tunnels, that of its Node."""
    return [*(cidr.packed for cidr in _first_cidrs(node).values()), *filter(None, [_underlay_of(node)])]


def targets_of(node: NetloomNode) -> list[Target]:
    """What to probe of a peer, by family."""
    firsts, underlay = _first_cidrs(node), _underlay_of(node)
    return [
        Target(node.metadata.name, address, firsts[size].packed, underlay)
        for size, address in addresses_of(node).items()
    ]


def by_nodes(target: Target, way: Egress) -> Target:
    """The target with the address to which the nodes' own way leads: without a tunnel nobody has the CIDR's first."""
    return target if way.port else replace(target, host=target.underlay)


def as_pods_use(way: Egress, mtu: int) -> Egress:
    """The way with what spec.mtu of the network (0: not set) says of pods without a tunnel, whose route may be a
    router's and say nothing of it."""
    return replace(way, mtu=min(way.mtu, mtu)) if mtu and not way.port else way


def _first_cidrs(node: NetloomNode) -> dict[int, Cidr]:
    return {4 if cidr.version == 4 else 16: cidr for cidr in home_blocks(node.spec.ipam)}


def _has_room(cidr: Cidr) -> bool:
    return cidr.length <= (30 if cidr.version == 4 else 112)


def _underlay_of(node: NetloomNode) -> Address:
    try:
        return parse_address(internal_ip(node)) if internal_ip(node) else b""
    except CidrError:
        return b""
