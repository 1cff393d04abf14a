"""`netloom status` of a cluster that breaks in one way after the other: real operators and agents, killed with -9."""

import json
import os
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import yaml

from netloom_e2e.agents import Agents
from netloom_e2e.allocations import Cluster
from netloom_e2e.client import ApiFailure
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, environment, wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.operators import Operators

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
VIEWER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: e2e-viewer}
rules: [{apiGroups: [netloom.dev], resources: ["*"], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: e2e-viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-viewer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: e2e-viewer}]
"""


@pytest.fixture
def agents(cluster: Cluster, tmp_path: Path) -> Iterator[Agents]:
    """Two machines, not joined yet."""
    with Lab(f"nls{os.getpid() % 10000}") as lab, gateway(lab, cluster.plane.port):
        made = Agents(lab, cluster.plane, tmp_path)
        try:
            yield made
        finally:
            made.stop()


def command(cluster: Cluster, *arguments: str, user: str = "admin") -> list[str]:
    return [str(NETLOOM), "status", f"--kubeconfig={cluster.plane.kubeconfig(user)}", *arguments]


def status(cluster: Cluster, *arguments: str, user: str = "admin", exits: Collection[int] = (1,)) -> str:
    """What it prints into a pipe; its exit status has to be one of those given."""
    done = subprocess.run(
        command(cluster, *arguments, user=user),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert done.returncode in exits, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def give_sign(cluster: Cluster, node: str) -> None:
    """The Lease of an agent, if it has none."""
    meta = {"name": f"netloom-agent-{node}", "labels": {"netloom.dev/agent": "true"}}
    spec = {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}
    try:
        cluster.client.request("POST", LEASES, {"metadata": meta, "spec": spec})
    except ApiFailure as failure:
        if failure.status != 409:
            raise


def hurry(cluster: Cluster, lease: str) -> None:
    """The dead holder of a Lease counts as gone in a second, not when its time is over. That is no sign of life."""
    cluster.client.request("PATCH", f"{LEASES}/{lease}", {"spec": {"leaseDurationSeconds": 1}})


def test_status_tells_the_truth_of_every_broken_state(cluster: Cluster, operators: Operators, agents: Agents) -> None:
    cluster.create_network(ipv4PodCIDRList=["10.42.0.0/23"])
    machines = [agents.lab.add_node(name) for name in ("n1", "n2")]
    for machine in machines:
        cluster.add_node(machine.node, address=machine.underlay[0])

    # No operator ever.
    text = status(cluster)
    assert text.splitlines()[0] == "0 of 2 nodes ready"
    assert "operator  no sign of life of any" in text
    assert "problem   2 Nodes (n1, n2): NoOperator. For one, Node n1: has no NetloomNode" in text

    # No agent anywhere.
    operator = operators.start(leader_elect=True)
    wait_for("both have their CIDRs", cluster.served)
    text = status(cluster)
    assert f"operator  {operator.process.name}_" in text
    assert "agents    0 alive, 2 never heard of" in text
    assert "problem   2 Agents (n1, n2): AgentNeverSeen" in text

    # It is waited until all is well.
    waiting = subprocess.Popen(
        command(cluster, "--wait=60s"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("netloom: waiting: 0 of 2 nodes ready; ")
        for machine in machines:
            agents.start(machine)
        agents.in_sync(*machines, peers=1)
        for machine in machines:
            give_sign(cluster, machine.node)
        text, _ = waiting.communicate(timeout=90)
    assert waiting.returncode == 0, text
    assert text.splitlines()[0] == "2 of 2 nodes ready"
    assert text.splitlines()[-1] == "no problems"
    _same_in_every_form(cluster)

    # An agent is dead: its last word was that all is well.
    agents.agents["n2"].kill()
    hurry(cluster, "netloom-agent-n2")
    wait_for("its silence is noticed", lambda: "silent" in status(cluster, exits=(0, 1)), every=0.5)
    text = status(cluster)
    assert text.splitlines()[0] == "1 of 2 nodes ready"
    assert "problem   agent of n2: was last heard of at 20" in text

    # The operator, too, and two nodes join.
    operator.kill()
    hurry(cluster, "netloom-operator")
    cluster.add_nodes("n3", "n4")
    wait_for("its silence is noticed", lambda: "NOT heard of" in status(cluster), every=0.5)
    text = status(cluster, "--wait=0s")
    assert text.splitlines()[0] == "1 of 4 nodes ready"
    assert f"operator  NOT heard of: {operator.process.name}_" in text
    assert "waiting   2 without addresses for pods" in text
    assert "problem   2 Nodes (n3, n4): NoOperator" in text

    # Addresses for half of the nodes.
    cluster.client.request("DELETE", f"{LEASES}/netloom-operator")
    operators.start(leader_elect=True)
    exhausted = "problem   2 NetloomNodes (n3, n4): Allocated=False ClusterPoolExhausted. For one, NetloomNode n3: "
    wait_for("two are refused", lambda: exhausted in status(cluster), deadline=20, every=0.5)
    text = status(cluster)
    assert "problem   NetloomNetwork default: Ready=False ClusterPoolExhausted" in text
    assert "agents    1 alive, 1 not heard of in time, 2 never heard of" in text

    # Who may not see all of it.
    cluster.plane.kubectl("apply", "--server-side", "--filename=-", input=VIEWER)
    text = status(cluster, user="e2e-viewer")
    assert text.splitlines()[0].endswith(" of 4 nodes ready")
    assert "agents    0 alive, 4 not to be known of" in text
    for what in ("Nodes", "Leases of the agents", "Lease of the operator"):
        assert f"problem   {what}: could not be looked at: GET /api" in text


def _same_in_every_form(cluster: Cluster) -> None:
    shown = json.loads(status(cluster, "-o", "json", exits=(0,)))
    assert (shown["healthy"], shown["totals"]["ready"], shown["problems"]) == (True, 2, [])
    assert [(node["name"], node["agent"]) for node in shown["nodes"]] == [("n1", "alive"), ("n2", "alive")]
    assert {each["type"] for each in shown["nodes"][0]["conditions"]} >= {"DataplaneReady"}
    again = yaml.safe_load(status(cluster, "--output=yaml", exits=(0,)))
    moments = ("time", "operator", "nodes")
    assert {name: again[name] for name in shown if name not in moments} == {
        name: shown[name] for name in shown if name not in moments
    }
    wide = status(cluster, "-o", "wide", exits=(0,))
    assert "DataplaneReady=True" in wide
    held = cluster.held()
    assert all(str(cidr) in wide for cidrs in held.values() for cidr in cidrs)
