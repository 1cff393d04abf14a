"""What is recorded of the modes in force, and what is kept in memory of the objects that tell it."""

import msgspec
import pytest

from netloom.api.cilium import CILIUM_NODES, CiliumNode, CiliumNodeIPAM, CiliumNodeSpec
from netloom.api.core import NODES, ConfigMap, ManagedMeta
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.guard.cluster_state import ClusterState, trim_cilium_node, trim_netloom_node, trim_node
from netloom.guard.record import bypassed, wanted
from tests.guard import requests as ask

IN_USE = {"ciliumMode": "cluster-pool", "ciliumInUse": "2 nodes hold addresses (worker-001, worker-002)"}
RECORD_IN = "netloom-system"
ANEW = (
    "which is then made anew: kubectl delete configmap netloom-guard -n netloom-system --as=admin "
    "--as-group=system:masters --as-group=netloom:break-glass"
)
FLAG = {"enable_cluster_pool_to_multi_pool_migration": "true"}


@pytest.fixture
def live() -> ClusterState:
    return ask.with_cilium_nodes(ask.fresh(), 2)


def test_nobody_holds_addresses() -> None:
    live = ask.with_record(ask.with_config(ask.fresh(), ipam="eni"), ciliumMode="eni", ciliumInUse="1 node ...")
    assert wanted(live) == {}
    assert bypassed(live, RECORD_IN) is None


def test_the_first_who_holds_an_address_locks_the_mode(live: ClusterState) -> None:
    assert wanted(live) == {}, "without a configuration it is not known"
    assert wanted(ask.with_config(live)) == IN_USE, "cluster-pool is Cilium's default"
    assert wanted(ask.with_config(live, ipam="eni")) == IN_USE | {"ciliumMode": "eni"}


def test_what_is_recorded_stays(live: ClusterState) -> None:
    ask.with_record(live, **IN_USE)
    assert wanted(live) == IN_USE
    assert wanted(ask.with_config(live, ipam="kubernetes")) == IN_USE
    assert str(bypassed(live, RECORD_IN)) == (
        "ConfigMap kube-system/cilium-config: data.ipam 'kubernetes': the IPAM mode was changed past the guard: 2 nodes "
        "hold addresses (worker-001, worker-002) of mode cluster-pool, and what restarts in mode kubernetes takes the "
        "network from their pods. Set it back to cluster-pool before Cilium restarts; if the change is meant, delete the "
        f"record, {ANEW}"
    )
    assert bypassed(ask.with_config(live), RECORD_IN) is None
    ask.with_cilium_node(live, "worker-001", {})
    assert wanted(live)["ciliumInUse"] == "1 node holds addresses (worker-002)"


def test_a_mode_in_another_spelling_is_seen(live: ClusterState) -> None:
    assert wanted(ask.with_config(live, IPAM="eni")) == IN_USE | {"ciliumMode": "eni"}
    assert wanted(ask.with_config(live, IPAM="eni", ipam="crd")) == {}, "nobody can say which of them counts"
    ask.with_record(live, **IN_USE)
    for data in ({"IPAM": "kubernetes"}, {"ipam": "cluster-pool", "IPAM": "kubernetes"}):
        problem = bypassed(ask.with_config(live, **data), RECORD_IN)
        assert problem is not None
        assert str(problem).startswith("ConfigMap kube-system/cilium-config: data.IPAM 'kubernetes': the IPAM mode was")
        assert "what restarts in mode kubernetes takes" in problem.message
    assert bypassed(ask.with_config(live, IPAM="cluster-pool"), RECORD_IN) is None
    assert bypassed(ask.with_config(live, ipam="multi-pool", IPAM="eni", **FLAG), RECORD_IN) is not None
    assert bypassed(ask.with_config(live, IPAM="multi-pool", **FLAG), RECORD_IN) is None


@pytest.mark.parametrize("node_first", [True, False], ids=["the node is seen first", "the change is seen first"])
def test_a_mode_that_changed_behind_the_first_node_is_not_the_one_in_force(node_first: bool) -> None:
    """Both were under way: the change was let through as nobody held an address yet, as far as the guard had seen."""
    live = ask.fresh()
    config("4", live, ipam="cluster-pool")
    if node_first:
        cilium_node("7", live)
    config("8", live, ipam="kubernetes")
    if not node_first:
        cilium_node("7", live)
    assert wanted(live)["ciliumMode"] == "cluster-pool"
    ask.with_record(live, **wanted(live))
    assert bypassed(live, RECORD_IN) is not None
    live.record("netloom-system/netloom-guard", None, None)  # somebody says that it is meant
    assert wanted(live)["ciliumMode"] == "kubernetes"
    assert bypassed(live, RECORD_IN) is None


