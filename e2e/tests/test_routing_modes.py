"""Native and hybrid routing between real agents: which peers are reached directly, and that it is decided again.

Two segments behind a router, two nodes in each, both families: n1 and n2 are on segment a, n3 and n4 on segment b. The
router knows all pod CIDRs in the tests of native routing, and none in those of hybrid routing.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from netloom_e2e.agents import NETWORK, Agents, cidrs, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, device_state, facts, holes, routes, routes6, shown

SEGMENTS = {"n1": "a", "n2": "a", "n3": "b", "n4": "b"}
UNREACHED = re.compile("Destination Host Unreachable|Destination unreachable: (No route|Address unreachable)")
RP_FILTER = "net.ipv4.conf.{}.rp_filter"


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Agents that start in the first scenario of native routing."""
    plane = crds_installed
    with Lab(f"nlr{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        lab.add_segment("a")
        lab.add_segment("b")
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network(routing={"mode": "native"}))
        try:
            for number, (name, segment) in enumerate(SEGMENTS.items(), 1):
                machine = made.enter(name, segment=segment)
                machine.add_pod("pod", f"10.42.{number}.5", f"fd00:42:0:{number}::5", mtu=1400)
                # A peer that is away is found out in a third of a second.
                machine.sysctl(ipv4__neigh__eth0__retrans_time_ms=100, ipv6__neigh__eth0__retrans_time_ms=100)
            # Debian's default, and systemd's.
            lab.nodes["n1"].sysctl(ipv4__conf__all__rp_filter=1, ipv4__conf__eth0__rp_filter=0)
            lab.nodes["n2"].sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=1)
            for machine in lab.nodes.values():
                made.start(machine)
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def scenario(agents: Agents, mode: str, *, direct: bool = False, skip: bool = False, router: bool) -> list[Machine]:
    """Bring all nodes to a way of routing; `router`: whether the network itself knows the pod CIDRs."""
    for machine in agents.lab.nodes.values():
        known = cidrs(machine.node)
        agents.lab.router.learn(machine, *known)
        if not router:
            agents.lab.router.forget(*known)
    agents.edit(mode=mode, autoDirectNodeRoutes=direct, directRoutingSkipUnreachable=skip)
    if mode == "hybrid":
        agents.moved("none", "vxlan:8472")
    else:
        agents.moved("none", sending=direct)
    return list(agents.lab.nodes.values())


def reach(source: Machine, *targets: Machine) -> None:
    """Its pod pings theirs in both families; the first packet may have to wait for neighbours on the way."""
    pod = source.pods["pod"]
    for target in targets:
        for version in (4, 6):
            lost = pod.ping(target.pods["pod"].of(version), count=2, interval=0.01, wait=3).lost
            assert lost == 0, f"{source.node} to {target.node}, IPv{version}: {source.ip('route')}"


def via(machine: Machine, **peers: str) -> Callable[[], bool]:
    """Whether routes to peers go by these devices, in both families; "" is no route of ours."""
    wanted = {cidr: device for peer, device in peers.items() for cidr in cidrs(peer) if device}
    return lambda: device_state(machine) == wanted


def await_via(agents: Agents, machine: Machine, why: str, **peers: str) -> None:
    try:
        wait_for(f"{machine.node}, {why}: {peers}", via(machine, **peers))
    except TimeoutError as error:
        said = "\n".join([*routes(machine), *routes6(machine), *agents.log(machine).splitlines()[-10:]])
        raise AssertionError(f"{error}\n{said}\n{facts(machine)}") from error


def switches(machine: Machine) -> str:
    """The switches of routing, as `sysctl` shows them."""
    names = [RP_FILTER.format("all"), RP_FILTER.format("eth0")]
    return machine.run("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", *names)


# ------------------------------------------------------------------------------------------------ native


def test_a_router_that_knows_the_pods_is_all_that_native_routing_needs(agents: Agents) -> None:
    n1, n2, n3, n4 = scenario(agents, "native", router=True)
    for machine in (n1, n2, n3, n4):
        assert device_state(machine) == {}
        assert "netloom" not in machine.ip("link").replace("netloom_probe", ""), "no tunnel"
        assert holes(machine) == sorted(cidrs(machine.node)), "all else is the router's"
    for free in ("10.42.1.77", "fd00:42:0:1::77"):
        said = n2.pods["pod"].run("ping", "-n", "-c", "1", "-W", "3", free, check=False)
        assert UNREACHED.search(said), "between n1 and the router it would go in circles"
    reach(n1, n2, n3, n4)
    reach(n4, n1, n2, n3)


