"""Pod CIDRs that overlap what is no pod's: what Services get their addresses from, networks that nodes are connected
to, nodes' own addresses. A pod would have somebody else's address, and packets to the one would reach the other, or
nobody. No I/O."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from netloom.api.problem import Problem, Severity
from netloom.api.words import some
from netloom.cidr import WIDTH, Cidr, format_address
from netloom.cidr.counted_cidrs import CountedCidrs
from netloom.ipam.allocator import Allocator

_MOVE = (
    "drain these nodes and delete their Nodes, and restart each kubelet when its NetloomNode is gone: it gets another"
)


class Range(Protocol):
    """Addresses that are no pod's. As text: what they are."""

    @property
    def cidr(self) -> Cidr: ...


R = TypeVar("R", bound=Range, covariant=True)


@dataclass(frozen=True, slots=True)
class OfNodes:
    """A network that these nodes are connected to, or the address of one, which only one has if all is well."""

    cidr: Cidr
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        if self.cidr.length == WIDTH[self.cidr.version]:
            return f"{format_address(self.cidr.packed)}, the address of node {some(self.nodes)}"
        of = "a network that node " if len(self.nodes) == 1 else "a network that nodes "
        return f"{self.cidr}, {of}{some(self.nodes)} {'is' if len(self.nodes) == 1 else 'are'} connected to"


@dataclass(frozen=True, slots=True)
class Kind:
    """Of ranges, in words. reason: of a problem, after `PodCIDR` or what `About` has. so: what an overlap leads to.
    outside: of a CIDR that is better. instead: one more way out, where nothing is left. elsewhere: the way out for what
    nodes hold outside the cluster CIDRs."""

    reason: str
    so: str
    outside: str
    instead: str = ""
    elsewhere: str = ""


SERVICES = Kind("OverlapsServices", "so a pod could have the address of a Service", "that overlaps no Services")
CONNECTED = Kind(
    "OverlapsConnected",
    "so a pod could have the address of another machine, and agents write no route into a network of their node",
    "that overlaps no network of a node",
    " Where all these addresses are kept for pods, give the nodes' devices a prefix length that leaves them out: then "
    "they are connected to them no more.",
)
NODES = Kind(
    "OverlapsNodes",
    "so packets to the node would go to a pod, and agents do not write the route",
    "outside the nodes' network",
    elsewhere=f"Give the node whose address it is another one (--node-ip); or {_MOVE} block.",
)


class About(NamedTuple):
    """The object whose CIDRs are looked at; what reasons of problems with these begin with."""

    object: str
    reason: str = "ClusterCIDR"


OF_POOLS = (
    "Take the CIDR out of its NetloomIPPool, or name these addresses in its reservedCIDRs: the block goes when no pod "
    f"uses it any more. The first one of a node goes with the node only: {_MOVE} block."
)
"""The way out for blocks of pools that are held."""
_OF_NODES = (
    "Where kube-controller-manager gives pod CIDRs, start it with a --cluster-cidr that has room elsewhere and still "
    "holds what Nodes have: with a Node's pod CIDR outside it does not start. Or delete all such Nodes before. Then "
    f"{_MOVE} one."
)


class Ranges(Generic[R]):
    """Those of a kind, all of them reserved."""

    def __init__(self, reserved: CountedCidrs, ranges: Iterable[R]) -> None:
        self._reserved = reserved
        self._ranges: dict[Cidr, list[R]] = {}
        for each in ranges:
            self._ranges.setdefault(each.cidr, []).append(each)

    def near(self, cidr: Cidr) -> list[R]:
        """Those that share an address with a CIDR."""
        if not self._ranges:
            return []
        return [each for found in self._reserved.overlapping(cidr) for each in self._ranges.get(found, ())]


def ranges_of(kept: Mapping[str, Iterable[Cidr]]) -> list[OfNodes]:
    """Of what each node has, by CIDR: who has it."""
    nodes: dict[Cidr, list[str]] = {}
    for name, cidrs in kept.items():
        for cidr in cidrs:
            nodes.setdefault(cidr, []).append(name)
    return [OfNodes(cidr, tuple(sorted(names))) for cidr, names in nodes.items()]


def holders(allocator: Allocator) -> list[tuple[str, Cidr]]:
    """Nodes that hold blocks which overlap what is reserved, and the blocks, in order."""
    overlap = allocator.blocks.reserved.overlap
    found = {
        (entry.node, block)
        for known in allocator.ledgers.values()
        if overlap(known.range)
        for block, entry in known.entries.items()
        if overlap(block)
    }
    unrecorded = allocator.assignments.unrecorded.items()
    found |= {(node, block) for node, blocks in unrecorded for block in blocks if overlap(block)}
    return sorted(found)


