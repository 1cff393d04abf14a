"""Several Nodes report one address, with an operator and agents: a virtual IP that moves, and a machine that comes back
under another name. Packets between pods that it does not concern go on; who has the address is said with the way out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from netloom_e2e.agents import Agents, running_agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.flow import Flows
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.machines import Pod
from netloom_e2e.mesh import facts
from netloom_e2e.operators import Operators

VIP = "172.31.77.77"
SINCE = "2026-01-01T00:00:00Z"


@pytest.fixture
def agents(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_agents(cluster.plane, "nlv", tmp_path_factory.mktemp("agents")) as made:
        yield made


@contextmanager
def lossless(pods: Mapping[str, Pod]) -> Iterator[None]:
    """These pods send to each other while the block lasts, and lose nothing."""
    with Flows(pods, rate=500) as flows:
        wait_for("traffic", lambda: flows.now > 0.2)
        yield
        until = flows.now + 0.5
        wait_for("traffic after the change", lambda: flows.now > until)
        said = flows.stop()
    assert said.lossless, str(said)


def report(cluster: Cluster, name: str, *addresses: str, ready: str = "True") -> None:
    """What the kubelet, and for a silent one the node lifecycle controller, writes into Node status."""
    status = {
        "addresses": [{"type": "InternalIP", "address": each} for each in addresses],
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": SINCE, "reason": "X", "message": ""}],
    }
    node = cluster.client.request("GET", f"/api/v1/nodes/{name}")
    cluster.client.request("PUT", f"/api/v1/nodes/{name}/status", {**node, "status": status})


def addresses(cluster: Cluster, name: str) -> list[str]:
    found = cluster.netloom_node(name).get("spec", {}).get("addresses", [])
    return [each["ip"] if each["type"] == "InternalIP" else f"{each['type']}:{each['ip']}" for each in found]


def give_pod(cluster: Cluster, machine: Machine, node: str) -> Pod:
    wait_for("its pod CIDR", lambda: cluster.held().get(node))
    return machine.add_pod(f"pod-{len(node)}", str(cluster.held()[node][0][5]), mtu=1400)


def test_a_virtual_ip_moves_and_a_machine_comes_back_under_another_name(
    agents: Agents, cluster: Cluster, operators: Operators
) -> None:
    operator = operators.start()
    n1, n2, n3 = machines = [agents.lab.add_node(name) for name in ("n1", "n2", "n3")]
    n1.ip("addr", "add", f"{VIP}/32", "dev", "eth0")
    cluster.add_node("n1", address=VIP)
    report(cluster, "n1", VIP, n1.address)
    for machine in (n2, n3):
        cluster.add_node(machine.node, address=machine.address)
        report(cluster, machine.node, machine.address)
    pods = {machine.node: give_pod(cluster, machine, machine.node) for machine in machines}
    for machine in machines:
        agents.start(machine)
    agents.in_sync(*machines, peers=2)

    # Both report it, first of all, as a cloud controller manager does; whoever has it, nobody is reached by it.
    report(cluster, "n2", VIP, n2.address)
    for machine in (n1, n2):
        wanted = [machine.address, VIP]
        wait_for("its own to be chosen", lambda m=machine, w=wanted: addresses(cluster, m.node) == w)  # type: ignore[misc]
    for machine in machines:
        wait_for("them to follow", lambda m=machine: VIP not in m.ip("nexthop", "show"))  # type: ignore[misc]
    specs = [cluster.netloom_node(name)["metadata"]["generation"] for name in ("n1", "n2", "n3")]
    with lossless(pods):
        for source, target in ((n1, n2), (n2, n1)):
            source.ip("addr", "del", f"{VIP}/32", "dev", "eth0")
            target.ip("addr", "add", f"{VIP}/32", "dev", "eth0")
            wait_for("its agent to say so", lambda m=source: absent(cluster, m.node) == [VIP])  # type: ignore[misc]
        agents.in_sync(*machines, peers=2)
        assert [facts(machine)["warnings"] for machine in machines] == [[], [], []]
    assert specs == [cluster.netloom_node(name)["metadata"]["generation"] for name in ("n1", "n2", "n3")]

    # n3 comes back under its FQDN, while its old Node looks alive for some time.
    agents.end("n3")
    del pods["n3"]
    with lossless(pods):
        new = f"n3.{agents.lab.prefix}.example"
        cluster.add_node(new, address=n3.address)
        report(cluster, new, n3.address, ready="False")
        contested = [f"ContestedIP:{n3.address}"]
        wait_for("the older to have it for now", lambda: addresses(cluster, new) == contested)
        report(cluster, "n3", n3.address, ready="Unknown")
        wait_for("the living one to have it", lambda: addresses(cluster, new) == [n3.address])
        wait_for("the other to lose it", lambda: addresses(cluster, "n3") == contested)
        report(cluster, new, n3.address)
        fresh = give_pod(cluster, n3, new)
        agents.start(n3, node=new)
        for machine in (n1, n2):
            wait_for("the new one", lambda m=machine: facts(m)["peers"] == 2)  # type: ignore[misc]
            said = facts(machine)
            assert (said["errors"], said["inSync"]) == ([], True)
            assert [each for each in said["warnings"] if f"NetloomNode n3: spec.addresses: {n3.address} is" in each]
            assert agents.condition(machine.node)["status"] == "True"
        wait_for("the new one itself", lambda: facts(n3).get("inSync"))
        assert pods["n1"].ping(fresh.address, wait=3).received
    wait_for("it to be said", lambda: "(Ready)" in condition(cluster.netloom_node("n3"), "AddressReported")[2])
    assert condition(cluster.netloom_node("n3"), "AddressReported") == (
        "False",
        "AddressContested",
        f"Node {new} (Ready) and Node n3 (its kubelet is silent since {SINCE}) both report {n3.address}: {new} has it, "
        "and nothing is sent to n3. If one machine came back under another name, delete the Node n3; if there are two "
        "machines, give each an address of its own, which its kubelet reports (--node-ip).",
    )
    assert condition(cluster.netloom_node(new), "AddressReported")[0] in ("", "True")
    assert operator.metric("netloom_nodes_address_contested") == 1

    cluster.remove_nodes("n3")
    wait_for("the way out to work", lambda: not facts(n1)["warnings"], deadline=30)
    assert pods["n1"].ping(fresh.address, wait=3).received


def absent(cluster: Cluster, name: str) -> list[str]:
    found: list[str] = cluster.netloom_node(name).get("status", {}).get("absentAddresses", [])
    return found
