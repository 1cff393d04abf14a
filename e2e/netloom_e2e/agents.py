"""Agents as their users run them, one process per node of a lab, under a real API server; no operator."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, facts

NETWORK = "/apis/netloom.dev/v1alpha1/netloomnetworks"
NODES = "/apis/netloom.dev/v1alpha1/netloomnodes"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=netloom.dev/agent=true"


@dataclass
class Agents:
    """A lab whose nodes run agents of one control plane. NetloomNodes are written by the test: no operator runs."""

    lab: Lab
    plane: ControlPlane
    folder: Path
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    user: str = "admin"
    """Whose rights the agents have."""

    def enter(self, name: str, *, segment: str = "") -> Machine:
        """A node and its NetloomNode, without an agent yet."""
        machine = self.lab.add_node(name, segment=segment)
        self.plane.client.request("POST", NODES, netloom_node(name, machine.underlay, *cidrs(name)))
        return machine

    def join(self, name: str, *, segment: str = "") -> Machine:
        """A node, its NetloomNode, and its agent."""
        machine = self.enter(name, segment=segment)
        self.start(machine)
        return machine

    def readdress(self, machine: Machine) -> None:
        """Write the node's addresses into its NetloomNode, as the operator does when the kubelet reports others."""
        addresses = [{"type": "InternalIP", "ip": address} for address in machine.underlay]
        self.plane.client.request("PATCH", f"{NODES}/{machine.node}", {"spec": {"addresses": addresses}})

    def start(
        self, machine: Machine, env: Mapping[str, str] | None = None, flags: Sequence[str] = (), *, node: str = ""
    ) -> None:
        """Start the node's agent; its log is appended to. env: beside this process's. node: its name, if another."""
        further = [f"{name}={value}" for name, value in (env or {}).items()]
        command = ["env", *further, str(NETLOOM), "agent", "--kubeconfig", str(self.kubeconfig(machine))]
        command += ["--node-name", node or machine.node]
        with (self.folder / f"{machine.node}.log").open("a") as log:
            command += ["--run-dir", self.run_dir(machine), *flags]
            self.agents[machine.node] = machine.popen(command, stdout=log)

    def kubeconfig(self, machine: Machine) -> Path:
        """By which the node's agent reaches the API server."""
        return self.plane.kubeconfig(self.user, host=self.lab.address)

    def run_dir(self, machine: Machine) -> str:
        return str(self.folder / machine.node)

    def log(self, machine: Machine) -> str:
        return (self.folder / f"{machine.node}.log").read_text()

    def in_sync(self, *machines: Machine, peers: int) -> None:
        """Wait until these nodes' agents have `peers` peers in the kernel; else show what the agent says."""
        for machine in machines:
            said: dict[str, object] = {}

            def whole(machine: Machine = machine, said: dict[str, object] = said) -> bool:
                said.clear()
                said.update(facts(machine))
                return bool(said.get("inSync")) and said["peers"] == peers

            try:
                wait_for(f"{machine.node} in sync with {peers} peers", whole, deadline=60)
            except TimeoutError as error:
                end = "\n".join(self.log(machine).splitlines()[-20:])
                status = self.agents[machine.node].poll()
                raise AssertionError(f"{error}\nexit status {status}, it says {said}\n{end}") from error

    @contextlib.contextmanager
    def held(self, *nodes: str) -> Iterator[None]:
        """These agents do nothing while the block lasts: whatever happens, they notice it afterwards."""
        for node in nodes:
            self.agents[node].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for node in nodes:
                self.agents[node].send_signal(signal.SIGCONT)

    def edit(self, **routing: object) -> None:
        """What `kubectl edit netloomnetwork default` does to spec.routing."""
        self.edit_spec(routing=routing)

    def edit_spec(self, **spec: object) -> None:
        """The same, to spec."""
        self.plane.client.request("PATCH", f"{NETWORK}/default", {"spec": spec})

    def condition(self, name: str, type_: str = "DataplaneReady") -> dict[str, str]:
        """A condition of the node; empty if it has none yet."""
        conditions = self.plane.client.request("GET", f"{NODES}/{name}").get("status", {}).get("conditions", [])
        return next((dict(each) for each in conditions if each["type"] == type_), {})

    def said(self) -> dict[str, dict[str, bool]]:
        """What each node announces: the ways it accepts, and whether it sends by them."""
        return announced(self.plane.client)

    def moved(self, *ways: str, sending: bool = True, deadline: float = 30) -> None:
        """Wait until every node accepts these ways and no others, and sends by them (or by none, if not `sending`)."""
        wanted = {name: dict.fromkeys(ways, sending) for name in self.agents}
        try:
            wait_for(f"all nodes at {ways}", lambda: self.said() == wanted, deadline=deadline)
        except TimeoutError as error:
            logs = "\n".join(f"--- {m.node}\n" + self.log(m)[-2000:] for m in self.lab.nodes.values())
            raise AssertionError(f"{error}; they are at {self.said()}\n{logs}") from error

    def end(self, name: str) -> None:
        """End the node's agent as a rolling update does."""
        self.agents[name].terminate()
        self.agents[name].wait(20)

    def stop(self) -> None:
        """Also takes away their Leases, as the garbage collector would: for a while they tell of agents that live, and
        the next test may have nodes of the same names."""
        for agent in self.agents.values():
            agent.kill()
            agent.wait()
        with contextlib.suppress(OSError, ApiFailure):  # an API server of the test's own may have ended before
            self.plane.client.request("DELETE", _LEASES)


@contextlib.contextmanager
def running_agents(plane: ControlPlane, prefix: str, folder: Path) -> Iterator[Agents]:
    """A lab of its own and the network, for agents that a test starts; they have ended afterwards."""
    with Lab(f"{prefix}{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, folder)
        plane.client.request("POST", NETWORK, network())
        try:
            yield made
        finally:
            made.stop()


def announced(client: Client) -> dict[str, dict[str, bool]]:
    """The ways that each node of a cluster accepts, and whether it sends by them."""
    found = {}
    for node in client.request("GET", NODES)["items"]:
        tunnels = node["spec"].get("encapsulations", ())
        found[node["metadata"]["name"]] = {
            f"{t['protocol']}:{t.get('port', 0)}".removesuffix(":0"): bool(t.get("sending")) for t in tunnels
        }
    return found


def cidrs(name: str) -> tuple[str, str]:
    """The pod CIDRs of node `n1`, `n2`, ..."""
    index = name.removeprefix("n")
    return f"10.42.{index}.0/24", f"fd00:42:0:{index}::/64"


def netloom_node(name: str, addresses: str | Sequence[str], *pod_cidrs: str) -> dict[str, object]:
    found = [addresses] if isinstance(addresses, str) else addresses
    return {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomNode",
        "metadata": {"name": name},
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": address} for address in found],
            "ipam": {"mode": "cluster-pool", "podCIDRs": list(pod_cidrs)},
        },
    }


def network(**spec: object) -> dict[str, object]:
    pool = {"ipv4PodCIDRList": ["10.42.0.0/16"], "ipv6PodCIDRList": ["fd00:42::/56"], "ipv6MaskSize": 64}
    return {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomNetwork",
        "metadata": {"name": "default"},
        "spec": {"ipam": {"clusterPool": pool}, **spec},
    }
