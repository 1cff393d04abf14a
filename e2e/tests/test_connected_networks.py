"""A machine's own networks, with an operator and agents: no node is given a block of one, and nothing there is lost."""

import ipaddress
from collections.abc import Iterator

import pytest

from netloom_e2e import namespaces
from netloom_e2e.agents import Agents, running_agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.namespaces import Namespace
from netloom_e2e.operators import Operators

CONTAINER = "10.42.1.9"


@pytest.fixture
def agents(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_agents(cluster.plane, "nlk", tmp_path_factory.mktemp("agents")) as made:
        yield made


def connected(cluster: Cluster, name: str) -> list[str]:
    found: list[str] = cluster.netloom_node(name).get("status", {}).get("connectedCIDRs", [])
    return found


def run_docker(machine: Machine) -> None:
    """A bridge, and a container on it."""
    container = Namespace(f"{machine.name}-docker")
    namespaces.add(container)
    machine.batch(
        [
            "link add docker0 type bridge",
            "addr add 10.42.1.1/24 dev docker0",
            "link set docker0 up",
            f"link add veth0 master docker0 type veth peer name eth0 netns {container.name}",
            "link set veth0 up",
        ]
    )
    container.batch([f"addr add {CONTAINER}/24 dev eth0", "link set eth0 up"])


def reaches(machine: Machine, address: str) -> bool:
    return " 0% packet loss" in machine.run("ping", "-n", "-q", "-c", "2", "-W", "3", address, check=False)


def test_no_node_is_given_a_block_of_a_network_that_another_is_on(
    agents: Agents, cluster: Cluster, operators: Operators
) -> None:
    operator = operators.start()
    machines = [agents.lab.add_node(name) for name in ("n1", "n2")]
    n1, n2 = machines
    run_docker(n1)
    cluster.add_node("n1", address=n1.address)
    agents.start(n1)
    lan = str(ipaddress.ip_network(f"{n1.address}/16", strict=False))
    wait_for("its networks", lambda: connected(cluster, "n1") == ["10.42.1.0/24", lan], deadline=30)
    wait_for("it to be told", lambda: condition(cluster.network(), "Ready")[1] == "ClusterCIDROverlapsConnected")
    status, _, message = condition(cluster.network(), "Ready")
    assert status == "True"
    assert "it overlaps 10.42.1.0/24, a network that node n1 is connected to" in message
    wait_for("an Event", lambda: ("Warning", "ClusterCIDROverlapsConnected") in cluster.events("default"))
    assert operator.metric("netloom_ipam_blocks", cidr="10.42.0.0/16", mask="24", state="reserved") == 1

    cluster.add_node("n2", address=n2.address)
    agents.start(n2)
    wait_for("both to have theirs", lambda: len(cluster.held()) == 2)
    assert {name: str(cidr) for name, (cidr, *_) in cluster.held().items()} == {
        "n1": "10.42.0.0/24",
        "n2": "10.42.2.0/24",
    }
    agents.in_sync(n1, n2, peers=1)
    pods = [n1.add_pod("a", "10.42.0.9", mtu=1400), n2.add_pod("b", "10.42.2.9", mtu=1400)]
    assert pods[0].ping(pods[1].address, count=2, wait=3).received == 2
    assert reaches(n1, CONTAINER)
