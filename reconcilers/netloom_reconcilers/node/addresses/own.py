"""What a node has itself of what it gives of, and what it may have at any moment: no pod gets it. Pure."""

from msgspec.structs import replace

from netloom.api.holdings import home_blocks, in_front
from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.cidr import Address
from netloom_reconcilers.node.known.peers import pod_cidrs_of
from netloom_reconcilers.node.mesh.reading import on_tunnel_devices
from netloom_reconcilers.node.probing.targets import addresses_of


def of_the_node(node: NetloomNode, network: NetloomNetwork | None) -> set[Address]:
    """By its objects: on its tunnel devices, and for the probe."""
    allocated = node.spec.ipam.pools.allocated
    taken = set(addresses_of(node).values())
    if network is None or network.spec.routing.mode != "native" or allocated:
        taken |= set(on_tunnel_devices(node, pod_cidrs_of(node)[0]))
    if network is not None and allocated:  # and where it may move to at any moment
        coming = in_front(allocated, network.spec.ipam.multi_pool.default_pool)
        if coming != allocated:
            ipam = replace(node.spec.ipam, pools=replace(node.spec.ipam.pools, allocated=coming))
            after = replace(node, spec=replace(node.spec, ipam=ipam))
            taken |= set(addresses_of(after).values()) | {cidr.packed for cidr in home_blocks(ipam)}
    return taken