def test_the_switches_of_routing_are_set_and_cleanup_puts_back_what_nobody_else_may_need(agents: Agents) -> None:
    n1, n2, *_ = scenario(agents, "native", router=True)
    on = "net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n"
    for machine, filters in ((n1, (1, 0)), (n2, (0, 1))):
        in_all, on_device = (RP_FILTER.format(name) for name in ("all", "eth0"))
        assert switches(machine) == f"{on}{in_all} = {filters[0]}\n{on_device} = 2\n", "strict is loosened"
        agents.end(machine.node)
        clean = [*machine.enter, str(NETLOOM), "cleanup", "--yes", "--run-dir", agents.run_dir(machine)]
        done = subprocess.run(clean, capture_output=True, text=True, timeout=60, check=True)
        assert switches(machine) == f"{on}{in_all} = {filters[0]}\n{on_device} = {filters[1]}\n", "between pods"
        assert "packets of others may be forwarded by the devices eth0, " in done.stderr
        assert "net.ipv4.ip_forward=0" in done.stderr.rpartition("sysctl -w ")[2]
        agents.start(machine)
    agents.in_sync(n1, n2, peers=3)
    n1.sysctl(ipv4__ip_forward=0, ipv4__conf__eth0__rp_filter=1)
    wait_for("switches to be set again", lambda: "forward = 1" in switches(n1) and "eth0.rp_filter = 2" in switches(n1))
    reach(n1, n2)


def test_direct_routes_to_nodes_of_the_same_segment_and_the_others_are_left_to_the_router(agents: Agents) -> None:
    n1, n2, n3, n4 = scenario(agents, "native", direct=True, skip=True, router=True)
    assert shown(n1) == [f"10.42.2.0/24 nhid N via {n2.address} dev eth0 proto 158 onlink"]
    assert shown(n1, "-6") == [
        f"fd00:42:0:2::/64 nhid N via {n2.address6} dev eth0 proto 158 metric 1024 onlink pref medium"
    ]
    assert shown(n3) == [f"10.42.4.0/24 nhid N via {n4.address} dev eth0 proto 158 onlink"]
    agents.in_sync(n1, n2, n3, n4, peers=3)
    reach(n1, n2, n3, n4)
    agents.lab.router.forget(*cidrs("n2"), *cidrs("n3"))
    reach(n1, n2)
    assert not n1.pods["pod"].ping(n3.pods["pod"].address, wait=0.2).received, "that one needs the router"


def test_a_node_that_direct_routes_cannot_reach_is_named_with_the_way_out(agents: Agents) -> None:
    n1, n2, n3, n4 = scenario(agents, "native", direct=True, router=False)
    assert via(n1, n2="eth0")(), "who is near is routed all the same"
    wait_for("the condition", lambda: agents.condition("n1").get("status") == "False")
    message = agents.condition("n1")["message"]
    for name in ("n3", "n4"):
        assert f"NetloomNode {name}: spec.addresses has no address on a network of this node" in message
    assert "set spec.routing.directRoutingSkipUnreachable to leave such nodes to a router" in message
    assert "NetloomNode n2" not in message
    reach(n1, n2)
    reach(n3, n4)
    agents.edit(directRoutingSkipUnreachable=True)
    wait_for("the condition", lambda: agents.condition("n1").get("status") == "True")


@pytest.mark.parametrize("skip", [True, False])
def test_two_nodes_that_a_switch_kept_apart_find_each_other_again(agents: Agents, skip: bool) -> None:
    """Once neither sends to the other any more, the kernel of neither asks where the other is."""
    n1, n2, *_ = scenario(agents, "native", direct=True, skip=skip, router=skip)
    isolate(agents.lab, n1, n2)
    for one, other in ((n1, n2), (n2, n1)):
        lose_sight(one, other)
    if skip:
        await_via(agents, n1, "apart", n2="")
        await_via(agents, n2, "apart", n1="")
        reach(n1, n2)
    else:
        assert via(n1, n2="eth0")(), "nothing else leads there"
        assert "NetloomNode n2" not in str(facts(n1)["errors"])
    isolate(agents.lab, n1, n2, on=False)
    await_via(agents, n1, "together", n2="eth0")
    await_via(agents, n2, "together", n1="eth0")
    reach(n1, n2)


def lose_sight(one: Machine, other: Machine) -> None:
    """Ask for the other until the kernel gives up."""
    for family, address in (("-4", other.address), ("-6", other.address6)):
        one.ip(family, "neigh", "flush", "to", address)
        one.run("ping", "-c", "1", "-W", "1", address, check=False)


# ------------------------------------------------------------------------------------------------ hybrid


