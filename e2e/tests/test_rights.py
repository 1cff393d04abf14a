"""Each role may do what it does in its life, and no more: RBAC's rules against the API server's audit log.

One life of a cluster: nodes join, the pool is used up, one leaves, somebody edits a ledger, an agent has peers that
are not whole, objects vanish and come back, roles are restarted, and in the end the network goes.
"""

import datetime as dt
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from netloom.webhook import certificates
from netloom.webhook.names import CA_SECRET, NAME
from netloom_e2e import crds
from netloom_e2e.agents import Agents, netloom_node
from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS, Cluster, condition
from netloom_e2e.client import Client, collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.guard import CILIUM_KINDS, Guards, install_cilium
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.operators import RBAC, USER, Operators, running
from netloom_e2e.rights import Audit, Right, granted

AGENT = "netloom-agent"
POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
HAND_MADE = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode"}
ODD = f"{collection_path(NETLOOM_NODES)}/odd"


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path, audit: Audit) -> Iterator[ControlPlane]:
    with ControlPlane(hosts=[Lab.address], apiserver_flags=audit.flags) as made:
        crds.install(made)
        made.kubectl("apply", "--server-side", "--filename", RBAC)
        yield made


@pytest.fixture(scope="module")
def lived(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        Lab(f"nlr{os.getpid() % 10000}") as lab,
        gateway(lab, plane.port),
        running(plane) as operators,
    ):
        agents = Agents(lab, plane, tmp_path_factory.mktemp("agents"), user=AGENT)
        try:
            _live(Cluster(plane), operators, agents)
        finally:
            agents.stop()


def _live(cluster: Cluster, operators: Operators, agents: Agents) -> None:
    client = cluster.client
    operator = operators.start(leader_elect=True)
    # Two nodes fit, the third has to wait until one leaves.
    cluster.create_network(ipv4PodCIDRList=["10.42.0.0/23"])
    cluster.create_pool("unused", "10.43.0.0/24")
    machine = agents.lab.add_node("n1")
    cluster.add_node("n1", address=machine.underlay[0])
    wait_for("the first has its CIDR", cluster.served)
    cluster.add_node("n2", address="192.0.2.2")
    wait_for("both have their CIDRs", cluster.served)
    _starts_on_a_tainted_node(client, agents, machine)
    _repeated(cluster, agents)

    # A write of the ledger that the operator does not know of: its next one is a conflict, and it reads again.
    for ledger in cluster.list(LEDGERS):
        path = f"{collection_path(LEDGERS)}/{ledger['metadata']['name']}"
        client.request("PATCH", path, {"metadata": {"annotations": {"edited": "by hand"}}})
    cluster.remove_nodes("n2")
    wait_for("the last has its CIDR", cluster.served, deadline=60)

    # One is left out, which has no pods.
    cluster.add_node("n4", address="192.0.2.4")
    cluster.client.request("PATCH", "/api/v1/nodes/n3", {"metadata": {"labels": {"netloom.dev/ignore": "true"}}})
    wait_for("its CIDR is another's", lambda: cluster.held().get("n4"), deadline=60)
    cluster.remove_nodes("n3")

    # All objects of the nodes vanish at once. The roles are started anew.
    before = _uids(cluster)
    client.request("DELETE", collection_path(NETLOOM_NODES))
    wait_for("they are back", lambda: cluster.served() and not before & _uids(cluster), deadline=60)
    operator.stop()
    agents.end("n1")
    operator = operators.start(leader_elect=True)
    agents.start(machine)
    agents.in_sync(machine, peers=1)

    # More peers vanish than an agent asks for one by one: it asks how many Nodes there are.
    for number in range(4):
        spec = {"addresses": [{"type": "InternalIP", "ip": f"192.0.2.{10 + number}"}]}
        spec |= {"ipam": {"podCIDRs": [f"10.88.{number}.0/24"]}}
        client.request(
            "POST", collection_path(NETLOOM_NODES), HAND_MADE | {"metadata": {"name": f"m{number}"}, "spec": spec}
        )
    agents.in_sync(machine, peers=5)
    for number in range(4):
        client.request("DELETE", f"{collection_path(NETLOOM_NODES)}/m{number}")
    agents.in_sync(machine, peers=1)
    agents.end("n1")

    cluster.remove_nodes(*cluster.nodes())
    wait_for("no node is left", lambda: not cluster.held(), deadline=60)
    client.request("DELETE", f"{collection_path(NETWORKS)}/default")
    wait_for("the network is let go", lambda: not cluster.list(NETWORKS), deadline=60)
    operator.stop()
    _draws_on_pools(client, agents)


