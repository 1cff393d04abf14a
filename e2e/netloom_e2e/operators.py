"""`netloom operator` as processes beside a control plane, to be started, watched, frozen and killed by tests.

They run as the user `netloom-operator`, with what docs/examples/rbac.yaml grants and no more.
"""

from __future__ import annotations

import http.client
import itertools
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.processes import Process

USER = "netloom-operator"
RBAC = Path(__file__).parents[2] / "docs" / "examples" / "rbac.yaml"
_NETLOOM = Path(sys.executable).with_name("netloom")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator process and the address of its /healthz, /readyz and /metrics."""

    process: Process
    address: str

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and does nothing, as in a virtual machine that is paused."""
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; also while it is frozen."""
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM. Raises AssertionError if it does not end well."""
        self.process.send(signal.SIGTERM)
        wait_for("the operator ends", lambda: self.process.status is not None, deadline=30)
        assert self.process.status == 0, self.process.tail()

    def get(self, path: str) -> str:
        """What it serves. Raises OSError where it does not answer, or answers with an error."""
        try:
            with urlopen(f"http://{self.address}{path}", timeout=10) as response:
                text: bytes = response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        return text.decode()

    def healthy(self) -> bool:
        """Whether it runs and says that it is well."""
        return self.approves("/healthz")

    def approves(self, path: str) -> bool:
        """Whether what it serves there is a success. Raises AssertionError if it does not run."""
        if self.process.status is not None:
            raise AssertionError(f"{self.process.name} ended ({self.process.status}):\n{self.process.tail()}")
        try:
            return bool(self.get(path))
        except OSError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with these labels."""
        return sum(sample.value for sample in self.samples(name) if labels.items() <= sample.labels.items())

    def samples(self, name: str) -> list[Sample]:
        """Those of a metric. The other lines are not parsed, which would take 20 times as long."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        families = text_string_to_metric_families("\n".join([*lines, ""]))
        return [sample for family in families for sample in family.samples if sample.name == name]


class Operators:
    """All operators of one test."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._started: list[Operator] = []

    def start(
        self,
        *arguments: str,
        leader_elect: bool = False,
        kubeconfig: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Operator:
        """Starts one and returns at once. Without `leader_elect` it works as if it were alone."""
        name = f"operator-{next(_numbers)}"
        address = f"127.0.0.1:{free_port()}"
        command: list[str | Path] = [
            _NETLOOM,
            "operator",
            f"--kubeconfig={kubeconfig or self._plane.kubeconfig(USER)}",
            f"--http-address={address}",
            f"--identity={name}",
            "--leader-elect" if leader_elect else "--no-leader-elect",
            "--log-format=console",
            *arguments,
        ]
        process = self._plane.folder.spawn(name, command, env={**environment(), **(env or {})})
        operator = Operator(process, address)
        self._started.append(operator)
        return operator

    def kill(self) -> None:
        """Kills all that still run."""
        for operator in self._started:
            operator.kill()
        self._started.clear()


@contextmanager
def running(plane: ControlPlane) -> Iterator[Operators]:
    """Starts operators; at the end all are dead."""
    started = Operators(plane)
    try:
        yield started
    finally:
        started.kill()


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
