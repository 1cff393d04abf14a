"""Whoever the chart gives rights may do what it does in its life, and no more: RBAC's rules against the audit log.

One life of a release, installed by Helm, whose pods run here with the arguments and tokens that they would have: nodes
join, the pool is used up, one leaves, somebody edits a ledger and the guard's record, an agent has peers that are not
whole, objects vanish and come back, roles are restarted, certificates end, the network goes and comes back in another
mode, with newer definitions. The rights are those of docs/examples/rbac.yaml and of `netloom guard install`.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netloom.webhook.names import NAMESPACE
from netloom_e2e import crds
from netloom_e2e.agents import Agents
from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS, Cluster, condition
from netloom_e2e.chart_pods import words
from netloom_e2e.chart_release import AGENT, OPERATOR, Release
from netloom_e2e.client import Client, collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.guard import account_kubeconfig
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.rights import Audit, Right, accounts

PREFILTERS = "/apis/netloom.dev/v1alpha1/netloomprefilters"
HAND_MADE = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode"}
ODD = f"{collection_path(NETLOOM_NODES)}/odd"
CLUSTER_POOL = ("ipam.mode=cluster-pool", "ipam.operator.clusterPoolIPv4PodCIDRList={10.42.0.0/23}")
MULTI_POOL = ("ipam.mode=multi-pool", "pools.default.ipv4.cidrs={10.60.0.0/16}", "pools.default.ipv4.maskSize=28")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path, helm_binary: Path, audit: Audit) -> Iterator[ControlPlane]:
    with ControlPlane(hosts=[Lab.address], apiserver_flags=audit.flags) as made:
        for namespace in (NAMESPACE, "shop"):
            made.kubectl("create", "namespace", namespace)
        yield made


@dataclass
class DaemonSet(Agents):
    """Its pods, each with a token that is bound to its node."""

    release: Release = None  # type: ignore[assignment]

    def kubeconfig(self, machine: Machine) -> Path:
        return account_kubeconfig(self.plane, *AGENT, node=machine.node, host=self.lab.address)

    def run(self, machine: Machine) -> None:
        """With a plugin that is not called here, and no other behind it."""
        host = self.folder / "host"
        pod = self.release.pod("daemonsets", AGENT.name)
        mounts = {each["name"]: host / each["name"] for each in pod["volumes"]}
        _, *flags = words(pod, mounts)
        flags += ["--cni-plugin", "/bin/true", "--cni-chain", "", f"--cni-deletions={host / 'deletions'}"]
        self.start(machine, {"POD_NAMESPACE": NAMESPACE}, flags)


@pytest.fixture(scope="module")
def release(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(plane, tmp_path_factory.mktemp("hooks"))


@pytest.fixture(scope="module")
def lived(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of agents and operators that has been."""
    plane = release.plane
    with Lab(f"nlr{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        agents = DaemonSet(lab, plane, tmp_path_factory.mktemp("agents"), release=release)
        try:
            _live(release, agents)
        finally:
            agents.stop()
    return release


def _live(release: Release, agents: DaemonSet) -> None:
    cluster, client = release.cluster, release.client
    # Two nodes fit, the third has to wait until one leaves.
    release.put("install", *CLUSTER_POOL)
    operator = release.operator()
    cluster.create_pool("unused", "10.43.0.0/24")
    machine = agents.lab.add_node("n1")
    cluster.add_node("n1", address=machine.underlay[0])
    wait_for("the first has its CIDR", cluster.served)
    cluster.add_node("n2", address="192.0.2.2")
    wait_for("both have their CIDRs", cluster.served)
    _starts_on_a_tainted_node(release, agents, machine)
    _repeated(release, agents)

    # A write of the ledger that the operator does not know of: its next one is a conflict, and it reads again.
    for ledger in cluster.list(LEDGERS):
        path = f"{collection_path(LEDGERS)}/{ledger['metadata']['name']}"
        client.request("PATCH", path, {"metadata": {"annotations": {"edited": "by hand"}}})
    cluster.remove_nodes("n2")
    wait_for("the last has its CIDR", cluster.served, deadline=60)

    # One is left out, which has no pods.
    cluster.add_node("n4", address="192.0.2.4")
    client.request("PATCH", "/api/v1/nodes/n3", {"metadata": {"labels": {"netloom.dev/ignore": "true"}}})
    wait_for("its CIDR is another's", lambda: cluster.held().get("n4"), deadline=60)
    cluster.remove_nodes("n3")

    # All objects of the nodes vanish at once. The roles are started anew, and the guard's CA has expired.
    before = _uids(cluster)
    client.request("DELETE", collection_path(NETLOOM_NODES))
    wait_for("they are back", lambda: cluster.served() and not before & _uids(cluster), deadline=60)
    release.meddle_with_the_record("netloomMode")
    operator.stop()
    release.end_the_authority()
    agents.end("n1")
    operator = release.operator()
    agents.run(machine)
    agents.in_sync(machine, peers=1)
    _loses_many_peers(release, agents, machine)
    agents.end("n1")

    cluster.remove_nodes(*cluster.nodes())
    wait_for("no node is left", lambda: not cluster.held(), deadline=60)
    wait_for("no mode is in force", lambda: not cluster.network()["status"].get("ipam", {}).get("mode"), deadline=60)
    release.put("upgrade", "network.create=false")
    wait_for("the network is let go", lambda: not cluster.list(NETWORKS), deadline=60)
    operator.stop()
    # All definitions are gone: an upgrade brings them back, and the next one a network in another mode.
    release.plane.kubectl("delete", "--filename", crds.FOLDER)
    release.put("upgrade", "network.create=false")
    made = {f"CustomResourceDefinition {name}.netloom.dev: created" for name in ("netloomnetworks", "netloomnodes")}
    assert made <= set(release.hooks.ran["netloom-crds"].splitlines())
    release.put("upgrade", *MULTI_POOL)
    operator = release.operator()
    _draws_on_pools(release, agents)
    operator.stop()


def _starts_on_a_tainted_node(release: Release, agents: DaemonSet, machine: Machine) -> None:
    """Which it takes off, once it can route."""
    node, taint = "/api/v1/nodes/n1", {"key": "node.netloom.dev/not-ready", "effect": "NoSchedule"}
    release.client.request("PATCH", node, {"spec": {"taints": [taint]}})
    agents.run(machine)
    agents.in_sync(machine, peers=1)
    wait_for("no taint", lambda: "taints" not in release.client.request("GET", node)["spec"], deadline=30)


def _loses_many_peers(release: Release, agents: DaemonSet, machine: Machine) -> None:
    """More peers vanish than an agent asks for one by one: it asks how many Nodes there are."""
    for number in range(4):
        spec = {"addresses": [{"type": "InternalIP", "ip": f"192.0.2.{10 + number}"}]}
        spec |= {"ipam": {"podCIDRs": [f"10.88.{number}.0/24"]}}
        peer = HAND_MADE | {"metadata": {"name": f"m{number}"}, "spec": spec}
        release.client.request("POST", collection_path(NETLOOM_NODES), peer)
    agents.in_sync(machine, peers=5)
    for number in range(4):
        release.client.request("DELETE", f"{collection_path(NETLOOM_NODES)}/m{number}")
    agents.in_sync(machine, peers=1)


def _draws_on_pools(release: Release, agents: DaemonSet) -> None:
    """A node in IPAM mode multi-pool, with a pod, with something that is none, and with one that asks for a pool that
    is not there; then Helm looks whether all is well."""
    machine, client = agents.lab.nodes["n1"], release.client
    release.cluster.add_node("n1", address=machine.underlay[0])
    agents.run(machine)
    for namespace, annotations in (("default", {}), ("shop", {"netloom.dev/ip-pool": "nowhere"})):
        meta = {"name": "p", "annotations": annotations}
        pod = {"metadata": meta, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}}
        client.request("POST", f"/api/v1/namespaces/{namespace}/pods", {"apiVersion": "v1", "kind": "Pod", **pod})
    agents.in_sync(machine, peers=0)
    asked = [str(NETLOOM), "ip", "allocate", f"--socket={agents.run_dir(machine)}/agent.sock"]

    def said(pod: str) -> str:
        return subprocess.run([*asked, pod], stdout=subprocess.PIPE, text=True, check=False, timeout=30).stdout

    wait_for("an address of the pool", lambda: said("default/p").startswith("10.60.0."), deadline=60)
    assert said("default/nobody") == said("shop/p") == ""
    events = "/api/v1/namespaces/shop/events"
    wait_for("the pod is told", lambda: client.request("GET", events)["items"], deadline=30)
    release.helm("test")
    _filters_packets(client)  # last, as something is wrong with it
    path = f"{collection_path(NETLOOM_NODES)}/n1"
    wait_for("the node says of its prefilter", lambda: client.request("GET", path).get("status", {}).get("prefilter"))
    agents.end("n1")


