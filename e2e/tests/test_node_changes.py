"""What happens to nodes while a cluster runs, under UDP between the pods that it does not concern: no loss there.

Three nodes in tunnels and a fourth, n4, that things happen to.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netloom_e2e.agents import NETWORK, NODES, Agents, cidrs, netloom_node, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.flow import Flows
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import TUNNEL, device_state, facts, holes, leading, state

THREE = ("n1", "n2", "n3")
SILENT_SECONDS, DEAD_SECONDS = 16.0, 4.0


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    plane = crds_installed
    with Lab(f"nlc{os.getpid() % 10000}", dual_stack=True) as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        try:
            for number, name in enumerate((*THREE, "n4"), 1):
                machine = made.join(name)
                machine.add_pod("pod", f"10.42.{number}.5", f"fd00:42:0:{number}::5", mtu=1400)
            made.in_sync(*lab.nodes.values(), peers=3)
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@contextmanager
def undisturbed(agents: Agents, *names: str) -> Iterator[Flows]:
    """The pods of these nodes send to each other while the block lasts, in both families, and lose nothing."""
    pods = {name: agents.lab.nodes[name].pods["pod"] for name in names or THREE}
    with Flows(pods, versions=(4, 6), rate=500) as flows:
        wait_for("traffic", lambda: flows.now > 0.2)
        yield flows
        until = flows.now + 0.5
        wait_for("traffic after the change", lambda: flows.now > until)
        report = flows.stop()
    assert report.lossless, str(report)


def reach(source: Machine, target: Machine, *addresses: str) -> None:
    for address in addresses or target.pods["pod"].addresses:
        assert source.pods["pod"].ping(address, wait=3).received, f"{source.node} to {target.node} at {address}"


def patch(agents: Agents, name: str, **spec: object) -> None:
    agents.plane.client.request("PATCH", f"{NODES}/{name}", {"spec": spec})


def remove(agents: Agents, *names: str) -> None:
    for name in names:
        agents.plane.client.request("DELETE", f"{NODES}/{name}")


def remotes(machine: Machine) -> str:
    """Where its tunnels lead."""
    return machine.ip("nexthop", "show")


def test_a_node_gets_another_address(agents: Agents) -> None:
    n1, n2, n3, n4 = agents.lab.nodes.values()
    old, new = n4.address, "172.31.44.4"
    with undisturbed(agents):
        n4.batch([f"addr del {old}/16 dev eth0", f"addr add {new}/16 dev eth0"])
        n4.ip("route", "replace", "default", "via", agents.lab.address)
        patch(agents, "n4", addresses=[{"type": "InternalIP", "ip": new}])
        for machine in (n1, n2, n3):
            wait_for(f"{machine.node} to follow", lambda m=machine: f"dst {new} " in remotes(m))  # type: ignore[misc]
            assert f"dst {old} " not in remotes(machine)
        agents.in_sync(n1, n2, n3, n4, peers=3)
        reach(n1, n4)
        reach(n4, n2)
        # Its own watch is a connection from the old address: for a minute, until keep-alive ends it, it hears nothing.
        agents.end("n4")
        agents.start(n4)
        agents.in_sync(n4, peers=3)


def test_a_node_gets_another_cidr_and_comes_back_with_one(agents: Agents) -> None:
    n1, n2, n3, n4 = agents.lab.nodes.values()
    more = ("10.42.104.0/24", "fd00:42:0:104::/64")
    with undisturbed(agents):
        patch(agents, "n4", ipam={"podCIDRs": [*cidrs("n4"), *more]})
        for machine in (n1, n2, n3):
            wait_for("routes to the second ones", lambda m=machine: set(more) <= set(device_state(m)))  # type: ignore[misc]
        n4.add_pod("second", "10.42.104.5", "fd00:42:0:104::5", mtu=1400)
        reach(n1, n4, "10.42.104.5", "fd00:42:0:104::5", *n4.pods["pod"].addresses)
        wait_for("its own addresses", lambda: "10.42.104.0/32" in n4.ip("addr", "show", TUNNEL))

        # None can be taken from a living node, nor while a pod lives in it: drained, it leaves and joins with one.
        n4.remove_pods()
        remove(agents, "n4")
        agents.in_sync(n1, n2, n3, peers=2)
        agents.plane.client.request("POST", NODES, netloom_node("n4", "172.31.44.4", *cidrs("n4")))
        agents.in_sync(n1, n2, n3, n4, peers=3)
        assert set(device_state(n1)) == {cidr for name in ("n2", "n3", "n4") for cidr in cidrs(name)}
        wait_for("its own to go", lambda: "10.42.104.0/32" not in n4.ip("addr", "show", TUNNEL))
        n4.add_pod("pod", "10.42.4.5", "fd00:42:0:4::5", mtu=1400)
        reach(n1, n4)


def test_the_older_of_two_nodes_keeps_its_address_and_the_other_is_named(agents: Agents) -> None:
    n1, n2, n3, _ = agents.lab.nodes.values()
    before = leading(n1)
    with undisturbed(agents):
        body = netloom_node("zz-twin", n2.address, "10.42.77.0/24")
        agents.plane.client.request("POST", NODES, body)
        for machine in (n1, n3):
            wait_for("the report", lambda m=machine: facts(m)["warnings"])  # type: ignore[misc]
            (warning,) = facts(machine)["warnings"]
            assert warning == (
                f"{n2.address} is claimed by n2 and zz-twin; n2 is older and keeps it. "
                "Delete the Node of the two that is gone, or give one of them another address."
            )
        wait_for("the older one itself to say so", lambda: "zz-twin" in str(facts(n2)["warnings"]))
        assert "has this node's own address" in str(facts(n2)["warnings"])
        assert [facts(machine)["errors"] for machine in (n1, n2, n3)] == [[], [], []], "nothing is wrong with them"
        assert leading(n1) == before
        assert "10.42.77.0/24" in holes(n1), "pods that nobody can send to"
    remove(agents, "zz-twin")
    agents.in_sync(n1, n2, n3, peers=3)


def test_nodes_that_nobody_can_send_to_are_named_and_make_no_other_node_worse(agents: Agents) -> None:
    machines = list(agents.lab.nodes.values())
    n1 = machines[0]
    odd = {"lo": "127.0.0.1", "zero": "0.0.0.0", "many": "224.0.0.1", "all": "255.255.255.255", "none": ()}
    before = state(n1)
    transitions = [agents.condition(machine.node)["lastTransitionTime"] for machine in machines]
    with undisturbed(agents):
        for number, (name, address) in enumerate(odd.items(), 90):
            agents.plane.client.request("POST", NODES, netloom_node(name, address, f"10.42.{number}.0/24"))
        for machine in machines:
            wait_for("all to be named", lambda m=machine: len(facts(m)["warnings"]) == len(odd))  # type: ignore[misc]
            said = facts(machine)
            assert (said["errors"], said["inSync"], said["peers"]) == ([], True, 3)
            for name in odd:
                (warning,) = [each for each in said["warnings"] if f"NetloomNode {name}: spec.addresses" in each]
                assert str(odd[name] or "no IPv4 address") in warning
        metrics = n1.run("curl", "-s", "http://127.0.0.1:9964/metrics")
        assert f"netloom_peer_warnings {len(odd)}.0" in metrics
        assert "netloom_dataplane_errors 0.0" in metrics
        assert state(n1) == before
        assert agents.log(n1).count("NetloomNode lo: spec.addresses") == 1, "said once"
    assert [agents.condition(machine.node)["status"] for machine in machines] == ["True"] * 4
    assert [agents.condition(machine.node)["lastTransitionTime"] for machine in machines] == transitions
    remove(agents, *odd)
    for machine in machines:
        wait_for("them to be forgotten", lambda m=machine: not facts(m)["warnings"])  # type: ignore[misc]


def test_an_own_address_that_no_device_has_is_told_by_its_agent(agents: Agents) -> None:
    """By the kernel's event, when it goes and when it comes; the address is the one that others send to."""
    n1, n2, n3, n4 = agents.lab.nodes.values()
    vip, own = "172.31.44.99", ("172.31.44.4", n4.address6)
    with undisturbed(agents):
        patch(agents, "n4", addresses=[{"type": "InternalIP", "ip": ip} for ip in (vip, *own)])
        wait_for("n4 to say so", lambda: f"others send to {vip}, and no device" in str(facts(n4)["errors"]))
        wait_for("the condition", lambda: vip in agents.condition("n4")["message"])
        wait_for("the sign for the operator", lambda: vip in absent(agents, "n4"))
        told = absent(agents, "n4")
        n4.ip("addr", "add", f"{vip}/32", "dev", "eth0")
        wait_for("it to be well again", lambda: facts(n4)["inSync"])
        wait_for("the condition", lambda: agents.condition("n4")["status"] == "True")
        reach(n1, n4)
        assert absent(agents, "n4") == told, "what is back is told when it has stayed"
        assert [facts(machine)["errors"] for machine in (n1, n2, n3)] == [[], [], []]
        n4.ip("addr", "del", f"{vip}/32", "dev", "eth0")
        wait_for("it to say so again", lambda: not facts(n4)["inSync"])
        patch(agents, "n4", addresses=[{"type": "InternalIP", "ip": ip} for ip in own])
        agents.in_sync(n1, n2, n3, n4, peers=3)
    reach(n1, n4)
    assert absent(agents, "n4") == told


