"""What a node may give of, as the objects say."""

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    ClusterPool,
    IPPoolSpec,
    NetloomIPPool,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkIPAM,
    NetworkSpec,
    NodeIPAM,
    NodePools,
    PoolAddress,
    PoolAllocation,
    PoolFamily,
)
from netloom.cidr import Cidr, parse_address
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner, Shortage
from netloom_reconcilers.node.addresses import telling
from netloom_reconcilers.node.addresses.supply import provision, versions_of
from netloom_reconcilers.node.mesh.reading import on_tunnel_devices

V4 = PoolFamily(("10.9.0.0/16",), 24)
V6 = PoolFamily(("fd09::/56",), 64)


def node(**ipam: object) -> NetloomNode:
    made = NodeIPAM(**ipam)  # type: ignore[arg-type]
    return NetloomNode(metadata=ObjectMeta(name="n1"), spec=NetloomNodeSpec(ipam=made))


def test_blocks_by_pool_and_what_the_pools_say() -> None:
    pools = {
        "web": NetloomIPPool(spec=IPPoolSpec(ipv4=V4, draining=True)),
        "db": NetloomIPPool(spec=IPPoolSpec(ipv4=V4, allow_first_last_ips=True)),
    }
    allocated = [
        PoolAllocation("web", ("10.9.1.0/24", "fd09::/64")),
        PoolAllocation("db", ("10.9.2.0/24",)),
        PoolAllocation("gone", ("10.9.3.0/24",)),
    ]
    taken = map(parse_address, ("10.9.1.0", "192.168.0.1"))
    found = provision(node(pools=NodePools(allocated=tuple(allocated))), pools.get, set(taken))
    assert found == (
        Supply(
            blocks={
                "web": (Cidr.parse("10.9.1.0/24"), Cidr.parse("fd09::/64")),
                "db": (Cidr.parse("10.9.2.0/24"),),
                "gone": (Cidr.parse("10.9.3.0/24"),),
            },
            closed=frozenset({"web"}),
            whole=frozenset({"db"}),
            taken=frozenset({parse_address("10.9.1.0")}),
        ),
        (),
    )


def test_pod_cidrs_and_single_addresses_are_of_no_pool() -> None:
    entry = PoolAddress(owner="default/a", resource="eni-1")
    found = provision(node(pod_cidrs=("10.1.0.0/24", "fd01::/64"), pool={"10.2.0.1": entry}), lambda name: None)
    assert found.supply.blocks == {"": (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd01::/64"))}
    assert found.supply.singles == {parse_address("10.2.0.1"): entry}


def test_what_cannot_be_read_is_left_out_and_told() -> None:
    found = provision(node(pod_cidrs=("10.1.0.7/24",), pool={"10.2": PoolAddress()}), lambda name: None)
    assert found.supply == Supply(blocks={"": ()})
    assert found.problems == (
        "NetloomNode n1: spec.ipam.podCIDRs: '10.1.0.7/24' has bits set below its mask: write 10.1.0.0/24; no address "
        "of it is given.",
        "NetloomNode n1: spec.ipam.pool: '10.2' is not an IP address, and is not given to anyone.",
    )


@pytest.mark.parametrize(
    ("mode", "lists", "versions"),
    [
        ("cluster-pool", (("10.0.0.0/8",), ("fd00::/48",)), {4, 6}),
        ("cluster-pool", ((), ("fd00::/48",)), {4, 6}),
        ("kubernetes", (("10.0.0.0/8",), ("fd00::/48",)), {4}),
    ],
)
def test_a_pod_gets_an_address_of_each_family_of_the_network(
    mode: str, lists: tuple[tuple[str, ...], tuple[str, ...]], versions: set[int]
) -> None:
    """In cluster-pool also of one that the node still waits for: a pod that began without it would never have it."""
    ipam = NetworkIPAM(mode=mode, cluster_pool=ClusterPool(ipv4_pod_cidr_list=lists[0], ipv6_pod_cidr_list=lists[1]))  # type: ignore[arg-type]
    held = Supply(blocks={"": (Cidr.parse("10.1.0.0/24"),)})
    assert versions_of("", held, NetloomNetwork(spec=NetworkSpec(ipam=ipam)), None) == versions


def test_of_a_pool_a_pod_gets_the_families_that_it_has() -> None:
    held = Supply(blocks={"web": (Cidr.parse("10.1.0.0/24"),)}, singles={parse_address("fd00::1"): PoolAddress()})
    assert versions_of("web", held, None, NetloomIPPool(spec=IPPoolSpec(ipv4=V4, ipv6=V6))) == {4, 6}
    assert versions_of("web", held, None, None) == {4}, "of one that is gone, those that the node holds"
    assert versions_of("", held, None, None) == {6}


def test_tunnel_devices_borrow_no_address_of_small_blocks_where_there_is_a_larger_one() -> None:
    cidrs = [Cidr.parse(each) for each in ("10.0.0.0/32", "10.0.1.0/24", "10.0.2.0/31", "fd00::1/128", "fd00::2/127")]
    assert on_tunnel_devices(NetloomNode(), cidrs) == (parse_address("10.0.1.0"), parse_address("fd00::1"))


@pytest.mark.parametrize(
    ("supply", "pool", "said"),
    [
        (Supply(), "", "the node holds nothing to give of. Its NetloomNode's condition Allocated says why."),
        (
            Supply(blocks={"web": (Cidr.parse("10.0.0.7/32"),)}),
            "",
            "the agent's feature `pools`, which says of which pool, is off. Start it with that (--features), or ask "
            "for a pool by its name.",
        ),
        (
            Supply(blocks={"web": (Cidr.parse("10.0.0.7/32"),)}, closed=frozenset({"web"})),
            "web",
            "NetloomIPPool web is draining, so nothing new is given of it. Name another pool.",
        ),
        (
            Supply(blocks={"": (Cidr.parse("10.0.0.7/32"),)}),
            "",
            "all usable addresses of 10.0.0.7/32 are taken (IPv4: 1 used, 0 resting). Run fewer pods on the node (the "
            "kubelet's maxPods), or give new nodes larger blocks.",
        ),
        (
            Supply(blocks={"web": ()}),
            "web",
            "spec.ipam.pools.allocated of NetloomNode n1 holds none of that family; `netloom pools` says why.",
        ),
        (
            Supply(singles={parse_address("10.0.0.7"): PoolAddress()}),
            "",
            "none in spec.ipam.pool of NetloomNode n1 is free for it (IPv4: 1 used, 0 resting). Whoever fills that has "
            "to enter more.",
        ),
    ],
)
def test_who_gets_none_is_told_why(supply: Supply, pool: str, said: str) -> None:
    made = NodeAllocator()
    made.provide(supply)
    made.allocate(Owner("default/a"), pool, frozenset({4}), 0)
    versions = versions_of(pool, supply, None, None)
    short = made.allocate(Owner("default/b"), pool, versions or frozenset(), 0)
    if pool == "web" and not supply.blocks["web"]:
        short = Shortage("web", frozenset({4}))
    assert isinstance(short, Shortage)
    text = telling.shortage("default/b gets", "n1", supply, short, made.need(pool, 0))
    assert text.startswith("default/b gets no ")
    assert text.endswith(f"on node n1: {said}")
    assert " used" not in telling.shortage("pods get", "n1", supply, short), "equal at any time"
