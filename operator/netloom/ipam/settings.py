"""What a NetloomNetwork says about pod addresses, as values; and what in it makes no sense.

The API server refuses most nonsense by the rules of the CRD. What gets through (an older CRD, an object written
before a rule existed, a node that joins with an address inside a cluster CIDR) is a `Problem` here: it becomes a
condition, an Event and a metric, and all that does make sense goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netloom.api.v1alpha1 import NetworkIPAM
from netloom.ipam.cidr import REGION_LENGTH, WIDTH, Cidr, CidrError, Version, address_text, parse
from netloom.ipam.pool import Pool

IMPLEMENTED = frozenset({"kubernetes", "cluster-pool"})
"""IPAM modes in which this operator gives addresses."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """`reason` is CamelCase for a condition, `message` names the field, its value and the way out."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Family:
    """Cluster CIDRs of one family and the mask size of a node's block."""

    version: Version
    cidrs: tuple[Cidr, ...]
    mask: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How pod CIDRs come about in IPAM mode `mode`."""

    mode: str
    families: tuple[Family, ...] = ()
    problems: tuple[Problem, ...] = ()

    def pools(self) -> list[Pool]:
        """Fresh pools, in which nothing was given yet."""
        return [Pool(family.version, family.cidrs, family.mask) for family in self.families]


def read(ipam: NetworkIPAM, mode: str) -> Settings:
    """The settings of a network that works in `mode`, which is the mode in force, else the one asked for."""
    if mode not in IMPLEMENTED:
        message = (
            f"IPAM mode {mode} is not implemented in this version of Netloom; no node is given addresses. "
            f"Implemented: {', '.join(sorted(IMPLEMENTED))}."
        )
        return Settings(mode, problems=(Problem("IPAMModeNotImplemented", message),))
    if mode != "cluster-pool":
        return Settings(mode)
    pool = ipam.cluster_pool
    problems: list[Problem] = []
    families = [
        _family(4, "ipv4", pool.ipv4_pod_cidr_list, pool.ipv4_mask_size, problems),
        _family(6, "ipv6", pool.ipv6_pod_cidr_list, pool.ipv6_mask_size, problems),
    ]
    usable = tuple(family for family in families if family.cidrs)
    asked = bool(pool.ipv4_pod_cidr_list), bool(pool.ipv6_pod_cidr_list)
    if not any(asked):
        message = "spec.ipam.clusterPool has no CIDR: give ipv4PodCIDRList, ipv6PodCIDRList or both."
        problems.append(Problem("NoClusterCIDR", message))
    elif tuple(bool(family.cidrs) for family in families) != asked:
        usable = ()  # half of a dual-stack network is worse than a node that waits
    return Settings(mode, usable, tuple(problems))


def _family(version: Version, name: str, texts: Sequence[str], mask: int, problems: list[Problem]) -> Family:
    field = f"spec.ipam.clusterPool.{name}PodCIDRList"
    if texts and not REGION_LENGTH[version] <= mask < WIDTH[version]:
        problem = f"spec.ipam.clusterPool.{name}MaskSize: {mask} is outside {REGION_LENGTH[version]}..{WIDTH[version]}"
        problems.append(Problem("InvalidMaskSize", f"{problem}; no IPv{version} block can be given."))
        return Family(version, (), mask)
    found: list[Cidr] = []
    for text in texts:
        try:
            cidr = parse(text)
        except CidrError as error:
            problems.append(Problem("InvalidClusterCIDR", f"{field}: {error}. It is left out."))
            continue
        if cidr.version != version or cidr.length > mask:
            message = f"{field}: {text} holds no IPv{version} block of mask size {mask}. It is left out."
            problems.append(Problem("InvalidClusterCIDR", message))
            continue
        other = next((each for each in found if each.overlaps(cidr)), None)
        if other is not None:
            message = f"{field}: {text} overlaps {other} earlier in the list. It is left out; remove one of them."
            problems.append(Problem("ClusterCIDROverlap", message))
            continue
        found.append(cidr)
    return Family(version, tuple(found), mask)


def inside(families: Iterable[Family], version: Version, address: int) -> Cidr | None:
    """The cluster CIDR that contains an address."""
    for family in families:
        for cidr in family.cidrs:
            if cidr.version == version and cidr.base <= address <= cidr.last:
                return cidr
    return None


def address_problem(found: Sequence[tuple[str, Version, int, Cidr]]) -> Problem:
    """Nodes whose own address lies inside a cluster CIDR, as (node, version, address, cluster CIDR)."""
    shown = ", ".join(
        f"{address_text(version, at)} of node {node} ({cidr})" for node, version, at, cidr in found[:_SHOWN]
    )
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    message = (
        f"cluster CIDRs contain addresses of nodes: {shown}{more}. Blocks with such an address are given to nobody, "
        "but pods of other blocks may fail to reach those nodes. Use cluster CIDRs outside the nodes' network."
    )
    return Problem("ClusterCIDROverlapsNodes", message)


def dictated(texts: Sequence[str]) -> tuple[Cidr, ...] | Problem:
    """The pod CIDRs in a Node's spec.podCIDRs (mode `kubernetes`): one per family."""
    found: list[Cidr] = []
    for number, text in enumerate(texts):
        field = f"Node spec.podCIDRs[{number}]"
        try:
            cidr = parse(text)
        except CidrError as error:
            return Problem("InvalidPodCIDR", f"{field}: {error}.")
        if cidr.length < REGION_LENGTH[cidr.version]:
            least = f"an IPv{cidr.version} pod CIDR has at least a /{REGION_LENGTH[cidr.version]} mask"
            return Problem("InvalidPodCIDR", f"{field}: {text} is too large for one node: {least}.")
        if any(each.version == cidr.version for each in found):
            return Problem("InvalidPodCIDR", f"{field}: {text} is a second IPv{cidr.version} CIDR; one is allowed.")
        found.append(cidr)
    return tuple(found)
