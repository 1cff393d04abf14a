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


def told(cluster: Cluster) -> str:
    """Who holds addresses, as the operator says it."""
    text: str = cluster.network().get("status", {}).get("ipam", {}).get("inUse", "")
    return text


def clear_the_lock(cluster: Cluster) -> None:
    """What an administrator can do by hand where no webhook stops him."""
    cluster.plane.kubectl(
        "patch", "nlnet", "default", "--subresource=status", "--type=merge", '--patch={"status": {"ipam": null}}'
    )


def test_the_mode_changes_only_on_an_empty_cluster(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    assert in_force(cluster) == "cluster-pool"
    wait_for("it is told who", lambda: told(cluster) == "2 nodes hold addresses (node-1, node-2)")
    with pytest.raises(KubectlError, match=r"cannot change: 2 nodes hold addresses \(node-1, node-2\) of mode"):
        patch(cluster, TO_KUBERNETES)
    cluster.remove_nodes("node-1")
    wait_for("one has left", lambda: cluster.held().keys() == {"node-2"})
    with pytest.raises(KubectlError, match="the IPAM mode of a live cluster cannot change"):
        patch(cluster, TO_KUBERNETES)
    wait_for("it is told who", lambda: told(cluster) == "1 node holds addresses (node-2)")

    cluster.remove_nodes("node-2")
    wait_for("the lock is clear", lambda: not in_force(cluster))
    assert not told(cluster)
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


def test_a_lock_cleared_by_hand_is_rebuilt_and_the_mode_does_not_change(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operator = operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    before = cluster.check()

    # Frozen, so that it cannot rebuild the lock before the mode is changed.
    operator.freeze()
    clear_the_lock(cluster)
    patch(cluster, TO_KUBERNETES)
    cluster.add_node("node-3", pod_cidrs=["10.71.0.0/24"])
    operator.thaw()

    wait_for("the lock is rebuilt", lambda: in_force(cluster) == "cluster-pool")
    wait_for("the newcomer has a CIDR", cluster.served)
    held = cluster.check()
    assert {name: held[name] for name in before} == before
    assert str(held["node-3"][0]).startswith("10.70."), "of the mode in force, not of the one asked for"
    modes = {cluster.netloom_node(name)["spec"]["ipam"]["mode"] for name in held}
    assert modes == {"cluster-pool"}
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[:2] == ("False", "ModeLocked"))
    wait_for("an Event", lambda: ("Warning", "ModeLocked") in cluster.events("default"))
    wait_for("the metric says so", lambda: operator.metric("netloom_network_problems", reason="ModeLocked") == 1)
    wait_for("it is told who", lambda: told(cluster).startswith("3 nodes hold addresses (node-1, node-2, node-3)"))
    with pytest.raises(KubectlError, match="of mode cluster-pool, and in mode multi-pool"):
        patch(cluster, '{"spec": {"ipam": {"mode": "multi-pool"}}}')
    patch(cluster, '{"spec": {"ipam": {"mode": "cluster-pool"}}}')
    wait_for("all is well", lambda: condition(cluster.network(), "Ready")[:2] == ("True", "Accepted"))


def test_a_replica_that_takes_over_rebuilds_a_lock_cleared_by_hand(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    leader = operators.start(leader_elect=True)
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    replica = operators.start(leader_elect=True)
    wait_for("the replica runs", replica.healthy)
    before = cluster.check()

    leader.freeze()
    clear_the_lock(cluster)
    patch(cluster, TO_KUBERNETES)
    # It comes back with another CIDR, which would be its own in mode kubernetes.
    cluster.remove_nodes("node-2")
    cluster.add_node("node-2", pod_cidrs=["10.71.0.0/24"])
    cluster.add_node("node-3", pod_cidrs=["10.72.0.0/24"])

    wait_for("the replica rebuilds the lock", lambda: in_force(cluster) == "cluster-pool", deadline=60)
    wait_for("the newcomer has a CIDR", cluster.served)
    wait_for("the metric says so", lambda: replica.metric("netloom_network_problems", reason="ModeLocked") == 1)
    leader.thaw()
    cluster.add_nodes("node-4")
    wait_for("the next newcomer has a CIDR", cluster.served)
    wait_for("ledgers and nodes agree", lambda: len(cluster.ledger()) == 4)
    held = cluster.check()
    assert {name: held[name] for name in before} == before
    assert [str(held[name][0]) for name in ("node-3", "node-4")] == ["10.70.2.0/24", "10.70.3.0/24"]
    assert in_force(cluster) == "cluster-pool"
