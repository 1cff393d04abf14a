"""What a node says of its pools."""

from netloom.api.v1alpha1 import NeededAddresses, PoolRequest
from netloom.cidr import Cidr
from netloom_reconcilers.node.pools.telling import capped, unknown


def asked(pool: str, ipv4: int) -> PoolRequest:
    return PoolRequest(pool=pool, needed=NeededAddresses(ipv4_addrs=ipv4))


def test_that_a_node_needs_more_than_it_may_ask_for() -> None:
    assert list(capped("a", {("blue", 4): 5000})) == [
        "NetloomNode a: 5000 IPv4 addresses of NetloomIPPool blue are in use or waited for; a node asks for 4096 of "
        "a pool and family at most, and for 128 blocks. Run fewer pods on it, or give the pool larger blocks."
    ]


def test_that_a_pool_is_gone() -> None:
    blocks = {"blue": tuple(Cidr.parse(f"10.2.0.{16 * each}/28") for each in range(5)), "default": ()}
    assert list(unknown("a", blocks, {"default"})) == [
        "NetloomNode a: spec.ipam.pools.allocated: there is no NetloomIPPool blue, of which the node has 10.2.0.0/28, "
        "10.2.0.16/28, 10.2.0.32/28 and 2 more. Pods keep their addresses, and nothing new is given of it. Create "
        "the pool again, or let these pods end."
    ]
