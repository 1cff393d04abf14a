"""CiliumNodeConfigs: no node gets another IPAM mode than its cluster while addresses are in use."""

from typing import Any

import pytest

from netloom.api.cilium import CILIUM_NODE_CONFIGS
from netloom.guard.cluster_state import ClusterState
from tests.guard import requests as ask
from tests.guard.requests import node_config, refused, warned

IN_USE = "2 nodes hold addresses (worker-001, worker-002) of mode cluster-pool"
NAME = "CiliumNodeConfig kube-system/some: "
ZONE = {"matchLabels": {"zone": "a"}}
LIST_NOT_READ = "its list was not read yet"


@pytest.fixture(params=["recorded", "not recorded"])
def live(request: pytest.FixtureRequest) -> ClusterState:
    """Two nodes of mode cluster-pool; where it is not recorded yet, cilium-config says so."""
    live = ask.with_cilium_nodes(ask.fresh(), 2)
    if request.param == "recorded":
        return ask.with_record(live, ciliumMode="cluster-pool")
    return ask.with_config(live)


def locked(shown: str, wanted: str) -> str:
    return (
        f"{NAME}spec.defaults.ipam{shown}: some nodes of a live cluster cannot have another IPAM mode: {IN_USE}, and "
        f"where Cilium restarts in mode {wanted}, pods would lose the network. Take ipam out of spec.defaults, or "
        f"remove every node and its CiliumNode first, or build a new cluster in mode {wanted} and move the workloads "
        "there."
    )


def test_another_mode_is_refused_for_some_nodes_too(live: ClusterState) -> None:
    other = node_config("kubernetes", ZONE)
    for old in (None, node_config(), node_config("cluster-pool"), node_config("eni"), node_config("eni", ZONE)):
        assert refused(live, CILIUM_NODE_CONFIGS, old, other) == [locked(" 'kubernetes'", "kubernetes")]
    # Cilium reads a key that is set to nothing as a mode that it does not know.
    assert refused(live, CILIUM_NODE_CONFIGS, None, node_config(" ")) == [locked("", '""')]


def test_the_key_counts_however_it_is_spelled(live: ClusterState) -> None:
    for old in (None, node_config("cluster-pool")):
        for new in (node_config(IPAM="kubernetes"), node_config("cluster-pool", IPAM="kubernetes")):
            assert refused(live, CILIUM_NODE_CONFIGS, old, new) == [
                locked(" 'kubernetes'", "kubernetes").replace("spec.defaults.ipam ", "spec.defaults.IPAM ")
            ]
        assert refused(live, CILIUM_NODE_CONFIGS, old, node_config(IPAM="cluster-pool")) == []
    assert refused(live, CILIUM_NODE_CONFIGS, node_config(" "), node_config(Ipam="")) == [], "nothing changes"
    both = node_config("cluster-pool", IPAM="kubernetes")
    assert refused(live, CILIUM_NODE_CONFIGS, node_config("kubernetes"), both) == [], "it gets no worse"
    assert refused(live, CILIUM_NODE_CONFIGS, both, both | {"spec": both["spec"] | {"nodeSelector": ZONE}}) != []
    assert refused(live, CILIUM_NODE_CONFIGS, both, node_config("cluster-pool")) == []


def test_the_migration_is_made_in_cilium_config(live: ClusterState) -> None:
    flag = {"enable-cluster-pool-to-multi-pool-migration": "true"}
    hint = (
        " The one live migration that Cilium has, from cluster-pool to multi-pool, is made in cilium-config, for all "
        "nodes (from Cilium 1.20 on)."
    )
    new = node_config("multi-pool", ZONE, **flag)
    assert refused(live, CILIUM_NODE_CONFIGS, None, new) == [locked(" 'multi-pool'", "multi-pool") + hint]
    (text,) = refused(live, CILIUM_NODE_CONFIGS, new, node_config("multi-pool", {}, **flag))
    assert text.endswith(hint)
    ask.with_config(ask.with_record(live, ciliumMode="multi-pool"), ipam="multi-pool")
    (text,) = refused(live, CILIUM_NODE_CONFIGS, None, node_config("cluster-pool"))
    assert "of mode multi-pool, and where Cilium restarts in mode cluster-pool" in text
    assert hint not in text


def test_an_override_does_not_get_to_other_nodes(live: ClusterState) -> None:
    old = node_config("kubernetes", ZONE)
    for selector in ({}, {"matchLabels": {"zone": "b"}}, None):
        assert refused(live, CILIUM_NODE_CONFIGS, old, node_config("kubernetes", selector)) == [
            f"{NAME}spec.nodeSelector: more or other nodes cannot get another IPAM mode: {IN_USE}, and where Cilium "
            "restarts in mode kubernetes, pods would lose the network. Leave the selector as it is, or take ipam out "
            "of spec.defaults first."
        ]
    assert refused(live, CILIUM_NODE_CONFIGS, old, node_config(" kubernetes", ZONE, debug="true")) == []


