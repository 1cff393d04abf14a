"""Firewalls that people have close the forward hook: agents open what they may, and say what they may not, with
commands that help. Two nodes, a pod on each; whatever is said, pings have the last word.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e.agents import Agents, running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.mesh import NETLOOM, facts

FIREWALLD = Path(__file__).parents[2] / "operator/tests/kernel/firewalld"


@pytest.fixture(scope="module")
def agents(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_agents(crds_installed, "nlw", tmp_path_factory.mktemp("agents")) as made:
        for name in ("n1", "n2"):
            index = name[1:]
            machine = made.enter(name)
            machine.add_pod("p", f"10.42.{index}.5", f"fd00:42:0:{index}::5", mtu=1450)
            # As Docker finds it, and leaves it: before the agent starts on one node, and afterwards on the other.
            if name == "n1":
                machine.run("iptables-nft", "-P", "FORWARD", "DROP")
                machine.run("ip6tables-legacy", "-P", "FORWARD", "DROP")
            made.start(machine)
        made.in_sync(*made.lab.nodes.values(), peers=1)
        try:
            yield made
        finally:
            crds_installed.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def nodes(agents: Agents) -> list[Machine]:
    """Both, with no filter but iptables'."""
    made = list(agents.lab.nodes.values())
    agents.edit_spec(forwarding=None)
    for machine in made:
        machine.run("nft", "delete", "table", "inet", "firewalld", check=False)
        machine.run("nft", "delete", "table", "inet", "site", check=False)
    agents.in_sync(*made, peers=1)
    return made


def passes(nodes: list[Machine]) -> tuple[bool, ...]:
    """From the first node's pod to the second's and back, in both families."""
    one, other = (node.pods["p"] for node in nodes)
    return tuple(pod.ping(to, wait=0.5).lost == 0 for pod, far in ((one, other), (other, one)) for to in far.addresses)


def opened(node: Machine) -> object:
    return facts(node)["forwarding"]["opened"]


def test_what_docker_closes_is_open(nodes: list[Machine]) -> None:
    """Both variants of iptables on one node; and Docker that comes after the agent."""
    n1, n2 = nodes
    wait_for("both to be open", lambda: opened(n1) == ["iptables-nft", "ip6tables-legacy"])
    assert passes(nodes) == (True,) * 4
    n2.run("iptables-nft", "-P", "FORWARD", "DROP")
    n2.run("ip6tables-nft", "-P", "FORWARD", "DROP")
    n2.run("iptables-legacy", "-P", "FORWARD", "DROP")
    wait_for("all of them", lambda: opened(n2) == ["iptables-nft", "ip6tables-nft", "iptables-legacy"], deadline=20)
    assert passes(nodes) == (True,) * 4


def test_report_only(agents: Agents, nodes: list[Machine]) -> None:
    n1 = nodes[0]
    wait_for("it to be open", lambda: opened(n1))
    agents.edit_spec(forwarding={"filter": "report"})
    wait_for("it to be said", lambda: len(facts(n1)["errors"]) == 2)
    assert facts(n1)["errors"] == [
        "nft chain ip filter FORWARD (forward hook, priority 0) drops packets between pods of 10.42.1.0/24 and other "
        "nodes: its policy is drop. Set spec.forwarding.filter of NetloomNetwork default to accept, and agents open it "
        "for them.",
        "ip6tables-legacy chain FORWARD (forward hook, priority 0) drops packets between pods of fd00:42:0:1::/64 "
        "and other nodes: its policy is drop. Set spec.forwarding.filter of NetloomNetwork default to accept, and "
        "agents open it for them.",
    ]
    wait_for("the condition", lambda: agents.condition("n1").get("status") == "False")
    assert passes(nodes) == (False,) * 4
    assert "NETLOOM-FORWARD" not in n1.run("iptables-nft-save") + n1.run("ip6tables-legacy-save")


def test_a_foreign_chain_is_named_and_the_commands_that_are_advised_help(agents: Agents, nodes: list[Machine]) -> None:
    n1 = nodes[0]
    n1.run(
        "nft",
        "-f",
        "-",
        stdin="table inet site {\nchain only { type filter hook forward priority 5; policy drop; }\n}\n",
    )
    wait_for("it to be said", lambda: len(facts(n1)["errors"]) == 1)
    assert passes(nodes) == (False,) * 4
    (error,) = facts(n1)["errors"]
    assert error.startswith(
        "nft chain inet site only (forward hook, priority 5) drops packets between pods of 10.42.1.0/24, "
        "fd00:42:0:1::/64 and other nodes: its policy is drop. An agent cannot overrule it. Let them pass: "
    )
    wait_for("the condition", lambda: "inet site only" in agents.condition("n1").get("message", ""))
    commands = re.findall(r"`(.*?)`", error)
    assert len(commands) == 4
    for command in commands:
        n1.run(*shlex.split(command))
    assert passes(nodes) == (True,) * 4
    agents.in_sync(n1, peers=1)


def test_firewalld(nodes: list[Machine]) -> None:
    n1 = nodes[0]
    n1.run("nft", "-f", str(FIREWALLD / "default.nft"))
    wait_for("it to be said", lambda: len(facts(n1)["errors"]) == 1)
    assert not any(passes(nodes))
    (error,) = facts(n1)["errors"]
    assert re.sub(r"handle \d+", "handle N", error) == (
        "nft chain inet firewalld filter_FORWARD (forward hook, priority 10) drops packets between pods of "
        "10.42.1.0/24, fd00:42:0:1::/64 and other nodes: rule handle N of chain filter_FWD_public drops or rejects "
        "what gets there. An agent cannot overrule it. Let firewalld trust pods: `firewall-cmd --permanent "
        "--zone=trusted --add-source=10.42.0.0/16 --add-source=fd00:42::/56 && firewall-cmd --reload`."
    )
    # What firewalld makes of that.
    trusted = (FIREWALLD / "trusted_sources.nft").read_text().replace("fd00:42::/32", "fd00:42::/56")
    n1.run("nft", "-f", "-", stdin=f"delete table inet firewalld\n{trusted}")
    wait_for("all is well", lambda: facts(n1)["inSync"])
    assert passes(nodes) == (True,) * 4


def test_cleanup_leaves_what_was_there(agents: Agents, nodes: list[Machine]) -> None:
    n1 = nodes[0]
    wait_for("it to be open", lambda: opened(n1))
    agents.end("n1")
    run_dir = f"--run-dir={agents.run_dir(n1)}"
    planned = n1.run(str(NETLOOM), "cleanup", "--dry-run", run_dir)
    assert "iptables-nft -t filter -X NETLOOM-FORWARD" in planned
    assert "ip6tables-legacy -t filter -D FORWARD -j NETLOOM-FORWARD" in planned
    n1.run(str(NETLOOM), "cleanup", "--yes", run_dir)
    assert n1.run("iptables-nft", "-S").splitlines() == ["-P INPUT ACCEPT", "-P FORWARD DROP", "-P OUTPUT ACCEPT"]
    assert n1.run("ip6tables-legacy", "-S").splitlines() == ["-P INPUT ACCEPT", "-P FORWARD DROP", "-P OUTPUT ACCEPT"]
    agents.start(n1)
    agents.in_sync(n1, peers=1)
    assert passes(nodes) == (True,) * 4
