"""What no node may be given, and which Nodes are given nothing: real ServiceCIDRs, Pods and Nodes, a real operator."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from netloom_e2e.agents import Agents
from netloom_e2e.allocations import NETWORKS, Cluster, condition
from netloom_e2e.client import collection_path
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.operators import Operator, Operators

SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
PODS = "/api/v1/namespaces/default/pods"
NETWORK = f"{collection_path(NETWORKS)}/default"
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/netloom-operator"
LEFT_OUT = {"metadata": {"labels": {"netloom.dev/ignore": "true"}}}


@pytest.fixture
def agents(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with Lab(f"nlp{os.getpid() % 10000}") as lab, gateway(lab, cluster.plane.port):
        made = Agents(lab, cluster.plane, tmp_path_factory.mktemp("agents"), user="netloom-agent")
        try:
            yield made
        finally:
            made.stop()


def told(cluster: Cluster) -> tuple[str, str]:
    return condition(cluster.network(), "Ready")[:2]


def message(cluster: Cluster) -> str:
    return condition(cluster.network(), "Ready")[2]


def held(cluster: Cluster) -> dict[str, str]:
    return {name: " ".join(map(str, cidrs)) for name, cidrs in sorted(cluster.held().items())}


def run_pod(cluster: Cluster, name: str, node: str, address: str) -> None:
    """As scheduler and kubelet leave it."""
    spec: dict[str, Any] = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
    cluster.client.request("POST", PODS, {"metadata": {"name": name}, "spec": spec})
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    cluster.client.request("PATCH", f"{PODS}/{name}/status", {"status": status})


def end_pod(cluster: Cluster, name: str) -> None:
    cluster.client.request("DELETE", f"{PODS}/{name}?gracePeriodSeconds=0")


def test_blocks_of_the_service_cidr_are_passed_over(cluster: Cluster, operators: Operators) -> None:
    """The API server's own range is 10.96.0.0/12."""
    cluster.create_network(ipv4PodCIDRList=["10.95.255.0/24", "10.96.0.0/11"])
    operator = operators.start()
    wait_for("it is told at once", lambda: told(cluster) == ("True", "ClusterCIDROverlapsServices"))
    assert (
        "spec.ipam.clusterPool.ipv4PodCIDRList[1] 10.96.0.0/11: it overlaps 10.96.0.0/12 (ServiceCIDR kubernetes), "
        "from which Services get their addresses, so a pod could have the address of a Service. No block that overlaps "
        "is given to nodes. It can stay; where blocks run short, append a CIDR that overlaps no Services."
    ) in message(cluster)
    cluster.add_nodes("a", "b")
    wait_for("both have their CIDRs", cluster.served)
    assert sorted(held(cluster).values()) == ["10.112.0.0/24", "10.95.255.0/24"]
    wait_for("an Event says so", lambda: ("Warning", "ClusterCIDROverlapsServices") in cluster.events("default"))
    reserved = operator.metric("netloom_ipam_blocks", cidr="10.96.0.0/11", state="reserved")
    assert reserved == 4096

    # An administrator gives Services another range, in which a node has its block; and takes it back.
    holder = next(name for name, cidr in held(cluster).items() if cidr == "10.112.0.0/24")
    more = {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.112.0.0/16"]}}
    cluster.client.request("POST", SERVICE_CIDRS, more)
    try:
        wait_for("the holder is named", lambda: told(cluster) == ("False", "ClusterCIDROverlapsServices"))
        assert f"but {holder} holds 10.112.0.0/24, which stays as it is. Append" in message(cluster)
        assert "10.112.0.0/16 (ServiceCIDR more)" in message(cluster)
        cluster.add_nodes("c")
        wait_for("the third has its CIDR", cluster.served)
        assert held(cluster)["c"] == "10.113.0.0/24"
        assert held(cluster)[holder] == "10.112.0.0/24"
    finally:
        cluster.client.request("DELETE", f"{SERVICE_CIDRS}/more")
    wait_for("it is a warning again", lambda: told(cluster) == ("True", "ClusterCIDROverlapsServices"))
    cluster.check()


def test_without_service_cidrs_the_service_kubernetes_tells_what_is_known(
    cluster: Cluster, operators: Operators
) -> None:
    """As on an API server before 1.33; here the operator may not read them. It says so only if it knows nothing."""
    role = cluster.client.request("GET", ROLE)
    rules = [rule for rule in role["rules"] if rule["resources"] != ["servicecidrs"]]
    assert len(rules) == len(role["rules"]) - 1
    cluster.client.request("PATCH", ROLE, {"rules": rules})
    cluster.create_network(ipv4PodCIDRList=["10.96.0.0/22"])
    try:
        operators.start()
        wait_for("it is told", lambda: told(cluster) == ("True", "ClusterCIDROverlapsServices"), deadline=20)
        assert "it overlaps 10.96.0.1, the address of Service default/kubernetes (how large" in message(cluster)
        cluster.add_nodes("a")
        wait_for("it has its CIDR", cluster.served)
        assert held(cluster) == {"a": "10.96.1.0/24"}
    finally:
        cluster.client.request("PATCH", ROLE, {"rules": role["rules"]})


def test_nodes_that_are_none_of_ours(cluster: Cluster, operators: Operators) -> None:
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/22"])
    operator = operators.start()
    cluster.add_nodes("a", "b")
    wait_for("both have their CIDRs", cluster.served)
    wait_for("all is well", lambda: told(cluster) == ("True", "Accepted"))
    before = held(cluster)
    address = before["a"].replace("0/24", "9")

    # A virtual kubelet with the address of its pod, and one with none that leads anywhere: warned of, and harmless.
    cluster.add_node("vk", address=address)
    cluster.add_node("odd", address="127.0.0.1")
    _warns(cluster, operator, "2 nodes (odd, vk): status.addresses[0] 127.0.0.1: this is a loopback address")
    assert held(cluster) == before
    wait_for("they are counted", lambda: cluster.network()["status"]["ipam"].get("nodesLeftOut") == 2)
    cluster.client.request("PATCH", "/api/v1/nodes/odd", LEFT_OUT)
    _warns(
        cluster, operator, f"1 node (vk): status.addresses[0] {address}: it lies in {before['a']}, a node's pod CIDR"
    )
    cluster.client.request("PATCH", "/api/v1/nodes/vk", LEFT_OUT)
    wait_for("all is well", lambda: told(cluster) == ("True", "Accepted"), deadline=20)
    assert operator.metric("netloom_nodes_waiting") == 0
    assert held(cluster) == before

    # A living node is left out: it keeps what it has until its pods are gone.
    run_pod(cluster, "web", "a", address)
    cluster.client.request("PATCH", "/api/v1/nodes/a", LEFT_OUT)
    wait_for("it is told", lambda: told(cluster) == ("True", "LeftOutWithPods"))
    assert (
        f"its label netloom.dev/ignore=true takes it out of Netloom, and a pod lives in {before['a']} (default/web)"
        in (message(cluster))
    )
    assert held(cluster) == before
    end_pod(cluster, "web")
    cluster.client.request("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"touched": "now"}}})
    wait_for("it is let go", lambda: held(cluster) == {"b": before["b"]}, deadline=40)
    wait_for("its block is free", lambda: {entry.node for entry in cluster.ledger().values()} == {"b"})

    # It takes part again; a selector that chooses nobody takes nothing from nodes with pods.
    cluster.client.request("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"netloom.dev/ignore": None}}})
    wait_for("it has a CIDR again", lambda: cluster.held().get("a"))
    now = held(cluster)
    for name in "ab":
        run_pod(cluster, f"pod-{name}", name, now[name].replace("0/24", "7"))
    selector = {"matchLabels": {"rolle": "worker"}}
    cluster.client.request("PATCH", NETWORK, {"spec": {"nodeSelector": selector}})
    wait_for("it is told", lambda: told(cluster) == ("True", "LeftOutWithPods"))
    assert "spec.nodeSelector: it chooses none of the 4 Nodes." in message(cluster)
    assert held(cluster) == now
    cluster.client.request("PATCH", NETWORK, {"spec": {"nodeSelector": None}})
    wait_for("all is well", lambda: told(cluster) == ("True", "Accepted"), deadline=20)
    for name in "ab":
        end_pod(cluster, f"pod-{name}")
    assert held(cluster) == now
    assert operator.healthy()


def test_peers_drop_a_node_that_is_left_out(agents: Agents, cluster: Cluster, operators: Operators) -> None:
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operators.start()
    machines = [agents.lab.add_node(name) for name in ("n1", "n2")]
    for machine in machines:
        cluster.add_node(machine.node, address=machine.address)
    for number in (3, 4):
        cluster.add_node(f"n{number}", address=f"192.0.2.{number}")
    wait_for("all have their CIDRs", cluster.served)
    for machine in machines:
        agents.start(machine)
    agents.in_sync(*machines, peers=3)
    cidr = held(cluster)["n4"]
    cluster.client.request("PATCH", "/api/v1/nodes/n3", LEFT_OUT)
    wait_for("it is let go", lambda: "n3" not in cluster.held())
    agents.in_sync(*machines, peers=2)
    assert agents.condition("n1")["status"] == "True"

    # One leaves while an agent does not run: it finds ways of nobody, and knows that no NetloomNode is missing.
    wait_for("it is counted", lambda: cluster.network()["status"]["ipam"].get("nodesLeftOut") == 1)
    (n1, _) = machines
    agents.end("n1")
    cluster.remove_nodes("n4")
    wait_for("it has left", lambda: "n4" not in cluster.held())
    assert cidr in n1.ip("route")
    agents.start(n1)
    agents.in_sync(n1, peers=1)
    wait_for("its ways are gone", lambda: cidr not in n1.ip("route"), deadline=30)
    wait_for("all is well", lambda: agents.condition("n1")["status"] == "True", deadline=30)


def _warns(cluster: Cluster, operator: Operator, words: str) -> None:
    wait_for("it warns", lambda: words in message(cluster), deadline=20)
    assert told(cluster) == ("True", "NodeAddressUnusable")
    assert operator.metric("netloom_network_problems", reason="NodeAddressUnusable") == 1
