"""What is recorded of the modes in force, and what is kept in memory of the objects that tell it."""

import msgspec
import pytest

from netloom.api.cilium import CILIUM_NODES, DAEMON_SETS, CiliumNode, CiliumNodeIPAM, CiliumNodeSpec
from netloom.api.core import CONFIG_MAPS, NODES, ConfigMap, ManagedMeta
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNodeStatus
from netloom.guard.cluster_state import ClusterState, trim_cilium_node, trim_netloom_node, trim_node, trim_workload
from netloom.guard.record import bypassed, bypasses, tampered, vanished, wanted
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
        "ConfigMap kube-system/cilium-config: data.ipam 'kubernetes': the IPAM mode was changed past the guard: 2 "
        "nodes hold addresses (worker-001, worker-002) of mode cluster-pool, and what restarts in mode kubernetes "
        "takes the network from their pods. Set it back to cluster-pool before Cilium restarts; if the change is "
        f"meant, delete the record, {ANEW}"
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
            "status": {"absentAddresses": ["192.168.0.9"]},
        },
        NETLOOM_NODES.type,
    )
    few = {
        "metadata": {"name": "a", "resourceVersion": "7"},
        "spec": {"ipam": {"pools": {}, "pool": {"10.0.0.0": {}}}},
    }
    assert kept(trim_netloom_node(node)) == few
    used = {"mode": "crd", "used": {f"10.0.0.{n}": {} for n in range(9)}}
    node = msgspec.structs.replace(node, status=msgspec.convert({"ipam": used}, NetloomNodeStatus))
    assert kept(trim_netloom_node(node)) == few | {"status": {"ipam": {"mode": "crd", "used": {"10.0.0.0": {}}}}}
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


def vanishing(*names: str) -> ClusterState:
    """Nodes and CiliumNodes of these names, and the record that follows."""
    live = ask.with_config(ask.fresh())
    for number, name in enumerate(names):
        ask.with_addresses(live, name, f"192.168.0.{number}")
        ask.with_cilium_node(live, name, {"podCIDRs": [f"10.0.{number}.0/24"]})
    return ask.with_record(live, **wanted(live))


def test_a_node_holds_addresses_as_long_as_it_lives() -> None:
    live = vanishing("a", "b", "c")
    assert vanished(live, RECORD_IN) is None
    live.cilium_node("a", None, None)
    ask.with_cilium_node(live, "b", {})
    assert live.cilium_held.count == 3
    assert str(vanished(live, RECORD_IN)) == (
        "ConfigMap kube-system/cilium-config: data.ipam: Nodes live whose CiliumNodes were deleted or emptied (a, b): "
        "their pods have their addresses all the same, so mode cluster-pool stays in force. Restart Cilium's agents, "
        "which make their CiliumNodes anew; a Node that is removed counts no more. If no pod has addresses of that "
        f"mode any more, delete the record, {ANEW}"
    )
    live.node("a", None, None)
    ask.with_cilium_node(live, "b", {"podCIDRs": ["10.0.1.0/24"]})
    assert vanished(live, RECORD_IN) is None
    assert wanted(live)["ciliumInUse"] == "2 nodes hold addresses (b, c)"


@pytest.mark.parametrize("node_first", [True, False], ids=["its Node first", "its CiliumNode first"])
def test_a_node_that_leaves_is_forgotten(node_first: bool) -> None:
    live = vanishing("a")
    if node_first:
        live.node("a", None, None)
        assert wanted(live)["ciliumMode"] == "cluster-pool"
    live.cilium_node("a", None, None)
    if not node_first:
        live.node("a", None, None)
    assert wanted(live) == {}
    assert vanished(live, RECORD_IN) is None


def test_the_record_remembers_what_nobody_has_seen() -> None:
    """All CiliumNodes went while no guard ran."""
    live = ask.with_record(ask.with_config(ask.fresh()), **IN_USE)
    ask.with_addresses(live, "worker-001", "192.168.0.1")
    assert wanted(live) == IN_USE
    problem = vanished(live, RECORD_IN)
    assert problem is not None
    assert "no CiliumNode holds addresses any more (2 nodes hold addresses (worker-001, worker-002) before)" in str(
        problem
    )
    assert bypassed(ask.with_config(live, ipam="kubernetes"), RECORD_IN) is not None
    live.node("worker-001", None, None)
    assert wanted(live) == {}


def test_a_record_that_is_deleted_forgets_those_that_vanished() -> None:
    live = vanishing("a")
    live.cilium_node("a", None, None)
    live.record(f"{RECORD_IN}/netloom-guard", None, None)
    assert wanted(live) == {}
    assert vanished(live, RECORD_IN) is None


def test_a_record_that_somebody_else_wrote_is_no_witness() -> None:
    live = vanishing("a")
    for by, data in (
        ("kubectl-edit", {"ciliumMode": "kubernetes"}),
        ("netloom-guard-cilium", {"ciliumInUse": "nobody"}),
    ):
        ask.with_record(live, by, **data)
        assert live.tampered == ("ciliumMode",)
        assert wanted(live)["ciliumMode"] == "cluster-pool"
        assert str(tampered(live, RECORD_IN)).startswith(
            "ConfigMap netloom-system/netloom-guard: data.ciliumMode: somebody but the guard wrote down which IPAM mode"
        )
        ask.with_record(live, **wanted(live))
        assert tampered(live, RECORD_IN) is None
    started = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 2), "kubectl-edit", ciliumMode="kubernetes")
    assert wanted(ask.with_config(started)) == IN_USE
    assert bypassed(started, RECORD_IN) is None


def test_what_runs_cilium_may_ask_for_another_mode() -> None:
    live = vanishing("a")
    container = {"name": "cilium-agent", "command": ["cilium-agent"], "args": ["--ipam=kubernetes"]}
    spec = {"template": {"spec": {"containers": [container]}}}
    agents = msgspec.convert({"metadata": {"name": "cilium"}, "spec": spec}, DAEMON_SETS.type)
    live.cilium_workload("kube-system/cilium", None, trim_workload(agents))
    (problem,) = bypasses(live, RECORD_IN)
    assert str(problem).startswith(
        "DaemonSet kube-system/cilium: spec.template 'cilium-agent: --ipam kubernetes': it overrules the ConfigMap"
    )
    assert problem.reason == "ModeBypassed"
    live.cilium_workload("kube-system/cilium", agents, None)
    assert bypasses(live, RECORD_IN) == []


def test_binary_data_of_the_configuration_is_seen() -> None:
    live = vanishing("a")
    obj = ask.config(ipam="cluster-pool") | {"binaryData": {"IPAM": "ZW5p"}}
    live.cilium_config("kube-system/cilium-config", None, msgspec.convert(obj, CONFIG_MAPS.type))
    problem = bypassed(live, RECORD_IN)
    assert problem is not None
    assert (problem.field, problem.value) == ("data.IPAM", "eni")
