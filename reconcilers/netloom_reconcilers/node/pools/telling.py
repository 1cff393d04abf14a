"""What a node says of its pools, in sentences. Pure."""

from collections.abc import Container, Iterable, Iterator, Mapping

from netloom.api.meta import READY, condition_of
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNode
from netloom.api.words import some
from netloom.cidr import Version, addresses_in
from netloom.ipam.node_allocator import Shortage
from netloom.ipam.pool_demand import MOST_ADDRESSES
from netloom_reconcilers.node.pools.blocks import Allocated, held


def shortage(node: NetloomNode, pool: NetloomIPPool | None, owner: str, short: Shortage, seconds: float | None) -> str:
    """Why an owner waits for an address. seconds: for how long somebody waits for the pool; None: that is not known,
    nor whether what the node holds is taken."""
    families = " and ".join(f"IPv{version}" for version in sorted(short.versions)) or "IP"
    begin = f"{owner} gets no {families} address of NetloomIPPool {short.pool} on node {node.metadata.name}"
    if pool is None:
        return f"{begin}: there is no such pool any more. Create it again, or name another."
    if pool.spec.draining:
        return f"{begin}: the pool is draining (spec.draining), so nothing new is given of it. Name another pool."
    have = [cidr for cidr in held(node.spec.ipam).get(short.pool, ()) if cidr.version in short.versions]
    some = f"{len(have)} block{'s' if len(have) != 1 else ''}"
    taken = f"all usable addresses of its {some} are taken" if seconds is not None else f"it holds {some} of it"
    holds = taken if have else "it holds no block of it"
    asked = next((each.needed for each in node.spec.ipam.pools.requested if each.pool == short.pool), None)
    if asked is None:
        return f"{begin}: {holds}, and it has not asked for one yet."
    wanted = " and ".join(
        f"{asked.ipv4_addrs if version == 4 else asked.ipv6_addrs} IPv{version}" for version in sorted(short.versions)
    )
    since = f" (somebody has waited for {round(seconds)} s)" if seconds is not None else ""
    asks = f"{holds}, and it asks for {wanted} addresses{since}"
    ready = condition_of(pool.status.conditions, READY)
    if ready is not None and ready.status == "False":
        return f"{begin}: {asks}. NetloomIPPool {short.pool} says {ready.reason}: {ready.message}"
    if seconds is None and have:
        return f"{begin} yet: {asks}. On that node, `netloom ip why` says what its agent knows."
    return f"{begin}: {asks}. The operator has not given it: `netloom status` says whether one leads, and what it says."


def pools_of(node: NetloomNode, addresses: Iterable[str]) -> set[str]:
    """The pools of a node that addresses are of."""
    singles = addresses_in(addresses)
    blocks = held(node.spec.ipam).items()
    return {pool for pool, cidrs in blocks for cidr in cidrs if any(map(cidr.holds, singles))}


def capped(node: str, asked: Mapping[tuple[str, Version], int]) -> Iterator[str]:
    """Of pools of which a node would need more than it may ask for."""
    for (pool, version), needed in sorted(asked.items()):
        yield (
            f"NetloomNode {node}: {needed} IPv{version} addresses of NetloomIPPool {pool} are in use or waited for; a "
            f"node asks for {MOST_ADDRESSES} of a pool and family at most, and for 128 blocks. Run fewer pods on it, "
            "or give the pool larger blocks."
        )


def unknown(node: str, blocks: Allocated, pools: Container[str]) -> Iterator[str]:
    """Of blocks whose pool is gone."""
    for pool, cidrs in blocks.items():
        if cidrs and pool not in pools:
            yield (
                f"NetloomNode {node}: spec.ipam.pools.allocated: there is no NetloomIPPool {pool}, of which the node "
                f"has {some(cidrs)}. Pods keep "
                "their addresses, and nothing new is given of it. Create the pool again, or let these pods end."
            )
