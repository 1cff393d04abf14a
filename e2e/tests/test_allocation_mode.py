"""The mode lock: a cluster's IPAM mode cannot change while any node holds an address, whatever is tried."""

import subprocess

import pytest

from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.cluster import KubectlError
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operators

TO_KUBERNETES = '{"spec": {"ipam": {"mode": "kubernetes"}}}'


def patch(cluster: Cluster, change: str) -> subprocess.CompletedProcess[str]:
    return cluster.plane.kubectl("patch", "nlnet", "default", "--type=merge", "--patch", change)


def in_force(cluster: Cluster) -> str:
    mode: str = cluster.network().get("status", {}).get("ipam", {}).get("mode", "")
    return mode


def test_the_mode_changes_only_on_an_empty_cluster(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    assert in_force(cluster) == "cluster-pool"
    with pytest.raises(KubectlError, match="the IPAM mode of a live cluster cannot change"):
        patch(cluster, TO_KUBERNETES)
    cluster.remove_nodes("node-1")
    wait_for("one has left", lambda: cluster.held().keys() == {"node-2"})
    with pytest.raises(KubectlError, match="the IPAM mode of a live cluster cannot change"):
        patch(cluster, TO_KUBERNETES)

    cluster.remove_nodes("node-2")
    wait_for("the lock is clear", lambda: not in_force(cluster))
    assert not cluster.ledger()
    patch(cluster, TO_KUBERNETES)
    cluster.add_node("node-3", pod_cidrs=["10.71.0.0/24"])
    wait_for("the node has the CIDR that its Node names", cluster.served)
    assert in_force(cluster) == "kubernetes"
    assert [str(cidr) for cidr in cluster.check()["node-3"]] == ["10.71.0.0/24"]


def test_a_network_in_use_is_not_deleted(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operators.start()
    cluster.add_nodes("node-1")
    wait_for("the node has its CIDR", cluster.served)
    cluster.plane.kubectl("delete", "nlnet", "default", "--wait=false")
    network = cluster.network()
    assert network["metadata"]["deletionTimestamp"]
    assert network["metadata"]["finalizers"] == ["netloom.dev/in-use"]
    cluster.remove_nodes("node-1")
    wait_for("the network goes with its last address", lambda: not cluster.list("netloomnetworks.v1alpha1.netloom.dev"))
    assert not cluster.ledger()


def test_a_network_forced_away_and_made_anew_in_another_mode(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operator = operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    before = cluster.check()
    cluster.plane.kubectl("delete", "nlnet", "default", "--wait=false")
    patch(cluster, '{"metadata": {"finalizers": null}}')
    cluster.create_network("kubernetes")
    cluster.add_node("node-3", pod_cidrs=["10.71.0.0/24"])

    wait_for("the lock is rebuilt", lambda: in_force(cluster) == "cluster-pool")
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "ModeLocked")
    status, _, message = condition(cluster.network(), "Ready")
    assert status == "False"
    assert "spec.ipam.mode kubernetes: nodes hold addresses of mode cluster-pool, which stays in force" in message
    wait_for("an Event", lambda: ("Warning", "ModeLocked") in cluster.events("default"))
    wait_for("the metric says so", lambda: operator.metric("netloom_network_problems", reason="ModeLocked") == 1)
    assert cluster.check() == before, "nothing is given in the other mode"

    # A successor that knows nothing of this but what the API server says obeys, too.
    operators.kill()
    cluster.add_node("node-4", pod_cidrs=["10.72.0.0/24"])
    successor = operators.start()
    wait_for("it is told", lambda: successor.healthy() and successor.metric("netloom_network_problems") > 0)
    wait_for("the metric says so", lambda: successor.metric("netloom_network_problems", reason="ModeLocked") == 1)
    assert cluster.check() == before

    # The way back that the condition names.
    patch(cluster, '{"spec": {"ipam": {"mode": "cluster-pool", "clusterPool": {"ipv4PodCIDRList": ["10.70.0.0/16"]}}}}')
    wait_for("all nodes have CIDRs", cluster.served)
    held = cluster.check()
    assert {name: held[name] for name in before} == before
