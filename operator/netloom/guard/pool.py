"""What is refused of writes to NetloomIPPools: what takes blocks from nodes, and what would give addresses twice."""

from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, PoolFamily
from netloom.api.validation.pool import validate_pool_update
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.cidr.interval_set import IntervalSet
from netloom.guard.decode import Change
from netloom.guard.holdings import Holdings, cidrs_of, lost
from netloom.guard.live import Live
from netloom.guard.network import nodes_inside
from netloom.guard.verdict import Verdict


def decide_pool(change: Change[NetloomIPPool], live: Live) -> Verdict:
    """The verdict on one write of a NetloomIPPool."""
    old, new = change.old, change.new
    if new is None:
        return pool_deleted(change.name, change.key, live.held, live.unseen("NetloomNode"), kind="NetloomNode")
    if old is not None and old.spec == new.spec:
        return Verdict()
    refusals: list[Problem] = []
    unseen: list[str] = []
    if old is not None:
        refusals += _changed(change, old, new, live)
        if _takes(old, new) and (why := live.unseen("NetloomNode")):
            unseen.append(f"NetloomNode: {why}")
    added = _added(old, new)
    for field, cidr in added:
        refusals += _overlaps(change, field, cidr, live)
    if added:
        kinds = ("NetloomIPPool", "NetloomNetwork", "Node")
        unseen += [f"{kind}: {why}" for kind in kinds if (why := live.unseen(kind))]
    return Verdict(refusals=tuple(refusals), unseen=() if refusals else tuple(unseen))


def pool_deleted(name: str, key: str, held: Holdings, unseen: str, *, kind: str) -> Verdict:
    """The verdict on the deletion of a pool of Netloom or of Cilium. kind: of the objects that hold its blocks."""
    holders = held.holders(key)
    if holders.count:
        message = (
            f"the pool cannot be deleted while it is in use: {holders.blocks()}, and their pods would have "
            "addresses that belong to nobody, which another pool may give to others."
        )
        way_out = "Move the pods that use it to another pool, or remove those nodes, until no node holds a block of it."
        return Verdict(refusals=(Problem(name, "metadata.name", key, "PoolInUse", message, way_out),))
    return Verdict(unseen=(f"{kind}: {unseen}",) if unseen else ())


def cidrs_lost(
    name: str, key: str, field: str, before: tuple[str, ...], after: tuple[str, ...], family: Version, held: Holdings
) -> list[Problem]:
    """CIDRs that go or shrink although nodes hold blocks there."""
    kept = IntervalSet(cidrs_of(after, family))
    problems: list[Problem] = []
    for cidr in lost(before, after, family):
        holders = held.outside(kept, cidr, key)
        if holders.count:
            message = (
                f"{cidr} cannot be removed or made smaller while it is in use: {holders.blocks()}, and their pods "
                "would have addresses that belong to nobody, which another pool may give to others."
            )
            way_out = (
                "Keep it; to get more space, add another CIDR to the list. It can go when no node holds a block of it."
            )
            problems.append(Problem(name, field, str(cidr), "PoolInUse", message, way_out))
    return problems


def mask_changed(name: str, key: str, field: str, before: int, after: int, held: Holdings) -> list[Problem]:
    """A mask size that changes although nodes hold blocks of the pool."""
    holders = held.holders(key)
    if before == after or not holders.count:
        return []
    message = (
        f"the mask size of a pool cannot change while it is in use: {holders.blocks()}, cut as /{before}, "
        "and new blocks would not fit between the old ones."
    )
    return [Problem(name, field, str(after), "PoolInUse", message, f"Keep {before}, or make another pool.")]


def _changed(change: Change[NetloomIPPool], old: NetloomIPPool, new: NetloomIPPool, live: Live) -> list[Problem]:
    problems: list[Problem] = []
    for family in VERSIONS:
        before, after = _of(old, family), _of(new, family)
        field, had, kept = f"spec.ipv{family}", _cidrs(old, family), _cidrs(new, family)
        problems += cidrs_lost(change.name, change.key, f"{field}.cidrs", had, kept, family, live.held)
        if before and after:
            mask = before.mask_size, after.mask_size
            problems += mask_changed(change.name, change.key, f"{field}.maskSize", *mask, live.held)
    # Neither a mask size nor a family changes of a pool, in use or not: the same as the API server's own rules.
    told = {problem.field for problem in problems}
    return problems + [problem for problem in validate_pool_update(old, new) if problem.field not in told]


def _takes(old: NetloomIPPool, new: NetloomIPPool) -> bool:
    """Whether a CIDR goes or shrinks."""
    return any(lost(_cidrs(old, family), _cidrs(new, family), family) for family in VERSIONS)


def _added(old: NetloomIPPool | None, new: NetloomIPPool) -> list[tuple[str, Cidr]]:
    """CIDRs with addresses that the pool had not before, each with its field."""
    had = IntervalSet(cidr for family in VERSIONS for cidr in cidrs_of(_cidrs(old, family), family))
    return [
        (f"spec.ipv{family}.cidrs[{number}]", cidr)
        for family in VERSIONS
        for number, text in enumerate(_cidrs(new, family))
        if (cidr := Cidr.masked(text)) and cidr.version == family and not had.covers(cidr)
    ]


def _overlaps(change: Change[NetloomIPPool], field: str, cidr: Cidr, live: Live) -> list[Problem]:
    """What else a CIDR belongs to."""
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


def _other(live: Live, name: str, cidr: Cidr) -> Cidr:
    """The first CIDR of a pool that overlaps."""
    texts = [text for family in VERSIONS for text in _cidrs(live.pools[name], family)]
    return next(other for other in cidrs_of(texts) if other.overlaps(cidr))


def _cluster_cidrs(live: Live, family: Version) -> list[Cidr]:
    """The cluster CIDRs in force, whatever mode was asked for since."""
    network = live.network_now
    if network is None or (network.status.ipam.mode or network.spec.ipam.mode) != "cluster-pool":
        return []
    pool = network.spec.ipam.cluster_pool
    return cidrs_of(pool.ipv4_pod_cidr_list if family == 4 else pool.ipv6_pod_cidr_list, family)


def _of(pool: NetloomIPPool, family: Version) -> PoolFamily | None:
    return pool.spec.ipv4 if family == 4 else pool.spec.ipv6


def _cidrs(pool: NetloomIPPool | None, family: Version) -> tuple[str, ...]:
    block = _of(pool, family) if pool else None
    return block.cidrs if block else ()
