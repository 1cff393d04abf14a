"""Agents that are killed, come back, were never there, share a name or may not write their Lease, and operators that
change: what the conditions say, and how much is written for it. One cluster's story, on a real API server."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netloom.api.v1alpha1 import NETWORK_NAME
from netloom_e2e.addresses import ADDRESSES, AddressSocket
from netloom_e2e.agents import NODES, Agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.gateway import gateway
from netloom_e2e.gauges import writes
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.operators import Operator, Operators

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
GRACE = "--grace-period=2"
QUIET_SECONDS = 2.5
"""In which two that answered each other would write several times."""


@dataclass
class Story:
    """n1 has an agent, n2 none."""

    cluster: Cluster
    operators: Operators
    agents: Agents
    n1: Machine
    n2: Machine
    operator: Operator

    def dataplane(self, name: str) -> tuple[str, str, str]:
        return condition(self.cluster.netloom_node(name), "DataplaneReady")

    def becomes(self, name: str, status: str, reason: str) -> str:
        """Waits until the node's condition is so; its message."""

        def so() -> bool:
            return self.dataplane(name)[:2] == (status, reason)

        try:
            wait_for(f"{name} is {status} {reason}", so, deadline=40)
        except TimeoutError as error:
            logs = self.agents.log(self.n1)[-2000:]
            raise AssertionError(f"{error}: {self.dataplane(name)}\n{self.operator.process.tail()}\n{logs}") from error
        return self.dataplane(name)[2]

    def degraded(self, status: str, reason: str, **counts: int) -> None:
        """Waits until the network says so, and counts its nodes so."""

        def so() -> bool:
            network = self.cluster.network()
            return condition(network, "Degraded")[:2] == (status, reason) and network["status"]["nodes"] == counts

        try:
            wait_for(f"Degraded={status} {reason}", so, deadline=40)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.cluster.network()['status']}") from error

    def written(self, since: int = 0) -> int:
        """Writes of NetloomNodes' status."""
        found = writes(self.cluster.client)
        return sum(count for write, count in found.items() if write.resource == "netloomnodes/status") - since

    def start_agent(self, machine: Machine | None = None, *flags: str) -> None:
        self.agents.start(machine or self.n1, flags=[GRACE, *flags])

    def kill_agent(self) -> None:
        agent = self.agents.agents["n1"]
        agent.kill()
        agent.wait()

    def quiet(self, name: str, status: str, reason: str) -> int:
        """How often the status of a NetloomNode is written in a while in which the node's condition has to stay so."""
        before, end = self.written(), time.monotonic() + QUIET_SECONDS
        while time.monotonic() < end:
            assert self.dataplane(name)[:2] == (status, reason), self.dataplane(name)
            time.sleep(0.2)
        return self.written(before)


