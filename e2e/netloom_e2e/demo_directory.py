"""The demo's first part: a mesh that comes from a directory of manifests and needs no cluster.

It begins at once, also where the control plane of the later parts has to be built first, which takes minutes: the mesh
pings on until the build, which runs beside it, is done.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from netloom_e2e import binaries
from netloom_e2e.agents import netloom_node
from netloom_e2e.binaries import BinariesError
from netloom_e2e.building import Building
from netloom_e2e.lab import Lab, Machine, Pod, wait_for
from netloom_e2e.mesh import NETLOOM, facts, state, tunnel_mtu
from netloom_e2e.progress import Progress
from netloom_e2e.report import Report, ping_all

_DEADLINE = 30.0
"""Seconds: a compiler may be running beside it."""


@dataclass
class DirectoryMesh:
    """Nodes whose agents follow the directory `manifests`, and nothing else."""

    lab: Lab
    manifests: Path
    network: str
    """The NetloomNetwork, as YAML."""

    report: Report
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)

    def tell(self) -> None:
        """Two nodes, then three."""
        self.report.head("1  A mesh from a directory of manifests; no cluster is needed")
        self.manifests.mkdir()
        (self.manifests / "network.yaml").write_text(self.network)
        m1, m2, m3 = (self.lab.add_node(f"m{number}") for number in (1, 2, 3))
        self._describe(m1)
        self._describe(m2)
        for machine in (m1, m2, m3):
            self._start(machine)
        self.report.say(f"m1# netloom agent --manifests {self.manifests} --node-name m1")
        self._add_pods(m1, m2)
        self._whole()
        began = time.monotonic() - self.report.began
        self.report.saw("pods on m1 and m2 ping each other", f"{began:.1f} s after the start", True)
        wait_for("the agent of m3 to run", lambda: facts(m3), deadline=_DEADLINE)
        start = time.monotonic()
        self.report.say(f"$ cp m3.json {self.manifests}")
        self._describe(m3)
        self._add_pods(m3)
        self._whole()
        took = time.monotonic() - start
        self.report.saw("a file for a third node -> all pairs ping", f"{took * 1000:.0f} ms", True)

    def go_on_until(self, build: Building) -> None:
        """Ping until the control plane is built. Raises BinariesError if that fails."""
        progress = Progress("         The control plane is being built beside it; the pods ping on until it is there")
        sent = received = 0
        outcome = "stopped"
        try:
            while not (sent and build.done(1)):
                more, answered = ping_all(self.pods.values())
                sent, received = sent + more, received + answered
                progress.show(f"{received} of {sent} pings answered; {binaries.progress()}")
            outcome = "built"
        except BinariesError:
            outcome = "failed"
            raise
        finally:
            progress.end(outcome)
        self.report.saw("pings while a control plane was built", f"{received} of {sent} answered", sent == received)

    def end(self) -> None:
        """What the agents made is taken away, then the nodes."""
        machines = [self.lab.nodes[name] for name in self.agents]
        for machine in machines:
            self.agents[machine.node].terminate()
            self.agents[machine.node].wait(_DEADLINE)
            machine.run(str(NETLOOM), "cleanup", "--yes", "--run-dir", self._run_dir(machine))
        left = "".join(map(state, machines))
        self.report.saw("netloom cleanup on the three", left or "nothing of Netloom is left", not left)
        for machine in machines:
            self.lab.remove_node(machine.node)

    def _describe(self, machine: Machine) -> None:
        found = netloom_node(machine.node, machine.address, _cidr(machine, "0/24"))
        (self.manifests / f"{machine.node}.json").write_text(json.dumps(found))

    def _start(self, machine: Machine) -> None:
        arguments = ["--node-name", machine.node, "--run-dir", self._run_dir(machine)]
        with (self.manifests.parent / f"{machine.node}.log").open("a") as log:
            command = [str(NETLOOM), "agent", "--manifests", str(self.manifests), *arguments]
            self.agents[machine.node] = machine.popen(command, stdout=log)

    def _run_dir(self, machine: Machine) -> str:
        return str(self.manifests.parent / machine.node)

    def _add_pods(self, *machines: Machine) -> None:
        for machine in machines:
            mtu = tunnel_mtu(machine, _DEADLINE)
            self.pods[machine.node] = machine.add_pod("pod", _cidr(machine, "5"), mtu=mtu)

    def _whole(self) -> None:
        """Wait until all pairs ping."""
        pairs = len(self.pods) * (len(self.pods) - 1)
        wait_for(
            "all pairs to ping", lambda: ping_all(self.pods.values(), wait=0.2) == (pairs, pairs), deadline=_DEADLINE
        )


def _cidr(machine: Machine, end: str) -> str:
    return f"10.42.{machine.node.removeprefix('m')}.{end}"
