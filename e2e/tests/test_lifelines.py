"""A pod CIDR over what the nodes live by: they keep it, say so, and heal when the CIDR goes, with real agents.

The nodes' LAN is 172.31.0.0/16: 172.31.0.1 is their gateway and has the API server, the nodes are in 172.31.1.0/24.
"""

import subprocess
from collections.abc import Iterator

import pytest

from netloom_e2e.agents import NODES, Agents, netloom_node, running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.machines import Pod
from netloom_e2e.mesh import NETLOOM, facts, routes

OVER_THE_GATEWAY, OVER_THE_NODES = "172.31.0.0/24", "172.31.1.0/24"
IN_THE_LAN = "it lies in 172.31.0.0/16, a network of this node (eth0)"


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Two nodes with an agent and a pod each."""
    with running_agents(crds_installed, "nll", tmp_path_factory.mktemp("lifelines")) as made:
        for number, name in enumerate(("n1", "n2"), 1):
            made.join(name).add_pod("pod", f"10.42.{number}.5", mtu=1400)
        made.in_sync(*made.lab.nodes.values(), peers=1)
        yield made
    crds_installed.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def n1(agents: Agents) -> Machine:
    return agents.lab.nodes["n1"]


def lives(agents: Agents, node: Machine) -> None:
    """The gateway and the API server answer, the other node does, and its pod."""
    other = agents.lab.nodes["n2" if node.node == "n1" else "n1"]
    pod: Pod = node.pods["pod"]
    assert node.run("ping", "-n", "-c1", "-W2", agents.lab.address)
    assert node.run("ping", "-n", "-c1", "-W2", other.address)
    assert node.run("curl", "-sk", "--max-time", "3", f"https://{agents.lab.address}:{agents.plane.port}/livez")
    assert pod.ping(other.pods["pod"].address).received == 1


def says(agents: Agents, node: Machine, cidr: str, *words: str) -> None:
    """Its condition names the CIDR and why, and so do status, plan, metrics and an Event."""
    try:
        wait_for("the condition", lambda: cidr in agents.condition(node.node).get("message", ""), deadline=20)
    except TimeoutError as error:
        raise AssertionError(f"{agents.condition(node.node)} {facts(node)}") from error
    condition = agents.condition(node.node)
    (error_,) = facts(node)["errors"]
    plan = [str(NETLOOM), "plan", f"--kubeconfig={agents.plane.kubeconfig('admin', host=agents.lab.address)}"]
    command = [*node.enter, *plan, f"--node-name={node.node}", "--run-dir", agents.run_dir(node)]
    planned = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = planned.stderr
    for text in (condition["message"], error_, told):
        assert all(word in text for word in (cidr, IN_THE_LAN, *words)), text
    changes = [line for line in planned.stdout.splitlines() if line.startswith(("ip ", "nft "))]
    lingering = "nft delete element inet netloom-tunnels "  # a sender that has left
    assert all(each.startswith(lingering) for each in changes), changes
    assert (condition["status"], planned.returncode) == ("False", 2 if changes else 1), told
    assert "netloom_withheld_routes 1.0" in node.run("curl", "-s", "http://127.0.0.1:9964/metrics")

    def event() -> bool:
        found = agents.plane.client.request("GET", "/api/v1/namespaces/default/events")["items"]
        about = [each for each in found if each["involvedObject"]["name"] == node.node]
        return any(each["reason"] == "RouteWithheld" and cidr in each["message"] for each in about)

    wait_for("the Event", event, deadline=10)
    assert not any(cidr in line for line in routes(node))


def comes_again(agents: Agents, cidr: str) -> None:
    """The node n3 was deleted, and registers anew; a CIDR cannot be changed."""
    agents.plane.client.request("DELETE", f"{NODES}/n3")
    agents.plane.client.request("POST", NODES, netloom_node("n3", "172.31.1.3", cidr))


def test_a_peer_over_gateway_api_server_and_nodes_cuts_nobody_off_and_all_heals(agents: Agents, n1: Machine) -> None:
    client, n2 = agents.plane.client, agents.lab.nodes["n2"]
    client.request("POST", NODES, netloom_node("n3", "172.31.1.3", OVER_THE_GATEWAY))
    the_gateway = f"it holds {agents.lab.address}, the API server"
    says(agents, n1, OVER_THE_GATEWAY, "n3", the_gateway)
    for node in (n1, n2):
        lives(agents, node)
    comes_again(agents, OVER_THE_NODES)
    says(agents, n1, OVER_THE_NODES, "n3", "it holds 172.31.1.")
    for node in (n1, n2):
        lives(agents, node)

    # What an earlier version left is no reason never to come back.
    agents.end("n1")
    nexthop = routes(n1)[0].split(" nhid ")[1].split()[0]
    for cidr in (OVER_THE_GATEWAY, OVER_THE_NODES):
        n1.ip("route", "add", cidr, "nhid", nexthop, "proto", "158")
    with pytest.raises(Exception, match="ping"):
        lives(agents, n1)
    agents.start(n1)
    wait_for("n1 back", lambda: facts(n1).get("errors"), deadline=20)
    says(agents, n1, OVER_THE_NODES)
    lives(agents, n1)

    comes_again(agents, "10.42.3.0/24")
    agents.in_sync(n1, n2, peers=2)
    wait_for("n1 ready", lambda: agents.condition("n1")["status"] == "True", deadline=20)
    assert any("10.42.3.0/24" in line for line in routes(n1))
    comes_again(agents, OVER_THE_NODES)
    says(agents, n1, OVER_THE_NODES)
    client.request("DELETE", f"{NODES}/n3")
    agents.in_sync(n1, n2, peers=1)
    lives(agents, n1)
