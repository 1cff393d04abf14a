"""Nodes of a lab whose agents serve a container runtime: no kubelet, and all else as on one."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

from netloom_e2e.addresses import AddressSocket
from netloom_e2e.agents import Agents
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.mesh import facts
from netloom_e2e.sandboxes import CniFailure, Runtime


class Node:
    """One of the lab, its agent and its runtime. program: the plugin."""

    def __init__(self, agents: Agents, name: str, program: Path) -> None:
        self.agents = agents
        self.machine: Machine = agents.enter(name)
        self.folder = Path(agents.run_dir(self.machine))
        self.folder.mkdir(exist_ok=True)
        self.host = self.folder / "host"
        (self.host / "bin").mkdir(parents=True)
        (self.host / "conf").mkdir()
        self.addresses = AddressSocket(self.folder / "agent.sock")
        self.runtime = Runtime(self.machine, Plugin(program, self.folder / "cni.sock", self.folder / "deletions"))
        self.program = program

    def start(self) -> None:
        flags = ["--cni-install", "--cni-plugin", str(self.program), "--cni-deletions", str(self.folder / "deletions")]
        flags += ["--cni-bin-dir", str(self.host / "bin"), "--cni-conf-dir", str(self.host / "conf")]
        self.agents.start(self.machine, flags=[*flags, "--cni-chain", ""])

    def ready(self) -> None:
        """It serves an ADD."""

        def serves() -> bool:
            with contextlib.suppress(CniFailure):
                self.runtime.status()
                return True
            return False

        try:
            wait_for(f"{self.machine.node} to add pods", serves, deadline=30)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {facts(self.machine)}\n{self.agents.log(self.machine)[-4000:]}") from error

    def kill(self) -> None:
        agent = self.agents.agents[self.machine.node]
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)

    def restart(self) -> None:
        self.kill()
        self.start()
        self.ready()

    def devices(self) -> list[str]:
        """The host ends of pods."""
        shown = json.loads(self.machine.ip("-j", "link", "show", "type", "veth") or "[]")
        return sorted(each["ifname"] for each in shown if each and each["ifname"].startswith("netloom_p"))

    def pod_state(self) -> str:
        """All of the host's side of pods, but for what is volatile."""
        parts = [self.machine.ip("-o", "link", "show", "dev", each) for each in self.devices()]
        parts += [self.machine.ip("neigh", "show", "dev", each, "nud", "permanent") for each in self.devices()]
        parts += [self.machine.ip(family, "route", "show", "proto", "158") for family in ("-4", "-6")]
        return "\n".join(parts)

    def is_empty(self) -> bool:
        """Nothing of a pod is left: addresses, devices, routes."""
        routes = [
            line for f in ("-4", "-6") for line in self.machine.ip(f, "route").splitlines() if "netloom_p" in line
        ]
        return not (self.addresses.held() or self.devices() or routes)

    def clear(self) -> None:
        for sandbox in list(self.runtime.sandboxes.values()):
            self.runtime.end(sandbox)
        wait_for("nothing to be left", self.is_empty)
