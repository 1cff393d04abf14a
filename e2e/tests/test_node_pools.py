"""Nodes that draw on pools: blocks come and go while pods of other blocks send to each other, and nothing is lost.

Agents, kernels and API server are real. The operator is the test, so that it gives what the test wants, when it wants.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from netloom_e2e.agents import NETWORK, NODES, Agents, netloom_node
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.flow import Flows
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, facts

POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
PODS = "/api/v1/namespaces/default/pods"
GROUP = {"apiVersion": "netloom.dev/v1alpha1"}
IDLE_SECONDS = "2"


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    plane = crds_installed
    client = plane.client
    with Lab(f"nlq{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        network = GROUP | {"kind": "NetloomNetwork", "metadata": {"name": "default"}}
        client.request("POST", NETWORK, network | {"spec": {"ipam": {"mode": "multi-pool"}}})
        for name, second in (("default", 60), ("blue", 61), ("green", 62)):
            spec = {"ipv4": {"cidrs": [f"10.{second}.0.0/16"], "maskSize": 28}}
            client.request("POST", POOLS, GROUP | {"kind": "NetloomIPPool", "metadata": {"name": name}, "spec": spec})
        try:
            for number, name in enumerate(("n1", "n2")):
                machine = lab.add_node(name)
                node = netloom_node(name, machine.underlay)
                pools = {"allocated": [{"pool": "default", "cidrs": [f"10.60.0.{16 * number}/28"]}]}
                node["spec"]["ipam"] = {"mode": "multi-pool", "pools": pools}  # type: ignore[index]
                client.request("POST", NODES, node)
                made.start(machine, flags=["--give-back-after", IDLE_SECONDS])
            made.in_sync(*lab.nodes.values(), peers=1)
            yield made
        finally:
            made.stop()
            plane.delete_all(
                "netloomnodes.v1alpha1.netloom.dev",
                "netloomippools.v1alpha1.netloom.dev",
                "netloomnetworks.v1alpha1.netloom.dev",
            )
            for pod in client.request("GET", PODS)["items"]:
                client.request("DELETE", f"{PODS}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})


def bound(agents: Agents, node: str, name: str, **annotations: str) -> None:
    """A pod that the scheduler has put on a node."""
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "none"}]}
    meta = {"name": name, "annotations": annotations}
    agents.plane.client.request("POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


def asking(agents: Agents, machine: Machine, name: str) -> "subprocess.Popen[str]":
    """The CNI plugin's part: an address for a pod."""
    command = [str(NETLOOM), "ip", "allocate", f"default/{name}", "--socket", f"{agents.run_dir(machine)}/agent.sock"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def address(agents: Agents, machine: Machine, name: str) -> str:
    said, _ = asking(agents, machine, name).communicate(timeout=30)
    return said.strip()


def ask(agents: Agents, machine: Machine, *words: str) -> str:
    """What `netloom ip` says."""
    command = [str(NETLOOM), "ip", *words, "--socket", f"{agents.run_dir(machine)}/agent.sock"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


def pools_of(agents: Agents, node: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    """What the node asks for, and what it has."""
    pools = agents.plane.client.request("GET", f"{NODES}/{node}")["spec"]["ipam"].get("pools", {})
    asked = {each["pool"]: each["needed"]["ipv4Addrs"] for each in pools.get("requested", ())}
    return asked, {each["pool"]: each["cidrs"] for each in pools.get("allocated", ())}


def allocate(agents: Agents, node: str, pool: str, *cidrs: str) -> None:
    """As the operator does: behind what the node has, if nobody else wrote meanwhile."""
    while True:
        stored = agents.plane.client.request("GET", f"{NODES}/{node}")
        had = {each["pool"]: each["cidrs"] for each in stored["spec"]["ipam"]["pools"].get("allocated", ())}
        had[pool] = [*had.get(pool, ()), *cidrs]
        wanted = [{"pool": name, "cidrs": texts} for name, texts in had.items()]
        meta = {"resourceVersion": stored["metadata"]["resourceVersion"]}
        with contextlib.suppress(ApiFailure):
            patch = {"metadata": meta, "spec": {"ipam": {"pools": {"allocated": wanted}}}}
            agents.plane.client.request("PATCH", f"{NODES}/{node}", patch)
            return


def ways(machine: Machine) -> set[str]:
    """Where its routes lead."""
    return {line.split()[0] for line in machine.ip("route", "show", "type", "unicast", "proto", "158").splitlines()}


def test_blocks_come_and_go_under_traffic_in_tunnels_and_in_native_mode(agents: Agents) -> None:
    n1, n2 = agents.lab.nodes.values()
    for machine in (n1, n2):
        bound(agents, machine.node, f"first-{machine.node}")
        machine.add_pod("first", address(agents, machine, f"first-{machine.node}"), mtu=1400)
    assert [machine.pods["first"].address for machine in (n1, n2)] == ["10.60.0.1", "10.60.0.17"]
    first = {machine.node: machine.pods["first"] for machine in (n1, n2)}
    with Flows(first, rate=500) as flows:
        wait_for("traffic", lambda: flows.now > 0.2)
        _grow_and_shrink(agents, "blue", "10.61.0")
        own = [line.split()[3] for line in n1.ip("-4", "-o", "addr", "show", "dev", TUNNEL).splitlines()]
        assert own == ["10.60.0.0/32"], "in the block that stays, whatever comes and goes"
        agents.edit(mode="native", autoDirectNodeRoutes=True)
        agents.moved("none")
        _grow_and_shrink(agents, "green", "10.62.0")
        until = flows.now + 0.5
        wait_for("traffic after it", lambda: flows.now > until)
        report = flows.stop()
    assert report.lossless, str(report)


def _grow_and_shrink(agents: Agents, pool: str, network: str) -> None:
    """A node gets two blocks of a pool, of which it uses one and gives the other back."""
    n1, n2 = agents.lab.nodes.values()
    used, idle = f"{network}.0/28", f"{network}.16/28"
    bound(agents, "n1", f"pod-{pool}", **{"ipam.cilium.io/ip-pool": pool})
    waits = asking(agents, n1, f"pod-{pool}")
    wait_for("the node to ask", lambda: pools_of(agents, "n1")[0].get(pool))
    assert waits.poll() is None
    why = ask(agents, n1, "why", f"default/pod-{pool}")
    assert (
        f"waits: default/pod-{pool} gets no IPv4 address of NetloomIPPool {pool} on node n1: it holds no block" in why
    )
    allocate(agents, "n1", pool, used, idle)  # a block more than it asks for, which is of no use
    given = waits.communicate(timeout=20)[0].strip()
    assert given == f"{network}.1"
    pod = n1.add_pod(pool, given, mtu=1400)
    wait_for("routes of n2", lambda: used in ways(n2))
    assert n2.pods["first"].ping(given, wait=3).received
    assert pod.ping("10.60.0.17", wait=3).received
    wait_for("the idle block to go", lambda: idle not in pools_of(agents, "n1")[1][pool], deadline=30)
    wait_for("the way to it to go", lambda: idle not in ways(n2))
    assert n2.pods["first"].ping(given, wait=3).received
    assert ask(agents, n1, "why", f"default/pod-{pool}").splitlines() == [
        f"pod default/pod-{pool}, node n1, IPAM mode multi-pool",
        f"IPv4: pool {pool}: the pod's annotation ipam.cilium.io/ip-pool names it",
        f"has {given}",
    ]
    asked, held = pools_of(agents, "n1")
    assert (asked[pool], held[pool], held["default"]) == (14, [used], ["10.60.0.0/28"])
    said = facts(n1)
    assert (said["keptPodCIDRs"], said["errors"]) == ({}, [])


def test_a_block_that_somebody_takes_out_is_entered_again_while_a_pod_uses_it(agents: Agents) -> None:
    n1, n2 = agents.lab.nodes.values()
    _, held = pools_of(agents, "n1")
    blocks = [{"pool": name, "cidrs": cidrs} for name, cidrs in held.items() if name != "green"]
    agents.plane.client.request("PATCH", f"{NODES}/n1", {"spec": {"ipam": {"pools": {"allocated": blocks}}}})
    wait_for("it is there again", lambda: pools_of(agents, "n1")[1] == held)
    # n2 may yet hear that it was gone for a moment.
    wait_for("the pod to answer", lambda: n2.pods["first"].ping("10.62.0.1", wait=3).received)
    assert set(held["green"]) <= ways(n2)
    agents.in_sync(n1, n2, peers=1)


def test_a_pod_with_a_pool_that_is_not_there_is_told_why(agents: Agents) -> None:
    n1 = agents.lab.nodes["n1"]
    bound(agents, "n1", "lost", **{"netloom.dev/ip-pool": "red"})
    why = (
        "Pod default/lost: metadata.annotations[netloom.dev/ip-pool] 'red': there is no NetloomIPPool red (there are: "
        "blue, default, green), so nothing can be given of it. Create it, or create the pod anew with another pool "
        "in its annotation."
    )
    assert address(agents, n1, "lost") == f"netloom: {why}"
    by_objects = [str(NETLOOM), "ip", "why", "default/lost", "--kubeconfig", agents.plane.kubeconfig("admin")]
    for said in (ask(agents, n1, "why", "default/lost"), subprocess.check_output(by_objects, text=True, timeout=30)):
        assert said.splitlines() == ["pod default/lost, node n1, IPAM mode multi-pool", f"waits: {why}"]
    events = "/api/v1/namespaces/default/events"

    def told() -> list[str]:
        found = agents.plane.client.request("GET", events)["items"]
        return [each["message"] for each in found if each["involvedObject"]["name"] == "lost"]

    wait_for("its Event", lambda: told() == [why])
    assert address(agents, n1, "nobody").startswith("netloom: Pod default/nobody: metadata.name: there is no such pod.")
    assert address(agents, n1, "first-n2").startswith(
        "netloom: Pod default/first-n2: spec.nodeName 'n2': the pod runs on"
    )
    assert facts(n1)["errors"] == [], "a pod's mistake is no fault of the node"


def test_without_the_feature_a_node_keeps_what_it_holds_and_asks_for_nothing(agents: Agents) -> None:
    n1 = agents.lab.nodes["n1"]
    before = agents.plane.client.request("GET", f"{NODES}/n1")["spec"]["ipam"]
    routes = n1.ip("route", "show", "proto", "158")
    agents.end("n1")
    agents.start(n1, flags=["--features=-pools", "--give-back-after", IDLE_SECONDS])
    wait_for("the mesh", lambda: facts(n1).get("peers") == 1)
    bound(agents, "n1", "unasked", **{"netloom.dev/ip-pool": "green"})
    assert "feature `pools`, which says of which pool, is off" in address(agents, n1, "unasked")
    assert "pools" not in facts(n1)
    assert agents.plane.client.request("GET", f"{NODES}/n1")["spec"]["ipam"] == before
    assert n1.ip("route", "show", "proto", "158") == routes