def overlaps(
    kind: Kind,
    ranges: Ranges[Range],
    cluster_cidrs: Iterable[tuple[str, Cidr]],
    held: Iterable[tuple[str, Cidr]],
    about: About,
    whole: Collection[Cidr] = (),
    elsewhere: str = "",
) -> list[Problem]:
    """One problem per cluster CIDR (given with its field) that overlaps, and one for what nodes hold outside them.

    elsewhere: the way out for these, where it is not the kind's.
    whole: of the cluster CIDRs, those that lie in anything of which no block is given, whatever its kind.
    It is an error where nodes hold such blocks, or where nothing is left to be given; else the blocks are passed over.
    """
    problems: list[Problem] = []
    cluster_cidrs = list(cluster_cidrs)
    rest = [each for each in held if ranges.near(each[1])]
    served = {cidr.version for _, cidr in cluster_cidrs if cidr not in whole}
    for field, cidr in cluster_cidrs:
        overlapping = ranges.near(cidr)
        if not overlapping:
            continue
        mine = [each for each in rest if each[1].overlaps(cidr)]
        rest = [each for each in rest if not each[1].overlaps(cidr)]
        inside = any(each.cidr.contains(cidr) for each in overlapping)
        message = (
            f"it overlaps {some(overlapping, between=' and ')}, {kind.so}. "
            f"{'Nothing of it' if inside else 'No block that overlaps'} is given to nodes"
        )
        way_out = f"It can stay; where blocks run short, append a CIDR {kind.outside}."
        nothing_left = inside and cidr.version not in served
        if nothing_left:
            way_out = f"Append a CIDR {kind.outside}, or put one in its place.{kind.instead}"
        if mine:
            message += f", but {_who(mine)}"
            way_out = f"Append a CIDR {kind.outside} if there is no room, {_MOVE} block.{kind.instead}"
        severity: Severity = "error" if mine or nothing_left else "warning"
        reason = f"{about.reason}{kind.reason}"
        problems.append(Problem(about.object, field, str(cidr), reason, f"{message}.", way_out, severity))
    if rest:
        near = list(dict.fromkeys(each for _, block in rest for each in ranges.near(block)))
        message = f"{_who(rest)}: this overlaps {some(near, between=' and ')}, {kind.so}."
        way_out = kind.elsewhere or elsewhere or _OF_NODES
        problems.append(Problem(about.object, "", "", f"PodCIDR{kind.reason}", message, way_out))
    return problems


def odd(networks: Iterable[OfNodes], cluster_cidrs: Iterable[tuple[str, Cidr]], about: About) -> list[Problem]:
    """One problem per cluster CIDR that lies in networks that few nodes are on, and is given all the same."""
    problems: list[Problem] = []
    networks = sorted(networks, key=lambda each: each.cidr)
    for field, cidr in cluster_cidrs:
        if around := [each for each in networks if each.cidr.contains(cidr)]:
            names = sorted({name for each in around for name in each.nodes})
            message = (
                f"it lies in {some(around, between=' and ')}. Less than half of the nodes say so, and its "
                "blocks are given all the same; but agents write no route into a network of their node: "
                f"pods of {some(names)} and of other nodes do not reach each other."
            )
            way_out = (
                "On these nodes, remove the device (a bridge or VPN) if it is left over, or give it a longer prefix, "
                "so that the network does not hold the CIDR."
            )
            reason = f"{about.reason}{CONNECTED.reason}"
            problems.append(Problem(about.object, field, str(cidr), reason, message, way_out, "warning"))
    return problems


def unreadable(why: str, network: str) -> Problem:
    """Nothing is known of Services."""
    message = f"whether pod CIDRs overlap what Services get their addresses from is not known: {why}."
    way_out = "Give the operator the rights of docs/examples/rbac.yaml on servicecidrs and services."
    return Problem(network, "", "", "ServiceCIDRsUnreadable", message, way_out, "warning")


def _who(held: Sequence[tuple[str, Cidr]]) -> str:
    shown = some([f"{node} holds {block}" for node, block in held])
    return f"{shown}, which stay{'s' if len(held) == 1 else ''} as {'it is' if len(held) == 1 else 'they are'}"