def test_what_leaves_the_mode_alone_passes(live: ClusterState) -> None:
    for old, new in (
        (None, node_config(None, {}, debug="true")),
        (None, node_config("cluster-pool\n", {})),
        (node_config(None, ZONE, debug="true"), node_config(None, {})),
        (node_config(None, ZONE), node_config("cluster-pool", {})),
        (node_config("cluster-pool", ZONE), node_config("cluster-pool", {})),
        (node_config("cluster-pool", ZONE), node_config(None, {})),
        (node_config("cluster-pool"), None),
        (node_config(), None),
    ):
        assert warned(live, CILIUM_NODE_CONFIGS, old, new) == []


def test_there_is_a_way_back_that_is_warned_of(live: ClusterState) -> None:
    rest = (
        "where Cilium started in mode kubernetes, it goes back to mode cluster-pool when it restarts, and pods that "
        "got their addresses in between lose the network. Drain each such node before."
    )
    old = node_config("kubernetes", ZONE)
    for new in (None, node_config(None, ZONE), node_config(None, {})):
        assert warned(live, CILIUM_NODE_CONFIGS, old, new) == [f"{NAME}spec.defaults.ipam: {rest}"]
    back = node_config("cluster-pool", ZONE)
    assert warned(live, CILIUM_NODE_CONFIGS, old, back) == [f"{NAME}spec.defaults.ipam 'cluster-pool': {rest}"]


def test_all_is_free_while_nobody_holds_addresses_and_elsewhere(live: ClusterState) -> None:
    other = node_config("kubernetes", {})
    for old, new in ((None, other), (node_config(), other), (other, node_config("eni")), (other, None)):
        assert warned(ask.with_config(ask.fresh()), CILIUM_NODE_CONFIGS, old, new) == []
    assert warned(live, CILIUM_NODE_CONFIGS, None, node_config("kubernetes", namespace="default")) == []


@pytest.mark.parametrize(
    ("hidden", "known", "why"),
    [
        ({"ConfigMap"}, {"nodes": 1, "config": True}, f"ConfigMap: {LIST_NOT_READ}"),
        ({"CiliumNode"}, {"config": True}, f"CiliumNode: {LIST_NOT_READ}"),
        ({"cilium-config"}, {"nodes": 1}, f"cilium-config: {LIST_NOT_READ}"),
        ((), {"nodes": 1}, "cilium-config: there is none, and so no mode that nodes hold addresses of"),
    ],
    ids=["the record", "nodes", "the configuration", "there is no configuration"],
)
def test_the_mode_in_force_has_to_be_known(hidden: set[str], known: dict[str, Any], why: str) -> None:
    live = ask.with_cilium_nodes(ask.fresh(), known.get("nodes", 0))
    if known.get("config"):
        ask.with_config(live)
    live.unseen = lambda kind: LIST_NOT_READ if kind in hidden else ""
    other = node_config("eni", ZONE)
    assert ask.verdict(live, CILIUM_NODE_CONFIGS, None, other).unseen == (why,)
    assert ask.verdict(live, CILIUM_NODE_CONFIGS, other, node_config("eni", {})).unseen == (why,)
    for new in (None, node_config(), node_config("eni", ZONE, debug="true")):
        assert warned(live, CILIUM_NODE_CONFIGS, other, new) == [], "it can only lead back, or nowhere"


def test_the_record_is_enough(live: ClusterState) -> None:
    ask.with_record(live, ciliumMode="cluster-pool", ciliumInUse="2 nodes hold addresses (x, y)")
    live.unseen = lambda kind: LIST_NOT_READ if kind != "ConfigMap" else ""
    (text,) = refused(live, CILIUM_NODE_CONFIGS, None, node_config("eni"))
    assert "2 nodes hold addresses (x, y) of mode cluster-pool" in text


@pytest.mark.parametrize(
    "spec", [{"defaults": ["ipam"]}, {"defaults": {"ipam": 3}}, {"defaults": None}, {"nodeSelector": "a"}, [], "x"]
)
def test_what_is_none_is_refused_by_name(live: ClusterState, spec: object) -> None:
    (text,) = refused(live, CILIUM_NODE_CONFIGS, None, node_config() | {"spec": spec})
    assert text.startswith(f"{NAME}object: the object cannot be read as a CiliumNodeConfig (")
