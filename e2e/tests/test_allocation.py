"""Pod CIDRs for nodes: real operator processes on a real API server, with the rights that they have in production."""

import ipaddress
import json

import pytest

from netloom_e2e import gauges
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.cluster import ControlPlane, KubectlError
from netloom_e2e.components import ControllerManager
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operators

BLOCKS = "netloom_ipam_blocks"


@pytest.fixture
def plane(crds_installed: ControlPlane) -> ControlPlane:
    return crds_installed


def names(count: int, prefix: str = "node") -> list[str]:
    return [f"{prefix}-{number}" for number in range(1, count + 1)]


def lines(held: dict[str, tuple[object, ...]]) -> dict[str, str]:
    """What each node holds, to be compared at a glance."""
    return {name: " ".join(map(str, cidrs)) for name, cidrs in sorted(held.items())}


def writes_of_netloom_nodes(cluster: Cluster) -> dict[str, int]:
    """By verb, as the API server counted them since it started; of all outcomes."""
    counts: dict[str, int] = {}
    for write, count in gauges.writes(cluster.client).items():
        if write.resource.startswith("netloomnodes"):
            counts[write.verb] = counts.get(write.verb, 0) + count
    return counts


def test_every_node_gets_its_cidr_in_the_first_write(cluster: Cluster, operators: Operators):
    before = writes_of_netloom_nodes(cluster)
    cluster.create_network(ipv4PodCIDRList=["10.244.0.0/16"])
    cluster.add_nodes(*names(20))
    operator = operators.start()
    wait_for("all nodes have CIDRs", cluster.served)

    held = cluster.check()
    assert sorted(held.values()) == [(ipaddress.ip_network(f"10.244.{block}.0/24"),) for block in range(20)]
    wait_for("the network is accepted", lambda: condition(cluster.network(), "Ready")[0] == "True")
    after = writes_of_netloom_nodes(cluster)
    assert {verb: after[verb] - before.get(verb, 0) for verb in after if after[verb] != before.get(verb, 0)} == {
        "POST": 20
    }
    node = cluster.client.request("GET", "/api/v1/nodes/node-7")
    obj = cluster.netloom_node("node-7")
    assert obj["metadata"]["generation"] == 1
    assert obj["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "node-7", "uid": node["metadata"]["uid"]}
    ]
    assert obj["spec"]["ipam"]["mode"] == "cluster-pool"
    assert obj["spec"]["addresses"] == [{"type": "InternalIP", "ip": cluster.address_of("node-7")}]
    wait_for(
        "the metric says so",
        lambda: operator.metric(BLOCKS, cidr="10.244.0.0/16", state="allocated") == 20,
    )

    # The node moves; its CIDR stays.
    moved = [{"type": "InternalIP", "address": "192.0.2.77"}, {"type": "ExternalIP", "address": "203.0.113.7"}]
    cluster.client.request("PATCH", "/api/v1/nodes/node-7/status", {"status": {"addresses": moved}})
    wait_for(
        "the addresses are followed",
        lambda: (
            [each["ip"] for each in cluster.netloom_node("node-7")["spec"]["addresses"]]
            == ["192.0.2.77", "203.0.113.7"]
        ),
    )
    assert cluster.check() == held

    # Others join, one after the other; what is left is counted. (The first two may be counted with what was before.)
    for number in (21, 22, 23):
        cluster.add_nodes(f"node-{number}")
        wait_for("the newcomer has its CIDR", cluster.served)
        left = 256 - number
        wait_for("the metric says so", lambda left=left: operator.metric(BLOCKS, state="free") == left)


def test_dual_stack_over_several_cluster_cidrs(cluster: Cluster, operators: Operators):
    cluster.create_network(
        ipv4PodCIDRList=["10.10.0.0/23", "10.89.8.0/22"],
        ipv4MaskSize=24,
        ipv6PodCIDRList=["fd00:10::/63", "fd00:99::/62"],
        ipv6MaskSize=64,
    )
    operators.start()
    cluster.add_nodes(*names(5))
    wait_for("all nodes have CIDRs", cluster.served)
    assert set(lines(cluster.check()).values()) == {
        "10.10.0.0/24 fd00:10::/64",
        "10.10.1.0/24 fd00:10:0:1::/64",
        "10.89.8.0/24 fd00:99::/64",
        "10.89.9.0/24 fd00:99:0:1::/64",
        "10.89.10.0/24 fd00:99:0:2::/64",
    }