def absent(agents: Agents, name: str) -> list[str]:
    found: list[str] = agents.plane.client.request("GET", f"{NODES}/{name}")["status"].get("absentAddresses", [])
    return found


def test_the_older_of_two_nodes_keeps_its_cidr_and_the_other_the_rest(agents: Agents) -> None:
    n1, n2, n3, _ = agents.lab.nodes.values()
    with undisturbed(agents):
        body = netloom_node("a-thief", "172.31.9.9", cidrs("n2")[0], "10.42.77.0/24")
        agents.plane.client.request("POST", NODES, body)
        for machine in (n1, n3):
            wait_for("the report", lambda m=machine: facts(m)["warnings"])  # type: ignore[misc]
            assert "10.42.2.0/24 is claimed by n2 and a-thief; n2 is older and keeps it." in str(
                facts(machine)["warnings"]
            )
            wait_for("what nobody else has", lambda m=machine: "10.42.77.0/24" in device_state(m))  # type: ignore[misc]
        wait_for(
            "n2 to say so", lambda: "a-thief: spec.ipam.podCIDRs 10.42.2.0/24 overlaps" in str(facts(n2)["warnings"])
        )
    with undisturbed(agents, "n1", "n3"):
        # When the older one is gone, the younger takes over.
        remove(agents, "n2")
        wait_for("the takeover", lambda: "172.31.9.9" in n1.ip("route", "show", "10.42.2.0/24"))
        remove(agents, "a-thief")
        agents.plane.client.request("POST", NODES, netloom_node("n2", n2.underlay, *cidrs("n2")))
        agents.in_sync(n1, n2, n3, peers=3)
    reach(n1, n2)


