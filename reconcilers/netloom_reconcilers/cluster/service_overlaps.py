"""Pod CIDRs that overlap what Services get their addresses from: a pod would have the address of a Service, and packets
to the Service would never reach it, or the pod. No I/O."""

from collections.abc import Collection, Iterable, Sequence

from netloom.api.problem import Problem, Severity
from netloom.cidr import Cidr
from netloom.ipam.allocator import Allocator
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange

_SHOWN = 3
_MOVE = (
    "drain these nodes and delete their Nodes, and restart each kubelet when its NetloomNode is gone: it gets another"
)


def holders(allocator: Allocator, ranges: Collection[ServiceRange]) -> list[tuple[str, Cidr]]:
    """Nodes that hold blocks with addresses of Services, and the blocks, in order."""
    found: set[tuple[str, Cidr]] = set()
    cidrs = [each.cidr for each in ranges]
    for known in allocator.ledgers.values():
        near = [cidr for cidr in cidrs if cidr.overlaps(known.range)]
        if near:
            entries = known.entries.items()
            found |= {(entry.node, block) for block, entry in entries if any(map(block.overlaps, near))}
    for node, blocks in allocator.assignments.unrecorded.items():
        found |= {(node, block) for block in blocks if any(map(block.overlaps, cidrs))}
    return sorted(found)


def service_overlaps(
    cluster_cidrs: Iterable[tuple[str, Cidr]],
    ranges: Sequence[ServiceRange],
    held: Sequence[tuple[str, Cidr]],
    network: str,
) -> list[Problem]:
    """One problem per cluster CIDR (given with its field) that overlaps, and one for what nodes hold outside them.

    It is an error where nodes hold such blocks, or where nothing is left to be given; else the blocks are passed over.
    """
    problems: list[Problem] = []
    rest = list(held)
    cluster_cidrs = list(cluster_cidrs)
    inside = {cidr for _, cidr in cluster_cidrs if any(each.cidr.contains(cidr) for each in ranges)}
    served = {cidr.version for _, cidr in cluster_cidrs if cidr not in inside}
    for field, cidr in cluster_cidrs:
        overlapping = [each for each in ranges if each.cidr.overlaps(cidr)]
        if not overlapping:
            continue
        mine = [(node, block) for node, block in held if block.overlaps(cidr)]
        rest = [each for each in rest if each not in mine]
        whole = cidr in inside
        message = (
            f"it overlaps {_all(overlapping)}, so a pod could have the address of a Service. "
            f"{'Nothing of it' if whole else 'No block that overlaps'} is given to nodes"
        )
        way_out = "It can stay; where blocks run short, append a CIDR that overlaps no Services."
        nothing_left = whole and cidr.version not in served
        if nothing_left:
            way_out = "Append a CIDR that overlaps no Services, or put one in its place."
        if mine:
            message += f", but {_who(mine)}"
            way_out = f"Append a CIDR that overlaps no Services if there is no room, {_MOVE} block."
        severity: Severity = "error" if mine or nothing_left else "warning"
        reason = "ClusterCIDROverlapsServices"
        problems.append(Problem(network, field, str(cidr), reason, f"{message}.", way_out, severity))
    if rest:
        overlapping = [each for each in ranges if any(each.cidr.overlaps(block) for _, block in rest)]
        message = f"{_who(rest)}: this overlaps {_all(overlapping)}, so a pod could have the address of a Service."
        way_out = (
            f"Where kube-controller-manager gives pod CIDRs, start it with a --cluster-cidr outside; then {_MOVE} one."
        )
        problems.append(Problem(network, "", "", "PodCIDROverlapsServices", message, way_out))
    return problems


def unreadable(why: str, network: str) -> Problem:
    """Nothing is known of Services."""
    message = f"whether pod CIDRs overlap what Services get their addresses from is not known: {why}."
    way_out = "Give the operator the rights of docs/examples/rbac.yaml on servicecidrs and services."
    return Problem(network, "", "", "ServiceCIDRsUnreadable", message, way_out, "warning")


def _all(ranges: Sequence[ServiceRange]) -> str:
    return " and ".join(map(str, ranges[:_SHOWN])) + (f" and {len(ranges) - _SHOWN} more" if ranges[_SHOWN:] else "")


def _who(held: Sequence[tuple[str, Cidr]]) -> str:
    shown = ", ".join(f"{node} holds {block}" for node, block in held[:_SHOWN])
    more = f" and {len(held) - _SHOWN} more" if held[_SHOWN:] else ""
    return f"{shown}{more}, which stay{'s' if len(held) == 1 else ''} as {'it is' if len(held) == 1 else 'they are'}"
