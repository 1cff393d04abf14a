"""What a NetloomNode holds, in whatever way its IPAM mode says it."""

import pytest

from netloom.api import holdings
from netloom.api.v1alpha1 import NodeIPAM, NodePools, PoolAddress, PoolAllocation
from netloom.cidr import Cidr

NOTHING = NodeIPAM(mode="multi-pool", pools=NodePools(allocated=(PoolAllocation("a"),)))
BLOCK = NodeIPAM(mode="cluster-pool", pod_cidrs=("10.42.1.0/24", "fd00:1::/64"))
POOLS = NodeIPAM(
    mode="multi-pool",
    pools=NodePools(
        allocated=(PoolAllocation("a", ("10.1.0.0/28", "10.1.0.16/28")), PoolAllocation("b", ("10.2.0.0/28",)))
    ),
)
SINGLE = NodeIPAM(mode="crd", pool={"10.3.0.7": PoolAddress(), "fd00:3::7": PoolAddress(owner="default/a")})


@pytest.mark.parametrize(
    ("ipam", "cidrs"),
    [
        (NodeIPAM(), ()),
        (NOTHING, ()),
        (BLOCK, ("10.42.1.0/24", "fd00:1::/64")),
        (POOLS, ("10.1.0.0/28", "10.1.0.16/28", "10.2.0.0/28")),
        (SINGLE, ("10.3.0.7/32", "fd00:3::7/128")),
    ],
)
def test_all_that_it_holds(ipam: NodeIPAM, cidrs: tuple[str, ...]) -> None:
    assert holdings.held_cidrs(ipam) == tuple(map(Cidr.parse, cidrs))
    assert holdings.holds(ipam) == bool(cidrs)


def test_blocks_say_where_they_stand_and_of_which_pool() -> None:
    assert [(each.field, each.pool) for each in holdings.blocks(POOLS)] == [
        ("spec.ipam.pools.allocated[0].cidrs", "a"),
        ("spec.ipam.pools.allocated[1].cidrs", "b"),
    ]
    assert holdings.block_texts(POOLS) == ("10.1.0.0/28", "10.1.0.16/28", "10.2.0.0/28")
    assert not list(holdings.blocks(SINGLE)), "its network knows where each address is"


def test_what_means_no_addresses_is_left_out_and_host_bits_do_not_matter() -> None:
    ipam = NodeIPAM(pod_cidrs=("10.42.1.9/24", "nonsense"), pool={"else": PoolAddress()})
    assert holdings.held_cidrs(ipam) == (Cidr.parse("10.42.1.0/24"),)
    assert holdings.holds(ipam)


def test_the_first_block_of_each_family_is_home() -> None:
    six = PoolAllocation("six", ("fd00::/120", "fd00::100/120"))
    ipam = NodeIPAM(pools=NodePools(allocated=(*POOLS.pools.allocated, six)))
    assert holdings.home_blocks(ipam) == (Cidr.parse("10.1.0.0/28"), Cidr.parse("fd00::/120"))
    assert holdings.home_blocks(BLOCK) == (Cidr.parse("10.42.1.0/24"), Cidr.parse("fd00:1::/64"))
    assert holdings.home_blocks(NOTHING) == ()
