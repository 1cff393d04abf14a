"""What a NetloomNode holds of addresses for pods: the one place that knows where each IPAM mode says it."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from netloom.api.v1alpha1 import NetloomNode, NodeIPAM, PoolAllocation
from netloom.cidr import VERSIONS, Cidr, Version, single


class HeldField(NamedTuple):
    """Where it stands in the object, of which pool ("": of none), and what is written there."""

    field: str
    pool: str
    texts: tuple[str, ...]


def blocks(ipam: NodeIPAM) -> Iterator[HeldField]:
    """CIDRs that are the node's as a whole: packets to any address in them are sent to it."""
    if ipam.pod_cidrs:
        yield HeldField("spec.ipam.podCIDRs", "", ipam.pod_cidrs)
    for number, each in enumerate(ipam.pools.allocated):
        if each.cidrs:
            yield HeldField(f"spec.ipam.pools.allocated[{number}].cidrs", each.pool, each.cidrs)


def addresses(ipam: NodeIPAM) -> Iterator[HeldField]:
    """Single addresses, of networks that know by themselves where each of them is."""
    if ipam.pool:
        yield HeldField("spec.ipam.pool", "", tuple(ipam.pool))


def holds(ipam: NodeIPAM) -> bool:
    """Whether there is anything of `blocks` or `addresses`."""
    return bool(ipam.pod_cidrs or ipam.pool) or any(each.cidrs for each in ipam.pools.allocated)


def is_in_use(node: NetloomNode) -> bool:
    """Whether it holds anything, its pods use something that it holds no more, or its agent may give something: the
    mode in force stays as long."""
    used = node.status.ipam
    return bool(used.used or used.mode) or holds(node.spec.ipam)


def block_texts(ipam: NodeIPAM) -> tuple[str, ...]:
    """The CIDRs as they are written, each once."""
    allocated = ipam.pools.allocated
    if not allocated:
        return ipam.pod_cidrs
    if not ipam.pod_cidrs and len(allocated) == 1 and len(allocated[0].cidrs) == 1:
        return allocated[0].cidrs  # of most nodes
    return tuple(dict.fromkeys(text for each in blocks(ipam) for text in each.texts))


@lru_cache(maxsize=1024)
def cidrs_of(texts: tuple[str, ...]) -> tuple[Cidr, ...]:
    """The CIDRs that texts mean, host bits dropped, each once; what is no CIDR is left out. Several ask in turn when a
    node's object changes."""
    if len(texts) == 1:  # of most nodes
        cidr = Cidr.masked(texts[0])
        return () if cidr is None else (cidr,)
    return tuple(dict.fromkeys(cidr for cidr in map(Cidr.masked, texts) if cidr is not None))


def in_front(allocated: Iterable[PoolAllocation], pool: str) -> tuple[PoolAllocation, ...]:
    """With the blocks of one pool in front, so that those in which the node has addresses of its own are of it."""
    return tuple(sorted(allocated, key=lambda each: each.pool != pool))


def held_cidrs(ipam: NodeIPAM) -> tuple[Cidr, ...]:
    """All of it, an address as a CIDR of its own, as far as texts mean any: host bits, say, do not matter here."""
    found = cidrs_of(block_texts(ipam))
    if not ipam.pool:
        return found
    alone = [Cidr.masked(single(text)) for each in addresses(ipam) for text in each.texts]
    return tuple(dict.fromkeys((*found, *(cidr for cidr in alone if cidr is not None))))


def home_blocks(ipam: NodeIPAM) -> tuple[Cidr, ...]:
    """The first block of each family, in which the node has addresses of its own among pods': that on its tunnel
    devices, and that of its probe. All nodes take it from the object alike. It does not go while the node lives; in
    mode multi-pool the node's agent keeps a block of the default pool in front, and does not give that one back."""
    found: dict[Version, Cidr] = {}
    for each in blocks(ipam):
        for text in each.texts:
            cidr = Cidr.masked(text)
            if cidr is not None:
                found.setdefault(cidr.version, cidr)
    return tuple(found[version] for version in VERSIONS if version in found)
