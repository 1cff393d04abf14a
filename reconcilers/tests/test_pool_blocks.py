"""What of a node's blocks stays."""

import pytest

from netloom.api.v1alpha1 import NodeIPAM, NodePools, PoolAllocation
from netloom_reconcilers.node.pools.blocks import held, staying
from tests.pool_world import pool

V6 = {"cidrs": ["fd00:6::/64"], "maskSize": 120}
POOLS = {"default": pool("default", 1), "blue": pool("blue", 2), "six": pool("six", 3, ipv6=V6)}


@pytest.mark.parametrize(
    ("allocated", "default", "stays"),
    [
        ({"default": ("10.1.0.0/28", "10.1.0.16/28"), "blue": ("10.2.0.0/28",)}, "default", ["10.1.0.0/28"]),
        ({"blue": ("10.2.0.0/28",)}, "default", ["10.2.0.0/28"]),  # the default pool may be full
        ({"blue": ("10.2.0.0/28",)}, "gone", ["10.2.0.0/28"]),
        ({"default": ("10.1.0.0/28",), "six": ("fd00:6::/120",)}, "default", ["10.1.0.0/28"]),
        (
            {"default": ("10.1.0.0/28",), "six": ("fd00:6::/120", "fd00:6::100/120")},
            "default",
            ["10.1.0.0/28", "fd00:6::/120"],
        ),
        ({"default": ("10.1.0.0/28",), "six": ("fd00:6::/120",)}, "six", ["10.1.0.0/28", "fd00:6::/120"]),
        ({}, "default", []),
    ],
)
def test_the_home_blocks_stay_but_of_a_family_that_the_default_pool_has_not_the_last_one_goes(
    allocated: dict[str, tuple[str, ...]], default: str, stays: list[str]
) -> None:
    said = tuple(PoolAllocation(name, cidrs) for name, cidrs in allocated.items())
    ipam = NodeIPAM(pools=NodePools(allocated=said))
    assert list(map(str, staying(ipam, held(ipam), POOLS, default))) == stays
