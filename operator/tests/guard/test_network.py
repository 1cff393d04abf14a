"""NetloomNetwork: every refusal as it is read, and what passes beside it."""

import pytest

from netloom.api.v1alpha1 import NETWORKS
from netloom.guard.cluster_state import ClusterState
from tests.guard import requests as ask
from tests.guard.requests import Json, network, refused, warned

THREE = "3 nodes hold addresses (worker-001, worker-002, worker-003)"
MANY = "312 nodes hold addresses (worker-001, worker-002, worker-003 and 309 more)"
MODE = "NetloomNetwork default: spec.ipam.mode 'kubernetes': "


@pytest.fixture
def live() -> ClusterState:
    return ask.with_nodes(ask.fresh(), 3)


def test_another_mode_is_refused_while_nodes_hold_addresses(live: ClusterState) -> None:
    old, new = network(in_force="cluster-pool"), network("kubernetes", in_force="cluster-pool")
    assert refused(live, NETWORKS, old, new) == [
        f"{MODE}the IPAM mode of a live cluster cannot change: {THREE} of mode cluster-pool, and in mode kubernetes "
        "their pods would lose the network. Keep spec.ipam.mode cluster-pool, or remove every node first (the lock "
        "opens when the last address came back), or build a new cluster in mode kubernetes and move the workloads "
        "there."
    ]
    assert MANY in refused(ask.with_nodes(live, 312), NETWORKS, old, new)[0]


@pytest.mark.parametrize("user", [ask.OPERATOR, ask.AGENT, "system:admin"])
@pytest.mark.parametrize("in_force", ["", "cluster-pool"])
def test_it_is_refused_to_everybody_and_without_a_status(live: ClusterState, user: str, in_force: str) -> None:
    old, new = network(in_force=in_force), network("kubernetes", in_force=in_force)
    assert refused(live, NETWORKS, old, new, user=user)[0].startswith(MODE)


def test_a_mode_in_force_is_enough_while_no_node_holds_an_address_yet() -> None:
    old, new = network(in_force="cluster-pool"), network("kubernetes", in_force="cluster-pool")
    (text,) = refused(ask.fresh(), NETWORKS, old, new)
    assert text.startswith(f"{MODE}the IPAM mode of a live cluster cannot change: nodes hold addresses of mode cluster")


def test_the_mode_of_an_empty_cluster_is_free() -> None:
    assert refused(ask.fresh(), NETWORKS, network(), network("kubernetes")) == []
    assert refused(ask.fresh(), NETWORKS, None, network("kubernetes")) == []
    assert refused(ask.fresh(), NETWORKS, network()) == []


def test_a_wrong_mode_may_stay_and_may_go_back_and_go_nowhere_else(live: ClusterState) -> None:
    wrong = network("kubernetes", in_force="cluster-pool")
    assert refused(live, NETWORKS, wrong, {**wrong, "metadata": {"name": "default", "labels": {"a": "b"}}}) == []
    assert refused(live, NETWORKS, wrong, network(in_force="cluster-pool")) == []
    (text,) = refused(live, NETWORKS, wrong, network("multi-pool", in_force="cluster-pool"))
    assert "3 nodes hold addresses (worker-001, worker-002, worker-003) of mode cluster-pool" in text


@pytest.mark.parametrize("used", [{"mode": "crd"}, {"used": {"10.9.0.4": {"owner": "default/web"}}}])
def test_addresses_that_are_used_and_held_no_more_count(used: Json) -> None:
    """They were withdrawn under a pod, or the agent may give one at any moment."""
    live = ask.fresh()
    ask.with_node(live, "a", ask.ipam("crd"), used)
    (text,) = refused(live, NETWORKS, network("crd"), network("kubernetes"))
    assert text.startswith(
        f"{MODE}the IPAM mode of a live cluster cannot change: 1 node holds addresses (a) of mode crd, and in mode "
    )
    assert refused(live, NETWORKS, network("crd"))[0].startswith(
        "NetloomNetwork default: metadata.name 'default': the network cannot be deleted while it is in use"
    )
    ask.with_node(live, "a", ask.ipam("crd"))
    assert refused(live, NETWORKS, network("crd"), network("kubernetes")) == []


def test_a_network_made_anew_keeps_the_mode(live: ClusterState) -> None:
    assert refused(live, NETWORKS, None, network("kubernetes")) == [
        f"{MODE}a network that is made anew has to keep the IPAM mode: {THREE} of mode cluster-pool, and in mode "
        "kubernetes their pods would lose the network. Create it with spec.ipam.mode cluster-pool, or remove every "
        "node first, or build a new cluster in mode kubernetes and move the workloads there."
    ]
    assert refused(live, NETWORKS, None, network()) == []


def test_a_network_made_anew_keeps_the_cidrs(live: ClusterState) -> None:
    assert refused(live, NETWORKS, None, network("cluster-pool", "10.244.2.0/24", "10.99.0.0/16")) == [
        "NetloomNetwork default: spec.ipam.clusterPool.ipv4PodCIDRList '10.244.2.0/24, 10.99.0.0/16': it does not "
        "cover "
        "what is in use: 2 nodes hold blocks outside it (worker-001, worker-003), and their pods would have addresses "
        "that are not the cluster's any more. Give the CIDRs that the network had, and others beside them if you like."
    ]


