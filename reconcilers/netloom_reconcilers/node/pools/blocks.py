"""What a node's object says of its blocks, and what is to be written there. Pure.

A block is written back that pods of this node use and that the object does not hold: `allocated` was edited, or
restored from a backup, or a write came late. The operator then enters it in its ledger. Not so if another NetloomNode
holds it: that one has it by the ledger, and all others would send this node's packets to the older of the two.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from netloom.api.holdings import home_blocks, in_front
from netloom.api.pool_choice import families_of, family_of, gives
from netloom.api.v1alpha1 import NetloomIPPool, NodeIPAM, PoolAllocation
from netloom.api.words import some
from netloom.cidr import VERSIONS, Address, Cidr, Version, format_address
from netloom.ipam.address_block import usable
from netloom.ipam.node_allocator import NodeAllocator
from netloom.ipam.pool_demand import PoolView

Pools = Mapping[str, NetloomIPPool]
Allocated = dict[str, tuple[Cidr, ...]]


def held(ipam: NodeIPAM) -> Allocated:
    """The blocks by pool, in their order. What is no CIDR is left out."""
    found: Allocated = {}
    for each in ipam.pools.allocated:
        cidrs = (cidr for text in each.cidrs if (cidr := Cidr.masked(text)) is not None)
        found[each.pool] = (*found.get(each.pool, ()), *cidrs)
    return found


def views(allocator: NodeAllocator, blocks: Allocated, pools: Pools, default: str, now: float) -> Iterable[PoolView]:
    """Every pool that there is, or that the node has something of."""
    closed = allocator.closed
    for name in sorted({*pools, *blocks, *filter(None, allocator.pools())}):
        pool = pools.get(name)
        is_default = name == default
        per_block = {each: per_block_of(pool, each) for each in families_of(pool)} if pool is not None else {}
        ready = pool.spec.pre_allocation if pool is not None else 0
        yield PoolView(
            name=name,
            per_block=per_block,
            # A node without any block has no address of its own among pods', and is nobody's peer.
            ready=max(1, ready) if is_default else ready,
            gives=pool is not None and gives(pool),
            is_default=is_default,
            need=allocator.need(name, now),
            blocks=tuple(each for each in blocks.get(name, ()) if each not in closed and knows(allocator, each)),
            idle=frozenset(allocator.idle(name, now)),
        )


def knows(allocator: NodeAllocator, block: Cidr) -> bool:
    """Whether the allocator gives of it already, and counts it."""
    return allocator.block(block.packed) == block


def staying(ipam: NodeIPAM, blocks: Allocated, pools: Pools, default: str) -> tuple[Cidr, ...]:
    """The home blocks, which are not given back: those of the default pool, and of another one as long as the node has,
    or is to get, another block of the family. The last one of a family that the default pool has not may go."""
    every = [cidr for cidrs in blocks.values() for cidr in cidrs]
    pool = pools.get(default)
    is_to_have = families_of(pool) if pool is not None else VERSIONS
    return tuple(
        home
        for home in home_blocks(ipam)
        if home.version in is_to_have or any(each.version == home.version and each != home for each in every)
    )


def per_block_of(pool: NetloomIPPool, version: Version) -> int:
    """Addresses of a block that pods can have, as the operator counts them."""
    family = family_of(pool, version)
    if family is None:
        return 0
    return usable(Cidr(version, 0, family.mask_size), gateway=False, whole=pool.spec.allow_first_last_ips)


@dataclass(frozen=True, slots=True)
class Missing:
    """Blocks that the object lacks and pods use, by pool; and of what cannot be written back, why, as sentences."""

    blocks: Allocated
    problems: tuple[str, ...] = ()


def missing(
    name: str, allocator: NodeAllocator, kept: Mapping[Cidr, str], pools: Pools, holder: Callable[[Cidr], str]
) -> Missing:
    """Of a node of that name. kept: CIDRs that its object held once and that are kept, with what was seen in them.
    holder: another node that has addresses of a CIDR, "" if there is none."""
    used: dict[Address, tuple[str, str]] = {}
    for address, owner in sorted(allocator.orphans().items()):
        holding = allocator.holding(owner)
        used[address] = owner.name, holding.pool if holding is not None else ""
    for cidr, what in kept.items():
        if what and not any(cidr.holds(each) for each in used):
            used[cidr.packed] = what, ""
    lacking: dict[Cidr, str] = {}
    placeless: list[str] = []
    for address, (who, of) in used.items():
        pool, block = _block_of(address, of, kept, pools)
        if block is None:
            placeless.append(f"{format_address(address)} ({who})")
        else:
            lacking.setdefault(block, pool)
    found: Allocated = {}
    problems: list[str] = []
    begin = f"NetloomNode {name}: spec.ipam.pools.allocated does not hold"
    for block, pool in lacking.items():
        if other := holder(block):
            why = f"{begin} {block}, which is in use, and NetloomNode {other} holds addresses of it now"
            problems.append(f"{why}: drain Node {name}; its pods come back with other addresses.")
        else:
            found[pool] = (*found.get(pool, ()), block)
    if placeless:
        why = f"{begin} {some(placeless)}, in use, and no NetloomIPPool has a CIDR with them"
        problems.append(f"{why}, so they cannot be entered again. Give a pool such a CIDR, or delete these pods.")
    return Missing(found, tuple(problems))


def _block_of(address: Address, pool: str, known: Collection[Cidr], pools: Pools) -> tuple[str, Cidr | None]:
    """The block that an address is of, and its pool: as the node once had it, else as the pool would cut it."""
    single = Cidr.of(address)
    of_pool = {name: cidr for name, each in pools.items() if (cidr := _cut(each, single)) is not None}
    name = pool if pool in of_pool or not of_pool else min(of_pool)
    former = next((each for each in known if each.contains(single)), None)
    return name, (former if name else None) or of_pool.get(name)


def _cut(pool: NetloomIPPool, single: Cidr) -> Cidr | None:
    family = family_of(pool, single.version)
    if family is None:
        return None
    cidrs = [cidr for text in family.cidrs if (cidr := Cidr.masked(text)) is not None]
    return single.supernet(family.mask_size) if any(each.contains(single) for each in cidrs) else None


def rewritten(blocks: Allocated, gone: Collection[Cidr], back: Allocated, front: str) -> tuple[PoolAllocation, ...]:
    """What is to stand in the object, with one pool in front: the default one, so that the blocks in which the node has
    addresses of its own are of it, and those of a pool that was the default one can go."""
    found = []
    for name in dict.fromkeys((*blocks, *back)):
        cidrs = dict.fromkeys((*blocks.get(name, ()), *back.get(name, ())))
        texts = tuple(str(cidr) for cidr in cidrs if cidr not in gone)
        if texts:
            found.append(PoolAllocation(pool=name, cidrs=texts))
    return in_front(found, front)