def test_kube_controller_manager_gives_the_cidrs(cluster: Cluster, operators: Operators, plane: ControlPlane):
    cluster.create_network("kubernetes")
    operators.start()
    settings = ControllerManager(("10.200.0.0/16", "fd00:200::/56"), controllers=("node-ipam-controller",))
    cluster.add_nodes(*names(3, "early"))
    plane.start_controller_manager(settings)
    try:
        cluster.add_nodes(*names(3, "late"))
        wait_for("all nodes have CIDRs", cluster.served, deadline=30)
    finally:
        plane.stop_controller_manager()
    dictated = {node["metadata"]["name"]: node["spec"]["podCIDRs"] for node in cluster.list("nodes")}
    assert {name: [str(cidr) for cidr in cidrs] for name, cidrs in cluster.check().items()} == dictated
    assert all(len(cidrs) == 2 for cidrs in dictated.values())
    assert {obj["spec"]["ipam"]["mode"] for obj in map(cluster.netloom_node, dictated)} == {"kubernetes"}


def test_exhaustion_is_told_and_ends_with_more_space(cluster: Cluster, operators: Operators, plane: ControlPlane):
    cluster.create_network(ipv4PodCIDRList=["10.20.0.0/26"], ipv4MaskSize=27)
    operator = operators.start()
    cluster.add_nodes(*names(2))
    wait_for("two nodes have CIDRs", cluster.served)
    cluster.add_nodes("node-3", "node-4")

    def told(name: str) -> bool:
        status, reason, _ = condition(cluster.netloom_node(name), "Allocated")
        return (status, reason) == ("False", "ClusterPoolExhausted")

    wait_for("two nodes say that they wait", lambda: told("node-3") and told("node-4"))
    wait_for("the network names both", lambda: "2 nodes (node-3, node-4)" in condition(cluster.network(), "Ready")[2])
    assert condition(cluster.network(), "Ready") == (
        "False",
        "ClusterPoolExhausted",
        "2 nodes (node-3, node-4) without a pod CIDR: all 2 IPv4 blocks (/27) of 10.20.0.0/26 are in use. "
        "Append a CIDR to spec.ipam.clusterPool.ipv4PodCIDRList, or remove nodes.",
    )
    for name in ("default", "node-3", "node-4"):
        wait_for("an Event", lambda name=name: ("Warning", "ClusterPoolExhausted") in cluster.events(name))
    wait_for("the metric says so", lambda: operator.metric("netloom_nodes_waiting", reason="ClusterPoolExhausted") == 2)
    wait_for(
        "the metric says so", lambda: operator.metric("netloom_network_problems", reason="ClusterPoolExhausted") == 1
    )
    wait_for("the metric says so", lambda: operator.metric(BLOCKS, cidr="10.20.0.0/26", state="free") == 0)

    # A node leaves: its block is given to one that waits.
    left = cluster.held()["node-1"]
    cluster.remove_nodes("node-1")
    wait_for("the block is given again", lambda: left in cluster.held().values() and "node-1" not in cluster.held())
    lucky = next(name for name, cidrs in cluster.held().items() if cidrs == left)
    assert lucky in ("node-3", "node-4")

    # Space is appended: the other one gets some, and all complaints are taken back, by the same process.
    pool = '{"spec": {"ipam": {"clusterPool": {"ipv4PodCIDRList": ["10.20.0.0/26", "10.30.0.0/26"]}}}}'
    plane.kubectl("patch", "nlnet", "default", "--type=merge", "--patch", pool)
    wait_for("all nodes have CIDRs", cluster.served)
    held = cluster.check()
    assert sum(cidr.subnet_of(ipaddress.ip_network("10.30.0.0/26")) for (cidr,) in held.values()) == 1  # type: ignore
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[:2] == ("True", "Accepted"))
    for name in ("node-3", "node-4"):
        wait_for("the node is well", lambda name=name: condition(cluster.netloom_node(name), "Allocated")[0] == "True")
    wait_for("the metric says so", lambda: operator.metric("netloom_nodes_waiting") == 0)


