"""NetloomIPPools: what nodes hold of them stays, and no address is in two of them."""

import pytest

from netloom.api.v1alpha1 import POOLS
from netloom.guard.cluster_state import ClusterState
from netloom.guard.holdings import Holdings
from tests.guard import requests as ask
from tests.guard.requests import ip_pool, ipam, network, refused

KEEP = " Keep it; to get more space, add another CIDR to the list. It can go when no node holds a block of it."
outside = Holdings.outside
LOST = "and their pods would have addresses that belong to nobody, which another pool may give to others."


@pytest.fixture
def live() -> ClusterState:
    """Five nodes hold two blocks of /27 each of the pool blue, one after the other, and one holds one of green."""
    live = ask.fresh()
    for number in range(5):
        blocks = [f"10.245.{number}.0/27", f"10.245.{number}.32/27"]
        ask.with_node(live, f"worker-{number}", ipam("multi-pool", pools={"blue": blocks}))
    ask.with_node(live, "worker-9", ipam("multi-pool", pools={"green": ["10.246.0.0/27"]}))
    for obj in (ip_pool("blue", "10.245.0.0/16"), ip_pool("green", "10.246.0.0/16")):
        ask.with_pool(live, obj)
    return live


def test_cidrs_in_use_are_neither_removed_nor_made_smaller(live: ClusterState) -> None:
    old = ip_pool("blue", "10.245.0.0/16")
    field = (
        "NetloomIPPool blue: spec.ipv4.cidrs '10.245.0.0/16': 10.245.0.0/16 cannot be removed or made smaller while it "
        "is in use: "
    )
    assert refused(live, POOLS, old, ip_pool("blue", "10.247.0.0/16")) == [
        f"{field}5 nodes hold blocks of it (worker-0, worker-1, worker-2 and 2 more), {LOST}{KEEP}"
    ]
    assert refused(live, POOLS, old, ip_pool("blue", "10.245.0.0/22")) == [
        f"{field}1 node holds blocks of it (worker-4), {LOST}{KEEP}"
    ]


def test_a_part_that_nobody_holds_may_go(live: ClusterState) -> None:
    assert refused(live, POOLS, ip_pool("blue", "10.245.0.0/16"), ip_pool("blue", "10.245.0.0/20")) == []
    assert (
        refused(live, POOLS, ip_pool("blue", "10.245.0.0/16", "10.247.0.0/16"), ip_pool("blue", "10.245.0.0/16")) == []
    )
    assert refused(live, POOLS, ip_pool("red", "10.245.0.0/16"), ip_pool("red", "10.248.0.0/16")) == []


def test_what_is_left_of_a_pool_is_worked_out_only_where_somebody_holds_something_of_it(
    live: ClusterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        Holdings, "outside", lambda held, kept, cidr, pool: (asked.append(pool), outside(held, kept, cidr, pool))[1]
    )
    for name in ("red", "blue"):
        old = ip_pool(name, "10.245.0.0/16", "10.247.0.0/16")
        assert refused(live, POOLS, old, ip_pool(name, "10.245.0.0/16")) == []
    assert set(asked) == {"blue"}


def test_growth_passes(live: ClusterState) -> None:
    old = ip_pool("blue", "10.245.0.0/16")
    assert refused(live, POOLS, old, ip_pool("blue", "10.247.0.0/16", "10.245.0.0/16")) == []
    assert refused(live, POOLS, old, ip_pool("blue", "10.244.0.0/15")) == []


def test_the_mask_size_stays(live: ClusterState) -> None:
    assert refused(live, POOLS, ip_pool("blue", "10.245.0.0/16"), ip_pool("blue", "10.245.0.0/16", mask=28)) == [
        "NetloomIPPool blue: spec.ipv4.maskSize '28': the mask size of a pool cannot change while it is in use: 5 "
        "nodes "
        "hold blocks of it (worker-0, worker-1, worker-2 and 2 more), cut as /27, and new blocks would not fit between "
        "the old ones. Keep 27, or make another pool."
    ]
    assert refused(live, POOLS, ip_pool("red", "10.248.0.0/16"), ip_pool("red", "10.248.0.0/16", mask=28)) == [
        "NetloomIPPool red: spec.ipv4.maskSize '28': the mask size of a pool cannot change: new blocks would not fit "
        "between the old ones. Make another pool."
    ]


