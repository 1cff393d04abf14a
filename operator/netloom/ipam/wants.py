"""How many blocks a node is still to be given of each NetloomIPPool, for the addresses that its agent asks for.

Counted from what the node holds now, and from nothing remembered: what was asked for, given and given back before does
not matter.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from netloom.api.holdings import cidrs_of
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NeededAddresses, NodeIPAM, PoolRequest
from netloom.cidr import Cidr, Version
from netloom.ipam.address_block import usable
from netloom.ipam.plan import Want
from netloom.ipam.settings import Family, PoolSettings, Settings

MOST_ADDRESSES = 4096
"""Of a pool and family that one node is given, whatever it asks for: sixteen times what kubelets run of pods."""
MOST_BLOCKS = 128
"""The same in blocks: as many of each family as the schema of a NetloomNode takes."""


class AskedBlocks(NamedTuple):
    """What can be searched for, and the first thing that nothing can be given for."""

    wants: tuple[Want, ...]
    problem: Problem | None = None


def asked(node: str, ipam: NodeIPAM, settings: Settings) -> AskedBlocks:
    """What a node is to get beside what it holds. One that has never asked gets its part of the default pool."""
    wants: list[Want] = []
    problems: list[Problem] = []
    for number, request in enumerate(requests(ipam, settings)):
        where = f"spec.ipam.pools.requested[{number}]"
        pool = settings.pool(request.pool)
        if pool is None:
            problems.append(_missing(node, where, request.pool, settings))
            continue
        if not pool.families:
            message = f"of NetloomIPPool {request.pool} nothing can be given; its condition Ready says why."
            problems.append(
                Problem(f"NetloomNode {node}", where, request.pool, "PoolUnusable", message, "Mend the pool.")
            )
        lacking = _lacking(pool, request, held_of(ipam, pool.name))
        short = [want for each in lacking if (want := each.want(pool.name)).blocks > 0]
        if short and pool.draining:
            message = f"{request.pool} is draining (spec.draining), and nothing new is given of it."
            way_out = "Move the pods that ask for it to another pool, or end the draining."
            problems.append(Problem(f"NetloomNode {node}", where, request.pool, "PoolDraining", message, way_out))
        else:
            wants += short
        problems += _too_many(node, where, request, lacking)
    return AskedBlocks(tuple(wants), next(iter(problems), None))


def needed_of(needed: NeededAddresses, family: Family) -> int:
    """Addresses of a family that are asked for, and can be given to one node."""
    return min(needed.ipv4_addrs if family.version == 4 else needed.ipv6_addrs, MOST_ADDRESSES)


def held_of(ipam: NodeIPAM, pool: str) -> list[Cidr]:
    """Blocks of a pool that a node holds."""
    return [cidr for each in ipam.pools.allocated if each.pool == pool for cidr in cidrs_of(each.cidrs)]


def capacity(held: Iterable[Cidr], pool: PoolSettings, version: Version) -> tuple[int, int]:
    """How many of these blocks are of the family, and the addresses in them that pods can have."""
    sizes = [usable(cidr, gateway=False, whole=pool.whole) for cidr in held if cidr.version == version]
    return len(sizes), sum(sizes)


class _Lacking(NamedTuple):
    """Of one family of a pool: blocks that a node holds, and those that it lacks for what it asks for."""

    version: Version
    held: int
    missing: int

    def want(self, pool: str) -> Want:
        return Want(pool, self.version, min(self.missing, MOST_BLOCKS - self.held))


def _lacking(pool: PoolSettings, request: PoolRequest, held: Sequence[Cidr]) -> list[_Lacking]:
    found: list[_Lacking] = []
    for family in pool.families:
        blocks, addresses = capacity(held, pool, family.version)
        each = usable(Cidr(family.version, 0, family.mask), gateway=False, whole=pool.whole)
        found.append(_Lacking(family.version, blocks, -((addresses - needed_of(request.needed, family)) // each)))
    return found


def requests(ipam: NodeIPAM, settings: Settings) -> tuple[PoolRequest, ...]:
    """What its agent asks for. Of one that has not spoken yet, what it will ask for first: of the default pool one
    address at least, as the node has addresses of its own there."""
    if ipam.pools.requested:
        return ipam.pools.requested
    pool = settings.pool(settings.default_pool)
    return _first(settings.default_pool, max(1, pool.ready) if pool is not None else 0)


@lru_cache(maxsize=64)
def _first(pool: str, ready: int) -> tuple[PoolRequest, ...]:
    """Every newcomer's is the same."""
    return (PoolRequest(pool=pool, needed=NeededAddresses(ipv4_addrs=ready, ipv6_addrs=ready)),)


def _missing(node: str, where: str, pool: str, settings: Settings) -> Problem:
    if pool == settings.default_pool:
        field, way_out = "spec.ipam.multiPool.defaultPool", "Create it."
        message = "there is no such NetloomIPPool, from which every node gets addresses."
        return Problem("NetloomNetwork default", field, pool, "NoDefaultPool", message, way_out)
    message = "there is no such NetloomIPPool, and pods that ask for it wait."
    way_out = "Create it, or correct the annotation netloom.dev/ip-pool of these pods or of their namespace."
    return Problem(f"NetloomNode {node}", where, pool, "PoolMissing", message, way_out)


def _too_many(node: str, where: str, request: PoolRequest, lacking: Iterable[_Lacking]) -> list[Problem]:
    most = max(request.needed.ipv4_addrs, request.needed.ipv6_addrs)
    message = f"it asks for {most} addresses of pool {request.pool}; one node is given at most {MOST_ADDRESSES}."
    way_out = "Correct what asks for them: its agent counts addresses in use and those to be ready for new pods."
    if most <= MOST_ADDRESSES:
        if all(each.held + each.missing <= MOST_BLOCKS for each in lacking):
            return []
        message = (
            f"it asks for {most} addresses of pool {request.pool}, more than {MOST_BLOCKS} blocks of its mask size "
            "have, and one node is given no more blocks."
        )
        way_out = "Make another pool with a shorter maskSize, and let pods use that one."
    return [Problem(f"NetloomNode {node}", f"{where}.needed", str(most), "TooManyAddresses", message, way_out)]
