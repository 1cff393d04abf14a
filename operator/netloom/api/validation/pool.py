"""NetloomIPPools: each by itself, and what a change breaks."""

from netloom.api.cidrs import check_cidrs, check_mask_size, check_overlap
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, PoolFamily
from netloom.api.validation.ranges import check_ranges
from netloom.cidr import VERSIONS, Version

_EXAMPLES: dict[Version, str] = {4: "10.245.0.0/16", 6: "fd00:10:245::/56"}


def validate_pool(pool: NetloomIPPool) -> list[Problem]:
    """Everything that is wrong with a pool by itself."""
    name = f"NetloomIPPool {pool.metadata.name}"
    if pool.spec.ipv4 is None and pool.spec.ipv6 is None:
        message, way_out = "a pool without CIDRs has nothing to give.", "Give spec.ipv4, spec.ipv6 or both."
        return [Problem(name, "spec", "", "NoCIDR", message, way_out)]
    numbers = {f"spec.ipv{family}.maskSize": block.mask_size for family, block in _families(pool)}
    numbers["spec.preAllocation"] = pool.spec.pre_allocation
    problems = check_ranges("NetloomIPPool", pool.metadata.name, numbers)
    for family, block in _families(pool):
        field = f"spec.ipv{family}"
        problems += check_mask_size(
            block.cidrs, block.mask_size, family=family, object=name, field=f"{field}.maskSize", block="a block"
        )
        problems += check_cidrs(
            block.cidrs, object=name, field=f"{field}.cidrs", example=_EXAMPLES[family], family=family, for_pods=True
        )
        so = "a node could be given the same addresses twice"
        problems += check_overlap(block.cidrs, object=name, field=f"{field}.cidrs", so=so)
    return problems


def validate_pool_update(old: NetloomIPPool, new: NetloomIPPool) -> list[Problem]:
    """What a change of a pool breaks for the nodes that hold blocks of it."""
    name = f"NetloomIPPool {new.metadata.name}"
    problems: list[Problem] = []
    after = dict(_families(new))
    for family, block in _families(old):
        field = f"spec.ipv{family}"
        if family not in after:
            message = "a family cannot be taken away from a pool, as nodes may hold blocks of it."
            problems.append(Problem(name, field, "", "PoolInUse", message, "Make another pool."))
        elif after[family].mask_size != block.mask_size:
            message = "the mask size of a pool cannot change: new blocks would not fit between the old ones."
            size = str(after[family].mask_size)
            problems.append(Problem(name, f"{field}.maskSize", size, "PoolInUse", message, "Make another pool."))
    return problems


def _families(pool: NetloomIPPool) -> list[tuple[Version, PoolFamily]]:
    return [(family, block) for family, block in zip(VERSIONS, (pool.spec.ipv4, pool.spec.ipv6), strict=True) if block]