def test_a_second_network_is_refused_always() -> None:
    assert refused(ask.fresh(), NETWORKS, None, network(name="second")) == [
        "NetloomNetwork second: metadata.name 'second': a cluster has one network, so a NetloomNetwork of another name "
        'would be ignored. Name it "default".'
    ]
    assert refused(ask.fresh(), NETWORKS, network(name="second")) == []


def test_the_network_in_use_is_not_deleted(live: ClusterState) -> None:
    assert refused(live, NETWORKS, network(in_force="cluster-pool")) == [
        f"NetloomNetwork default: metadata.name 'default': the network cannot be deleted while it is in use: {THREE} "
        "of "
        "mode cluster-pool, and nothing would say any more how their pods reach each other. Remove every node first."
    ]


def test_a_deletion_that_waits_is_not_let_through(live: ClusterState) -> None:
    meta = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["netloom.dev/in-use"]}
    old, new = network(in_force="cluster-pool", meta=meta), network(in_force="cluster-pool")
    (text,) = refused(live, NETWORKS, old, new)
    assert text.startswith("NetloomNetwork default: metadata.finalizers: the network cannot be deleted while it is in")
    assert refused(live, NETWORKS, old, new, user=ask.OPERATOR) == []


def test_what_is_in_force_is_the_operators(live: ClusterState) -> None:
    old, new = network(in_force="cluster-pool"), network()
    assert refused(live, NETWORKS, old, new, sub_resource="status") == [
        f"NetloomNetwork default: status.ipam: only the operator writes what is in force: {THREE} of mode "
        "cluster-pool, "
        "and another entry would let the IPAM mode be changed under them. Leave status.ipam as it is; it is cleared "
        "when the last address came back."
    ]
    assert refused(live, NETWORKS, old, new, sub_resource="status", user=ask.AGENT) != []
    assert refused(live, NETWORKS, old, new, sub_resource="status", user=ask.OPERATOR) == []
    assert refused(live, NETWORKS, new, old, sub_resource="status")[0].startswith("NetloomNetwork default: status.ipam")
    assert refused(ask.fresh(), NETWORKS, new, old, sub_resource="status") == []


def test_cidrs_in_use_are_neither_removed_nor_made_smaller(live: ClusterState) -> None:
    old = network("cluster-pool", "10.244.0.0/16", "10.250.0.0/16", in_force="cluster-pool")
    new = network("cluster-pool", "10.244.2.0/23", in_force="cluster-pool")
    field = "NetloomNetwork default: spec.ipam.clusterPool.ipv4PodCIDRList "
    way_out = " Keep it; to get more space, add another CIDR to the list, or put one in its place that contains it."
    assert refused(live, NETWORKS, old, new) == [
        f"{field}'10.244.0.0/16': 10.244.0.0/16 cannot be removed or made smaller while it is in use: 1 node holds "
        f"blocks of it (worker-001), and their pods would have addresses that are not the cluster's any more.{way_out}",
        f"{field}'10.250.0.0/16': 10.250.0.0/16 cannot be removed or made smaller while it is in use: {THREE} of mode "
        f"cluster-pool, and a block of it may be on its way to one.{way_out}",
    ]
    assert (
        refused(ask.fresh(), NETWORKS, network("cluster-pool", "10.244.0.0/16"), network("cluster-pool", "10.9.0.0/16"))
        == []
    )


@pytest.mark.parametrize(
    "after", [["10.250.0.0/16", "10.244.0.0/16"], ["10.240.0.0/12"], ["10.244.0.0/17", "10.244.128.0/17"]]
)
def test_growth_passes(live: ClusterState, after: list[str]) -> None:
    assert (
        refused(
            live, NETWORKS, network(in_force="cluster-pool"), network("cluster-pool", *after, in_force="cluster-pool")
        )
        == []
    )


def test_a_family_joins_and_does_not_leave(live: ClusterState) -> None:
    both = network(in_force="cluster-pool", pool={"ipv6PodCIDRList": ["fd00:10:244::/56"], "ipv6MaskSize": 64})
    assert refused(live, NETWORKS, network(in_force="cluster-pool"), both) == []
    assert "fd00:10:244::/56 cannot be removed" in refused(live, NETWORKS, both, network(in_force="cluster-pool"))[0]


def test_the_mask_size_stays(live: ClusterState) -> None:
    old, new = network(in_force="cluster-pool"), network(in_force="cluster-pool", pool={"ipv4MaskSize": 25})
    assert refused(live, NETWORKS, old, new) == [
        f"NetloomNetwork default: spec.ipam.clusterPool.ipv4MaskSize '25': the mask size cannot change while it is in "
        f"use: {THREE}, cut as blocks of /24, and new blocks would not fit between the old ones. Keep 24, or remove "
        "every node first."
    ]
    assert refused(live, NETWORKS, old, network(in_force="cluster-pool", pool={"ipv6MaskSize": 64})) == []


