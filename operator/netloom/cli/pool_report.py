"""What `netloom pools` prints: how full the NetloomIPPools are, and who holds what of one."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from netloom.api.meta import READY, condition_of
from netloom.api.v1alpha1 import NETLOOM_NODES, POOLS, NetloomIPPool, NetloomNode, PoolUsage
from netloom.cli.options import Cluster
from netloom.cli.reading import reading
from netloom.cli.status_text import aligned, safe


class FamilyReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Of one family of a pool, counted in blocks; `addresses` are those in the blocks that nodes hold."""

    family: str
    cidrs: tuple[str, ...]
    mask_size: int
    total: int
    used: int
    free: int
    orphaned: int
    addresses: int
    addresses_needed: int


class PoolReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One pool, as its status says; `waiting`: nodes that need more of it than it has."""

    name: str
    ready: str
    reason: str
    message: str
    nodes: int
    waiting: int
    full_at: str
    families: tuple[FamilyReport, ...]


class Holder(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a node holds of a pool, and the addresses of each family that it needs of it."""

    node: str
    cidrs: tuple[str, ...]
    ipv4_needed: int = 0
    ipv6_needed: int = 0


class PoolHolders(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pool with the nodes that hold blocks of it or ask for any. pool: None, where only nodes speak of it."""

    pool: PoolReport | None
    holders: tuple[Holder, ...]


async def pools(cluster: Cluster) -> tuple[PoolReport, ...]:
    """All of the cluster. Raises UserError."""
    async with reading(cluster, "pools") as api:
        return tuple(pool_of(each) for each in (await api.list(POOLS)).objects)


async def holders_of(cluster: Cluster, name: str) -> PoolHolders:
    """Of one. Raises UserError."""
    async with reading(cluster, "pools") as api:
        return holders(name, (await api.list(POOLS)).objects, (await api.list(NETLOOM_NODES)).objects)


def pool_of(obj: NetloomIPPool) -> PoolReport:
    """As its status says."""
    ready = condition_of(obj.status.conditions, READY)
    both = (("IPv4", obj.spec.ipv4, obj.status.ipv4), ("IPv6", obj.spec.ipv6, obj.status.ipv6))
    return PoolReport(
        name=obj.metadata.name,
        ready=ready.status if ready else "Unknown",
        reason=ready.reason if ready else "",
        message=ready.message if ready else "no operator has looked at it yet",
        nodes=obj.status.nodes,
        waiting=obj.status.waiting,
        full_at=obj.status.full_at,
        families=tuple(
            FamilyReport(
                family=name, cidrs=of.cidrs, mask_size=of.mask_size, **msgspec.structs.asdict(status or PoolUsage())
            )
            for name, of, status in both
            if of
        ),
    )


def holders(name: str, objects: Iterable[NetloomIPPool], nodes: Iterable[NetloomNode]) -> PoolHolders:
    """Who holds what of the pool, nodes by name."""
    pool = next((pool_of(each) for each in objects if each.metadata.name == name), None)
    found: list[Holder] = []
    for node in sorted(nodes, key=lambda node: node.metadata.name):
        of = node.spec.ipam.pools
        cidrs = tuple(cidr for each in of.allocated if each.pool == name for cidr in each.cidrs)
        needed = next((each.needed for each in of.requested if each.pool == name), None)
        if cidrs or needed is not None:
            four, six = (needed.ipv4_addrs, needed.ipv6_addrs) if needed else (0, 0)
            found.append(Holder(node=node.metadata.name, cidrs=cidrs, ipv4_needed=four, ipv6_needed=six))
    return PoolHolders(pool=pool, holders=tuple(found))


def table(found: Sequence[PoolReport]) -> Iterator[str]:
    """As lines."""
    if not found:
        yield "there is no NetloomIPPool"
        return
    rows: list[tuple[str, ...]] = [
        ("POOL", "FAMILY", "BLOCKS", "USED", "FREE", "ORPHANED", "NODES", "WAITING", "READY", "FULL AT")
    ]
    for pool in found:
        said = pool.ready if pool.ready == "True" and pool.reason == "Ready" else f"{pool.ready} {pool.reason}"
        for each in pool.families:
            numbers = map(str, (each.total, each.used, each.free, each.orphaned, pool.nodes, pool.waiting))
            rows.append((pool.name, each.family, *numbers, said, pool.full_at or "-"))
    yield from aligned(rows)
    for pool in found:
        if (pool.ready, pool.reason) != ("True", "Ready"):
            yield f"{pool.name}: {safe(pool.message)}"


def shown(name: str, found: PoolHolders) -> Iterator[str]:
    """As lines."""
    if found.pool is None:
        yield f"there is no NetloomIPPool {name} any more; what nodes hold of it stays with them"
    else:
        yield from table([found.pool])
    yield ""
    if not found.holders:
        yield "no node holds blocks of it"
        return
    rows = [("NODE", "NEEDS", "BLOCKS")]
    for each in found.holders:
        both = ((each.ipv4_needed, "IPv4"), (each.ipv6_needed, "IPv6"))
        needs = [f"{count} {family}" for count, family in both if count]
        rows.append((each.node, " ".join(needs) or "-", " ".join(each.cidrs) or "-"))
    yield from aligned(rows)
