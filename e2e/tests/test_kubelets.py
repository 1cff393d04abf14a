"""Pods on a real cluster, kubelets and all, whose nodes Netloom joins: it runs as a DaemonSet, from its own image.

One cluster with both families for all tests, which are in order: they move it from one routing mode to the next.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e import kubelets, netloom_cluster, specs
from netloom_e2e.agents import NODES
from netloom_e2e.allocations import Cluster
from netloom_e2e.echo import Echo, ask
from netloom_e2e.everyone import HTTP, SERVICE, Everyone
from netloom_e2e.fixtures import built
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import OUTSIDE, OUTSIDE6
from netloom_e2e.mesh import TUNNEL, facts, holes, leading, tunnel_mtu

LARGEST = 100 * 1024 * 1024
"""Bytes of memory that an agent may have resident, the container's pause included."""
SPECS = ("intra-pod communication: http", "functioning NodePort service", "no conflict between pods with same hostPort")

MODES: dict[str, tuple[tuple[str, ...], str, dict[str, object]]] = {
    "hybrid": (("none", "vxlan:8472"), "eth0", {"mode": "hybrid"}),
    "native": (("none",), "eth0", {"mode": "native", "autoDirectNodeRoutes": True}),
    "tunnel": (("vxlan:8472",), TUNNEL, {"mode": "tunnel", "autoDirectNodeRoutes": False}),
}
"""Changes, in order, from tunnels on: the ways that nodes announce then, the device to other nodes, spec.routing."""

LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: n2}
  containers: [{name: pause, image: "${pause}", imagePullPolicy: Never}]
