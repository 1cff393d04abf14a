"""Calls of the CNI plugin: the real program, a real network namespace, and an agent that does what a script says."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from netloom_e2e import cni_plugin, namespaces
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.lab import Lab
from netloom_e2e.namespaces import Namespace
from netloom_e2e.scripted_agent import Script, ScriptedAgent

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]


@pytest.fixture
def plugin(folder: Path) -> Plugin:
    """As it is installed, but for where its socket and its deletions are."""
    return Plugin(cni_plugin.built(), folder / "cni.sock", folder / "deletions")


@pytest.fixture(params=["installed", "sanitized"])
def either_plugin(folder: Path, request: pytest.FixtureRequest) -> Plugin:
    """The same, and once more as a program that ends where it does what is undefined in C."""
    program = cni_plugin.built(sanitized=request.param == "sanitized")
    return Plugin(program, folder / "cni.sock", folder / "deletions")


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cni-plugin-") as made:
        yield Path(made)


@pytest.fixture
def agent(folder: Path) -> Agents:
    """Starts an agent with a script at the plugin's socket."""

    def start(script: Script, backlog: int = 128) -> AbstractContextManager[ScriptedAgent]:
        return ScriptedAgent(folder / "cni.sock", script, backlog).running()

    return start


@pytest.fixture(scope="session")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """The network namespace of a pod that is to be wired."""
    cni_plugin.built()
    with Lab(f"nlcp{os.getpid() % 10000}") as lab:  # of the whole session: no other test has labs of this prefix
        place = Namespace(f"{lab.prefix}-pod")
        namespaces.add(place)
        yield place


@pytest.fixture
def variables(pod: Namespace) -> dict[str, str]:
    """What the runtime sets for the pod, all but the command."""
    return {
        "CONTAINERID": "3f4e",
        "NETNS": str(namespaces.NETNS / pod.name),
        "IFNAME": "eth0",
        "ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        "PATH": "/opt/cni/bin",
    }


@pytest.fixture
def config() -> bytes:
    """What the runtime gives on standard input."""
    return json.dumps({"cniVersion": "1.1.0", "name": "netloom", "type": "netloom-cni"}).encode()
