"""What the API server lets through and makes no sense: told in a condition, an Event and a metric; all else goes on."""

import json

import pytest

from netloom_e2e.allocations import NETWORKS, Cluster, assert_disjoint, condition
from netloom_e2e.client import ApiFailure, collection_path
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operator, Operators

POOL = ["10.70.0.0/16"]


def apply_netloom_node(cluster: Cluster, name: str, *cidrs: str, mode: str = "cluster-pool") -> None:
    """As somebody might who restores a backup."""
    obj = {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomNode",
        "metadata": {"name": name},
        "spec": {"ipam": {"mode": mode, "podCIDRs": cidrs}},
    }
    cluster.plane.kubectl("apply", "--filename=-", input=json.dumps(obj))


def add_cidrs(cluster: Cluster, name: str, *cidrs: str) -> None:
    change = json.dumps({"spec": {"ipam": {"podCIDRs": cidrs}}})
    cluster.plane.kubectl("patch", "nln", name, "--type=merge", "--patch", change)


def addresses(ip: str) -> dict[str, object]:
    return {"status": {"addresses": [{"type": "InternalIP", "address": ip}]}}


def wait_told(cluster: Cluster, operator: Operator, name: str, reason: str, *words: str) -> None:
    """The NetloomNode's condition, an Event and a metric say the same, and the network's condition names the node."""
    wait_for(
        f"{name} says {reason}", lambda: condition(cluster.netloom_node(name), "Allocated")[:2] == ("False", reason)
    )
    _, _, message = condition(cluster.netloom_node(name), "Allocated")
    assert all(word in message for word in words), message
    wait_for(f"an Event says {reason}", lambda: ("Warning", reason) in cluster.events(name))
    wait_for(f"a metric says {reason}", lambda: operator.metric("netloom_nodes_waiting", reason=reason) >= 1)
    wait_for("the network names it", lambda: name in condition(cluster.network(), "Ready")[2])
    assert condition(cluster.network(), "Ready")[0] == "False"


def test_a_netloom_node_without_a_node(cluster: Cluster, operators: Operators):
    apply_netloom_node(cluster, "stranger", "10.70.1.0/24")
    cluster.create_network(ipv4PodCIDRList=POOL)
    operator = operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", lambda: cluster.held().keys() == {"node-1", "node-2", "stranger"})
    wait_told(cluster, operator, "stranger", "NoSuchNode", "there is no Node stranger")
    held = cluster.check()  # its CIDR is in the ledger, too
    assert {str(cidr) for cidrs in held.values() for cidr in cidrs} == {"10.70.0.0/24", "10.70.1.0/24", "10.70.2.0/24"}
    assert not cluster.netloom_node("stranger")["metadata"].get("ownerReferences")

    # Its maker deletes it: the block comes back, and all is well.
    cluster.plane.kubectl("delete", "nln", "stranger")
    wait_for("the ledger has forgotten it", lambda: "stranger" not in {e.node for e in cluster.ledger().values()})
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[0] == "True")
    wait_for("the metric says so", lambda: operator.metric("netloom_nodes_waiting") == 0)


def test_a_netloom_node_that_overlaps_another(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=POOL)
    operator = operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    before = cluster.check()
    owner = next(name for name, cidrs in before.items() if str(cidrs[0]) == "10.70.1.0/24")
    apply_netloom_node(cluster, "intruder", "10.70.1.128/25")
    wait_told(cluster, operator, "intruder", "PodCIDRConflict", "10.70.1.128/25", "10.70.1.0/24", owner)
    # The older one is not blamed, nothing is changed, and others go on.
    assert condition(cluster.netloom_node(owner), "Allocated") == ("", "", "")
    cluster.add_nodes("node-3")
    wait_for("the third node has its CIDR", lambda: cluster.held().get("node-3"))
    held = cluster.held()
    assert {name: held[name] for name in before} == before
    intruder = held.pop("intruder")
    assert [str(cidr) for cidr in intruder] == ["10.70.1.128/25"]
    assert_disjoint(held)
    # Once the older one is gone, the younger one's claim counts; no other node is given that space.
    cluster.remove_nodes(owner)
    wait_for("the claim is entered", lambda: "intruder" in {entry.node for entry in cluster.ledger().values()})
    cluster.add_nodes("node-4")
    wait_for("the fourth node has its CIDR", lambda: cluster.held().get("node-4"))
    cluster.check()


