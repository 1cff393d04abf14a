"""How pods reach pods natively and in hybrid mode: four nodes on two segments, an agent each, the real API server.

n1, n2 on segment a, n3, n4 on segment b, a router between them; each node's routes as a terminal shows them
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e.agents import NETWORK, NODES, Agents, cidrs, network
from netloom_e2e.bird import full_mesh, learned
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import PROTOCOL, TUNNEL, facts, state

PLACES = {"n1": "a", "n2": "a", "n3": "b", "n4": "b"}
SKIP = {"autoDirectNodeRoutes": True, "directRoutingSkipUnreachable": True}
HYBRID_ON_N1 = """\
10.42.2.0/24 via 172.30.1.12 dev eth0
10.42.3.0/24 via 172.30.2.13 dev netloom_vxlan
10.42.4.0/24 via 172.30.2.14 dev netloom_vxlan"""
SKIP_ON_N1 = "10.42.2.0/24 via 172.30.1.12 dev eth0"


@pytest.fixture
def agents(crds_installed: ControlPlane, tmp_path: Path) -> Iterator[Agents]:
    """The nodes of `PLACES`, each with a pod of both families and no agent yet."""
    plane = crds_installed
    with Lab(f"nlr{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        lab.add_segment("a")
        lab.add_segment("b")
        made = Agents(lab, plane, tmp_path)
        try:
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def begin(agents: Agents, places: dict[str, str] = PLACES, **routing: object) -> list[Machine]:
    """The network with this routing, and the nodes of `places` with their agents and pods."""
    agents.plane.client.request("POST", NETWORK, network(routing=routing))
    machines = [agents.join(name, segment=segment) for name, segment in places.items()]
    for machine in machines:
        index = machine.node.removeprefix("n")
        machine.add_pod("pod", f"10.42.{index}.5", f"fd00:42:0:{index}::5", mtu=1400)
    for machine in machines:
        wait_for(f"the agent of {machine.node}", lambda m=machine: facts(m), deadline=30)  # type: ignore[misc]
    return machines


def ours(machine: Machine, family: str = "-4") -> str:
    """Netloom's routes, without what is the same in all or differs from run to run."""
    lines = machine.ip(family, "route", "show", "proto", PROTOCOL).splitlines()
    return "\n".join(
        " ".join(re.sub(r"nhid \d+|encap ip .* tos 0|onlink|metric 1024|pref medium", "", line).split())
        for line in lines
    )


def becomes(machine: Machine, wanted: str, family: str = "-4") -> None:
    """Wait until the node's routes are these; else show them."""
    try:
        wait_for("routes", lambda: ours(machine, family) == wanted, deadline=20)
    except TimeoutError as error:
        said = facts(machine)
        raise AssertionError(f"{machine.node} has\n{ours(machine, family)}\ninstead of\n{wanted}\n{said}") from error


def all_reach_all(machines: list[Machine], *, versions: tuple[int, ...] = (4, 6)) -> None:
    pods = [machine.pods["pod"] for machine in machines]
    lost = [
        f"{a.name} to {b.of(version)}"
        for a in pods
        for b in pods
        for version in versions
        if a != b and a.ping(b.of(version), count=3, interval=0.01).lost
    ]
    assert not lost


def test_a_router_that_knows_all_pod_cidrs_needs_nothing_but_default_routes(agents: Agents) -> None:
    machines = begin(agents, mode="native")
    agents.in_sync(*machines, peers=3)
    for machine in machines:
        agents.lab.router.learn(machine, *cidrs(machine.node))
        assert ours(machine) == ours(machine, "-6") == ""
        assert TUNNEL not in machine.ip("link")
        assert machine.run("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding") == "1\n1\n"
    all_reach_all(machines)


def test_on_one_segment_every_node_routes_to_every_other_by_its_address(agents: Agents) -> None:
    places = dict.fromkeys(PLACES, "a")
    machines = begin(agents, places, mode="native", autoDirectNodeRoutes=True)
    agents.in_sync(*machines, peers=3)
    becomes(
        machines[0],
        """\
10.42.2.0/24 via 172.30.1.12 dev eth0
10.42.3.0/24 via 172.30.1.13 dev eth0
10.42.4.0/24 via 172.30.1.14 dev eth0""",
    )
    becomes(
        machines[0],
        """\
fd00:42:0:2::/64 via fd00:30:0:1::c dev eth0
fd00:42:0:3::/64 via fd00:30:0:1::d dev eth0
fd00:42:0:4::/64 via fd00:30:0:1::e dev eth0""",
        "-6",
    )
    assert TUNNEL not in machines[0].ip("link")
    all_reach_all(machines)


def test_a_node_elsewhere_is_left_to_the_router_where_that_is_said(agents: Agents) -> None:
    machines = begin(agents, mode="native", **SKIP)
    agents.in_sync(*machines, peers=3)
    becomes(machines[0], SKIP_ON_N1)
    becomes(machines[3], "10.42.3.0/24 via 172.30.2.13 dev eth0")
    for machine in machines:
        agents.lab.router.learn(machine, *cidrs(machine.node))
        assert facts(machine)["errors"] == []
    all_reach_all(machines)