def test_a_cluster_cidr_in_use_is_made_larger(cluster: Cluster, operators: Operators, plane: ControlPlane):
    cluster.create_network(
        ipv4PodCIDRList=["10.70.0.0/24"], ipv4MaskSize=26, ipv6PodCIDRList=["fd00:70:0:1::/64"], ipv6MaskSize=66
    )
    operator = operators.start()
    cluster.add_nodes(*names(2, "old"))
    wait_for("the first nodes have CIDRs", cluster.served)
    before = cluster.check()
    assert lines(before) == {"old-1": "10.70.0.0/26 fd00:70:0:1::/66", "old-2": "10.70.0.64/26 fd00:70:0:1:4000::/66"}

    # More nodes than fit; then the CIDRs of both families are replaced by larger ones.
    cluster.add_nodes(*names(4, "new"))
    wait_for("it is told", lambda: condition(cluster.network(), "Ready")[1] == "ClusterPoolExhausted")
    pool = {"ipv4PodCIDRList": ["10.70.0.0/16"], "ipv6PodCIDRList": ["fd00:70::/56"]}
    plane.kubectl("patch", "nlnet", "default", "--type=merge", "--patch", spec_of(pool))
    wait_for("all nodes have CIDRs", cluster.served)
    wait_for("the network is well", lambda: condition(cluster.network(), "Ready")[0] == "True")
    held = cluster.check()
    assert {name: held[name] for name in before} == before
    assert len(held) == 6
    wait_for("the metric says so", lambda: operator.metric(BLOCKS, cidr="10.70.0.0/16", state="allocated") == 6)
    wait_for("the metric says so", lambda: operator.metric(BLOCKS, cidr="fd00:70::/56", state="allocated") == 6)

    # Once more, beyond the ranges of the ledgers (an IPv4 /16, an IPv6 /56); a successor gives what a node left.
    pool = {"ipv4PodCIDRList": ["10.64.0.0/12"], "ipv6PodCIDRList": ["fd00:70::/48"]}
    plane.kubectl("patch", "nlnet", "default", "--type=merge", "--patch", spec_of(pool))
    operator.stop()
    operators.start()
    cluster.remove_nodes("old-1")
    cluster.add_nodes(*names(4, "last"))
    wait_for("all nodes have CIDRs", cluster.served, deadline=30)
    left = ipaddress.ip_network("10.70.0.0/26")
    wait_for("the block that was left came back", lambda: left not in cluster.ledger(), deadline=30)
    last = cluster.check()
    assert {name: last[name] for name in held if name != "old-1"} == {
        name: cidrs for name, cidrs in held.items() if name != "old-1"
    }
    ledgers = {
        obj["metadata"]["name"]: obj["spec"]["used"] for obj in cluster.list("netloomledgers.v1alpha1.netloom.dev")
    }
    assert ledgers == {"v4-10.64.0.0-16": 4, "v4-10.70.0.0-16": 5, "v6-fd00-70-0-0-56": 9}
    listed = cluster.network()["status"]["ipam"]["ledgers"]
    assert sorted(listed) == sorted(ledgers)


def test_a_cluster_cidr_is_removed_of_which_nothing_was_given(
    cluster: Cluster, operators: Operators, plane: ControlPlane
):
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/23", "10.89.0.0/16"])
    operators.start()
    cluster.add_nodes(*names(2))
    wait_for("two nodes have CIDRs", cluster.served)
    patch = ("patch", "nlnet", "default", "--type=merge", "--patch")
    plane.kubectl(*patch, spec_of({"ipv4PodCIDRList": ["10.70.0.0/23", "10.88.0.0/16"]}))
    cluster.add_nodes("node-3")
    wait_for("all nodes have CIDRs", cluster.served)
    assert lines(cluster.check())["node-3"] == "10.88.0.0/24"
    ipam = cluster.network()["status"]["ipam"]
    assert (ipam["ledgers"], ipam["ledgerRanges"]) == (
        ["v4-10.70.0.0-16", "v4-10.88.0.0-16"],
        ["10.70.0.0/16", "10.88.0.0/16"],
    )
    wait_for("it is told who", lambda: cluster.network()["status"]["ipam"].get("inUse", "").startswith("3 nodes"))
    with pytest.raises(KubectlError, match=r"10\.88\.0\.0/16 cannot be removed or made smaller while 3 nodes hold"):
        plane.kubectl(*patch, spec_of({"ipv4PodCIDRList": ["10.70.0.0/23"]}))


def spec_of(pool: dict[str, list[str]]) -> str:
    return json.dumps({"spec": {"ipam": {"clusterPool": pool}}})
