"""What is refused of writes to the NetloomNetwork while nodes hold addresses of it.

A mode is in force if `status.ipam.mode` of the stored object says so, which is written before the first address is
given; else the modes count that NetloomNodes record. What is judged is the change: an object that is bad already can
always be made better, and an update that leaves the guarded fields as they are always passes.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from netloom.api.cidrs import holds_nodes
from netloom.api.ipam_modes import mode_named
from netloom.api.problem import Problem, Severity
from netloom.api.v1alpha1 import IN_USE_FINALIZER, NETWORK_NAME, NetloomNetwork
from netloom.api.validation.network import network_warnings
from netloom.api.words import NODES_HOLD, in_use
from netloom.cidr import VERSIONS, Cidr, Version, format_address
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.guard import wording
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decode import Change
from netloom.guard.holdings import cidrs_of, gained, lost
from netloom.guard.verdict import Ruling


def decide_network(change: Change[NetloomNetwork], live: ClusterState) -> Ruling:
    """The verdict on one write of a NetloomNetwork."""
    old, new = change.old, change.new
    if new is None:
        return _deleted(change, old, live) if old else Ruling()
    verdict = _updated(change, old, new, live) if old else _created(change, new, live)
    return replace(verdict, warnings=tuple(_warnings(change.name, old, new, live)))


def _created(change: Change[NetloomNetwork], new: NetloomNetwork, live: ClusterState) -> Ruling:
    name, wanted = change.key, new.spec.ipam.mode
    if name != NETWORK_NAME:
        message = "a cluster has one network, so a NetloomNetwork of another name would be ignored."
        refusal = Problem(change.name, "metadata.name", name, "NotTheNetwork", message, 'Name it "default".')
        return Ruling(refusals=(refusal,))
    if unseen := live.missing("NetloomNode"):
        return Ruling(unseen=unseen)
    modes = live.held.modes - {""}
    if modes and wanted not in modes:
        said = {"in_use": _in_use(live), "mode": _either(modes), "wanted": wanted}
        refusal = wording.NETWORK_CREATED.problem(change.name, "spec.ipam.mode", wanted, **said)
        return Ruling(refusals=(refusal,))
    if not any(map(_from_network, modes)) or not _from_network(wanted):
        return Ruling()
    return Ruling(refusals=tuple(_uncovered(change.name, new, live)))


def _deleted(change: Change[NetloomNetwork], old: NetloomNetwork, live: ClusterState) -> Ruling:
    if change.key != NETWORK_NAME:
        return Ruling()
    modes = _modes(old, live)
    if modes:
        said = {"in_use": _in_use(live), "mode": _either(modes)}
        refusal = wording.NETWORK_DELETED.problem(change.name, "metadata.name", change.key, **said)
        return Ruling(refusals=(refusal,))
    return Ruling(unseen=live.missing("NetloomNode"))


def _updated(change: Change[NetloomNetwork], old: NetloomNetwork, new: NetloomNetwork, live: ClusterState) -> Ruling:
    if change.key != NETWORK_NAME or not _takes(change, old, new, live):
        return Ruling()
    modes = _modes(old, live)
    refusals = _refusals(change, old, new, modes, live) if modes else []
    # What the stored object says is in force needs no node to confirm it; which pods lose cover, only nodes tell.
    if not refusals and (not old.status.ipam.mode or _narrows(old, new)):
        return Ruling(unseen=live.missing("NetloomNode"))
    return Ruling(refusals=tuple(refusals))


def _refusals(
    change: Change[NetloomNetwork], old: NetloomNetwork, new: NetloomNetwork, modes: frozenset[str], live: ClusterState
) -> list[Problem]:
    name, said = change.name, {"in_use": _in_use(live), "mode": _either(modes)}
    refusals: list[Problem] = []
    wanted = new.spec.ipam.mode
    if wanted != old.spec.ipam.mode and wanted not in modes:
        refusals.append(wording.NETWORK_MODE.problem(name, "spec.ipam.mode", wanted, wanted=wanted, **said))
    if _unlocks(change, old, new, live):
        refusals.append(wording.NETWORK_UNLOCKED.problem(name, "status.ipam", "", **said))
    if _frees(change, old, new, live):
        refusals.append(wording.NETWORK_DELETED.problem(name, "metadata.finalizers", "", **said))
    pool = any(map(_from_network, modes))
    for family in VERSIONS:
        if pool:
            refusals += _pool(name, family, old, new, live)
        refusals += _native(name, family, old, new, live, pool=pool)
    return refusals


def _takes(change: Change[NetloomNetwork], old: NetloomNetwork, new: NetloomNetwork, live: ClusterState) -> bool:
    """Whether anything is taken away or exchanged; growth, and what is not guarded, passes whatever is live."""
    if old.spec.ipam.mode != new.spec.ipam.mode or _unlocks(change, old, new, live) or _frees(change, old, new, live):
        return True
    for family in VERSIONS:
        (before, old_size), (after, new_size) = _list(old, family), _list(new, family)
        if before and (old_size != new_size or lost(before, after, family)[0]):
            return True
    return _narrows(old, new)


def _unlocks(change: Change[NetloomNetwork], old: NetloomNetwork, new: NetloomNetwork, live: ClusterState) -> bool:
    """Whether somebody but the operator writes what is in force."""
    return old.status.ipam != new.status.ipam and change.user not in live.users.operators


def _frees(change: Change[NetloomNetwork], old: NetloomNetwork, new: NetloomNetwork, live: ClusterState) -> bool:
    """Whether somebody but the operator lets a deletion go through that was under way."""
    before, after = old.metadata, new.metadata
    waits = bool(before.deletion_timestamp) and IN_USE_FINALIZER in before.finalizers
    return waits and IN_USE_FINALIZER not in after.finalizers and change.user not in live.users.operators


def _modes(old: NetloomNetwork, live: ClusterState) -> frozenset[str]:
    """The modes in force; none where nobody holds addresses. Several only where nodes record several."""
    if old.status.ipam.mode:
        return frozenset({old.status.ipam.mode})
    if live.held.count:
        return live.held.modes - {""} or frozenset({old.spec.ipam.mode})
    return frozenset()


def _in_use(live: ClusterState) -> str:
    if live.held.count and not live.unseen("NetloomNode"):
        return in_use(live.held.count, live.held.names)
    return NODES_HOLD


def _either(modes: Iterable[str]) -> str:
    return " and ".join(sorted(modes))


def _pool(name: str, family: Version, old: NetloomNetwork, new: NetloomNetwork, live: ClusterState) -> list[Problem]:
    (before, old_size), (after, new_size) = _list(old, family), _list(new, family)
    field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList"
    problems: list[Problem] = []
    gone, kept = lost(before, after, family)
    for cidr in gone:
        holders = live.held.outside(kept, cidr)
        if holders.count:
            why = f"{holders.blocks()}, and their pods would have addresses that are not the cluster's any more."
        else:
            why = f"{_in_use(live)} of mode cluster-pool, and a block of it may be on its way to one."
        message = f"{cidr} cannot be removed or made smaller while it is in use: {why}"
        way_out = "Keep it; to get more space, add another CIDR to the list, or put one in its place that contains it."
        problems.append(Problem(name, field, str(cidr), "CIDRInUse", message, way_out))
    if before and old_size != new_size:
        message = (
            f"the mask size cannot change while it is in use: {_in_use(live)}, cut as blocks of /{old_size}, and new "
            "blocks would not fit between the old ones."
        )
        way_out = f"Keep {old_size}, or remove every node first."
        field = f"spec.ipam.clusterPool.ipv{family}MaskSize"
        problems.append(Problem(name, field, str(new_size), "CIDRInUse", message, way_out))
    return problems


def _uncovered(name: str, new: NetloomNetwork, live: ClusterState) -> list[Problem]:
    """A network that is made anew without CIDRs that nodes hold: a removal in two steps."""
    problems: list[Problem] = []
    for family in VERSIONS:
        texts, _ = _list(new, family)
        holders = live.held.outside_family(FrozenIntervalSet(cidrs_of(texts, family)), family)
        if holders.count:
            message = (
                f"it does not cover what is in use: {holders.blocks('outside it')}, and their pods "
                "would have addresses that are not the cluster's any more."
            )
            field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList"
            way_out = "Give the CIDRs that the network had, and others beside them if you like."
            problems.append(Problem(name, field, ", ".join(texts), "CIDRInUse", message, way_out))
    return problems


def _native(
    name: str, family: Version, old: NetloomNetwork, new: NetloomNetwork, live: ClusterState, *, pool: bool
) -> list[Problem]:
    """A native routing CIDR that lets pods go which it covered.

    Where it is taken away altogether nothing is refused: what is known of the cluster's pods is never masqueraded,
    with or without it.
    """
    covered = _narrowed(old, new, family)
    if covered is None:
        return []
    before, after = _native_cidr(old, family), _native_cidr(new, family)
    kept = FrozenIntervalSet(cidrs_of([after], family))
    holders = live.held.outside(kept, covered, within=True)
    cidrs = [cidr for cidr in cidrs_of(_list(new, family)[0], family) if pool and covered.contains(cidr)]
    lost = [str(cidr) for cidr in cidrs if not kept.covers(cidr)]
    if holders.count:
        what = f"it no longer covers pods: {holders.blocks('outside it')}"
    elif lost:
        what = f"it no longer covers {', '.join(lost)}, and {_in_use(live)} of mode cluster-pool"
    else:
        return []
    message = f"{what}, so packets to pods there may be masqueraded, and are taken for those of a node."
    way_out = f"Give a CIDR that holds all pod CIDRs, as {before} does, or switch masquerading off first."
    return [Problem(name, f"spec.routing.ipv{family}NativeRoutingCIDR", after, "PodsNotCovered", message, way_out)]


def _narrows(old: NetloomNetwork, new: NetloomNetwork) -> bool:
    return any(_narrowed(old, new, family) for family in VERSIONS)


def _narrowed(old: NetloomNetwork, new: NetloomNetwork, family: Version) -> Cidr | None:
    """The native routing CIDR that was, if another stands in its place now that does not cover it, and it matters."""
    before, after = _native_cidr(old, family), _native_cidr(new, family)
    covered = Cidr.masked(before)
    if covered is None or before == after or not after or not _masquerades(new, family):
        return None
    return None if FrozenIntervalSet(cidrs_of([after], family)).covers(covered) else covered


def _warnings(name: str, old: NetloomNetwork | None, new: NetloomNetwork, live: ClusterState) -> list[Problem]:
    """What is legal and unwise, and was not so before."""
    if old is not None and old.spec == new.spec:
        return []
    known = network_warnings(old) if old else []
    found = [problem for problem in network_warnings(new) if problem not in known]
    if not _from_network(new.spec.ipam.mode):
        return found
    was = old if old and _from_network(old.spec.ipam.mode) else NetloomNetwork()
    for family in VERSIONS:
        for number, cidr in gained(_list(was, family)[0], _list(new, family)[0], family):
            field = f"spec.ipam.clusterPool.ipv{family}PodCIDRList[{number}]"
            found += nodes_inside(name, field, cidr, live, "ClusterCIDROverlapsNodes", "warning")
    return found


def nodes_inside(
    name: str, field: str, cidr: Cidr, live: ClusterState, reason: str, severity: Severity = "error"
) -> list[Problem]:
    """Says that a CIDR holds addresses of nodes, if it does."""
    count, blocks = live.node_addresses.blocks_inside(cidr)
    if not count:
        return []
    inside = [f"{format_address(block.cidr.packed)} of node {block.owner}" for block in blocks]
    problem = holds_nodes(str(cidr), inside, count, object=name, field=field, reason=reason)
    return [replace(problem, severity=severity)]


def _list(network: NetloomNetwork, family: Version) -> tuple[tuple[str, ...], int]:
    pool = network.spec.ipam.cluster_pool
    if family == 4:
        return pool.ipv4_pod_cidr_list, pool.ipv4_mask_size
    return pool.ipv6_pod_cidr_list, pool.ipv6_mask_size


def _native_cidr(network: NetloomNetwork, family: Version) -> str:
    routing = network.spec.routing
    return routing.ipv4_native_routing_cidr if family == 4 else routing.ipv6_native_routing_cidr


def _masquerades(network: NetloomNetwork, family: Version) -> bool:
    masquerade = network.spec.masquerade
    return network.spec.routing.mode != "tunnel" and (masquerade.ipv4 if family == 4 else masquerade.ipv6)


def _from_network(mode: str) -> bool:
    """Whether nodes' blocks are cut from the network's lists."""
    return mode_named(mode).from_network
