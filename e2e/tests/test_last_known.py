"""What a node was known by and what its objects do not say any more: nobody's pods are cut off, and it is told.

A Node that loses its address, with an operator and agents; and a world as a backup restores it, in which a node's pods
live in a CIDR that its NetloomNode does not hold, written here as the restore would leave it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netloom_e2e.agents import NODES, Agents, netloom_node, running_agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.flow import Flows
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.machines import Pod
from netloom_e2e.mesh import TUNNEL, device_state, facts
from netloom_e2e.operators import Operators

LOST_SECONDS = 2.0


@pytest.fixture
def agents(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_agents(cluster.plane, "nll", tmp_path_factory.mktemp("agents")) as made:
        yield made


@contextmanager
def lossless(**pods: Pod) -> Iterator[Flows]:
    """These pods send to each other while the block lasts, and lose nothing."""
    with Flows(pods, rate=500) as flows:
        wait_for("traffic", lambda: flows.now > 0.2)
        yield flows
        until = flows.now + 0.5
        wait_for("traffic after the change", lambda: flows.now > until)
        report = flows.stop()
    assert report.lossless, str(report)


def report(cluster: Cluster, name: str, *addresses: str) -> None:
    """What the kubelet or a cloud controller writes into Node status.addresses."""
    found = [{"type": "InternalIP", "address": each} for each in addresses]
    node = cluster.client.request("GET", f"/api/v1/nodes/{name}")
    status = {**node["status"], "addresses": [*found, {"type": "Hostname", "address": name}]}
    cluster.client.request("PUT", f"/api/v1/nodes/{name}/status", {**node, "status": status})


def told(cluster: Cluster, name: str, type_: str) -> tuple[str, str]:
    """Status and reason of a condition of its NetloomNode."""
    return condition(cluster.netloom_node(name), type_)[:2]


def test_a_node_whose_address_is_not_reported_for_a_while_loses_no_packet(
    agents: Agents, cluster: Cluster, operators: Operators
) -> None:
    operator = operators.start()
    machines = [agents.lab.add_node(name) for name in ("n1", "n2")]
    pods = {}
    for machine in machines:
        cluster.add_node(machine.node, address=machine.address)
    for machine in machines:
        wait_for("its pod CIDR", lambda m=machine: cluster.held().get(m.node))  # type: ignore[misc]
        pods[machine.node] = machine.add_pod("pod", str(cluster.held()[machine.node][0][5]), mtu=1400)
        agents.start(machine)
    agents.in_sync(*machines, peers=1)
    before = cluster.netloom_node("n2")["spec"]["addresses"]

    with lossless(**pods) as flows:
        report(cluster, "n2")
        wait_for("the loss to be told", lambda: told(cluster, "n2", "AddressReported") == ("False", "InternalIPLost"))
        assert operator.metric("netloom_nodes_address_kept") == 1
        until = flows.now + LOST_SECONDS
        wait_for("some seconds without an address", lambda: flows.now > until)
        assert cluster.netloom_node("n2")["spec"]["addresses"] == before
        report(cluster, "n2", machines[1].address)
        wait_for("its return to be told", lambda: told(cluster, "n2", "AddressReported")[0] == "True")
    assert operator.metric("netloom_nodes_address_kept") == 0
    wait_for("the Events", lambda: {"InternalIPLost", "InternalIPReported"} <= {e[1] for e in cluster.events("n2")})


def restore(agents: Agents, machine: Machine, *pod_cidrs: str) -> None:
    """Its NetloomNode is another now, as after a restore. No edit may do that to a living node."""
    agents.plane.client.request("DELETE", f"{NODES}/{machine.node}")
    agents.plane.client.request("POST", NODES, netloom_node(machine.node, machine.underlay, *pod_cidrs))


def own_addresses(machine: Machine) -> str:
    return machine.ip("-4", "addr", "show", TUNNEL)


def test_a_restored_world_that_gave_a_living_nodes_cidr_away(agents: Agents, cluster: Cluster) -> None:
    n1, n2 = agents.join("n1"), agents.join("n2")
    agents.in_sync(n1, n2, peers=1)
    old, beside = n1.add_pod("old", "10.42.1.5", mtu=1400), n1.add_pod("beside", "10.42.1.6", mtu=1400)
    far = n2.add_pod("far", "10.42.2.5", mtu=1400)

    with lossless(old=old, beside=beside):
        restore(agents, n1, "10.42.9.0/24")
        agents.plane.client.request("POST", NODES, netloom_node("thief", "172.31.9.9", "10.42.1.0/24"))
        wait_for("the report", lambda: told(cluster, "n1", "DataplaneReady") == ("False", "PodCIDRsChanged"))
        wait_for("the one who has it now", lambda: "NetloomNode thief" in str(facts(n1)["errors"]))
        for address in ("10.42.1.0/32", "10.42.9.0/32"):
            assert address in own_addresses(n1)
        assert "10.42.1.0/24" not in device_state(n1)
        assert "10.42.1.0/24" in n1.run("nft", "list", "set", "inet", "netloom", "pods4")
        wait_for("the other node to follow", lambda: {"10.42.9.0/24", "10.42.1.0/24"} <= set(device_state(n2)))
        new = n1.add_pod("new", "10.42.9.5", mtu=1400)
        assert new.ping(far.address, wait=3).received
        assert "1 received" in n1.run("ping", "-n", "-q", "-c", "1", "-W", "3", far.address, check=False), (
            "the node itself"
        )

        agents.end("n1")
        agents.start(n1)
        wait_for("the new agent to say so", lambda: facts(n1).get("keptPodCIDRs"))
        assert facts(n1)["netlinkWrites"] == 0

    # What the message says where nobody else holds it: it is entered again.
    agents.plane.client.request("DELETE", f"{NODES}/thief")
    both = {"podCIDRs": ["10.42.9.0/24", "10.42.1.0/24"]}
    agents.plane.client.request("PATCH", f"{NODES}/n1", {"spec": {"ipam": both}})
    agents.in_sync(n1, n2, peers=1)
    assert far.ping(old.address, wait=3).received

    # And where somebody does: the node is drained.
    restore(agents, n1, "10.42.9.0/24")
    wait_for("the report", lambda: facts(n1)["keptPodCIDRs"])
    n1.remove_pods()
    agents.in_sync(n1, n2, peers=1)
    wait_for("its address to go", lambda: "10.42.1.0/32" not in own_addresses(n1))
    wait_for("no complaint", lambda: told(cluster, "n1", "DataplaneReady")[0] == "True")
    assert "PodCIDRsChanged" in {each[1] for each in cluster.events("n1")}