def test_pod_cidrs_of_nodes_that_make_no_sense(cluster: Cluster, operators: Operators):
    cluster.create_network("kubernetes")
    operator = operators.start()
    cluster.add_node("good", pod_cidrs=["10.80.1.0/24", "fd00:80:1::/64"])
    wait_for("the good node has its CIDRs", cluster.served)
    with pytest.raises(ApiFailure, match="must not have bits set beyond the prefix length"):
        cluster.add_node("host-bits", pod_cidrs=["10.80.2.7/24"])
    cluster.add_node("too-large", pod_cidrs=["10.0.0.0/8"])
    cluster.add_node("too-large-v6", pod_cidrs=["fd00:80::/48"])
    cluster.add_node("same", pod_cidrs=["10.80.1.0/24"])
    cluster.add_node("within", pod_cidrs=["10.80.1.64/26"])
    cluster.add_node("around", pod_cidrs=["10.80.0.0/16"])
    cluster.add_node("good-too", pod_cidrs=["10.81.0.0/24"])
    wait_told(cluster, operator, "too-large", "InvalidPodCIDR", "spec.podCIDRs[0]", "10.0.0.0/8")
    wait_told(cluster, operator, "too-large-v6", "InvalidPodCIDR", "spec.podCIDRs[0]", "fd00:80::/48")
    for name, cidr in (("same", "10.80.1.0/24"), ("within", "10.80.1.64/26"), ("around", "10.80.0.0/16")):
        wait_told(cluster, operator, name, "PodCIDRConflict", cidr, "good")
    wait_for("the other good node has its CIDR", lambda: cluster.held().get("good-too"))
    held = cluster.check()
    assert {name for name, cidrs in held.items() if cidrs} == {"good", "good-too"}
    wait_for("the metric says so", lambda: operator.metric("netloom_nodes_waiting", reason="InvalidPodCIDR") == 2)
    wait_for("the metric says so", lambda: operator.metric("netloom_nodes_waiting", reason="PodCIDRConflict") == 3)
    assert operator.healthy()

    # The holder leaves; of those who wait for its space one can have it.
    cluster.remove_nodes("good", "within", "around")
    wait_for("the space is given", lambda: cluster.held().get("same"))
    cluster.check()


def test_cluster_cidrs_that_contain_nodes(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.90.0.0/22"])
    operator = operators.start()
    cluster.add_node("inside", address="10.90.1.10")
    cluster.add_node("outside")
    wait_for("both nodes have CIDRs", cluster.served)
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "ClusterCIDROverlapsNodes")
    status, _, message = condition(cluster.network(), "Ready")
    assert status == "True", "one of two may be odd, and the block is passed over"
    assert "10.90.0.0/22: it holds addresses of nodes (10.90.1.10 of node inside)" in message
    wait_for("an Event", lambda: ("Warning", "ClusterCIDROverlapsNodes") in cluster.events("default"))
    wait_for(
        "the metric says so",
        lambda: operator.metric("netloom_network_problems", reason="ClusterCIDROverlapsNodes") == 1,
    )
    cluster.add_nodes("third")
    wait_for("the third node has its CIDR", cluster.served)
    held = {str(cidr) for cidrs in cluster.check().values() for cidr in cidrs}
    assert held == {"10.90.0.0/24", "10.90.2.0/24", "10.90.3.0/24"}, "not the block with the node's own address"


def test_a_ledger_deleted_by_hand(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=POOL)
    operators.start()
    cluster.add_nodes("node-1", "node-2", "node-3")
    wait_for("all nodes have CIDRs", cluster.served)
    before = cluster.check()
    cluster.plane.kubectl("delete", "nlledger", "--all")
    cluster.add_nodes("node-4")
    wait_for("the fourth node has its CIDR", cluster.served)
    wait_for("the ledger is rebuilt", lambda: len(cluster.ledger()) == 4)
    held = cluster.check()
    assert {name: held[name] for name in before} == before

    # The same while nobody runs.
    operators.kill()
    cluster.plane.kubectl("delete", "nlledger", "--all")
    cluster.add_nodes("node-5")
    operators.start()
    wait_for("the fifth node has its CIDR", cluster.served)
    wait_for("the ledger is rebuilt", lambda: len(cluster.ledger()) == 5)
    assert {name: cluster.check()[name] for name in held} == held


def test_a_mode_that_is_not_implemented(cluster: Cluster, operators: Operators):
    network = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNetwork", "metadata": {"name": "default"}}
    network |= {"spec": {"ipam": {"mode": "eni"}, "routing": {"mode": "native"}}}
    cluster.client.request("POST", collection_path(NETWORKS), network)
    operator = operators.start()
    cluster.add_nodes("node-1")
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "IPAMModeNotImplemented")
    status, _, message = condition(cluster.network(), "Ready")
    assert status == "False"
    assert "eni is not implemented" in message
    wait_for("an Event", lambda: ("Warning", "IPAMModeNotImplemented") in cluster.events("default"))
    wait_for(
        "the metric says so", lambda: operator.metric("netloom_network_problems", reason="IPAMModeNotImplemented") == 1
    )
    assert operator.healthy()
    assert not cluster.held()

    # No address was given, so the mode can be changed to one that works.
    patch = '{"spec": {"ipam": {"mode": "cluster-pool", "clusterPool": {"ipv4PodCIDRList": ["10.70.0.0/16"]}}}}'
    cluster.plane.kubectl("patch", "nlnet", "default", "--type=merge", "--patch", patch)
    wait_for("the node has its CIDR", cluster.served)
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[0] == "True")


