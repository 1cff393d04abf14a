"""What a node says of addresses that it cannot give. Pure."""

from collections.abc import Collection, Iterator

from netloom.api.words import some
from netloom.cidr import Cidr, format_address
from netloom.ipam.address_stock import NO_POOL, Supply
from netloom.ipam.node_allocator import Need, NodeAllocator, Shortage
from netloom_reconcilers.node.addresses.supply import shorts


def shortage(who: str, node: str, supply: Supply, short: Shortage, need: Need | None = None) -> str:
    """Why somebody (`default/web-0 gets`) got nothing. need: with the figures of the moment."""
    families = " and ".join(shorts(short.versions))
    of_pool = f" of pool {short.pool}" if short.pool else ""
    begin = f"{who} no {families or 'IP'} address{of_pool} on node {node}"
    if short.pool in supply.closed:
        return f"{begin}: NetloomIPPool {short.pool} is draining, so nothing new is given of it. Name another pool."
    if short.pool == NO_POOL and supply.blocks and NO_POOL not in supply.blocks:
        why = "the agent's feature `pools`, which says of which pool, is off"
        return f"{begin}: {why}. Start it with that (--features), or ask for a pool by its name."
    if not short.versions:
        return f"{begin}: the node holds nothing to give of. Its NetloomNode's condition Allocated says why."
    counts = [(version, need[version]) for version in sorted(short.versions)] if need else []
    used = ", ".join(f"IPv{version}: {each.used} used, {each.resting} resting" for version, each in counts)
    used = f" ({used})" if used else ""
    held = [str(cidr) for cidr in supply.blocks.get(short.pool, ()) if cidr.version in short.versions]
    if short.pool == NO_POOL and supply.singles:
        what = f"none in spec.ipam.pool of NetloomNode {node} is free{' for it' if need else ''}{used}"
        return f"{begin}: {what}. Whoever fills that has to enter more."
    if not held:
        where = "spec.ipam.pools.allocated" if short.pool else "spec.ipam.podCIDRs"
        why = "`netloom pools` says why" if short.pool else "its condition Allocated says why"
        return f"{begin}: {where} of NetloomNode {node} holds none of that family; {why}."
    way_out = (
        "The operator was asked for more: `netloom pools` says whether the pool has any."
        if short.pool
        else "Run fewer pods on the node (the kubelet's maxPods), or give new nodes larger blocks."
    )
    return f"{begin}: all usable addresses of {some(held)} are taken{used}. {way_out}"


def not_begun(who: str, node: str, fault: str) -> str:
    """Why nobody gets a single address, though the node holds some. fault: of this node, if it is that."""
    about = f"{who} no IP address on node {node}: addresses are in spec.ipam.pool of its NetloomNode, and"
    if fault:
        return f"{about} the agent cannot begin to give them. {fault}"
    return (
        f"{about} the network's IPAM mode is not in force yet (status.ipam.mode). The operator puts it in force: see "
        "whether it runs, and what the NetloomNetwork's condition Ready says."
    )


def orphans(node: str, allocator: NodeAllocator, kept: Collection[Cidr]) -> Iterator[str]:
    """Of what is used and not provided any more, what nobody else tells."""
    found = {
        address: owner
        for address, owner in allocator.orphans().items()
        if not any(cidr.holds(address) for cidr in kept)
    }
    if found:
        named = [f"{format_address(address)} of {owner.name}" for address, owner in sorted(found.items())]
        yield (
            f"NetloomNode {node}: spec.ipam does not hold {some(named)} any more, which are in use "
            "and stay so. Enter them again, or delete these pods."
        )


def overlapping(node: str, cidrs: Collection[Cidr]) -> Iterator[str]:
    """Of blocks that lie inside others of the node."""
    for cidr in cidrs:
        yield (
            f"NetloomNode {node}: spec.ipam.pools.allocated holds {cidr}, which lies inside another CIDR of the node: "
            "no address is given by it. The operator gives none such; take out what was entered by hand."
        )