def test_a_pool_in_use_is_not_deleted(live: ClusterState) -> None:
    assert refused(live, POOLS, ip_pool("green", "10.246.0.0/16")) == [
        "NetloomIPPool green: metadata.name 'green': the pool cannot be deleted while it is in use: 1 node holds "
        "blocks "
        f"of it (worker-9), {LOST} Move the pods that use it to another pool, or remove those nodes, until no node "
        "holds a block of it."
    ]
    assert refused(live, POOLS, ip_pool("red", "10.248.0.0/16")) == []
    ask.with_node(live, "worker-9", ipam("multi-pool"))
    assert refused(live, POOLS, ip_pool("green", "10.246.0.0/16")) == []


def test_no_address_is_in_two_pools(live: ClusterState) -> None:
    (text,) = refused(live, POOLS, None, ip_pool("red", "10.248.0.0/16", "10.240.0.0/12"))
    assert text == (
        "NetloomIPPool red: spec.ipv4.cidrs[1] '10.240.0.0/12': 10.240.0.0/12 overlaps 10.245.0.0/16 of NetloomIPPool "
        "blue, 10.246.0.0/16 of NetloomIPPool green, so two nodes could be given the same address. Give a CIDR that "
        "nothing else is given from."
    )
    assert (
        "10.246.0.0/16 of NetloomIPPool green"
        in refused(live, POOLS, ip_pool("blue", "10.245.0.0/16"), ip_pool("blue", "10.245.0.0/16", "10.246.7.0/24"))[0]
    )


@pytest.mark.parametrize(
    ("mode", "in_force", "overlaps"),
    [
        ("cluster-pool", "", True),
        ("multi-pool", "cluster-pool", True),
        ("multi-pool", "", False),
        ("cluster-pool", "multi-pool", False),
    ],
)
def test_the_cluster_cidrs_in_force_are_no_pools(mode: str, in_force: str, overlaps: bool) -> None:
    live = ask.fresh()
    ask.with_network(live, network(mode, "10.244.0.0/16", in_force=in_force))
    assert refused(live, POOLS, None, ip_pool("red", "10.244.8.0/24")) == overlaps * [
        "NetloomIPPool red: spec.ipv4.cidrs[0] '10.244.8.0/24': 10.244.8.0/24 overlaps 10.244.0.0/16 of "
        "spec.ipam.clusterPool of the NetloomNetwork, so two nodes could be given the same address. Give a CIDR that "
        "nothing else is given from."
    ]


def test_nodes_addresses_are_no_pools(live: ClusterState) -> None:
    for number in range(1, 5):
        ask.with_addresses(live, f"worker-{number}", f"192.168.0.{number}")
    text = (
        "NetloomIPPool red: spec.ipv4.cidrs[0] '192.168.0.0/16': it holds addresses of nodes (192.168.0.1 of node "
        "worker-1, 192.168.0.2 of node worker-2, 192.168.0.3 of node worker-3 and 1 more), so a pod could be given the "
        "address of a node. Use CIDRs outside the nodes' network."
    )
    assert refused(live, POOLS, None, ip_pool("red", "192.168.0.0/16")) == [text]
    # One that is so already can be edited, as long as it gets no worse.
    assert refused(live, POOLS, ip_pool("red", "192.168.0.0/16"), ip_pool("red", "192.168.0.0/16", "10.9.0.0/16")) == []
    assert refused(live, POOLS, ip_pool("red", "192.168.0.0/16"), ip_pool("red", "192.168.0.0/30")) == []


def test_what_it_depends_on_has_to_be_seen() -> None:
    live = ask.fresh()
    live.unseen = lambda kind: "its list was not read yet"
    old = ip_pool("blue", "10.245.0.0/16")
    assert ask.verdict(live, POOLS, old).unseen == ("NetloomNode: its list was not read yet",)
    assert ask.verdict(live, POOLS, old, ip_pool("blue", "10.245.0.0/20")).unseen == (
        "NetloomNode: its list was not read yet",
    )
    assert len(ask.verdict(live, POOLS, None, old).unseen) == 3
    assert refused(live, POOLS, old, {**old, "status": {"ipv4": {"total": 9}}}) == []
