"""Pods as a container runtime makes them: network namespaces, and calls of the CNI plugin for each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin, Result
from netloom_e2e.machines import Machine, Pod
from netloom_e2e.namespaces import NETNS, Namespace, add, remove

NETWORK = "netloom"


class CniFailure(Exception):
    """A call failed: code and details of the CNI's error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['msg']} ({error['details']})")
        self.code: int = error["code"]
        self.said = str(self)


@dataclass
class Sandbox:
    """A pod's namespace, by the container's id, and what was said of it last."""

    name: str
    container: str
    place: Namespace
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, ...]:
        """That ADD gave."""
        return tuple(each["address"].partition("/")[0] for each in self.result.get("ips", ()))

    @property
    def pod(self) -> Pod:
        """To ping from."""
        return Pod(self.place.name, self.addresses[0], self.addresses)


@dataclass
class Runtime:
    """The container runtime of a node, as far as the CNI knows it. version: that it speaks. uids: of pods that the API
    server has, by their names."""

    machine: Machine
    plugin: Plugin
    version: str = "1.1.0"
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)

    def make(self, name: str, container: str = "") -> Sandbox:
        """A sandbox without a network."""
        made = Sandbox(name, container or f"id-{name}", Namespace(f"{self.machine.name}-{name}"))
        add(made.place)
        self.sandboxes[name] = made
        return made

    def run(self, name: str, container: str = "", **config: Any) -> Sandbox:
        """A pod of namespace `default`, with its network. Raises CniFailure."""
        made = self.make(name, container)
        self.add(made, **config)
        return made

    def add(self, sandbox: Sandbox, **config: Any) -> dict[str, Any]:
        """ADD. Raises CniFailure."""
        sandbox.result = self.ask("ADD", sandbox, **config)
        return sandbox.result

    def check(self, sandbox: Sandbox, **config: Any) -> None:
        """CHECK. Raises CniFailure."""
        self.ask("CHECK", sandbox, prevResult=sandbox.result, **config)

    def delete(self, sandbox: Sandbox, **config: Any) -> None:
        """DEL, with what ADD said. Raises CniFailure."""
        before = {"prevResult": sandbox.result} if sandbox.result else {}
        self.ask("DEL", sandbox, **{**before, **config})

    def end(self, sandbox: Sandbox) -> None:
        """What a runtime does when a pod ends."""
        self.delete(sandbox)
        self.take_away(sandbox)

    def take_away(self, sandbox: Sandbox) -> None:
        """The namespace goes, and nobody says a word."""
        remove([sandbox.place.name])
        del self.sandboxes[sandbox.name]

    def status(self) -> None:
        """STATUS. Raises CniFailure."""
        self.ask("STATUS")

    def collect(self, valid: Sequence[Mapping[str, str]]) -> None:
        """GC. Raises CniFailure."""
        self.ask("GC", None, **{"cni.dev/valid-attachments": list(valid)})

    def ask(self, command: str, sandbox: Sandbox | None = None, **config: Any) -> dict[str, Any]:
        """What the plugin prints. Raises CniFailure."""
        done = self.call(command, sandbox, **config)
        said: dict[str, Any] = json.loads(done.output or b"{}")
        if done.status:
            raise CniFailure(said)
        return said

    def call(self, command: str, sandbox: Sandbox | None = None, **config: Any) -> Result:
        """The plugin's end, whatever it is."""
        variables, stdin = self.variables(command, sandbox), self.stdin(**config)
        return self.plugin.call(variables, stdin, before=self.machine.enter)

    def begin(self, command: str, sandbox: Sandbox, **config: Any) -> subprocess.Popen[bytes]:
        """A call that is not waited for."""
        environment = self.plugin.environment(self.variables(command, sandbox), int(CALL_SECONDS))
        begun = subprocess.Popen(
            [*self.machine.enter, str(self.plugin.program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert begun.stdin is not None
        begun.stdin.write(self.stdin(**config))
        begun.stdin.close()
        begun.stdin = None  # `communicate` would flush it
        return begun

    def variables(self, command: str, sandbox: Sandbox | None) -> dict[str, str]:
        """The CNI_* of a call, without that prefix."""
        found = {"COMMAND": command, "PATH": "/opt/cni/bin"}
        if sandbox is not None:
            uid = self.uids.get(sandbox.name, f"u-{sandbox.name}")
            args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={sandbox.name};K8S_POD_UID={uid}"
            found |= {"CONTAINERID": sandbox.container, "IFNAME": "eth0", "ARGS": args}
            netns: Path = NETNS / sandbox.place.name
            found |= {"NETNS": str(netns)} if netns.exists() else {}
        return found

    def stdin(self, **config: Any) -> bytes:
        """The configuration."""
        return json.dumps({"cniVersion": self.version, "name": NETWORK, "type": "netloom-cni", **config}).encode()