def test_what_is_no_cidr_may_go(live: ClusterState) -> None:
    old = network("cluster-pool", "10.244.0.0/16", "nonsense", in_force="cluster-pool")
    assert refused(live, NETWORKS, old, network(in_force="cluster-pool")) == []


def native(cidr: str, mode: str = "native", masquerade: bool = True) -> Json:
    routing = {"mode": mode, "ipv4NativeRoutingCIDR": cidr}
    return network(in_force="cluster-pool", routing=routing, masquerade={"ipv4": masquerade})


def test_the_native_cidr_goes_on_covering_pods(live: ClusterState) -> None:
    field = "NetloomNetwork default: spec.routing.ipv4NativeRoutingCIDR "
    rest = (
        ", so packets to pods there may be masqueraded, and are taken for those of a node. Give a CIDR that holds all "
        "pod CIDRs, as 10.0.0.0/8 does, or switch masquerading off first."
    )
    assert refused(live, NETWORKS, native("10.0.0.0/8"), native("10.244.2.0/23")) == [
        f"{field}'10.244.2.0/23': it no longer covers pods: 1 node holds blocks outside it (worker-001){rest}"
    ]
    assert refused(live, NETWORKS, native("10.0.0.0/8"), native("10.244.0.0/22")) == [
        f"{field}'10.244.0.0/22': it no longer covers 10.244.0.0/16, and {THREE} of mode cluster-pool{rest}"
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (native("10.244.0.0/16"), native("10.0.0.0/8")),
        (native("10.0.0.0/8"), native("10.244.0.0/16")),
        (native(""), native("10.99.0.0/16")),
        (native("10.244.2.0/24"), native("10.244.2.0/23")),
        (native("10.0.0.0/8"), native("10.99.0.0/16", masquerade=False)),
        (native("10.0.0.0/8"), native("10.99.0.0/16", mode="tunnel")),
        # Pods that are known are never masqueraded, whatever the native CIDR is.
        (native("10.0.0.0/8"), native("")),
    ],
)
def test_a_native_cidr_that_takes_no_pod_away_passes(live: ClusterState, before: Json, after: Json) -> None:
    assert refused(live, NETWORKS, before, after) == []


def test_nothing_is_decided_before_the_nodes_are_seen() -> None:
    live = ask.fresh()
    live.unseen = lambda kind: "its list was not read yet" if kind == "NetloomNode" else ""
    for old, new in [
        (None, network()),
        (network(), None),
        (network(), network("crd")),
        (native("10.0.0.0/8"), native("10.9.0.0/16")),
    ]:
        verdict = ask.verdict(live, NETWORKS, old, new)
        assert not verdict.allowed
        if old is None or not old["status"]:
            assert verdict.unseen == ("NetloomNode: its list was not read yet",)
    assert refused(live, NETWORKS, network(), network("cluster-pool", "10.240.0.0/12")) == []
    locked = network(in_force="cluster-pool")
    assert (
        "nodes hold addresses of mode cluster-pool"
        in refused(live, NETWORKS, locked, network("crd", in_force="cluster-pool"))[0]
    )


def test_an_object_that_cannot_be_read_is_named(live: ClusterState) -> None:
    (text,) = refused(live, NETWORKS, network(), {"metadata": {"name": "default"}, "spec": {"ipam": {"mode": "magic"}}})
    assert text == (
        "NetloomNetwork default: object: the object cannot be read as a NetloomNetwork (Invalid enum value 'magic' - "
        "at "
        "`$.spec.ipam.mode`), so nothing can be said about what changes. Write it as its CustomResourceDefinition has "
        "it, or see docs/guard.md on how to pass the guard."
    )


def test_what_is_legal_and_unwise_is_said_once() -> None:
    live = ask.fresh()
    for number in range(1, 6):
        ask.with_addresses(live, f"node-{number}", f"10.0.0.{number}")
    wide = network("cluster-pool", "10.0.0.0/8")
    text = (
        "NetloomNetwork default: spec.ipam.clusterPool.ipv4PodCIDRList[0] '10.0.0.0/8': it holds addresses of nodes "
        "(10.0.0.1 of node node-1, 10.0.0.2 of node node-2, 10.0.0.3 of node node-3 and 2 more), so a pod could be "
        "given the address of a node. Use CIDRs outside the nodes' network."
    )
    assert warned(live, NETWORKS, None, wide) == [text]
    assert warned(live, NETWORKS, network("cluster-pool", "10.99.0.0/16"), wide) == [text]
    assert warned(live, NETWORKS, wide, {**wide, "metadata": {"name": "default", "labels": {"a": "b"}}}) == []
    grown = network("cluster-pool", "10.0.0.0/8", "172.20.0.0/16")
    assert warned(live, NETWORKS, wide, grown) == []
    small = {"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/9"}
    assert warned(live, NETWORKS, wide, network("cluster-pool", "10.0.0.0/8", routing=small)) == [
        "NetloomNetwork default: spec.routing.ipv4NativeRoutingCIDR '10.0.0.0/9': it does not cover 10.0.0.0/8, so "
        "packets to pods there may be masqueraded. Give a CIDR that holds all cluster CIDRs."
    ]