def test_a_node_elsewhere_is_reported_by_name_where_it_is_not(agents: Agents) -> None:
    machines = begin(agents, mode="native", autoDirectNodeRoutes=True)
    n1 = machines[0]
    becomes(n1, SKIP_ON_N1)
    wait_for("the report", lambda: len(facts(n1).get("errors", ())) == 2)
    for name, error in zip(("n3", "n4"), facts(n1)["errors"], strict=True):
        assert error.startswith(f"NetloomNode {name}: ")
        assert "directRoutingSkipUnreachable" in error
    agents.edit(**SKIP)
    wait_for("the way out", lambda: facts(n1).get("errors") == [])


def test_hybrid_tunnels_to_those_elsewhere(agents: Agents) -> None:
    machines = begin(agents, mode="hybrid")
    agents.in_sync(*machines, peers=3)
    becomes(machines[0], HYBRID_ON_N1)
    all_reach_all(machines)


def test_hybrid_decides_anew_when_the_network_changes(agents: Agents) -> None:
    machines = begin(agents, mode="hybrid")
    n1, _, n3, n4 = machines
    agents.in_sync(*machines, peers=3)
    becomes(n1, HYBRID_ON_N1)

    # The on-link route goes: n2 is behind the default route like the others.
    n1.ip("route", "del", "172.30.1.0/24")
    n1.batch(["route add 172.30.1.1 dev eth0", "route replace default via 172.30.1.1"])
    becomes(n1, HYBRID_ON_N1.replace("dev eth0", "dev netloom_vxlan"))
    all_reach_all(machines, versions=(4,))
    n1.batch([f"route add 172.30.1.0/24 dev eth0 src {n1.address}"])
    becomes(n1, HYBRID_ON_N1)

    # The link flaps.
    n1.batch(["link set eth0 down", "link set eth0 up", "route replace default via 172.30.1.1"])
    becomes(n1, HYBRID_ON_N1)

    # n2 moves to the other segment.
    moved = agents.lab.move_node("n2", segment="b")
    address = [{"type": "InternalIP", "ip": ip} for ip in moved.underlay]
    agents.plane.client.request("PATCH", f"{NODES}/n2", {"spec": {"addresses": address}})
    becomes(n1, HYBRID_ON_N1.replace("via 172.30.1.12 dev eth0", "via 172.30.2.12 dev netloom_vxlan"))
    becomes(
        moved,
        """\
10.42.1.0/24 via 172.30.1.11 dev netloom_vxlan
10.42.3.0/24 via 172.30.2.13 dev eth0
10.42.4.0/24 via 172.30.2.14 dev eth0""",
    )
    becomes(n3, "10.42.1.0/24 via 172.30.1.11 dev netloom_vxlan\n" + by_b("2", "4"))
    all_reach_all([n1, moved, n3, n4], versions=(4,))


def by_b(*indexes: str) -> str:
    """Direct routes on segment b."""
    return "\n".join(f"10.42.{i}.0/24 via 172.30.2.1{i} dev eth0" for i in indexes)


def test_jumbo_frames_where_the_segment_has_them(agents: Agents) -> None:
    agents.lab.set_mtu("b", 9000)
    machines = begin(agents, mode="native", **SKIP)
    n3, n4 = machines[2:]
    agents.in_sync(*machines, peers=3)
    becomes(n3, by_b("4"))
    for machine in (n3, n4):
        machine.set_pod_mtu("pod", 9000)
    for version, headers in ((4, 28), (6, 48)):
        assert n3.pods["pod"].ping(n4.pods["pod"].of(version), payload=9000 - headers).received


def test_routes_of_a_bgp_daemon_are_left_alone(agents: Agents, tmp_path: Path) -> None:
    places = {"n1": "a", "n2": "a", "n3": "a"}
    machines = begin(agents, places, mode="native")
    n1 = machines[0]
    agents.in_sync(*machines, peers=2)
    with full_mesh({machine: cidrs(machine.node) for machine in machines}, tmp_path) as birds:
        wait_for("all routes", lambda: all(len(learned(machine)) == 4 for machine in machines))
        before = learned(n1)
        all_reach_all(machines)
        assert state(n1) == ""

        agents.agents["n1"].kill()
        agents.agents["n1"].wait()
        agents.start(n1)
        agents.in_sync(n1, peers=2)
        assert learned(n1) == before

        # Somebody deletes one: it is the daemon's to put back, and the agent has no part in it.
        n1.ip("route", "del", "10.42.2.0/24", "proto", "bird")
        birds["n1"].stop()
        assert learned(n1) == []
        birds["n1"].start()
        wait_for("BIRD's routes to be back", lambda: learned(n1) == before)

        agents.edit(mode="tunnel")
        becomes(n1, "\n".join(f"10.42.{i}.0/24 via 172.30.1.1{i} dev {TUNNEL}" for i in (2, 3)))
        assert learned(n1) == before
        all_reach_all(machines)
        agents.edit(mode="native")
        for machine in machines:
            becomes(machine, "")
        assert learned(n1) == before
        all_reach_all(machines)
    assert learned(n1) == []
