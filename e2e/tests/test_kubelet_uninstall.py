"""Helm takes Netloom away from a real cluster, and so does a manifest where its namespace is being deleted: machines
are as they were before it came, and the API server holds what it held. So it is with the guard alone, beside Cilium.

Agents have the right to drop packets, and do: what a prefilter left in the kernel goes as well.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from netloom.uninstall.steps import OWN_NAMESPACE
from netloom.webhook.names import NAME
from netloom_e2e import binaries, crds, kubelets
from netloom_e2e.api_objects import mentioning, objects
from netloom_e2e.chart_sources import EXAMPLES
from netloom_e2e.client import ApiFailure, collection_path
from netloom_e2e.fixtures import built
from netloom_e2e.guard import CILIUM_KINDS, install_cilium, uninstall_cilium
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import Namespace, Pod
from netloom_e2e.machine_state import state
from netloom_e2e.netloom_cluster import Release
from netloom_e2e.netloom_image import netloom
from netloom_e2e.pod_networks import Bridge

NAMESPACE = "netloom-system"
POD = """---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: pause, image: "${{pause}}", imagePullPolicy: Never}}]
"""
PREFILTER = """
apiVersion: netloom.dev/v1alpha1
kind: NetloomPrefilter
metadata: {name: strangers}
spec:
  denyCIDRs: [198.51.100.0/24]
  allowCIDRs: [198.51.100.8/32]
"""
STRANGER, PARTNER = "198.51.100.7", "198.51.100.8"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
OF_THE_CLUSTER = re.compile(r"coredns|kube-dns|^(Pod|ControllerRevision)/default/")
LEFT = re.compile(r"((?:net\.\S+=\d+(?:, )?)+): left as the agent set it")
IMPLIED = {"net.ipv4.ip_forward=1": "net.ipv4.conf.", "net.ipv6.conf.all.forwarding=1": "net.ipv6.conf."}
"""Switches that switch forwarding of all devices, and those whose names begin so with them; IPv4's redirects, too."""


@dataclass
class Recorded:
    """A release, how all was before, and what was told of what stays."""

    release: Release
    told: str = ""
    before: dict[str, list[str]] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    @property
    def taints(self) -> Sequence[str]:
        return self.release.taints

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        plane = nodes[0].plane
        crds.install(plane)
        self.objects = objects(plane)
        plane.kubectl("create", "namespace", NAMESPACE)
        self.before = {node.name: state(node) for node in nodes}
        self.release.install(nodes)