def _starts_on_a_tainted_node(client: Client, agents: Agents, machine: Machine) -> None:
    """Which it takes off, once it can route."""
    taint = {"key": "node.netloom.dev/not-ready", "effect": "NoSchedule"}
    client.request("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [taint]}})
    host = agents.folder / "host"
    flags = ["--cni-install", "--cni-plugin", "/bin/true", "--cni-chain", ""]
    flags += [f"--cni-{name}={host / name}" for name in ("bin-dir", "conf-dir", "deletions")]
    agents.start(machine, flags=flags)
    agents.in_sync(machine, peers=1)
    wait_for("no taint", lambda: "taints" not in client.request("GET", "/api/v1/nodes/n1")["spec"], deadline=30)


def _draws_on_pools(client: Client, agents: Agents) -> None:
    """A node in IPAM mode multi-pool, with a pod, and with something that is none."""
    machine, pods = agents.lab.nodes["n1"], "/api/v1/namespaces/default/pods"
    own = {"apiVersion": "netloom.dev/v1alpha1"}
    network = own | {
        "kind": "NetloomNetwork",
        "metadata": {"name": "default"},
        "spec": {"ipam": {"mode": "multi-pool"}},
    }
    client.request("POST", collection_path(NETWORKS), network)
    pool = {"ipv4": {"cidrs": ["10.60.0.0/16"], "maskSize": 28}}
    client.request("POST", POOLS, own | {"kind": "NetloomIPPool", "metadata": {"name": "default"}, "spec": pool})
    node = netloom_node("n1", machine.underlay)
    allocated = [{"pool": "default", "cidrs": ["10.60.0.0/28"]}]
    node["spec"]["ipam"] = {"mode": "multi-pool", "pools": {"allocated": allocated}}  # type: ignore[index]
    client.request("POST", collection_path(NETLOOM_NODES), node)
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}
    client.request("POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
    agents.start(machine)
    agents.in_sync(machine, peers=0)
    for pod, said in (("default/p", "10.60.0.1\n"), ("default/nobody", "")):
        asked = [str(NETLOOM), "ip", "allocate", pod, "--socket", f"{agents.run_dir(machine)}/agent.sock"]
        assert subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False, timeout=30).stdout == said
    agents.end("n1")


def _repeated(cluster: Cluster, agents: Agents) -> None:
    """Twice a pool that is used up, and twice a peer to which no route can be made: the Events are counted, not written
    anew."""
    agents.lab.nodes["n1"].ip("route", "add", "blackhole", "10.89.0.0/24")
    odd = {"addresses": [{"type": "InternalIP", "ip": "192.0.2.99"}], "ipam": {"podCIDRs": ["10.89.0.0/24"]}}
    for _ in range(2):
        cluster.client.request(
            "POST", collection_path(NETLOOM_NODES), HAND_MADE | {"metadata": {"name": "odd"}, "spec": odd}
        )
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
    wait_for("Events are counted", lambda: _counted(cluster.client) == {USER, AGENT}, deadline=30)


def _uids(cluster: Cluster) -> set[str]:
    return {obj["metadata"]["uid"] for obj in cluster.list(NETLOOM_NODES)}


def _status(cluster: Cluster) -> str:
    return (condition(cluster.network(), "Ready") or ("",))[0]


def _counted(client: Client, namespace: str = "default") -> set[str]:
    """Who raised the count of an Event."""
    return {
        event["source"]["component"]
        for event in client.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        if event.get("count", 0) > 1
    }


@pytest.mark.parametrize("user", [USER, AGENT])
@pytest.mark.usefixtures("lived")
def test_a_role_may_do_what_it_does_and_no_more(audit: Audit, user: str) -> None:
    rights = granted(yaml.safe_load_all(RBAC.read_text()), user)
    assert audit.forbidden(user) == set()
    assert sorted(rights - audit.used(user)) == [], "nobody ever used it"
    assert audit.used(user) == rights


@pytest.fixture(scope="module")
def guarded(plane: ControlPlane) -> Iterator[Guards]:
    """A guard that makes a CA, records modes, tells of somebody who got past it, and finds its CA expired."""
    install_cilium(plane)
    guards = Guards(plane)
    guards.install()
    try:
        guards.wait_in_force(guards.start())
        _guard(plane, guards)
        yield guards
    finally:
        guards.kill()


def _guard(plane: ControlPlane, guards: Guards) -> None:
    scope, client = guards.scope, plane.client_of("admin", ["system:masters", "netloom:break-glass"])
    configs = f"/api/v1/namespaces/{scope.cilium_namespace}/configmaps"
    held = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}}
    client.request("POST", configs, {"metadata": {"name": "cilium-config"}, "data": {"ipam": "cluster-pool"}})
    client.request("POST", collection_path(CILIUM_KINDS[0]), held | {"metadata": {"name": "c1"}})
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    guard = guards.running[0]
    for ipam, bypassed in (("kubernetes", 1), ("cluster-pool", 0), ("kubernetes", 1)):
        client.request("PATCH", f"{configs}/cilium-config", {"data": {"ipam": ipam}})
        wait_for("the guard noticed", lambda b=bypassed: guard.metric("netloom_guard_bypassed") == b, deadline=20)
    wait_for("its Event is counted", lambda: NAME in _counted(client, scope.cilium_namespace), deadline=30)
    client.request("DELETE", f"/api/v1/namespaces/{scope.namespace}/configmaps/{NAME}")
    wait_for("the record is there again", lambda: guards.record().get("ciliumMode") == "kubernetes", deadline=20)
    guards.kill()
    expired = certificates.dump([certificates.new_ca(dt.datetime.now(dt.UTC) - dt.timedelta(days=4000))])
    secret = f"/api/v1/namespaces/{scope.namespace}/secrets/{CA_SECRET}"
    old = client.request("GET", secret)
    client.request("PUT", secret, old | {"data": expired})
    guards.wait_in_force(guards.start())


def test_the_guard_may_do_what_it_does_and_no_more(audit: Audit, guarded: Guards) -> None:
    user = f"system:serviceaccount:{guarded.scope.namespace}:{NAME}"
    rights = granted(guarded.manifests, NAME, f"{NAME}-cilium")
    assert audit.forbidden(user) == set()
    # The record is written by server-side apply, which needs this right where it was deleted, and asks as `patch`.
    assert rights - audit.used(user) == {Right("", "configmaps", "create")}
    assert audit.used(user) <= rights


def test_what_was_not_granted_is_in_the_log(plane: ControlPlane, audit: Audit) -> None:
    """The proof above can fail."""
    plane.kubectl("get", "nodes", user="nobody", check=False)
    assert Right("", "nodes", "list") in audit.forbidden("nobody")
    assert Right("", "nodes", "list") not in audit.used("nobody")