def _filters_packets(client: Client) -> None:
    """A prefilter with a list: its labels and that list are read."""
    listed = {"metadata": {"name": "drop"}, "data": {"list": "198.51.100.0/24"}}
    client.request("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", listed)
    spec = {"devices": ["none*"], "denyFromConfigMaps": [{"name": "drop"}]}
    made = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomPrefilter", "metadata": {"name": "p"}, "spec": spec}
    client.request("POST", PREFILTERS, made)


def _repeated(release: Release, agents: DaemonSet) -> None:
    """Twice a pool that is used up, and twice a peer to which no route can be made: the Events are counted, not written
    anew."""
    cluster = release.cluster
    agents.lab.nodes["n1"].ip("route", "add", "blackhole", "10.89.0.0/24")
    odd = {"addresses": [{"type": "InternalIP", "ip": "192.0.2.99"}], "ipam": {"podCIDRs": ["10.89.0.0/24"]}}
    for _ in range(2):
        body = HAND_MADE | {"metadata": {"name": "odd"}, "spec": odd}
        cluster.client.request("POST", collection_path(NETLOOM_NODES), body)
        wait_for("the agent to fail", lambda: agents.condition("n1").get("status") == "False")
        cluster.client.request("DELETE", ODD)
        wait_for("the agent is content", lambda: agents.condition("n1").get("status") == "True")
    wait_for("the network is content", lambda: _status(cluster) == "True")
    for last in (False, True):
        cluster.add_node("n3", address="192.0.2.3")
        wait_for("the pool is used up", lambda: _status(cluster) == "False")
        if not last:
            cluster.remove_nodes("n3")
            wait_for("there is room", lambda: _status(cluster) == "True", deadline=60)
    both = {OPERATOR.name, AGENT.name}
    wait_for("Events are counted", lambda: release.counted() == both, deadline=30)


