"""What is refused of writes to NetloomIPPools and CiliumPodIPPools: what takes blocks from nodes, and, of Netloom's,
what would give addresses twice."""

from collections.abc import Iterable, Iterator
from typing import Any

from netloom.api.cilium import CiliumPodIPPool, CiliumPoolFamily
from netloom.api.ipam_modes import mode_of
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, PoolFamily
from netloom.api.validation.pool import validate_pool_update
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decode import Change
from netloom.guard.holdings import Holdings, cidrs_of, gained, lost
from netloom.guard.network import nodes_inside
from netloom.guard.verdict import Ruling, told

Pool = NetloomIPPool | CiliumPodIPPool


def decide_pool(change: Change[NetloomIPPool], live: ClusterState) -> Ruling:
    """The verdict on one write of a NetloomIPPool."""
    old, new = change.old, change.new
    if new is None:
        return _deleted(change, live.held, live.missing("NetloomNode"))
    if old is not None and old.spec == new.spec:
        return Ruling()
    refusals: list[Problem] = []
    unseen: tuple[str, ...] = ()
    if old is not None:
        refusals, takes = _taken(change, old, new, live.held)
        # Neither a mask size nor a family changes of a pool, in use or not: the same as the API server's own rules.
        fields = {problem.field for problem in refusals}
        refusals += [problem for problem in validate_pool_update(old, new) if problem.field not in fields]
        unseen = live.missing("NetloomNode") if takes else ()
    added = _added(old, new)
    refusals += told(problem for field, cidr in added for problem in _overlaps(change, field, cidr, live))
    if added:
        unseen += live.missing("NetloomIPPool", "NetloomNetwork", "Node")
    return Ruling(refusals=tuple(refusals), unseen=() if refusals else unseen)


def decide_cilium_pool(change: Change[CiliumPodIPPool], live: ClusterState) -> Ruling:
    """The verdict on one write of a CiliumPodIPPool."""
    old, new = change.old, change.new
    if new is None:
        return _deleted(change, live.cilium_held, live.missing("CiliumNode"))
    if old is None or old.spec == new.spec:
        return Ruling()
    refusals, takes = _taken(change, old, new, live.cilium_held)
    return Ruling(refusals=tuple(refusals), unseen=live.missing("CiliumNode") if takes and not refusals else ())


def _deleted(change: Change[Any], held: Holdings, unseen: tuple[str, ...]) -> Ruling:
    holders = held.holders(change.key)
    if not holders.count:
        return Ruling(unseen=unseen)
    message = (
        f"the pool cannot be deleted while it is in use: {holders.blocks()}, and their pods would have "
        "addresses that belong to nobody, which another pool may give to others."
    )
    way_out = "Move the pods that use it to another pool, or remove those nodes, until no node holds a block of it."
    return Ruling(refusals=(Problem(change.name, "metadata.name", change.key, "PoolInUse", message, way_out),))


def _taken(change: Change[Any], old: Pool, new: Pool, held: Holdings) -> tuple[list[Problem], bool]:
    """What is wrong with CIDRs that go or shrink and with mask sizes that change; and whether there are any."""
    problems: list[Problem] = []
    takes = False
    for family in VERSIONS:
        before, after = _of(old, family), _of(new, family)
        if before is None or before == after:
            continue
        gone, kept = lost(before.cidrs, after.cidrs if after else (), family)
        if gone:
            takes = True
            if held.holds_of(change.key):  # else nothing can be missing
                problems += told(_gone(change, gone, kept, held))
        if after and before.mask_size != after.mask_size:
            takes = True
            holders = held.holders(change.key)
            if holders.count:
                message = (
                    f"the mask size of a pool cannot change while it is in use: {holders.blocks()}, cut as "
                    f"/{before.mask_size}, and new blocks would not fit between the old ones."
                )
                field, way_out = f"spec.ipv{family}.maskSize", f"Keep {before.mask_size}, or make another pool."
                problems.append(Problem(change.name, field, str(after.mask_size), "PoolInUse", message, way_out))
    return problems, takes


def _gone(change: Change[Any], gone: Iterable[Cidr], kept: FrozenIntervalSet, held: Holdings) -> Iterator[Problem]:
    """What is wrong with CIDRs that go or shrink, where these are kept."""
    for cidr in gone:
        holders = held.outside(kept, cidr, change.key)
        if holders.count:
            text = str(cidr)
            message = (
                f"{text} cannot be removed or made smaller while it is in use: {holders.blocks()}, and their pods "
                "would have addresses that belong to nobody, which another pool may give to others."
            )
            way_out = (
                "Keep it; to get more space, add another CIDR to the list. It can go when no node holds a block of it."
            )
            field = f"spec.ipv{cidr.version}.cidrs"
            yield Problem(change.name, field, text, "PoolInUse", message, way_out)


def _added(old: NetloomIPPool | None, new: NetloomIPPool) -> list[tuple[str, Cidr]]:
    """CIDRs with addresses that the pool had not before, each with its field."""
    return [
        (f"spec.ipv{family}.cidrs[{number}]", cidr)
        for family in VERSIONS
        for number, cidr in gained(_cidrs(old, family), _cidrs(new, family), family)
    ]


def _overlaps(change: Change[NetloomIPPool], field: str, cidr: Cidr, live: ClusterState) -> list[Problem]:
    others = live.pool_cidrs.overlapping(cidr, but=change.key)
    owners = [f"{_other(live, name, cidr)} of NetloomIPPool {name}" for name in others.names]
    more = f" and of {others.count - len(owners)} more pools" if others.count > len(owners) else ""
    cluster = next((str(each) for each in _cluster_cidrs(live, cidr.version) if each.overlaps(cidr)), "")
    owners += [f"{cluster} of spec.ipam.clusterPool of the NetloomNetwork"] if cluster else []
    problems: list[Problem] = []
    if owners:
        message = f"{cidr} overlaps {', '.join(owners)}{more}, so two nodes could be given the same address."
        way_out = "Give a CIDR that nothing else is given from."
        problems.append(Problem(change.name, field, str(cidr), "PoolOverlap", message, way_out))
    problems += nodes_inside(change.name, field, cidr, live, "PoolOverlapsNodes")
    return problems


def _other(live: ClusterState, name: str, cidr: Cidr) -> Cidr:
    texts = [text for family in VERSIONS for text in _cidrs(live.pools[name], family)]
    return next(other for other in cidrs_of(texts) if other.overlaps(cidr))


def _cluster_cidrs(live: ClusterState, family: Version) -> list[Cidr]:
    """The cluster CIDRs in force, whatever mode was asked for since."""
    network = live.network_now
    if network is None or not mode_of(network).from_network:
        return []
    pool = network.spec.ipam.cluster_pool
    return cidrs_of(pool.ipv4_pod_cidr_list if family == 4 else pool.ipv6_pod_cidr_list, family)


def _of(pool: Pool, family: Version) -> PoolFamily | CiliumPoolFamily | None:
    return pool.spec.ipv4 if family == 4 else pool.spec.ipv6


def _cidrs(pool: Pool | None, family: Version) -> tuple[str, ...]:
    block = _of(pool, family) if pool else None
    return block.cidrs if block else ()
