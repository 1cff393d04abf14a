"""Each feature switched off in turn: the others go on, what it left in the kernel stays, unless it would drop packets.
Whose conditions are whose."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode, NetloomNodeStatus
from netloom.roles.agent import FEATURES
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.store import Store
from netloom_e2e.addresses import AddressSocket
from netloom_e2e.agents import NETWORK, NODES, Agents, netloom_node, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, PROTOCOL, facts, state
from netloom_reconcilers.conditions import AGENT, Conditions, Readiness, manager_of, withdraw
from netloom_reconcilers.features.kernel import KernelFeature
from netloom_reconcilers.node.status import NodeStatusReconciler


def table(machine: Machine) -> str:
    return machine.run("nft", "list", "table", "inet", "netloom", check=False)


def pod_switch(machine: Machine) -> str:
    return machine.run("sysctl", POD_SWITCH)


def senders(machine: Machine) -> str:
    return machine.run("nft", "list", "table", "inet", "netloom-tunnels", check=False)


def opened(machine: Machine) -> str:
    return machine.run("iptables-nft", "-S", "NETLOOM-FORWARD", check=False)


def probe(machine: Machine) -> str:
    """But for the carrier, which comes and goes with the agent."""
    device = ("dev", "netloom_probe")
    lines = machine.ip("-o", "link", "show", *device, check=False).splitlines()
    lines += machine.ip("route", "show", "table", "local", *device, check=False).splitlines()
    lines += machine.ip("-6", "route", "show", "table", "local", *device, "proto", PROTOCOL, check=False).splitlines()
    return "\n".join(re.sub(r"^\d+: |<.*?> |qdisc \w+ |state \w+ | linkdown", "", line).strip() for line in lines)


POD_SWITCH = "net.ipv4.conf.p-pod.forwarding"
KERNEL: dict[str, Callable[[Machine], str]] = {
    "tunnels": state,
    "masquerade": table,
    "senders": senders,
    "forwarding": opened,
    "surroundings": pod_switch,
    "probe": probe,
}
"""What each feature keeps as it is on a node, as text."""
DELETE = {
    "tunnels": ["ip", "route", "del", "10.42.2.0/24"],
    "masquerade": ["nft", "delete", "table", "inet", "netloom"],
    "senders": ["nft", "delete", "table", "inet", "netloom-tunnels"],
    "forwarding": ["iptables-nft", "-D", "NETLOOM-FORWARD", "1"],
    "surroundings": ["sysctl", "-qw", f"{POD_SWITCH}=0"],
    "probe": ["ip", "link", "delete", "netloom_probe"],
}
"""Damages it."""
ALL = [feature.name for feature in FEATURES]
NAMES = [feature.name for feature in FEATURES if issubclass(feature, KernelFeature)]
DROPPING = [feature.name for feature in FEATURES if feature.drops]
"""What these left goes."""


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    plane = crds_installed
    with Lab(f"nlf{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        made.join("n1").add_pod("pod", "10.42.1.5", mtu=1450)
        made.join("n2")
        lab.nodes["n1"].run("iptables-nft", "-P", "FORWARD", "DROP")
        try:
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def readiness(machine: Machine) -> str:
    return machine.ask(9964, "/readyz")


def planned(agents: Agents, machine: Machine, features: str) -> str:
    kubeconfig = str(agents.plane.kubeconfig(host=agents.lab.address))
    command = [str(NETLOOM), "plan", f"--kubeconfig={kubeconfig}", f"--node-name={machine.node}"]
    return machine.run(*command, f"--run-dir={agents.run_dir(machine)}", f"--features={features}", check=False)


def restart(agents: Agents, machine: Machine, *flags: str) -> None:
    agents.end(machine.node)
    agents.start(machine, flags=flags)


def told(agents: Agents) -> set[str]:
    """Types of the conditions of n1."""
    status = agents.plane.client.request("GET", f"{NODES}/n1").get("status", {})
    return {each["type"] for each in status.get("conditions", ())}


def test_every_feature_is_tested() -> None:
    assert sorted(KERNEL) == sorted(DELETE) == sorted(NAMES)
    without = {"addresses", "pools", "endpoints", "prefilter"}
    assert set(ALL) - set(NAMES) == without, "they keep nothing in the kernel where nobody asks them to"
    assert DROPPING == ["senders", "prefilter"]


@pytest.mark.parametrize("off", NAMES)
def test_each_is_switched_off_and_the_others_go_on(agents: Agents, off: str) -> None:
    n1, n2 = agents.lab.nodes["n1"], agents.lab.nodes["n2"]
    others = [name for name in NAMES if name != off]
    restart(agents, n1)
    agents.in_sync(n1, n2, peers=1)
    before = {name: read(n1) for name, read in KERNEL.items()}
    assert all(before.values())
    said = {each.condition for each in FEATURES if each.name == off and each.condition}
    wait_for(f"{said} to be said", lambda: said <= told(agents))

    restart(agents, n1, f"--features=-{off}")
    wait_for("the others in sync", lambda: facts(n1).get("inSync"))
    assert facts(n1)["features"] == [name for name in ALL if name != off]
    assert ("peers" in facts(n1)) == (off != "tunnels")
    assert ("masquerade" in facts(n1)) == (off != "masquerade")
    assert ("forwarding" in facts(n1)) == (off != "forwarding")
    assert readiness(n1).endswith("ok\n"), readiness(n1)
    assert f"[+] {off}" not in readiness(n1)
    left = before | ({off: ""} if off in DROPPING else {})
    assert {name: read(n1) for name, read in KERNEL.items()} == left, "what it left stays as it is"
    wait_for("the condition", lambda: agents.condition("n1").get("status") == "True")
    wait_for(f"{said} to be taken back", lambda: not said & told(agents))

    kubeconfig = agents.plane.kubeconfig(host=agents.lab.address)
    shown = n1.run(str(NETLOOM), "status", f"--kubeconfig={kubeconfig}", check=False)
    assert ("1 peers, in sync" in shown) == (off != "tunnels")
    assert "None" not in shown

    n1.run(*DELETE[off], check=off not in DROPPING)
    damaged = KERNEL[off](n1)
    assert damaged != before[off]
    for other in others:
        n1.run(*DELETE[other])
        wait_for(f"{other} to be repaired", lambda other=other: KERNEL[other](n1) == before[other])  # type: ignore[misc]
    assert KERNEL[off](n1) == damaged, "nobody's any more"
    assert facts(n1)["inSync"]
    assert planned(agents, n1, f"-{off}") == "nothing to change\n"
    assert planned(agents, n1, off) != "nothing to change\n"

    restart(agents, n1)
    wait_for("it is there again", lambda: KERNEL[off](n1) == before[off])


def test_without_addresses_nobody_is_answered_and_what_was_given_is_remembered(agents: Agents) -> None:
    n1 = agents.lab.nodes["n1"]
    path = Path(agents.run_dir(n1)) / "agent.sock"
    agents.in_sync(n1, peers=1)
    given = AddressSocket(path).allocate("default/a")
    restart(agents, n1, "--features=-addresses")
    wait_for("the others in sync", lambda: facts(n1).get("inSync"))
    assert facts(n1)["features"] == [name for name in ALL if name != "addresses"]
    assert not path.exists()
    restart(agents, n1)
    agents.in_sync(n1, peers=1)
    assert AddressSocket(path).allocate("default/a") == given
    assert AddressSocket(path).release("default/a") == given


def test_those_that_keep_nothing_here_are_switched_off_and_the_others_go_on(agents: Agents) -> None:
    n1 = agents.lab.nodes["n1"]
    socket, deletions = (Path(agents.run_dir(n1)) / name for name in ("cni.sock", "deletions"))
    restart(agents, n1)
    agents.in_sync(n1, peers=1)
    before = {name: read(n1) for name, read in KERNEL.items()}
    for off in ("pools", "prefilter", "endpoints"):
        restart(agents, n1, f"--features=-{off}", f"--cni-socket={socket}", f"--cni-deletions={deletions}")
        wait_for("the others in sync", lambda: facts(n1).get("inSync"))
        assert facts(n1)["features"] == [name for name in ALL if name != off]
        assert readiness(n1).endswith("ok\n"), readiness(n1)
        assert f"[+] {off}" not in readiness(n1)
        wait_for("the condition", lambda off=off: ("PodsWired" in told(agents)) is (off != "endpoints"))  # type: ignore[misc]
        assert socket.exists() is (off != "endpoints")
        assert {name: read(n1) for name, read in KERNEL.items()} == before
        assert planned(agents, n1, f"-{off}") == "nothing to change\n"
    restart(agents, n1)


def test_cleanup_removes_what_a_switched_off_feature_left(agents: Agents) -> None:
    n1 = agents.lab.nodes["n1"]
    restart(agents, n1)
    agents.in_sync(n1, peers=1)
    restart(agents, n1, "--features=tunnels")
    wait_for("the mesh in sync", lambda: facts(n1).get("inSync"))
    assert table(n1)
    agents.end("n1")
    n1.run(str(NETLOOM), "cleanup", "--yes", f"--run-dir={agents.run_dir(n1)}")
    assert (table(n1), senders(n1), opened(n1), "netloom" in n1.ip("link")) == ("", "", "", False)
    agents.start(n1)


async def test_conditions_of_features_leave_each_other_alone(crds_installed: ControlPlane) -> None:
    """On a real API server, which takes away what a manager applied before and does not list again."""
    plane, said = crds_installed, {}
    plane.client.request("POST", NODES, netloom_node("lonely", "192.0.2.1", "10.77.0.0/24"))
    store: Store[NetloomNode] = Store(NETLOOM_NODES)

    def conditions() -> dict[str, tuple[str, str]]:
        held = plane.client.request("GET", f"{NODES}/lonely")
        owners = {}
        for entry in held["metadata"]["managedFields"]:
            for key in entry.get("fieldsV1", {}).get("f:status", {}).get("f:conditions", {}):
                owners[key.partition('"type":"')[2].rstrip('"}')] = entry["manager"]
        return {each["type"]: (each["reason"], owners[each["type"]]) for each in held["status"]["conditions"]}

    try:
        async with await Api.connect(str(plane.kubeconfig())) as api:
            events = EventRecorder(api, "netloom-agent")
            managers = {"DataplaneReady": AGENT, "HostsWritten": manager_of("hosts"), "Loaded": manager_of("xdp")}
            told = {
                type_: NodeStatusReconciler(
                    "lonely",
                    store,
                    Conditions(api, events, manager),
                    lambda type_=type_: said[type_],
                    type_,
                )
                for type_, manager in managers.items()
            }
            for reason in ("First", "Second"):
                for type_, reconciler in told.items():
                    store.put(await api.get(NETLOOM_NODES, "lonely"))
                    said[type_] = Readiness(False, reason, "text")
                    await reconciler.reconcile("lonely")
                assert conditions() == {type_: (reason, manager) for type_, manager in managers.items()}

            shared = Conditions(api, events, AGENT)
            await NodeStatusReconciler("lonely", store, shared, lambda: said["Loaded"], "Other").reconcile("lonely")
            assert "DataplaneReady" not in conditions(), "so each needs a manager of its own"

            for manager in managers.values():
                node = await api.get(NETLOOM_NODES, "lonely")
                assert node.status.conditions
                await withdraw(api, NETLOOM_NODES, node, manager)
            left = await api.get(NETLOOM_NODES, "lonely")
            assert left.status == NetloomNodeStatus(), "each takes its own back, also where it is the last"
    finally:
        plane.client.request("DELETE", f"{NODES}/lonely")