def _uids(cluster: Cluster) -> set[str]:
    return {obj["metadata"]["uid"] for obj in cluster.list(NETLOOM_NODES)}


def _status(cluster: Cluster) -> str:
    return (condition(cluster.network(), "Ready") or ("",))[0]


def test_whoever_has_rights_may_do_what_it_does_and_no_more(audit: Audit, lived: Release) -> None:
    names = {account.name for account in accounts(lived.rights)}
    assert names >= {"netloom-operator", "netloom-agent", "netloom-crds", "netloom-test"}
    assert audit.all_faults(lived.rights) == {}


def test_what_was_not_granted_is_in_the_log(plane: ControlPlane, audit: Audit) -> None:
    """The proof above can fail."""
    plane.kubectl("get", "nodes", user="nobody", check=False)
    assert Right("", "nodes", "list") in audit.forbidden("nobody")
    assert Right("", "nodes", "list") not in audit.used("nobody")


@pytest.mark.usefixtures("lived")
def test_a_right_that_nobody_used_is_found(audit: Audit) -> None:
    """Be it a verb, a name or a namespace too many."""
    for more in (
        Right("", "secrets", "get"),
        Right("netloom.dev", "netloomnodes", "delete"),
        Right("netloom.dev", "netloomnetworks", "list", name="another"),
        Right("coordination.k8s.io", "leases", "get", namespace="shop"),
    ):
        assert audit.faults(AGENT, [more]) == {"nobody ever used": [more]}
    everywhere = Right("coordination.k8s.io", "leases", "update")
    found = {"granted in all namespaces, used in one": {"leases.coordination.k8s.io": NAMESPACE}}
    assert audit.faults(AGENT, [everywhere]) == found
