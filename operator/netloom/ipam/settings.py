"""What a NetloomNetwork and the NetloomIPPools say about pod addresses, as values.

What makes no sense and got past the CRD's rules all the same is reported by `netloom.api.validation`; here it is left
out, and all that does make sense goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from netloom.api.core import Node
from netloom.api.ipam_modes import MODES, IpamMode, mode_named
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetworkIPAM, PoolFamily
from netloom.cidr import WIDTH, Cidr, CidrError, Version
from netloom.cidr.interval_set import IntervalSet
from netloom.ipam.ledger_range import LEDGER_RANGE_LENGTH
from netloom.ipam.pool import Pool


@dataclass(frozen=True, slots=True)
class Family:
    """CIDRs of one family of a pool and the mask size of a block."""

    version: Version
    cidrs: tuple[Cidr, ...]
    mask: int


class Overlap(NamedTuple):
    """A CIDR of a pool that is not used, as another pool has the other one, which overlaps it, for longer."""

    cidr: Cidr
    other: Cidr
    pool: str


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What there is of one pool to give.

    name: of the NetloomIPPool; "" for the cluster's CIDRs, of which every node has one block per family. ready:
    addresses that a node which uses it keeps ready. whole: the first and last address of a block are used, too.
    draining: nothing new is given. kept_free: no block that overlaps is given.
    """

    name: str = ""
    families: tuple[Family, ...] = ()
    ready: int = 0
    whole: bool = False
    draining: bool = False
    kept_free: tuple[Cidr, ...] = ()
    overlaps: tuple[Overlap, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How pod CIDRs come about in IPAM mode `mode`. default_pool: which pool every node uses, in `multi-pool`."""

    mode: str
    pools: tuple[PoolSettings, ...] = ()
    default_pool: str = ""

    @property
    def rules(self) -> IpamMode:
        """What the mode does."""
        return mode_named(self.mode)

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """Of all pools."""
        return tuple(family for pool in self.pools for family in pool.families)

    def pool(self, name: str) -> PoolSettings | None:
        """By its name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def fresh_pools(self) -> list[Pool]:
        """All, and nothing of them is given yet."""
        return [
            Pool(family.version, family.cidrs, family.mask, pool.name, draining=pool.draining)
            for pool in self.pools
            for family in pool.families
        ]


def read(ipam: NetworkIPAM, mode: str, pools: Iterable[NetloomIPPool] = ()) -> Settings:
    """The settings of a network that works in `mode`, which is the mode in force, else the one asked for."""
    if mode_named(mode).from_pools:
        return Settings(mode, _pools(pools), ipam.multi_pool.default_pool)
    if not mode_named(mode).from_network:
        return Settings(mode)
    pool = ipam.cluster_pool
    asked: tuple[tuple[Version, Sequence[str], int], ...] = (
        (4, pool.ipv4_pod_cidr_list, pool.ipv4_mask_size),
        (6, pool.ipv6_pod_cidr_list, pool.ipv6_mask_size),
    )
    families = tuple(_family(*each) for each in asked if each[1])
    # Half of a dual-stack network is worse than a node that waits.
    return Settings(mode, (PoolSettings(families=families),) if all(family.cidrs for family in families) else ())


def _pools(objects: Iterable[NetloomIPPool]) -> tuple[PoolSettings, ...]:
    """Of CIDRs that overlap another pool's, those of the pool that was there first count."""
    found: list[PoolSettings] = []
    taken, whose = IntervalSet(), dict[Cidr, str]()
    for each in sorted(objects, key=lambda pool: (pool.metadata.creation_timestamp, pool.metadata.name)):
        spec = each.spec
        asked: tuple[tuple[Version, PoolFamily | None], ...] = ((4, spec.ipv4), (6, spec.ipv6))
        families = tuple(_family(version, of.cidrs, of.mask_size, taken, single=True) for version, of in asked if of)
        texts = (text for _, of in asked if of for text in of.cidrs)
        mine = [cidr for text in texts if (cidr := Cidr.masked(text))]
        overlaps = tuple(Overlap(cidr, other, whose[other]) for cidr in mine for other in taken.near(cidr))
        for cidr in (cidr for family in families for cidr in family.cidrs):
            taken.add(cidr)
            whose[cidr] = each.metadata.name
        kept_free = tuple(cidr for cidr in map(Cidr.masked, spec.reserved_cidrs) if cidr)
        found.append(
            PoolSettings(
                each.metadata.name,
                tuple(family for family in families if family.cidrs),
                spec.pre_allocation,
                spec.allow_first_last_ips,
                spec.draining,
                kept_free,
                overlaps,
            )
        )
    return tuple(found)


def _family(
    version: Version, texts: Sequence[str], mask: int, taken: IntervalSet | None = None, *, single: bool = False
) -> Family:
    """What of it makes sense, and is not `taken`. `single`: a block may be one address."""
    found: list[Cidr] = []
    others = taken or IntervalSet()
    for text in texts:
        try:
            cidr = Cidr.parse(text)
        except CidrError:
            continue
        fits = cidr.version == version and cidr.length <= mask
        if fits and others.overlap(cidr) is None and not any(each.overlaps(cidr) for each in found):
            found.append(cidr)
    longest = WIDTH[version] if single else WIDTH[version] - 1
    return Family(version, tuple(found) if LEDGER_RANGE_LENGTH[version] <= mask <= longest else (), mask)


def not_implemented(mode: str) -> Problem:
    """Why nobody is given addresses in a mode that is not implemented."""
    message = f"IPAM mode {mode} is not implemented in this version of Netloom, and no node is given addresses."
    way_out = f"Implemented are {', '.join(sorted(each.name for each in MODES.values() if each.is_implemented))}."
    return Problem("NetloomNetwork default", "spec.ipam.mode", mode, "IPAMModeNotImplemented", message, way_out)


def brought(node: Node) -> tuple[Cidr, ...] | Problem:
    """The pod CIDRs that a Node comes with, in modes where it does: one per family."""
    found: list[Cidr] = []
    for field, text in node.brought:
        try:
            cidr = Cidr.parse(text)
        except CidrError as error:
            return _bad(node, field, text, f"{error}.")
        if cidr.length < LEDGER_RANGE_LENGTH[cidr.version]:
            least = f"an IPv{cidr.version} pod CIDR has at least a /{LEDGER_RANGE_LENGTH[cidr.version]} mask"
            return _bad(node, field, text, f"too large for one node: {least}.")
        if any(each.version == cidr.version for each in found):
            return _bad(node, field, text, f"a second IPv{cidr.version} CIDR, and a node has one per family.")
        found.append(cidr)
    return tuple(found)


def _bad(node: Node, field: str, text: str, message: str) -> Problem:
    way_out = "Correct the annotation: it is read again at once."
    if node.spec.pod_cidrs:
        way_out = "Delete the Node and let it join again, after mending what gives it this pod CIDR."
    return Problem(f"Node {node.metadata.name}", field, text, "InvalidPodCIDR", message, way_out)