"""

SHORT = """
apiVersion: v1
kind: Pod
metadata: {name: short}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: pause, image: "${pause}", imagePullPolicy: Never}]
"""


@pytest.fixture(scope="module")
def bed() -> Iterator[KubeletCluster]:
    """One cluster for all tests of this module, with a host outside of it."""
    with built():
        kubelets.prepare()
        made = netloom_cluster.cluster(kubelets.prefix(), dual_stack=True, further=specs.images())
    with made as cluster:
        cluster.lab.add_outside()
        yield cluster


@pytest.fixture(scope="module")
def everyone(bed: KubeletCluster) -> Everyone:
    """A pod on each node, and Services."""
    return Everyone(bed)


@pytest.fixture(scope="module")
def departed() -> list[str]:
    """Addresses of a node that left, and of its CIDRs."""
    return []


def test_nodes_that_can_route_have_lost_their_taint(bed: KubeletCluster) -> None:
    def taints(node: str) -> list[str]:
        spec = bed.plane.client.request("GET", f"/api/v1/nodes/{node}")["spec"]
        return [taint["key"] for taint in spec.get("taints", ())]

    for node in bed.nodes:
        bed.wait(f"{node} to lose its taint", lambda node=node: netloom_cluster.NOT_READY not in taints(node))


def test_pods_have_an_address_of_each_family(everyone: Everyone) -> None:
    for pod in everyone.pods.values():
        assert (":" in pod.of(6), ":" in pod.of(4)) == (True, False)


def test_pods_of_different_nodes_reach_each_other(bed: KubeletCluster, everyone: Everyone) -> None:
    assert everyone.mtu == tunnel_mtu(bed.nodes["n1"].machine)
    assert [*everyone.between_pods()] == []


def test_a_service_answers_by_its_addresses_and_by_its_name(bed: KubeletCluster, everyone: Everyone) -> None:
    assert [*everyone.by_service()] == []
    for name in everyone.names.values():
        words = ("exec", name, "--", "wget", "-qO-", f"http://all.default.svc.cluster.local:{HTTP}/hostname")
        assert bed.plane.kubectl(*words).stdout in everyone.names.values()
    found = bed.plane.kubectl("exec", everyone.names["n1"], "--", "nslookup", "all.default.svc.cluster.local").stdout
    assert set(SERVICE.values()) <= set(re.findall(r"Address: (\S+)$", found, re.MULTILINE)), found


def test_services_answer_at_ports_of_nodes(everyone: Everyone) -> None:
    """NodePort, and hostPort by the plugin behind ours."""
    assert [*everyone.by_ports_of_nodes()] == []


def test_pods_and_those_in_nodes_own_network_reach_each_other(everyone: Everyone) -> None:
    assert [*everyone.with_host_network()] == []


def test_outside_a_pod_has_the_address_of_its_node(bed: KubeletCluster, everyone: Everyone, tmp_path: Path) -> None:
    with Echo(bed.lab.outside, tmp_path):
        for node, pod in everyone.pods.items():
            machine = bed.nodes[node].machine
            assert ask(pod, str(OUTSIDE[10])) == machine.address
            assert ask(pod, str(OUTSIDE6[10])) == machine.address6


def test_the_agents_have_no_more_rights_than_they_use(bed: KubeletCluster) -> None:
    """And miss none: a feature that lacks a right says so in its facts."""
    pods = bed.plane.client.request("GET", "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io/name")
    for node in bed.nodes.values():
        told = facts(node.machine)
        assert told["inSync"], told
    agents = [pod for pod in pods["items"] if pod["metadata"]["name"].startswith("netloom-agent")]
    assert len(agents) == len(bed.nodes)
    for agent in agents:
        (container,) = agent["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
        node = bed.nodes[agent["spec"]["nodeName"]]
        for pid in node.pod_processes(agent["metadata"]["uid"]):
            status = Path(f"/proc/{pid}/status").read_text()
            if "Name:\tpause" not in status:
                assert "CapBnd:\t0000000000001000\n" in status, status


def test_a_pods_device_that_somebody_deletes_is_made_anew(bed: KubeletCluster, everyone: Everyone) -> None:
    """With the rights of the DaemonSet, which enters no namespace."""
    machine, (near, far) = bed.nodes["n1"].machine, (everyone.pods["n1"], everyone.pods["n2"])
    found = machine.ip("route", "show", near.address)
    device = found.split(" dev ")[1].split()[0]
    machine.ip("link", "delete", device)
    bed.wait("the pod to be reached again", lambda: far.ping(near.address).lost == 0)
    assert [*everyone.between_pods()] == []
    assert facts(machine)["inSync"]


def test_an_agent_keeps_no_network_of_a_pod_that_is_gone(bed: KubeletCluster) -> None:
    """It sees the namespaces of its node: a mount of one in its container would keep that alive."""
    node = bed.nodes["n1"]
    every = bed.plane.client.request("GET", "/api/v1/namespaces/kube-system/pods")["items"]
    mine = [each for each in every if each["metadata"]["name"].startswith("netloom-agent")]
    (agent,) = [each["metadata"]["uid"] for each in mine if each["spec"]["nodeName"] == "n1"]

    def seen() -> set[str]:
        mounts = [Path(f"/proc/{pid}/mountinfo").read_text().splitlines() for pid in node.pod_processes(agent)]
        return {line.split()[4] for each in mounts for line in each if " - nsfs " in line}

    before = seen()
    assert before, "the pods of this node"
    bed.apply(SHORT)
    bed.wait("it to see the new one", lambda: len(seen() - before) == 1)
    (new,) = seen() - before
    bed.plane.kubectl("delete", "pod", "short", "--wait=false")
    bed.wait("it to see that one no more", lambda: new not in seen())


@pytest.mark.parametrize("mode", MODES)
def test_the_routing_changes_and_no_packet_is_lost(bed: KubeletCluster, everyone: Everyone, mode: str) -> None:
    ways, device, routing = MODES[mode]
    with everyone.flows() as flows:
        netloom_cluster.reroute(bed, ways, device, **routing)
        report = flows.stop()
    assert report.lossless, str(report)
    assert everyone.unreached() == []
    assert [facts(node.machine)["errors"] for node in bed.nodes.values()] == [[]] * len(bed.nodes)


def test_agents_are_replaced_and_no_packet_is_lost(bed: KubeletCluster, everyone: Everyone) -> None:
    nodes = list(bed.nodes.values())
    with everyone.flows() as flows:
        bed.plane.kubectl("rollout", "restart", "daemonset/netloom-agent", "--namespace=kube-system")
        bed.wait("new agents", lambda: netloom_cluster.agents_ready(nodes[0]) == len(nodes))
        report = flows.stop()
    assert report.lossless, str(report)
    for node in nodes:
        assert facts(node.machine)["netlinkWrites"] == 0, "who finds all as it should be writes nothing"


def test_a_node_joins_and_leaves(bed: KubeletCluster, everyone: Everyone, departed: list[str]) -> None:
    before = {node.machine: leading(node.machine) for node in bed.nodes.values()}
    staying = tuple(everyone.pods)
    with everyone.flows() as flows:
        joined = bed.add_node()
        bed.wait_ready()
        everyone.gather()
        report = flows.stop()
    assert report.lossless, str(report)
    assert everyone.unreached() == []
    cidrs = bed.plane.client.request("GET", f"{NODES}/{joined.name}")["spec"]["ipam"]["podCIDRs"]
    departed += [joined.machine.address, *(cidr.partition("/")[0] for cidr in cidrs)]
    with everyone.flows(*staying) as flows:
        bed.remove_node(joined.name)
        for machine, text in before.items():
            bed.wait(f"{machine.node} to be as before", lambda m=machine, t=text: leading(m) == t)  # type: ignore[misc]
            # Packets to its pods end here, and do not leave by the default route.
            assert {*cidrs} <= {*holes(machine)}
        report = flows.stop()
    assert report.lossless, str(report)
    ledger = Cluster(bed.plane).ledger
    bed.wait("its CIDRs to be free", lambda: {entry.node for entry in ledger().values()} == bed.nodes.keys())
    everyone.gather()


@pytest.mark.parametrize("program", ["kubelet", "containerd"])
def test_what_runs_pods_is_restarted_and_no_packet_is_lost(
    bed: KubeletCluster, everyone: Everyone, program: str
) -> None:
    """And pods that come afterwards have a network."""
    node = bed.nodes["n2"]
    before = containers(bed, everyone.names["n2"])
    with everyone.flows() as flows:
        node.kill(program)
        (node.start_kubelet if program == "kubelet" else node.start_containerd)()
        bed.apply(LATE)
        late = bed.pod("late")
        report = flows.stop()
    assert report.lossless, str(report)
    assert containers(bed, everyone.names["n2"]) == before
    for version in everyone.versions:
        assert late.ping(everyone.pods["n1"].of(version)).lost == 0
    bed.plane.kubectl("delete", "pod", "late")
    bed.wait("its interface to go", lambda: late.ip("link", "show", "eth0", check=False) == "")


def test_a_node_reboots(bed: KubeletCluster, everyone: Everyone) -> None:
    """Its pods come back with addresses of its own CIDR, and reach the others."""
    before = everyone.names["n3"]
    first = containers(bed, before)
    bed.reboot("n3")
    bed.wait("the pod to run again", lambda: containers(bed, before) != first)
    again = bed.pod(before)
    for pod in (everyone.pods["n1"], everyone.pods["n2"]):
        for version in everyone.versions:
            bed.wait("the way to it", lambda p=pod, v=version: p.ping(again.of(v)).received)  # type: ignore[misc]
            assert again.ping(pod.of(version)).lost == 0
    bed.wait_ready()


def test_kubernetes_finds_that_its_pods_are_connected(bed: KubeletCluster, tmp_path: Path) -> None:
    """A few of the specs of `make conformance`. One that there is not cannot pass."""
    all_of_them = specs.listed(specs.CONFORMANCE)
    chosen = [name for name in all_of_them if any(part in name for part in SPECS)]
    assert len(chosen) == len(SPECS)
    *outcomes, absent = specs.run(bed, [*chosen, "a spec of nobody"], tmp_path, seconds=240)
    for outcome in outcomes:
        assert outcome.passed, outcome
    assert absent.state == "not run"
    assert (tmp_path / "junit_01.xml").exists()


def test_nodes_know_nothing_more_of_one_that_left(bed: KubeletCluster, departed: list[str]) -> None:
    """Packets that it sent are let in for half a minute, of which the tests before this one have taken a part."""
    assert departed
    for node in (bed.nodes["n1"], bed.nodes["n2"]):
        for table in ("netloom", "netloom-tunnels"):
            words = ("nft", "list", "table", "inet", table)
            bed.wait(
                f"{node.name} to forget it in {table}",
                lambda n=node, w=words: not any(each in re.split(r"[\s,/]+", n.machine.run(*w)) for each in departed),  # type: ignore[misc]
            )


def test_agents_are_small(bed: KubeletCluster, everyone: Everyone) -> None:
    for name, size in memory(bed).items():
        print(name, size)
        assert size < LARGEST, f"{name} has {size} bytes resident"


def containers(bed: KubeletCluster, pod: str) -> list[str]:
    """Of a pod, by their ids."""
    status = bed.plane.client.request("GET", f"/api/v1/namespaces/default/pods/{pod}")["status"]
    return [each.get("containerID", "") for each in status["containerStatuses"]]


def memory(bed: KubeletCluster) -> dict[str, int]:
    """Resident bytes of each agent and operator."""
    found = {}
    for pod in bed.plane.client.request("GET", "/api/v1/namespaces/kube-system/pods")["items"]:
        name, node = pod["metadata"]["name"], bed.nodes.get(pod["spec"]["nodeName"])
        if name.startswith("netloom-") and node is not None:
            statuses = [Path(f"/proc/{pid}/status").read_text() for pid in node.pod_processes(pod["metadata"]["uid"])]
            found[name] = 1024 * sum(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) for status in statuses)
    return found