def test_hybrid_is_direct_in_the_segment_and_tunnelled_beyond(agents: Agents) -> None:
    n1, n2, n3, n4 = scenario(agents, "hybrid", router=False)
    await_via(agents, n1, "hybrid", n2="eth0", n3=TUNNEL, n4=TUNNEL)  # who sends to one by the tunnel says that it does
    await_via(agents, n3, "hybrid", n4="eth0", n1=TUNNEL, n2=TUNNEL)
    assert holes(n1) == sorted(cidrs("n1")), "which addresses are those of Services, nobody has told"
    told = {"status": {"ipam": {"serviceCIDRs": []}}}  # as the operator does
    agents.plane.client.request("PATCH", f"{NETWORK}/default/status", told)
    for machine in (n1, n2, n3, n4):
        wanted = sorted([*cidrs(machine.node), "10.42.0.0/16", "fd00:42::/56"])
        wait_for("packets for nobody to end", lambda machine=machine, wanted=wanted: holes(machine) == wanted)  # type: ignore[misc]
    said = n1.pods["pod"].run("ping", "-n", "-c", "1", "-W", "3", "10.42.200.5", check=False)
    assert UNREACHED.search(said), "of a CIDR that no node has"
    reach(n1, n2, n3, n4)
    reach(n4, n1, n2, n3)


@contextmanager
def a_host_route(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    gateways = agents.lab.segments["a"].gateway, agents.lab.segments["a"].gateway6
    for address, by in zip(n2.underlay, gateways, strict=True):
        n1.ip("route", "add", address, "via", by)
    yield
    for address in n2.underlay:
        n1.ip("route", "delete", address)


@contextmanager
def a_policy_rule(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    gateways = agents.lab.segments["a"].gateway, agents.lab.segments["a"].gateway6
    for family, address, by in zip(("-4", "-6"), n2.underlay, gateways, strict=True):
        n1.ip(family, "route", "add", "default", "via", by, "dev", "eth0", "table", "77")
        n1.ip(family, "rule", "add", "to", address, "lookup", "77")
    yield
    for family in ("-4", "-6"):
        n1.ip(family, "rule", "delete", "lookup", "77")
        n1.ip(family, "route", "flush", "table", "77")


@contextmanager
def without_its_addresses(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    n1.ip("addr", "flush", "dev", "eth0", "scope", "global")
    yield
    agents.lab._set_addresses(n1, agents.lab.segments["a"])


@contextmanager
def its_link_down(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    n1.ip("link", "set", "eth0", "down")
    yield
    n1.ip("addr", "flush", "dev", "eth0", "scope", "global")
    n1.ip("link", "set", "eth0", "up")
    agents.lab._set_addresses(n1, agents.lab.segments["a"])


@contextmanager
def its_cable_pulled(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    agents.lab.switch.ip("link", "set", n1.port, "down")
    yield
    agents.lab.switch.ip("link", "set", n1.port, "up")


@contextmanager
def no_answer_in_the_segment(n1: Machine, n2: Machine, agents: Agents) -> Iterator[None]:
    """The switch keeps the two apart; the router both reach."""
    isolate(agents.lab, n1, n2)
    lose_sight(n1, n2)
    yield
    isolate(agents.lab, n1, n2, on=False)


def isolate(lab: Lab, *nodes: Machine, on: bool = True) -> None:
    for node in nodes:
        lab.switch.run("bridge", "link", "set", "dev", node.port, "isolated", "on" if on else "off")


@pytest.mark.parametrize(
    "change",
    [
        a_host_route,
        a_policy_rule,
        without_its_addresses,
        its_link_down,
        its_cable_pulled,
        no_answer_in_the_segment,
    ],
)
def test_what_is_on_link_is_decided_again_by_event(agents: Agents, change: Callable[..., object]) -> None:
    n1, n2, n3, n4 = scenario(agents, "hybrid", router=False)
    await_via(agents, n1, "at first", n2="eth0", n3=TUNNEL, n4=TUNNEL)
    with change(n1, n2, agents):  # type: ignore[attr-defined]
        await_via(agents, n1, "meanwhile", n2=TUNNEL, n3=TUNNEL, n4=TUNNEL)
        if change in (a_host_route, a_policy_rule):
            reach(n1, n2, n3)
    await_via(agents, n1, "afterwards", n2="eth0", n3=TUNNEL, n4=TUNNEL)
    reach(n1, n2, n3, n4)


def test_a_node_moves_to_the_other_segment_and_back(agents: Agents) -> None:
    n1, n2, n3, n4 = scenario(agents, "hybrid", router=False)
    for segment, near, far in (("b", n3, n1), ("a", n1, n3)):
        n2 = agents.lab.move_node("n2", segment=segment)
        agents.readdress(n2)
        for other, device in ((near, "eth0"), (far, TUNNEL)):
            wait_for(
                f"{other.node} to reach n2 by {device}",
                lambda other=other, device=device: {device_state(other).get(cidr) for cidr in cidrs("n2")} == {device},  # type: ignore[misc]
            )
        agents.in_sync(n1, n2, n3, n4, peers=3)
        reach(n2, n1, n3, n4)
        reach(n1, n2)
    await_via(agents, n1, "afterwards", n2="eth0", n3=TUNNEL, n4=TUNNEL)
    await_via(agents, n2, "afterwards", n1="eth0", n3=TUNNEL, n4=TUNNEL)
