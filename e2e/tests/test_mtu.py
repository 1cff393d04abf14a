"""The MTU comes from the devices that carry the traffic, follows them while the agents run, and says where it is from.

n1 and n2 are on a segment of jumbo frames, n3 on one of ordinary frames; n1 and n2 also share a cable, `eth1`.
"""

import os
import re
from collections.abc import Iterator

import pytest

from netloom_e2e.agents import NETWORK, NODES, Agents, netloom_node, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, Pod, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, facts, shown

JUMBO = 9000
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP headers."""


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    plane = crds_installed
    with Lab(f"nlu{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        lab.add_segment("a", mtu=JUMBO)
        lab.add_segment("b")
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        try:
            for number, (name, segment) in enumerate({"n1": "a", "n2": "a", "n3": "b"}.items(), 1):
                machine = made.join(name, segment=segment)
                machine.add_pod("pod", f"10.42.{number}.5", f"fd00:42:0:{number}::5", mtu=JUMBO)
            n1, n2, n3 = lab.nodes.values()
            n1.ip(*f"link add eth1 mtu 2000 type veth peer name eth1 mtu 2000 netns {n2.name}".split())
            n1.batch(["link set eth1 up", "addr add 10.9.0.1/30 dev eth1"])
            n2.batch(["link set eth1 up", "addr add 10.9.0.2/30 dev eth1"])
            made.in_sync(n1, n2, n3, peers=2)
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def tunnels(agents: Agents) -> Iterator[list[Machine]]:
    """All in tunnels, nothing configured; and so again afterwards, but for what the nodes were given by hand."""
    yield list(agents.lab.nodes.values())
    agents.edit_spec(mtu=0, devices=None, routing={"mode": "tunnel", "autoDirectNodeRoutes": False})
    agents.moved("vxlan:8472")


def says(machine: Machine, mtu: int, why: str) -> None:
    """Wait until the agent says so."""
    wait_for(
        f"{machine.node} to say {mtu}: {why}; it says {facts(machine).get('mtu')}: {facts(machine).get('mtuSource')}",
        lambda: (facts(machine).get("mtu"), facts(machine).get("mtuSource")) == (mtu, why),
    )


def tunnel_mtu(machine: Machine) -> int:
    found = re.search(r" mtu (\d+) ", machine.ip("link", "show", TUNNEL))
    assert found
    return int(found[1])


def fits(source: Machine, target: Machine, mtu: int) -> None:
    """A packet of this size gets from pod to pod unfragmented, in both families, and one byte more does not."""
    for machine in (source, target):
        machine.set_pod_mtu("pod", mtu)
        forget_paths(machine.pods["pod"])
    pod = source.pods["pod"]
    for version, headers in HEADERS.items():
        address = target.pods["pod"].of(version)
        assert pod.ping(address, payload=mtu - headers, wait=3).received, f"IPv{version}, {mtu} bytes"
        assert not pod.ping(address, payload=mtu - headers + 1, wait=0.2).received


def forget_paths(pod: Pod) -> None:
    """What it was told of a path's MTU it would believe for ten minutes."""
    for family in ("-4", "-6"):
        pod.ip(family, "route", "flush", "cache")


def test_each_node_has_what_its_segment_carries(agents: Agents, tunnels: list[Machine]) -> None:
    n1, n2, n3 = tunnels
    says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")
    says(n3, 1450, "eth0 has 1500, less 50 for the tunnel")
    assert [tunnel_mtu(machine) for machine in tunnels] == [JUMBO - 50, JUMBO - 50, 1450]
    fits(n1, n2, JUMBO - 50)
    n3.set_pod_mtu("pod", 1450)
    fits(n3, n1, 1450)


def test_status_says_which_mtu_and_why(agents: Agents, tunnels: list[Machine]) -> None:
    kubeconfig = str(agents.plane.kubeconfig(host=agents.lab.address))
    text = tunnels[0].run(str(NETLOOM), "status", "--kubeconfig", kubeconfig, check=False)
    assert "pods' MTU 8950: eth0 has 9000, less 50 for the tunnel\n" in text


def test_the_tunnel_follows_its_device(agents: Agents, tunnels: list[Machine]) -> None:
    n1, n2, _ = tunnels
    for mtu in (4000, JUMBO):
        agents.lab.set_mtu("a", mtu)
        says(n1, mtu - 50, f"eth0 has {mtu}, less 50 for the tunnel")
        says(n2, mtu - 50, f"eth0 has {mtu}, less 50 for the tunnel")
        assert tunnel_mtu(n1) == mtu - 50
        fits(n1, n2, mtu - 50)


def test_a_device_that_carries_nothing_between_nodes_does_not_count(agents: Agents, tunnels: list[Machine]) -> None:
    n1 = tunnels[0]
    n1.batch(["link add tiny mtu 600 type bridge", "addr add 10.8.0.1/24 dev tiny", "link set tiny up"])
    n1.ip("link", "set", "eth1", "mtu", "700")
    agents.end("n1")  # whatever an event might have missed, a start would see
    agents.start(n1)
    agents.in_sync(n1, peers=2)
    says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")
    assert (facts(n1)["underlay"], facts(n1)["netlinkWrites"]) == (["eth0"], 0)
    n1.batch(["link delete tiny", "link set eth1 mtu 2000"])