@pytest.fixture(scope="module")
def bed() -> Iterator[KubeletCluster]:
    with built():
        kubelets.prepare()
        image = netloom()
        binaries.helm()
    network = Recorded(Release(image, {"agent": {"prefilter": True}}, namespace=NAMESPACE))
    with KubeletCluster(kubelets.prefix(), nodes=2, network=network, further=[image], dual_stack=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def network(bed: KubeletCluster) -> Recorded:
    assert isinstance(bed.network, Recorded)
    return bed.network


@pytest.fixture(scope="module")
def first_pods(bed: KubeletCluster) -> list[Pod]:
    return pods(bed, "a", "b")


def pods(bed: KubeletCluster, *names: str) -> list[Pod]:
    """One per node, by these names."""
    placed = dict(zip(names, bed.nodes, strict=True))
    bed.apply("".join(POD.format(name=name, node=node) for name, node in placed.items()))
    return [bed.pod(name) for name in names]


def reach_each_other(one: Pod, other: Pod) -> bool:
    return not any(near.ping(far.of(version)).lost for near, far in ((one, other), (other, one)) for version in (4, 6))


def left(bed: KubeletCluster, network: Recorded) -> str:
    """By node: what is there that was not, or the other way round, but for switches that were told of."""
    switches = {each for found in LEFT.findall(network.told) for each in found.split(", ")}

    def is_told(line: str) -> bool:
        name, _, value = line.removeprefix("sysctl ").partition(" = ")
        implied = tuple(IMPLIED[each] for each in switches & IMPLIED.keys())
        return f"{name}={value}" in switches or (
            name.startswith(implied) and name.endswith(("forwarding", ".accept_redirects"))
        )

    found = []
    for name, node in bed.nodes.items():
        now, before = set(state(node)), set(network.before[name])
        found += [f"{name} + {each}" for each in sorted(now - before) if not is_told(each)]
        changed = {each.partition(" = ")[0] for each in now - before if is_told(each)}
        found += [f"{name} - {each}" for each in sorted(before - now) if each.partition(" = ")[0] not in changed]
    return "\n".join(found)


def new_objects(bed: KubeletCluster, network: Recorded) -> set[str]:
    services = bed.plane.client.request("GET", "/api/v1/services")["items"]
    addresses = {f"IPAddress//{each}" for service in services for each in service["spec"]["clusterIPs"]}
    changed = objects(bed.plane) ^ network.objects
    return {each for each in changed - addresses if not OF_THE_CLUSTER.search(each)}


def still_told(bed: KubeletCluster) -> set[str]:
    """Objects of others that say anything of Netloom: a Node's taint, say. The namespace was made for it."""
    ours = ("CustomResourceDefinition/", f"Namespace//{NAMESPACE}")
    return {
        each for each in mentioning(bed.plane, "netloom") if not each.startswith(ours) and f"/{NAMESPACE}/" not in each
    }


@contextmanager
def strangers(bed: KubeletCluster) -> Iterator[Namespace]:
    """A host on the nodes' network that has a stranger's address and a partner's, which nodes answer."""
    switch = bed.lab.switch
    machines = [node.machine for node in bed.nodes.values()]
    for address in (STRANGER, PARTNER):
        switch.ip("address", "add", f"{address}/32", "dev", "lo")
    for machine in machines:
        machine.ip("route", "add", "198.51.100.0/24", "via", bed.lab.address)
    try:
        yield switch
    finally:
        for machine in machines:
            machine.ip("route", "delete", "198.51.100.0/24")
        for address in (STRANGER, PARTNER):
            switch.ip("address", "delete", f"{address}/32", "dev", "lo")


def status_of(bed: KubeletCluster, path: str) -> dict[str, Any]:
    """What an object of ours says; of a prefilter also before anybody has said anything."""
    found = bed.plane.client.request("GET", f"/apis/netloom.dev/v1alpha1/{path}").get("status", {})
    return {"nodes": {"active": 0}} | found


@pytest.mark.timeout(600)
def test_a_prefilter_drops_what_comes_from_outside_and_nothing_of_pods(
    bed: KubeletCluster, first_pods: list[Pod]
) -> None:
    """With the rights that the chart gives for it: BPF, NET_ADMIN and PERFMON, and the nodes' bpffs."""
    addresses = [node.machine.underlay[0] for node in bed.nodes.values()]
    with strangers(bed) as outside:

        def answers(source: str) -> list[bool]:
            words = ("ping", "-n", "-q", "-c", "1", "-W", "1", "-I", source)
            return ["1 received" in outside.run(*words, each, check=False) for each in addresses]

        assert answers(STRANGER) == answers(PARTNER) == [True, True]
        assert reach_each_other(*first_pods)
        bed.plane.kubectl("apply", "--filename=-", input=PREFILTER)
        bed.wait("both nodes to run it", lambda: status_of(bed, "netloomprefilters/strangers")["nodes"]["active"] == 2)
        assert answers(STRANGER) == [False, False]
        assert answers(PARTNER) == [True, True]
        assert reach_each_other(*first_pods)
    for name in bed.nodes:
        said = status_of(bed, f"netloomnodes/{name}")
        assert [(each["name"], each["mode"]) for each in said["prefilter"]["devices"]] == [("eth0", "native")]
        (filtering,) = said["prefilter"]["filters"]
        assert (filtering["name"], filtering["ipv4Entries"], filtering.get("error", "")) == ("strangers", 2, "")
        conditions = {each["type"]: each["status"] for each in said["conditions"]}
        assert (conditions["PrefilterReady"], conditions["DataplaneReady"]) == ("True", "True")
    (ready,) = [each for each in status_of(bed, "netloomprefilters/strangers")["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "Active")


@pytest.mark.timeout(600)
def test_helm_uninstall_leaves_nothing_while_nobody_reaches_the_guard(
    bed: KubeletCluster, network: Recorded, first_pods: list[Pod]
) -> None:
    """Whose pods run on, as operators do that could write anew what was deleted."""
    assert reach_each_other(*first_pods)
    bed.plane.kubectl("delete", "service", NAME, f"--namespace={NAMESPACE}")
    written = (
        "patch",
        "netloomnetwork",
        "default",
        "--type=merge",
        '--patch={"spec":{"mtu":1400}}',
        "--dry-run=server",
    )
    bed.wait(
        "writes to be refused", lambda: "failed calling webhook" in bed.plane.kubectl(*written, check=False).stderr
    )

    done = bed.plane.helm("uninstall", "netloom", f"--namespace={NAMESPACE}", timeout=300)

    told = f"{done.stdout}{done.stderr}"
    network.told += told
    assert left(bed, network) == "", told
    assert new_objects(bed, network) == {f"Namespace//{NAMESPACE}"} | {
        each for each in objects(bed.plane) if each.endswith(("/default", "/kube-root-ca.crt")) and NAMESPACE in each
    }
    assert still_told(bed) == set()
    assert "pods have addresses of the pod network (default/a, default/b" in told
    assert [name for name in bed.nodes if f"{name}: clean." not in told] == []


@pytest.mark.timeout(600)
def test_another_install_works_and_takes_pods_of_before_down(bed: KubeletCluster, network: Recorded) -> None:
    bed.plane.kubectl("delete", "pod", "a", "b", "--wait=false")
    network.release.install(list(bed.nodes.values()))
    assert reach_each_other(*pods(bed, "c", "d"))
    for name in ("a", "b"):
        bed.wait(f"pod {name} to be gone", lambda name=name: not exists(bed, f"/api/v1/namespaces/default/pods/{name}"))


@pytest.mark.timeout(600)
def test_a_manifest_leaves_nothing_where_the_namespace_is_being_deleted(bed: KubeletCluster, network: Recorded) -> None:
    plane = bed.plane
    plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    manifest = (EXAMPLES / "uninstall.yaml").read_text().replace("netloom:latest", network.release.image.name)
    bed.apply(manifest)
    job = f"/apis/batch/v1/namespaces/{OWN_NAMESPACE}/jobs/netloom-uninstall"
    status = ("succeeded", "failed")
    bed.wait("the Job to end", lambda: plane.client.request("GET", job)["status"].keys() & {*status}, deadline=240)

    told = plane.kubectl("logs", "job/netloom-uninstall", f"--namespace={OWN_NAMESPACE}").stdout
    network.told += told
    assert told.splitlines()[-1].startswith("Done."), told
    plane.kubectl("delete", "--filename=-", input=manifest, timeout=120)
    # Its controller waits ever longer between two looks, up to a minute.
    path = f"/api/v1/namespaces/{NAMESPACE}"
    bed.wait("the namespace to be gone", lambda: not exists(bed, path), deadline=180)
    assert left(bed, network) == "", told
    assert new_objects(bed, network) == set()
    assert still_told(bed) == set()
    plane.kubectl("delete", "--filename", crds.FOLDER, timeout=60)


class Cilium:
    """What it keeps in a cluster, and how its parts write that; another plugin stands for its data path."""

    def __init__(self, bed: KubeletCluster) -> None:
        self.plane = bed.plane
        Bridge(routes=False).install([*bed.nodes.values()])
        # Pods whose network went with Netloom's: none is left that would come and go meanwhile.
        bed.plane.kubectl("delete", "pods", "--all", timeout=120)
        bed.plane.kubectl(
            "delete", "deployment/coredns", "--namespace=kube-system", "--cascade=foreground", timeout=120
        )
        install_cilium(bed.plane)
        config = {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8", "debug": "false"}
        bed.plane.client.request("POST", CONFIG_MAPS, {"metadata": {"name": "cilium-config"}, "data": config})
        bed.wait_nodes_ready()

    def write(self, part: str, *words: str, input: str | None = None) -> str:
        """As the account of `cilium` or `cilium-operator`, or as an administrator: "". What is said of a refusal."""
        account = f"--as=system:serviceaccount:kube-system:{part}"
        who = (account, "--as-group=system:masters", "--as-group=system:serviceaccounts:kube-system") if part else ()
        return self.plane.kubectl(*words, *who, input=input, check=False).stderr

    def joins(self, node: str, cidr: str) -> None:
        """The agent makes the object of its node, and the operator gives it a CIDR; both go on to write there."""
        made = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": node}, "spec": {}}
        assert self.write("cilium", "create", "--filename=-", input=json.dumps(made)) == ""
        assert (
            self.write("cilium-operator", *patch(f"ciliumnode/{node}", {"spec": {"ipam": {"podCIDRs": [cidr]}}})) == ""
        )

    def changes_mode(self, *options: str) -> str:
        return self.write("", *patch("configmap/cilium-config", {"data": {"ipam": "kubernetes"}}), *options)


def patch(what: str, change: object) -> tuple[str, ...]:
    return ("patch", what, "--namespace=kube-system", "--type=merge", f"--patch={json.dumps(change)}")


@pytest.mark.timeout(600)
def test_the_guard_alone_beside_cilium(bed: KubeletCluster, network: Recorded) -> None:
    plane, cilium = bed.plane, Cilium(bed)
    for number, node in enumerate(bed.nodes):
        cilium.joins(node, f"10.0.{number}.0/24")
    before = {name: state(node) for name, node in bed.nodes.items()}, objects(plane)
    guard = Release(network.release.image, {"agent": {"enabled": False}}, namespace=NAMESPACE)

    guard.put(plane, "install", {}, "--create-namespace", "--skip-crds", "--wait")
    refusal = "the IPAM mode of a live cluster cannot change: 2 nodes hold addresses (n1, n2) of mode cluster-pool"
    bed.wait("the mode to be locked", lambda: refusal in cilium.changes_mode("--dry-run=server"))
    assert refusal in cilium.changes_mode()
    emptied = cilium.write("", *patch("ciliumnode/n1", {"spec": {"ipam": {"podCIDRs": None}}}))
    assert "CiliumNode n1: spec.ipam" in emptied
    # What Cilium writes as long as it lives passes, and so does what an administrator may change.
    for part, what, change in (
        ("cilium-operator", "ciliumnode/n1", {"spec": {"ipam": {"podCIDRs": ["10.0.0.0/24", "10.0.9.0/24"]}}}),
        ("cilium", "ciliumnode/n1", {"spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}}),
        ("", "configmap/cilium-config", {"data": {"debug": "true"}}),
        ("", "configmap/cilium-config", {"data": {"cluster-pool-ipv4-cidr": "10.0.0.0/8 172.20.0.0/16"}}),
    ):
        assert cilium.write(part, *patch(what, change)) == "", (part, what, change)

    assert "two IPAM modes in cilium-config: refused, as it has to be" in guard.helm(plane, "test", "--logs").stdout
    guard.put(plane, "upgrade", {"guard": {"resources": {"requests": {"cpu": "1m"}}}}, "--wait")
    assert refusal in cilium.changes_mode()

    told = guard.helm(plane, "uninstall")
    assert "clean" not in told.stdout, "machines are Cilium's"
    plane.kubectl("delete", "namespace", NAMESPACE, timeout=120)
    left = [
        f"{name} {'-' if each in before[0][name] else '+'} {each}"
        for name, node in bed.nodes.items()
        for each in {*state(node)} ^ {*before[0][name]}
    ]
    assert left == [], "\n".join(left)
    changed = {each for each in objects(plane) ^ before[1] if NAMESPACE not in each and not OF_THE_CLUSTER.search(each)}
    assert changed == set()
    assert plane.client.request("GET", collection_path(CILIUM_KINDS[0]))["items"]
    assert cilium.changes_mode("--dry-run=server") == ""
    uninstall_cilium(plane)


def exists(bed: KubeletCluster, path: str) -> bool:
    try:
        bed.plane.client.request("GET", path)
    except ApiFailure:
        return False
    return True
