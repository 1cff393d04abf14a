"""Whether packets of pods pass, as agents see it by probes: `netloom check`, the condition, and `netloom status`."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e.agents import NODES, Agents, running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Machine, environment, wait_for
from netloom_e2e.mesh import NETLOOM, facts

DROP = "table inet foreign { chain c { type filter hook forward priority 0; policy drop\n}\n}\n"
NO_TUNNEL = """table netdev foreign { chain c {
    type filter hook ingress devices = { DEVICES } priority 0; udp dport 8472 drop
}
}
"""


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_agents(crds_installed, "nlc", tmp_path_factory.mktemp("agents")) as made:
        machines = [made.join(name) for name in ("n1", "n2")]
        made.in_sync(*machines, peers=1)
        try:
            yield made
        finally:
            made.stop()
            made.plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def check(machine: Machine, *words: str) -> tuple[int, str]:
    """Exit status and output of `netloom check` on a node."""
    command = [*machine.enter, str(NETLOOM), "check", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def condition(agents: Agents, name: str) -> tuple[str, str, str]:
    """PodTrafficPasses of a node: status, reason, message."""
    conditions = agents.plane.client.request("GET", f"{NODES}/{name}").get("status", {}).get("conditions", [])
    found = [(c["status"], c["reason"], c["message"]) for c in conditions if c["type"] == "PodTrafficPasses"]
    return found[0] if found else ("", "", "")


def passes(agents: Agents, name: str, status: str = "True") -> None:
    wait_for(f"PodTrafficPasses={status} of {name}", lambda: condition(agents, name)[0] == status, deadline=60)


def nft(machine: Machine, path: Path, rules: str) -> None:
    path.write_text(rules)
    machine.run("nft", "-f", str(path))


def test_a_forward_hook_that_drops_is_told_everywhere_and_taken_back(
    agents: Agents, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    n1, n2 = agents.lab.nodes["n1"], agents.lab.nodes["n2"]
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    passes(agents, "n1")
    passes(agents, "n2")
    assert a.ping(b.address, payload=1422).lost == 0
    status, said = check(n1, "n2")
    assert (status, "no problems" in said) == (0, True), said
    assert re.search(r"n2 +IPv4 +vxlan:8472 +passes: 1450 bytes", said)
    assert re.search(r"n2 +IPv6 +vxlan:8472 +passes: 1450 bytes", said)

    nft(n2, tmp_path / "drop.nft", DROP)
    request.addfinalizer(lambda: n2.run("nft", "delete", "table", "inet", "foreign", check=False))
    assert a.ping(b.address).received == 0
    check(n2)
    status, said = check(n1, "n2")
    assert (status, "the forward hook of n2 drops packets of pods (IPv4 and IPv6)" in said) == (1, True), said
    passes(agents, "n2", "False")
    assert condition(agents, "n2")[1:] == ("ForwardHookDrops", facts(n2)["probe"]["failing"][0])
    assert "this node's forward hook drops" in condition(agents, "n2")[2]
    reasons = [event["reason"] for event in agents.plane.client.request("GET", "/api/v1/events")["items"]]
    assert "ForwardHookDrops" in reasons
    kubeconfig = f"--kubeconfig={agents.plane.kubeconfig(host=agents.lab.address)}"
    shown = n2.run(str(NETLOOM), "status", kubeconfig, check=False)
    assert re.search(r"problem .*PodTrafficPasses=False.* ForwardHookDrops.*forward hook", shown), shown
    here = subprocess.run(
        [str(NETLOOM), "check", "n2", f"--kubeconfig={agents.plane.kubeconfig()}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert here.returncode == 3, "nobody looked"
    assert "NetloomNode n2: PodTrafficPasses=False ForwardHookDrops" in here.stdout
    assert "run `netloom check` in the agent's pod of that node" in here.stdout

    n2.run("nft", "delete", "table", "inet", "foreign")
    assert check(n2)[0] == 0
    passes(agents, "n2")
    assert a.ping(b.address).lost == 0


def test_what_is_lost_between_the_nodes_is_named(agents: Agents, tmp_path: Path) -> None:
    n1, n2 = agents.lab.nodes["n1"], agents.lab.nodes["n2"]
    switch = agents.lab.switch
    passes(agents, "n1")  # what came in before the loss began is no sign that one direction works
    passes(agents, "n2")
    path = tmp_path / "drop.nft"
    path.write_text(NO_TUNNEL.replace("DEVICES", f"{n1.port}, {n2.port}"))
    switch.run("nft", "-f", str(path))
    status, said = check(n1, "n2")
    switch.run("nft", "delete", "table", "netdev", "foreign")
    assert (status, "drops UDP port 8472 (vxlan). Allow it between all nodes" in said) == (1, True), said

    for machine in (n1, n2):
        switch.ip("link", "set", machine.port, "mtu", "1400")
    status, said = check(n1, "n2")
    for machine in (n1, n2):
        switch.ip("link", "set", machine.port, "mtu", "1500")
    # A bridge's port lets four bytes more through, for a VLAN tag.
    assert (status, "those of 1450 bytes, which pods send, do not" in said) == (1, True), said
    assert re.search(r"In NetloomNetwork default set spec.mtu to 140[0-4]", said)
    assert check(n1, "n2")[0] == 0


def test_an_agent_that_does_not_run_is_no_alarm_about_packets(agents: Agents) -> None:
    n1, n2 = agents.lab.nodes["n1"], agents.lab.nodes["n2"]
    passes(agents, "n1")
    agents.end("n2")
    try:
        status, said = check(n1, "n2")
        assert (status, "not known: NoAgentThere" in said) == (1, True), said
        assert condition(agents, "n1")[0] == "True"
        assert facts(n1)["probe"]["failing"] == []
        assert check(n1, "n9") == (3, "netloom: there is no node n9 with addresses for pods, as n1 sees it.\n")
        assert check(n2)[0] == 3
    finally:
        agents.start(n2)
    agents.in_sync(n2, peers=1)
    assert facts(n2)["netlinkWrites"] == 0, "the device was found again"
