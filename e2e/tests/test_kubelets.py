"""Pods on a real cluster, kubelets and all, whose nodes Netloom joins: it runs as a DaemonSet, from its own image."""

import itertools
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e import kubelets, netloom_cluster, specs
from netloom_e2e.binaries import BinariesError
from netloom_e2e.echo import Echo, ask
from netloom_e2e.flow import Flows
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import OUTSIDE, Pod
from netloom_e2e.mesh import facts, tunnel_mtu

ICMP_HEADERS = 28
LARGEST = 100 * 1024 * 1024
"""Bytes of memory that an agent may have resident, the container's pause included."""
SERVICE = "10.96.0.80"
HTTP, UDP = 80, 81
SPECS = ("intra-pod communication: http", "functioning NodePort service", "no conflict between pods with same hostPort")

PODS = f"""
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: all}}
spec:
  selector: {{matchLabels: {{app: all}}}}
  template:
    metadata: {{labels: {{app: all}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: agnhost
          image: ${{agnhost}}
          imagePullPolicy: Never
          args: [netexec, --http-port={HTTP}, --udp-port={UDP}]
---
apiVersion: v1
kind: Service
metadata: {{name: all}}
spec:
  clusterIP: {SERVICE}
  selector: {{app: all}}
  ports:
    - {{name: http, port: {HTTP}}}
    - {{name: udp, port: {UDP}, protocol: UDP}}
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
    try:
        kubelets.prepare()
        made = netloom_cluster.cluster(kubelets.prefix(), further=specs.images())
    except BinariesError as error:
        pytest.fail(str(error), pytrace=False)
    with made as cluster:
        cluster.lab.add_outside()
        yield cluster


@pytest.fixture(scope="module")
def pods(bed: KubeletCluster) -> dict[str, Pod]:
    """One on each node, by the node's name."""
    bed.apply(PODS)

    def names() -> dict[str, str]:
        found = bed.plane.client.request("GET", "/api/v1/namespaces/default/pods?labelSelector=app=all")["items"]
        return {pod["spec"].get("nodeName", ""): pod["metadata"]["name"] for pod in found}

    bed.wait("a pod on each node", lambda: names().keys() == bed.nodes.keys())
    found = {node: bed.pod(name) for node, name in names().items()}
    # kube-proxy hears of a pod that is Ready later than the kubelet says so.
    for pod in found.values():
        bed.wait(
            "the Service to answer", lambda pod=pod: pod.run("curl", "-s", f"http://{SERVICE}:{HTTP}", check=False)
        )
    return found


def heard(pod: Pod, address: str) -> set[str]:
    """The host name of who answers a pod at an address, by TCP and by UDP."""
    by_tcp = pod.run("curl", "-sS", "--max-time", "5", f"http://{address}:{HTTP}/hostname")
    with pod.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(5)
        client.sendto(b"hostname", (address, UDP))
        return {by_tcp, client.recv(1000).decode()}


def host_name(bed: KubeletCluster, pod: Pod) -> str:
    return pod.name.split("-default-")[1]


def test_nodes_that_can_route_have_lost_their_taint(bed: KubeletCluster) -> None:
    def taints(node: str) -> list[str]:
        spec = bed.plane.client.request("GET", f"/api/v1/nodes/{node}")["spec"]
        return [taint["key"] for taint in spec.get("taints", ())]

    for node in bed.nodes:
        bed.wait(f"{node} to lose its taint", lambda node=node: netloom_cluster.NOT_READY not in taints(node))


def test_pods_of_different_nodes_reach_each_other(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    mtu = tunnel_mtu(bed.nodes["n1"].machine)
    for source, target in itertools.permutations(pods.values(), 2):
        ping = source.ping(target.address, payload=mtu - ICMP_HEADERS)
        assert ping.lost == 0, f"{source.name} -> {target.name}: packets of {mtu} bytes with DF"
        assert heard(source, target.address) == {host_name(bed, target)}


def test_a_service_answers_by_its_address_and_by_its_name(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    everyone = {host_name(bed, pod) for pod in pods.values()}
    for pod in pods.values():
        assert heard(pod, SERVICE) <= everyone
        by_name = [
            "exec",
            host_name(bed, pod),
            "--",
            "wget",
            "-qO-",
            f"http://all.default.svc.cluster.local:{HTTP}/hostname",
        ]
        assert bed.plane.kubectl(*by_name).stdout in everyone


def test_outside_a_pod_has_the_address_of_its_node(bed: KubeletCluster, pods: dict[str, Pod], tmp_path: Path) -> None:
    with Echo(bed.lab.outside, tmp_path):
        for node, pod in pods.items():
            assert ask(pod, str(OUTSIDE[10])) == bed.nodes[node].machine.address


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


def test_a_pods_device_that_somebody_deletes_is_made_anew(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    """With the rights of the DaemonSet, which enters no namespace."""
    machine, (near, far) = bed.nodes["n1"].machine, (pods["n1"], pods["n2"])
    found = machine.ip("route", "show", near.address)
    device = found.split(" dev ")[1].split()[0]
    machine.ip("link", "delete", device)
    bed.wait("the pod to be reached again", lambda: far.ping(near.address).lost == 0)
    assert heard(near, far.address) == {host_name(bed, far)}
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


def test_agents_are_replaced_and_no_packet_is_lost(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    nodes = list(bed.nodes.values())
    with Flows(pods) as flows:
        bed.plane.kubectl("rollout", "restart", "daemonset/netloom-agent", "--namespace=kube-system")
        bed.wait("new agents", lambda: netloom_cluster.agents_ready(nodes[0]) == len(nodes))
        report = flows.stop()
    assert report.lossless, str(report)
    for node in nodes:
        assert facts(node.machine)["netlinkWrites"] == 0, "who finds all as it should be writes nothing"


def test_a_node_reboots(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    """Its pods come back with addresses of its own CIDR, and reach the others."""
    before = host_name(bed, pods["n3"])
    path = f"/api/v1/namespaces/default/pods/{before}"

    def containers() -> list[str]:
        status = bed.plane.client.request("GET", path)["status"]
        return [each.get("containerID", "") for each in status["containerStatuses"]]

    first = containers()
    bed.reboot("n3")
    bed.wait("the pod to run again", lambda: containers() != first)
    again = bed.pod(before)
    for pod in (pods["n1"], pods["n2"]):
        bed.wait("the way to it", lambda pod=pod: pod.ping(again.address).received)
        assert again.ping(pod.address).lost == 0
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


def test_agents_are_small(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    for name, size in memory(bed).items():
        print(name, size)
        assert size < LARGEST, f"{name} has {size} bytes resident"


def memory(bed: KubeletCluster) -> dict[str, int]:
    """Resident bytes of each agent and operator."""
    found = {}
    for pod in bed.plane.client.request("GET", "/api/v1/namespaces/kube-system/pods")["items"]:
        name, node = pod["metadata"]["name"], bed.nodes[pod["spec"]["nodeName"]]
        if name.startswith("netloom-"):
            statuses = [Path(f"/proc/{pid}/status").read_text() for pid in node.pod_processes(pod["metadata"]["uid"])]
            found[name] = 1024 * sum(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) for status in statuses)
    return found
