"""What a NetloomNetwork says about pod addresses, as values.

What makes no sense and got past the CRD's rules all the same is reported by `netloom.api.validation`; here it is left
out, and all that does make sense goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netloom.api.core import Node
from netloom.api.ipam_modes import MODES, Mode, mode_named
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetworkIPAM
from netloom.cidr import WIDTH, Cidr, CidrError, Version
from netloom.ipam.ledger_range import LEDGER_RANGE_LENGTH
from netloom.ipam.pool import Pool


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

    @property
    def rules(self) -> Mode:
        """What the mode does."""
        return mode_named(self.mode)

    def pools(self) -> list[Pool]:
        """Fresh pools, in which nothing was given yet."""
        return [Pool(family.version, family.cidrs, family.mask) for family in self.families]


def read(ipam: NetworkIPAM, mode: str) -> Settings:
    """The settings of a network that works in `mode`, which is the mode in force, else the one asked for."""
    if not mode_named(mode).from_network:
        return Settings(mode)
    pool = ipam.cluster_pool
    asked: tuple[tuple[Version, Sequence[str], int], ...] = (
        (4, pool.ipv4_pod_cidr_list, pool.ipv4_mask_size),
        (6, pool.ipv6_pod_cidr_list, pool.ipv6_mask_size),
    )
    families = tuple(_family(*each) for each in asked if each[1])
    # Half of a dual-stack network is worse than a node that waits.
    return Settings(mode, families if all(family.cidrs for family in families) else ())


def _family(version: Version, texts: Sequence[str], mask: int) -> Family:
    found: list[Cidr] = []
    for text in texts:
        try:
            cidr = Cidr.parse(text)
        except CidrError:
            continue
        if cidr.version == version and cidr.length <= mask and not any(each.overlaps(cidr) for each in found):
            found.append(cidr)
    return Family(version, tuple(found) if LEDGER_RANGE_LENGTH[version] <= mask < WIDTH[version] else (), mask)


def inside(families: Iterable[Family], address: Cidr) -> Cidr | None:
    """The cluster CIDR that contains an address."""
    return next((cidr for family in families for cidr in family.cidrs if cidr.contains(address)), None)


def not_implemented(mode: str) -> Problem:
    """Why nobody is given addresses in a mode that is not implemented."""
    message = f"IPAM mode {mode} is not implemented in this version of Netloom, and no node is given addresses."
    way_out = f"Implemented are {', '.join(sorted(each.name for each in MODES.values() if each.is_implemented))}."
    return Problem("NetloomNetwork default", "spec.ipam.mode", mode, "IPAMModeNotImplemented", message, way_out)


def brought(node: Node) -> tuple[Cidr, ...] | Problem:
    """The pod CIDRs that a Node comes with, in modes where it does: one per family."""
    found: list[Cidr] = []
    name = node.metadata.name
    for field, text in node.brought:
        try:
            cidr = Cidr.parse(text)
        except CidrError as error:
            return _bad(name, field, text, f"{error}.")
        if cidr.length < LEDGER_RANGE_LENGTH[cidr.version]:
            least = f"an IPv{cidr.version} pod CIDR has at least a /{LEDGER_RANGE_LENGTH[cidr.version]} mask"
            return _bad(name, field, text, f"too large for one node: {least}.")
        if any(each.version == cidr.version for each in found):
            return _bad(name, field, text, f"a second IPv{cidr.version} CIDR, and a node has one per family.")
        found.append(cidr)
    return tuple(found)


def _bad(node: str, field: str, text: str, message: str) -> Problem:
    way_out = "Delete the Node and let it join again, after mending what gives it this pod CIDR."
    if not field.startswith("spec."):
        way_out = "Correct the annotation: it is read again at once."
    return Problem(f"Node {node}", field, text, "InvalidPodCIDR", message, way_out)
