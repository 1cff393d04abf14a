"""Kubernetes' own end-to-end tests of networks ("specs"), run on a cluster of kubelets.

`e2e/conformance` is the program that holds them; ginkgo runs several of it beside each other. They ask for images by
the names that Kubernetes publishes them under: what is made here has these names, too, so nothing is pulled.

    specs.prepare()                                       # builds what is missing: before a namespace is entered
    names = specs.listed(specs.CONFORMANCE)
    with netloom_cluster.cluster("nlc1", further=specs.images()) as cluster:
        outcomes = specs.run(cluster, names, folder)      # of each that has ended, by its name
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netloom_e2e import binaries, debian
from netloom_e2e.build_cache import made
from netloom_e2e.images import SOURCES, Image, Recipe, built, pause, run_logged
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import Router
from netloom_e2e.processes import Process

CONFORMANCE = "sig-network && Conformance"
"""A filter of labels: what a cluster's network has to do to be called conformant."""
AT_ONCE = 6
"""Most of a spec is waiting."""

_CALLED = ("bind9-dnsutils", "coreutils", "curl", "dash", "grep", "iproute2", "libc-bin", "netcat-openbsd")
"""Packages of Debian whose programs the specs call in pods."""
_OF_AGNHOST = ("agnhost", "glibc-dns-testing", "nginx")
"""Images that ours stands for. The second is Debian with dig. Pods of the third get addresses, nobody calls them."""
_OF_PORTER = ("localhost.crt", "localhost.key")
_PASSED = "passed"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60.0
"""For ginkgo to end what runs, and to clean up, when its time is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one spec. `state`: ginkgo's word, `passed` or `failed` or others. `why`: what it says if it did not pass."""

    name: str
    state: str
    seconds: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return self.state == _PASSED


def prepare() -> None:
    """Builds what is missing. Raises BinariesError."""
    images()


def listed(labels: str) -> list[str]:
    """Names of the specs that a filter of labels selects, as the program itself tells them."""
    return [outcome.name for outcome in read(_asked("--list", f"--ginkgo.label-filter={labels}"))]


def images() -> tuple[Image, ...]:
    """Those that the specs ask for, for a cluster's nodes."""
    content = {
        "Containerfile": SOURCES / "specs.Containerfile",
        "root.tar": debian.programs(*_CALLED),
        "agnhost": binaries.agnhost(),
        **{name: _porter() / name for name in _OF_PORTER},
    }
    published = _asked("--list-images").split()

    def named(*names: str) -> tuple[str, ...]:
        return tuple(sorted(each for each in published if re.split("[/:]", each)[-2] in names))

    agnhost = replace(built(Recipe("specs", content)), aliases=named(*_OF_AGNHOST))
    return agnhost, replace(pause(), aliases=named("pause"))


def _porter() -> Path:
    """A folder of the files that agnhost's porter, which serves TLS, looks for in its image."""

    def make(folder: Path, log: Path) -> None:
        source = binaries.kubernetes_source() / "test" / "images" / "agnhost" / "porter"
        files = (str(source / name) for name in _OF_PORTER)
        run_logged(["install", "--mode=644", *files, str(folder)], "Copying agnhost's certificate", folder, log)

    return made(f"porter-{binaries.KUBERNETES_VERSION}", make)


def read(lines: str) -> list[Outcome]:
    """Outcomes as the program tells them, one JSON object a line. What was being written when it ended is left out."""
    whole = lines[: lines.rfind("\n") + 1]
    return [Outcome(**json.loads(line)) for line in whole.splitlines()]


def run(
    cluster: KubeletCluster,
    names: Sequence[str],
    folder: Path,
    *,
    at_once: int = AT_ONCE,
    seconds: float = 1800.0,
    told: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Run specs; of each of `names` what came of it, in their order.

    folder: for the reports, JUnit's and ginkgo's output; what it held is removed. seconds: when they are to be ended.
    told: called with those that have ended so far, now and then. The calling thread is in the namespace of the
    cluster's switch. Raises RuntimeError if something else than a spec failed.
    """
    _route_pods(cluster)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = folder / "outcomes.jsonl"
    lines.write_text("")
    process = _start(cluster, names, folder, lines, at_once, seconds)
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    while process.status is None and time.monotonic() < deadline:
        told(read(lines.read_text()))
        time.sleep(_POLL_SECONDS)
    if process.status is None:
        process.kill()
    (folder / "ginkgo.log").write_bytes(process.log.read_bytes())
    ended = {outcome.name: outcome for outcome in read(lines.read_text())}
    outcomes = [ended.get(name) or Outcome(name, "not run", 0.0, process.tail(8)) for name in names]
    if process.status != 0 and all(outcome.passed for outcome in outcomes):
        raise RuntimeError(f"all specs passed, and ginkgo ended with {process.status}:\n{process.tail()}")
    return outcomes


def _start(
    cluster: KubeletCluster, names: Iterable[str], folder: Path, lines: Path, at_once: int, seconds: float
) -> Process:
    plane = cluster.plane
    # ginkgo takes a program for one of its own by this name.
    program = plane.state / "conformance.test"
    program.unlink(missing_ok=True)
    program.symlink_to(binaries.specs() / "conformance")
    command: list[str | Path] = [
        *(binaries.specs() / "ginkgo", "run", "--no-color", f"--procs={at_once}", f"--timeout={seconds:.0f}s"),
        *(f"--focus={re.escape(name)}$" for name in names),
        *(program, "--", "--provider=skeleton", f"--kubeconfig={plane.kubeconfig()}"),
        *(f"--kubectl-path={plane.kubectl_path}", f"--report-dir={folder}", f"--told={lines}"),
    ]
    environment: Mapping[str, str] = os.environ | {"KUBECACHEDIR": str(plane.state / "kubectl-cache"), "KUBERC": "off"}
    return plane.folder.spawn("specs", command, env=environment)


def _route_pods(cluster: KubeletCluster) -> None:
    """The API server's machine learns the ways to pods: its proxies, which specs call, go there. It is beside the nodes
    here, and so it is no member of the mesh as it is where it runs on a node."""
    machine = Router(cluster.lab.switch.name)
    for node in cluster.nodes.values():
        machine.learn(node.machine, *node.pod_cidrs())


def _asked(*words: str) -> str:
    """What the program prints."""
    command = [str(binaries.specs() / "conformance"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
