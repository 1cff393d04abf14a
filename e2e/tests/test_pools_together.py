"""Mode multi-pool with all that belongs to it: an operator that gives, an agent that asks and gives back, and who
waits."""

import os
import subprocess
from pathlib import Path

import pytest

from netloom_e2e.agents import Agents
from netloom_e2e.allocations import POOLS, Cluster
from netloom_e2e.client import collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, facts
from netloom_e2e.operators import Operators


@pytest.fixture
def plane(crds_installed: ControlPlane) -> ControlPlane:
    return crds_installed


def allocate(agents: Agents, machine: Machine, count: int, pool: str) -> list[str]:
    """Addresses for so many at once, of a pool that they name."""
    at = ["--socket", f"{agents.run_dir(machine)}/agent.sock", "--pool", pool, "--wait", "20"]
    asked = [
        subprocess.Popen([str(NETLOOM), "ip", "allocate", f"{pool}-{each}", *at], stdout=subprocess.PIPE, text=True)
        for each in range(count)
    ]
    return [each.communicate(timeout=40)[0].strip() for each in asked]


def test_what_pods_need_is_given_and_what_nobody_needs_comes_back(
    cluster: Cluster, operators: Operators, plane: ControlPlane, tmp_path: Path
) -> None:
    cluster.create_network(mode="multi-pool")
    cluster.create_pool("default", "10.50.0.0/24")
    cluster.create_pool("blue", "10.51.0.0/24", preAllocation=0)
    operators.start()
    with Lab(f"nlw{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        agents = Agents(lab, plane, tmp_path)
        try:
            machine = lab.add_node("n1")
            cluster.add_node("n1", address=machine.underlay[0])
            wait_for("its first block", cluster.served)
            agents.start(machine, flags=["--give-back-after", "2"])
            agents.in_sync(machine, peers=0)
            assert allocate(agents, machine, 1, "blue") == ["10.51.0.1"], "it waited for a block"
            assert cluster.of_pools("n1")["blue"] == ["10.51.0.0/28"]
            given = allocate(agents, machine, 3, "default")
            assert len(set(given)) == 3, given

            # More is to be ready, and then less: what was never used comes back, and the operator frees it.
            _prepare(cluster, 20)
            wait_for("a second block", lambda: len(cluster.of_pools("n1")["default"]) == 2)
            _prepare(cluster, 2)
            wait_for("it is given back", lambda: len(cluster.of_pools("n1")["default"]) == 1, deadline=30)
            wait_for("it is free", lambda: len(cluster.ledger()) == 2, deadline=30)
            cluster.check()

            # An agent that was killed knows what it gave, and writes nothing.
            version = cluster.netloom_node("n1")["metadata"]["generation"]
            agents.agents["n1"].kill()
            agents.agents["n1"].wait()
            agents.start(machine, flags=["--give-back-after", "2"])
            agents.in_sync(machine, peers=0)
            assert allocate(agents, machine, 3, "default") == given
            assert cluster.netloom_node("n1")["metadata"]["generation"] == version
            assert facts(machine)["pools"]["writes"] == 0  # type: ignore[index]
        finally:
            agents.stop()


def test_a_pool_of_both_families_gives_each_pod_an_address_of_each_and_both_come_back(
    cluster: Cluster, operators: Operators, plane: ControlPlane, tmp_path: Path
) -> None:
    cluster.create_network(mode="multi-pool")
    cluster.create_pool("default", "10.50.0.0/24", ipv6={"cidrs": ["fd00:50::/112"], "maskSize": 125}, preAllocation=0)
    operators.start()
    with Lab(f"nlo{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        agents = Agents(lab, plane, tmp_path)
        try:
            machine = lab.add_node("n1")
            cluster.add_node("n1", address=machine.underlay[0])
            wait_for("its first blocks", cluster.served)
            agents.start(machine, flags=["--give-back-after", "2"])
            agents.in_sync(machine, peers=0)
            # A block of /28 has 14 addresses for pods, one of /125 has 6 or 7: the families grow by themselves.
            pairs = [pair.split() for pair in allocate(agents, machine, 10, "default")]
            assert all(four.startswith("10.50.0.") and six.startswith("fd00:50::") for four, six in pairs), pairs
            assert len({address for pair in pairs for address in pair}) == 20
            held = cluster.of_pools("n1")["default"]
            assert [":" in cidr for cidr in held].count(True) == 2, held
            assert [":" in cidr for cidr in held].count(False) == 1, held
            assert {str(network) for network in cluster.ledger()} == set(held)

            _prepare(cluster, 20)
            wait_for("3 of /28 and 5 of /125", lambda: len(cluster.of_pools("n1")["default"]) == 8, deadline=30)
            _prepare(cluster, 0)
            wait_for("they come back", lambda: cluster.of_pools("n1")["default"] == held, deadline=30)
            wait_for("they are free", lambda: {str(network) for network in cluster.ledger()} == set(held), deadline=30)
            cluster.check()
        finally:
            agents.stop()


def _prepare(cluster: Cluster, count: int) -> None:
    cluster.client.request("PATCH", f"{collection_path(POOLS)}/default", {"spec": {"preAllocation": count}})