def test_pod_cidrs_edited_by_hand(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=POOL)
    operator = operators.start()
    cluster.add_nodes("node-1", "node-2")
    wait_for("both nodes have CIDRs", cluster.served)
    mine, theirs = (str(cluster.held()[name][0]) for name in ("node-1", "node-2"))
    # CIDRs can be added. What is free is entered, what is another node's is a conflict.
    add_cidrs(cluster, "node-1", mine, "10.70.9.0/24")
    wait_for("the new CIDR is entered", lambda: len(cluster.ledger()) == 3)
    cluster.check()
    add_cidrs(cluster, "node-1", mine, "10.70.9.0/24", theirs)
    wait_told(cluster, operator, "node-1", "PodCIDRConflict", theirs, "node-2")
    cluster.add_nodes("node-3")
    wait_for("the third node has its CIDR", cluster.served)
    held = cluster.held()
    assert_disjoint({name: held[name] for name in ("node-2", "node-3")})
    cluster.remove_nodes("node-2")
    wait_for("the conflict is over", lambda: condition(cluster.netloom_node("node-1"), "Allocated")[0] == "True")
    cluster.check()


def test_who_waits_for_space_that_somebody_blocks_is_served_when_it_is_free(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/26"], ipv4MaskSize=27)
    operator = operators.start()
    cluster.add_nodes("node-1")
    wait_for("the first node has its CIDR", cluster.served)
    # By an object that is in conflict with the first node, so that no ledger knows of it.
    apply_netloom_node(cluster, "intruder", "10.70.0.0/26")
    wait_told(cluster, operator, "intruder", "PodCIDRConflict", "10.70.0.0/27", "node-1")
    cluster.add_nodes("node-2")
    wait_told(cluster, operator, "node-2", "ClusterPoolExhausted")
    cluster.plane.kubectl("delete", "nln", "intruder")
    wait_for("the second node has its CIDR", cluster.served)
    cluster.check()

    # By an object that is larger than any ledger.
    cluster.remove_nodes("node-2")
    wait_for("it has left", lambda: len(cluster.ledger()) == 1)
    apply_netloom_node(cluster, "giant", "10.0.0.0/8")
    wait_told(cluster, operator, "giant", "InvalidPodCIDR", "10.0.0.0/8 is too large")
    cluster.add_nodes("node-3")
    wait_told(cluster, operator, "node-3", "ClusterPoolExhausted")
    cluster.plane.kubectl("delete", "nln", "giant")
    wait_for("the third node has its CIDR", cluster.served)
    cluster.check()

    # By the address of a node.
    cluster.remove_nodes("node-3")
    wait_for("it has left", lambda: len(cluster.ledger()) == 1)
    cluster.client.request("PATCH", "/api/v1/nodes/node-1/status", addresses("10.70.0.40"))
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "ClusterCIDROverlapsNodes")
    cluster.add_nodes("node-4")
    wait_told(cluster, operator, "node-4", "ClusterPoolExhausted")
    cluster.client.request("PATCH", "/api/v1/nodes/node-1/status", addresses("192.0.2.4"))
    wait_for("the fourth node has its CIDR", cluster.served)
    cluster.check()
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[0] == "True")


def test_a_ledger_damaged_by_hand(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/23", "10.71.0.0/23"], ipv4MaskSize=24)
    operator = operators.start()
    cluster.add_nodes("node-1")
    wait_for("the first node has its CIDR", cluster.served)
    before = cluster.check()
    damage = '{"spec": {"entries": "10.70.0.0/24 somebody"}}'
    cluster.plane.kubectl("patch", "nlledger", "v4-10.70.0.0-16", "--type=merge", "--patch", damage)
    # Nothing is given out of it; other ranges serve.
    cluster.add_nodes("node-2", "node-3")
    wait_for("the others have their CIDRs", cluster.served)
    held = cluster.held()
    assert_disjoint(held)
    assert {str(held[name][0]) for name in ("node-2", "node-3")} == {"10.71.0.0/24", "10.71.1.0/24"}
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "LedgerUnreadable")
    assert "NetloomLedger v4-10.70.0.0-16" in condition(cluster.network(), "Ready")[2]
    wait_for("an Event", lambda: ("Warning", "LedgerUnreadable") in cluster.events("default"))
    wait_for("the metric says so", lambda: operator.metric("netloom_network_problems", reason="LedgerUnreadable") == 1)

    cluster.add_nodes("node-4")
    wait_told(cluster, operator, "node-4", "ClusterPoolExhausted")
    cluster.plane.kubectl("delete", "nlledger", "v4-10.70.0.0-16")
    wait_for("the fourth node has its CIDR", cluster.served)
    assert {name: cluster.check()[name] for name in before} == before
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[0] == "True")