def test_an_api_server_that_is_gone_for_a_while(agents: Agents) -> None:
    """First it does not answer, then it is dead; traffic goes on, drift is repaired, and what was missed is made up."""
    machines = list(agents.lab.nodes.values())
    n1 = machines[0]
    before = {machine.node: state(machine) for machine in machines}
    led = {machine.node: leading(machine) for machine in machines}
    with undisturbed(agents, "n1", "n2", "n3", "n4") as flows:
        away = flows.now
        agents.plane.pause_apiserver()
        try:
            repaired = facts(n1)["driftRepaired"]
            n1.ip("route", "add", "10.42.99.0/24", "dev", TUNNEL, "proto", "158")  # of nobody, with our protocol
            n1.ip("addr", "del", "10.42.1.0/32", "dev", TUNNEL)
            wait_for("repair without an API server", lambda: state(n1) == before["n1"])
            wait_for("the agent to say so", lambda: facts(n1)["driftRepaired"] > repaired)
            wait_for("silence", lambda: flows.now > away + SILENT_SECONDS, deadline=60)
        finally:
            agents.plane.resume_apiserver()
            agents.plane.kill_apiserver()
        try:
            wait_for("refusals", lambda: flows.now > away + SILENT_SECONDS + DEAD_SECONDS, deadline=60)
            assert {machine.node: state(machine) for machine in machines} == before
        finally:
            agents.plane.start_apiserver()
        agents.plane.client.request("POST", NODES, netloom_node("n5", "172.31.9.5", "10.42.5.0/24"))
        for machine in machines:
            wait_for("what came meanwhile", lambda m=machine: "10.42.5.0/24" in device_state(m), deadline=60)  # type: ignore[misc]
        remove(agents, "n5")
        agents.in_sync(*machines, peers=3)
        assert {machine.node: leading(machine) for machine in machines} == led
