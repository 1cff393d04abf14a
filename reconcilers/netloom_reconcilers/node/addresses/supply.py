"""What a node may give of, as its NetloomNode, the network and the pools say. Pure.

CIDRs that the node keeps although its object does not hold them any more (`node.known.own_node`) are in use and nothing
to give of: they may be another node's by now.
"""

from collections.abc import Callable, Collection, Iterator, Set
from typing import NamedTuple

from netloom.api.holdings import addresses, blocks
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode, PoolAddress
from netloom.cidr import VERSIONS, Address, Cidr, CidrError, Version, parse_address, version_of
from netloom.ipam.address_stock import Supply

Pool = Callable[[str], NetloomIPPool | None]


class Provision(NamedTuple):
    """The supply, and sentences on what cannot be used."""

    supply: Supply
    problems: tuple[str, ...] = ()


def provision(node: NetloomNode, pool: Pool, taken: Collection[Address] = ()) -> Provision:
    """pool: of a name, where there are any. taken: addresses that the node has itself."""
    ipam, name, problems = node.spec.ipam, node.metadata.name, list[str]()
    found: dict[str, tuple[Cidr, ...]] = {}
    for each in blocks(ipam):
        cidrs = [cidr for text in each.texts if (cidr := _usable(text, f"{name}: {each.field}", problems)) is not None]
        found[each.pool] = (*found.get(each.pool, ()), *cidrs)
    singles: dict[Address, PoolAddress] = {}
    for each in addresses(ipam):
        for text in each.texts:
            try:
                singles[parse_address(text)] = ipam.pool[text]
            except CidrError as error:
                problems.append(f"NetloomNode {name}: {each.field}: {error}, and is not given to anyone.")
    pools = {each: known for each in found if each and (known := pool(each)) is not None}
    supply = Supply(
        blocks=found,
        singles=singles,
        closed=frozenset(each for each, known in pools.items() if known.spec.draining),
        whole=frozenset(each for each, known in pools.items() if known.spec.allow_first_last_ips),
        taken=frozenset(
            each
            for each in taken
            if each in singles or any(cidr.holds(each) for cidrs in found.values() for cidr in cidrs)
        ),
    )
    return Provision(supply, tuple(problems))


def versions_of(
    pool: str, supply: Supply, network: NetloomNetwork | None, known: NetloomIPPool | None
) -> frozenset[Version]:
    """The families of which a pod gets an address: those that the pool has, or else those that the node holds. Of mode
    `cluster-pool` those of its lists, as the node may wait for one of them."""
    if pool:
        spec = known.spec if known is not None else None
        said = {4: spec is not None and spec.ipv4 is not None, 6: spec is not None and spec.ipv6 is not None}
        found: Set[Version] = {version for version in VERSIONS if said[version]}
        return frozenset(found or {cidr.version for cidr in supply.blocks.get(pool, ())})
    held = {cidr.version for cidr in supply.blocks.get(pool, ())}
    held |= {version_of(each) for each in supply.singles}
    if network is not None and (network.status.ipam.mode or network.spec.ipam.mode) == "cluster-pool":
        lists = network.spec.ipam.cluster_pool
        held |= {4} if lists.ipv4_pod_cidr_list else set()
        held |= {6} if lists.ipv6_pod_cidr_list else set()
    return frozenset(held)


def _usable(text: str, where: str, problems: list[str]) -> Cidr | None:
    try:
        return Cidr.parse(text)
    except CidrError as error:
        problems.append(f"NetloomNode {where}: {error}; no address of it is given.")
        return None


def shorts(versions: Collection[Version]) -> Iterator[str]:
    """As `IPv4`."""
    for version in sorted(versions):
        yield f"IPv{version}"