def test_it_is_the_device_that_routes_to_peers_name_wherever_the_nodes_address_is(
    agents: Agents, tunnels: list[Machine]
) -> None:
    n1, n2, n3 = tunnels
    n1.ip("route", "add", n2.address, "via", "10.9.0.2")
    says(n1, 1950, "eth1 has 2000, less 50 for the tunnel")
    assert sorted(facts(n1)["underlay"]) == ["eth0", "eth1"], "n3 is reached by the other"
    n1.ip("link", "set", "eth0", "mtu", "1800")
    says(n1, 1750, "eth0 has 1800, less 50 for the tunnel")
    n1.ip("link", "set", "eth0", "mtu", str(JUMBO))
    n1.ip("route", "add", n3.address, "via", "10.9.0.2")
    # eth1 had the least before that, too.
    wait_for("both to be reached by eth1", lambda: facts(n1)["underlay"] == ["eth1"])
    says(n1, 1950, "eth1 has 2000, less 50 for the tunnel")
    assert tunnel_mtu(n1) == 1950
    fits(n1, n2, 1950)
    n1.batch([f"route del {n2.address}", f"route del {n3.address}"])
    says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")


def test_of_the_devices_that_the_spec_names_the_least_counts(agents: Agents, tunnels: list[Machine]) -> None:
    n1, n2, _ = tunnels
    n1.ip("route", "add", n2.address, "via", "10.9.0.2")
    says(n1, 1950, "eth1 has 2000, less 50 for the tunnel")
    agents.edit_spec(devices=["eth0"])
    says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")
    agents.edit_spec(devices=["eth*"])
    says(n1, 1950, "eth1 has 2000, less 50 for the tunnel")
    n1.ip("link", "set", "eth1", "mtu", "2500")
    says(n1, 2450, "eth1 has 2500, less 50 for the tunnel")
    n1.batch([f"route del {n2.address}", "link set eth1 mtu 2000"])


def test_native_routes_carry_the_mtu_that_the_spec_gives(agents: Agents, tunnels: list[Machine]) -> None:
    n1, n2, n3 = tunnels
    agents.edit_spec(mtu=1400, routing={"mode": "hybrid"})
    agents.moved("none", "vxlan:8472")
    assert f"10.42.2.0/24 nhid N via {n2.address} dev eth0 proto 158 onlink mtu 1400" in re.sub(
        " +", " ", str(shown(n1))
    )
    says(n1, 1350, "as configured, less 50 for the tunnel")
    wait_for("the tunnel to follow", lambda: tunnel_mtu(n1) == 1350)
    for machine in tunnels:
        machine.set_pod_mtu("pod", JUMBO)
    pod = n1.pods["pod"]
    for version, headers in HEADERS.items():
        for other, mtu in ((n2, 1400), (n3, 1350)):
            address = other.pods["pod"].of(version)
            assert pod.ping(address, payload=mtu - headers, wait=3).received, f"IPv{version}, {mtu} bytes"
            assert not pod.ping(address, payload=mtu - headers + 1, wait=0.2).received
    agents.edit_spec(mtu=0)
    says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")
    wait_for("routes without", lambda: " mtu " not in str(shown(n1) + shown(n1, "-6")))
    fits(n1, n2, JUMBO)


def test_a_node_with_a_pods_address_is_named_and_lowers_no_mtu(agents: Agents, tunnels: list[Machine]) -> None:
    """The pod's device is what packets to that Node would leave by, and it has its MTU from this node."""
    n1, n2, _ = tunnels
    n1.set_pod_mtu("pod", 1300)
    agents.plane.client.request("POST", NODES, netloom_node("n9", "10.42.1.5", "10.42.9.0/24"))
    wrong = "NetloomNode n9: spec.addresses has 10.42.1.5, and packets to it leave by "
    try:
        wait_for("n1 to name it", lambda: wrong in agents.condition("n1")["message"])
        assert "which leads to this node's own pods: no machine has it." in agents.condition("n1")["message"]
        says(n1, JUMBO - 50, "eth0 has 9000, less 50 for the tunnel")
        assert (facts(n1)["underlay"], tunnel_mtu(n1)) == (["eth0"], JUMBO - 50)
        wait_for("n2 to name it", lambda: any(wrong + TUNNEL in each for each in facts(n2)["warnings"]))
        assert agents.condition("n2")["status"] == "True"
        fits(n1, n2, JUMBO - 50)
    finally:
        agents.plane.client.request("DELETE", f"{NODES}/n9")
    wait_for("n1 to be content", lambda: agents.condition("n1")["status"] == "True")


def test_without_a_tunnel_pods_have_the_whole(agents: Agents, tunnels: list[Machine]) -> None:
    n1, n2, _ = tunnels
    agents.edit(mode="native", autoDirectNodeRoutes=True, directRoutingSkipUnreachable=True)
    try:
        agents.moved("none")
        fits(n1, n2, JUMBO)
        # The tunnel would be kept for half a minute more, and pods' MTU with it.
        agents.end("n1")
        n1.run(str(NETLOOM), "cleanup", "--yes", "--run-dir", agents.run_dir(n1))
        agents.start(n1)
        says(n1, JUMBO, "eth0 has 9000")
        agents.lab.set_mtu("a", 5000)
        says(n1, 5000, "eth0 has 5000")
        fits(n1, n2, 5000)
    finally:
        agents.edit(directRoutingSkipUnreachable=False)
