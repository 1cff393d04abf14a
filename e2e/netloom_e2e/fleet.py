"""A lab with a real control plane in it, thousands of NetloomNodes, and agents on those nodes that do exist.

The control plane runs inside the lab, so that nothing in Python stands between it and the agents.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netloom.roles.operator import CONNECTIONS
from netloom_e2e import agents as objects
from netloom_e2e import binaries, crds, load, peers
from netloom_e2e.bench import Wrong
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, facts

USER = "netloom-agent"
RBAC = Path(__file__).resolve().parents[2] / "docs/examples/rbac.yaml"
_END_SECONDS = 30.0


@dataclass
class Fleet:
    """`add` makes nodes, `start` their agents. No operator runs: the NetloomNodes are written here, as it would.
    features: of the agents, as `--features` has them."""

    lab: Lab
    plane: ControlPlane
    features: str = "*"
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def populate(self, count: int) -> None:
        """The first `count` peers of `netloom_e2e.peers`, as objects that their agents have completed."""
        with load.prepared(self.plane.kubeconfig(), "peers", count, peers.PREFIX, CONNECTIONS) as creation:
            creation.go()
            creation.result()

    def add(self) -> Machine:
        """A node that exists, with its NetloomNode; no agent yet."""
        number = len(self.lab.nodes) + 1
        machine = self.lab.add_node(f"n{number}")
        self.plane.client.request("POST", objects.NODES, netloom_node(machine.node, machine.address, pod_cidr(number)))
        return machine

    def start(self, machine: Machine, within: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the node's agent as a user would, with the rights of the examples. within: a command that becomes the
        one that follows its words."""
        kubeconfig = self.plane.kubeconfig(USER)
        command = [*within, str(NETLOOM), "agent", "--kubeconfig", str(kubeconfig), "--node-name", machine.node]
        command += ["--features", self.features]
        with self._log(machine).open("a") as log:
            agent = machine.popen([*command, "--run-dir", str(self.plane.state / machine.node)], stdout=log)
        self.agents[machine.node] = agent
        return agent

    def in_sync(self, machine: Machine, count: int, *, deadline: float = 120.0, every: float = 0.05) -> None:
        """Wait until the node's agent says that it has `count` peers in the kernel."""

        def whole() -> bool:
            self.check(machine)
            said = facts(machine)
            return bool(said.get("inSync")) and said["peers"] == count

        wait_for(f"{machine.node} in sync with {count} peers", whole, deadline=deadline, every=every)

    def check(self, machine: Machine) -> None:
        """Raises Wrong if the node's agent has ended."""
        if (status := self.agents[machine.node].poll()) is not None:
            raise Wrong(f"the agent of {machine.node} ended with status {status}:\n{self.tail(machine)}")

    def stop(self, machine: Machine) -> None:
        """End the node's agent in order, as a pod ends; the kernel keeps the mesh."""
        agent = self.agents.pop(machine.node)
        agent.terminate()
        agent.wait(_END_SECONDS)

    def tail(self, machine: Machine) -> str:
        """The end of the log of the node's agent."""
        return "\n".join(self._log(machine).read_text().splitlines()[-20:])

    def _log(self, machine: Machine) -> Path:
        return self.plane.state / "logs" / f"agent-{machine.node}.log"

    def kill(self) -> None:
        """All agents, at once."""
        for agent in self.agents.values():
            agent.kill()
        for agent in self.agents.values():
            with suppress(subprocess.TimeoutExpired):
                agent.wait(_END_SECONDS)
        self.agents.clear()


def pod_cidr(number: int) -> str:
    """Of the existing node `number`, from 1: beyond those of the peers that do not exist."""
    return f"10.{250 + number // 256}.{number % 256}.0/24"


def pod_address(number: int, host: int = 5) -> str:
    """An address of that CIDR."""
    return f"10.{250 + number // 256}.{number % 256}.{host}"


def netloom_node(name: str, address: str, *pod_cidrs: str, announced: bool = False) -> dict[str, object]:
    """The object as the operator would write it; `announced`: with what its agent adds."""
    made = objects.netloom_node(name, address, *pod_cidrs)
    if announced:
        spec = made["spec"]
        assert isinstance(spec, dict)
        spec["encapsulations"] = [{"protocol": "vxlan", "port": 8472, "sending": True}]
    return made


def network(**routing: object) -> dict[str, Any]:
    """The NetloomNetwork."""
    return {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomNetwork",
        "metadata": {"name": "default"},
        "spec": {"ipam": {"clusterPool": {"ipv4PodCIDRList": ["10.0.0.0/8"]}}, "routing": routing},
    }


def sweep(machine: Machine) -> None:
    """Take the mesh, and what stands in nftables, away from a node whose agent has ended."""
    machine.ip("link", "del", TUNNEL, check=False)
    machine.run("nft", "flush", "ruleset")


@contextmanager
def fleet(prefix: str, features: str = "*") -> Iterator[Fleet]:
    """A fleet without nodes. The calling thread moves into the lab's switch, for good."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(prefix))  # nobody waits for a build who has not the right to make one
        binaries.prepare()
        lab.enter_switch()
        plane = stack.enter_context(ControlPlane(bind=lab.address))
        crds.install(plane)
        plane.kubectl("apply", "-f", str(RBAC))
        plane.client.request("POST", objects.NETWORK, network(mode="tunnel"))
        made = Fleet(lab, plane, features)
        stack.callback(made.kill)
        yield made