def test_a_node_that_joins_behind_a_change_has_its_addresses_from_the_new_mode() -> None:
    live = ask.fresh()
    config("4", live, ipam="cluster-pool")
    config("8", live, ipam="kubernetes")
    cilium_node("9", live)
    assert wanted(live)["ciliumMode"] == "kubernetes"


def config(version: str, live: ClusterState, **data: str) -> None:
    metadata = ManagedMeta(name="cilium-config", namespace="kube-system", resource_version=version)
    live.cilium_config("kube-system/cilium-config", None, ConfigMap(metadata=metadata, data=data))


def cilium_node(version: str, live: ClusterState) -> None:
    spec = CiliumNodeSpec(ipam=CiliumNodeIPAM(pod_cidrs=("10.0.0.0/24",)))
    live.cilium_node("a", None, CiliumNode(metadata=ObjectMeta(name="a", resource_version=version), spec=spec))


def test_the_documented_migration_is_taken_over(live: ClusterState) -> None:
    ask.with_record(live, ciliumMode="cluster-pool")
    ask.with_config(live, ipam="multi-pool", **FLAG)
    assert wanted(live)["ciliumMode"] == "multi-pool"
    assert bypassed(live, RECORD_IN) is None
    ask.with_config(live, ipam="multi-pool")
    assert wanted(live)["ciliumMode"] == "cluster-pool"
    assert bypassed(live, RECORD_IN) is not None
    ask.with_record(live, ciliumMode="eni")
    ask.with_config(live, ipam="multi-pool", **FLAG)
    assert wanted(live)["ciliumMode"] == "eni"
    assert bypassed(live, RECORD_IN) is not None


def test_netlooms_mode_is_the_networks_or_the_nodes() -> None:
    live = ask.with_nodes(ask.fresh(), 5, "kubernetes")
    told = "5 nodes hold addresses (worker-001, worker-002, worker-003 and 2 more)"
    assert wanted(live) == {"netloomMode": "kubernetes", "netloomInUse": told}
    ask.with_network(live, ask.network("crd", in_force="cluster-pool"))
    assert wanted(live) == {"netloomMode": "cluster-pool", "netloomInUse": told}
    ask.with_network(live, ask.network("crd"))
    ask.with_node(live, "worker-001", ask.ipam("crd", pool={"10.0.0.1": {}}))
    assert wanted(live) == {}, "nodes do not agree"


def kept(obj: object) -> ask.Json:
    return msgspec.json.decode(msgspec.json.encode(obj))  # type: ignore[no-any-return]


def test_little_is_kept_of_an_object() -> None:
    node = msgspec.convert(
        {
            "metadata": {"name": "a", "uid": "1", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {
                "addresses": [{"type": "InternalIP", "ip": "192.168.0.1"}],
                "ipam": {"pool": {f"10.0.0.{n}": {} for n in range(9)}, "pools": {"requested": [{"pool": "x"}]}},
            },
        },
        NETLOOM_NODES.type,
    )
    assert kept(trim_netloom_node(node)) == {
        "metadata": {"name": "a", "resourceVersion": "7"},
        "spec": {"ipam": {"pools": {}, "pool": {"10.0.0.0": {}}}},
    }
    held = {"ipam": {"pool": {"10.0.0.1": {"resource": "x"}, "10.0.0.2": {}}, "ipv6-pool": {"fd00::1": {}}}}
    cilium = msgspec.convert({"metadata": {"name": "a", "labels": {"a": "b"}}, "spec": held}, CILIUM_NODES.type)
    assert kept(trim_cilium_node(cilium)) == {
        "metadata": {"name": "a"},
        "spec": {"ipam": {"pool": {"10.0.0.1": None}, "ipv6-pool": {"fd00::1": None}}},
    }
    status = {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}
    made = {
        "metadata": {"name": "a", "annotations": {"a": "b"}},
        "spec": {"podCIDRs": ["10.0.0.0/24"]},
        "status": status,
    }
    assert kept(trim_node(msgspec.convert(made, NODES.type))) == {
        "metadata": {"name": "a"},
        "status": status,
    }
