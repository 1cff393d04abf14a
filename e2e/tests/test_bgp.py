"""Native routing with a BGP daemon: BIRD on every node says where pods are, and Netloom leaves its routes alone.

Three nodes on one segment, both families, iBGP between all of them; no direct routes of Netloom's.
"""

import os
from collections.abc import Iterator

import pytest

from netloom_e2e.agents import NETWORK, Agents, cidrs, network
from netloom_e2e.bird import Bird, bird_routes
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, device_state, facts

NODES = ("n1", "n2", "n3")


class Speakers(Agents):
    """Nodes with BIRD beside the agent."""

    birds: dict[str, Bird]

    @property
    def machines(self) -> list[Machine]:
        return list(self.lab.nodes.values())

    def learned(self) -> None:
        """Wait until every node has learned of all others' pods."""
        for machine in self.machines:
            self.birds[machine.node].await_routes(
                *(cidr for other in NODES if other != machine.node for cidr in cidrs(other))
            )


@pytest.fixture(scope="module")
def speakers(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speakers]:
    """BIRD has learned all; no agent runs yet."""
    plane = crds_installed
    with Lab(f"nlbgp{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        folder = tmp_path_factory.mktemp("bgp")
        made = Speakers(lab, plane, folder)
        plane.client.request("POST", NETWORK, network(routing={"mode": "native"}))
        try:
            for number, name in enumerate(NODES, 1):
                machine = made.enter(name)
                machine.add_pod("pod", f"10.42.{number}.5", f"fd00:42:0:{number}::5", mtu=1500)
            made.birds = {
                machine.node: Bird(machine, cidrs(machine.node), [m for m in made.machines if m != machine], folder)
                for machine in made.machines
            }
            for bird in made.birds.values():
                bird.start()
            made.learned()
            yield made
        finally:
            made.stop()
            for bird in getattr(made, "birds", {}).values():
                bird.kill()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def learned_routes(speakers: Speakers) -> dict[str, str]:
    return {machine.node: bird_routes(machine) for machine in speakers.machines}


def reaches(source: Machine, target: Machine, *, wait: float = 3) -> bool:
    """In both families, with packets of the full size."""
    pod = source.pods["pod"]
    payload = {4: 1472, 6: 1452}
    return all(
        pod.ping(target.pods["pod"].of(version), payload=payload[version], wait=wait).received for version in (4, 6)
    )


def test_bird_alone_brings_the_routes_and_no_node_forwards(speakers: Speakers) -> None:
    n1, n2, _ = speakers.machines
    assert f"10.42.2.0/24 via {n2.address} dev eth0 metric 32" in bird_routes(n1)
    assert f"fd00:42:0:2::/64 via {n2.address6} dev eth0 metric 32" in bird_routes(n1)
    assert not reaches(n1, n2, wait=0.2), "that takes ip_forward, which an agent sets"


def test_pods_reach_each_other_through_what_bird_learned(speakers: Speakers) -> None:
    before = learned_routes(speakers)
    for machine in speakers.machines:
        speakers.start(machine)
    speakers.in_sync(*speakers.machines, peers=2)
    speakers.moved("none", sending=False)
    for machine in speakers.machines:
        assert device_state(machine) == {}
        assert "netloom" not in machine.ip("link").replace("netloom_probe", "")
        assert facts(machine)["mtu"] == 1500
    assert learned_routes(speakers) == before
    n1, n2, n3 = speakers.machines
    assert reaches(n1, n2)
    assert reaches(n1, n3)
    assert reaches(n3, n2)


def test_birds_routes_stay_through_a_restart_and_a_repair(speakers: Speakers) -> None:
    n1, n2, _ = speakers.machines
    before = learned_routes(speakers)
    speakers.end("n1")
    speakers.start(n1)
    speakers.in_sync(n1, peers=2)
    assert facts(n1)["netlinkWrites"] == 0
    n1.sysctl(ipv4__ip_forward=0)
    wait_for("the repair", lambda: facts(n1)["driftRepaired"] == 1)
    assert learned_routes(speakers) == before
    assert reaches(n1, n2)


def test_birds_routes_stay_through_hybrid_and_back(speakers: Speakers) -> None:
    """Both know the way then; by metric the kernel takes Netloom's for IPv4 (0 before 32), BIRD's for IPv6."""
    n1, n2, _ = speakers.machines
    before = learned_routes(speakers)
    speakers.edit(mode="hybrid")
    speakers.moved("none", "vxlan:8472")
    speakers.in_sync(*speakers.machines, peers=2)
    assert set(device_state(n1).values()) == {"eth0"}
    assert learned_routes(speakers) == before
    assert reaches(n1, n2)
    speakers.edit(mode="native")
    speakers.moved("none", sending=False)
    wait_for("no route of Netloom's", lambda: not any(device_state(machine) for machine in speakers.machines))
    assert learned_routes(speakers) == before
    assert reaches(n1, n2)


def test_what_bird_forgets_is_not_netlooms_to_add(speakers: Speakers) -> None:
    n1, n2, n3 = speakers.machines
    before = learned_routes(speakers)
    writes = facts(n1)["netlinkWrites"]
    speakers.birds["n2"].stop()
    speakers.birds["n1"].await_routes(*cidrs("n3"))
    assert device_state(n1) == device_state(n2) == {}
    assert not reaches(n1, n2, wait=0.2)
    assert reaches(n1, n3)
    assert (facts(n1)["netlinkWrites"], facts(n1)["inSync"]) == (writes, True)
    speakers.birds["n2"].start()
    speakers.learned()
    assert learned_routes(speakers) == before
    assert reaches(n1, n2)


def test_cleanup_leaves_birds_routes(speakers: Speakers) -> None:
    n1 = speakers.machines[0]
    before = learned_routes(speakers)
    speakers.end("n1")
    n1.run(str(NETLOOM), "cleanup", "--yes", "--run-dir", speakers.run_dir(n1))
    assert n1.run("sysctl", "-n", "net.ipv4.ip_forward") == "1\n", "between the pods of this node"
    assert learned_routes(speakers) == before