@pytest.fixture
def story(cluster: Cluster, operators: Operators, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    plane = cluster.plane
    with Lab(f"nlv{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        agents = Agents(lab, plane, tmp_path_factory.mktemp("agents"), user="netloom-agent")
        cluster.create_network(ipv4PodCIDRList=["10.42.0.0/16"])
        n1, n2 = lab.add_node("n1"), lab.add_node("n2")
        operator = operators.start(GRACE, leader_elect=True)
        for machine in (n1, n2):
            cluster.add_node(machine.node, address=machine.underlay[0])
        try:
            yield Story(cluster, operators, agents, n1, n2, operator)
        finally:
            agents.stop()


def test_conditions_follow_the_agents(story: Story) -> None:
    client = story.cluster.client
    story.start_agent()
    story.becomes("n1", "True", "InSync")
    lease = client.request("GET", f"{LEASES}/netloom-agent-n1")
    (owner,) = lease["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("NetloomNode", story.cluster.netloom_node("n1")["metadata"]["uid"])
    assert (lease["metadata"]["labels"], lease["spec"]["holderIdentity"]) == ({"netloom.dev/agent": "true"}, "n1")
    assert lease["spec"]["leaseDurationSeconds"] == 2

    # Never there.
    message = story.becomes("n2", "Unknown", "AgentNotHeardOf")
    assert "was never heard of: there is no Lease kube-system/netloom-agent-n2" in message
    story.degraded("True", "AgentNeverSeen", total=2, ready=1, waiting=0, notHeardOf=1)
    assert story.operator.metric("netloom_degraded") == 1
    assert story.operator.metric("netloom_agents", state="never") == 1
    shown = story.cluster.plane.kubectl("get", "nlnet", NETWORK_NAME).stdout.splitlines()
    assert "DEGRADED   NODES   NODES READY" in shown[0]

    # Killed: told once, and nothing more is written for it.
    before = story.written()
    story.kill_agent()
    assert "was last heard of at 20" in story.becomes("n1", "Unknown", "AgentNotHeardOf")
    assert story.quiet("n1", "Unknown", "AgentNotHeardOf") == 0
    assert story.written(before) == 1

    # Back: its own word at once, by force in the other direction, and nobody answers.
    before = story.written()
    story.start_agent()
    story.becomes("n1", "True", "InSync")
    assert story.quiet("n1", "True", "InSync") == 0
    assert story.written(before) == 1

    # Frozen, as a process whose event loop hangs; the same process takes it back.
    story.agents.agents["n1"].send_signal(signal.SIGSTOP)
    story.becomes("n1", "Unknown", "AgentNotHeardOf")
    story.agents.agents["n1"].send_signal(signal.SIGCONT)
    story.becomes("n1", "True", "InSync")

    # Nobody leads, and the agent dies meanwhile: a new leader finds out by itself, and not before its time.
    story.cluster.remove_nodes("n2")
    wait_for("all is well", lambda: story.operator.metric("netloom_degraded") == 0)
    story.operator.stop()
    story.kill_agent()
    time.sleep(2.5)
    assert story.dataplane("n1")[0] == "True"
    story.operator = story.operators.start(GRACE, leader_elect=True)
    wait_for("another leads", lambda: story.operator.healthy() and story.operator.metric("netloom_leading") == 1)
    assert story.dataplane("n1")[0] == "True"
    story.becomes("n1", "Unknown", "AgentNotHeardOf")
    story.degraded("True", "AgentSilent", total=1, ready=0, waiting=0, notHeardOf=1)

    # Nobody judges any more: the verdict is taken back, and what others say stays.
    said = story.cluster.network()["status"]
    story.operator.stop()
    story.operator = story.operators.start("--features=-health", leader_elect=True)
    wait_for("no verdict", lambda: condition(story.cluster.network(), "Degraded")[0] == "", deadline=40)
    conditions = [each for each in said["conditions"] if each["type"] != "Degraded"]
    assert conditions
    left = {key: value for key, value in said.items() if key != "nodes"} | {"conditions": conditions}
    assert story.cluster.network()["status"] == left
    assert story.dataplane("n1")[:2] == ("Unknown", "AgentNotHeardOf")


def test_agents_that_cannot_be_told_apart_or_may_not_write(story: Story) -> None:
    story.start_agent()
    story.becomes("n1", "True", "InSync")

    # Two of one name: both say it, in the same words, so nobody answers the other.
    story.start_agent(story.n2, "--node-name=n1")
    message = story.becomes("n1", "False", "TwoAgents")
    assert message.startswith("Two agents run as node n1: both renew Lease kube-system/netloom-agent-n1.")
    both = [story.n1, story.n2]
    wait_for("both know it", lambda: all("Two agents" in each.ask(9964, "/status") for each in both), deadline=30)
    story.becomes("n1", "False", "TwoAgents")
    assert story.quiet("n1", "False", "TwoAgents") == 0
    sockets = [AddressSocket(Path(story.agents.run_dir(each)) / "agent.sock") for each in both]
    for number, each in enumerate(sockets):  # they hold the same CIDR
        status, why = each.ask("POST", ADDRESSES, {"name": f"default/{number}", "waitSeconds": 0})
        assert (status, why["reason"]) == (503, "TwoAgents")
    story.agents.end("n2")
    story.becomes("n1", "True", "InSync")
    assert sockets[0].allocate("default/0")

    # It may not write there: it runs, is not ready and says why, and does not contradict the operator.
    story.agents.end("n1")
    story.start_agent(None, "--lease-namespace=default")
    story.becomes("n1", "Unknown", "AgentNotHeardOf")

    def said() -> str:
        return story.n1.ask(9964, "/readyz")

    refused = "[-] sign of life: Lease default/netloom-agent-n1: cannot be renewed: "
    wait_for("it says that it may not", lambda: refused in said(), deadline=30)
    assert "grant that (docs/examples/rbac.yaml), or name another namespace by --lease-namespace" in said()
    assert story.quiet("n1", "Unknown", "AgentNotHeardOf") == 0
    story.agents.end("n1")
    story.start_agent()
    story.becomes("n1", "True", "InSync")
    assert "netloom-agent" in _owner_of_the_condition(story)


def _owner_of_the_condition(story: Story) -> set[str]:
    key = 'k:{"type":"DataplaneReady"}'
    fields = story.cluster.client.request("GET", f"{NODES}/n1")["metadata"]["managedFields"]
    return {
        each["manager"]
        for each in fields
        if "f:status" in each["fieldsV1"].get("f:status", {}).get("f:conditions", {}).get(key, {})
    }
