"""A node's namespaces: what is in them is the node's own, and nothing of them stays, whoever ends first."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from netloom_e2e import belongings, cgroups, images, processes
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.image_store import image_store
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.namespaces import existing
from netloom_e2e.processes import StateFolder

PREFIX = os.environ.get("NODE_TEST_PREFIX", f"nln{os.getpid() % 10000}")


@dataclass(frozen=True)
class Folder:
    """As much of a control plane as a node without a kubelet needs."""

    folder: StateFolder

    @property
    def state(self) -> Path:
        return self.folder.path


@contextmanager
def booted() -> Iterator[KubeletNode]:
    pause = images.pause()
    store = image_store([pause])
    folder = StateFolder(PREFIX)
    try:
        with Lab(PREFIX) as lab:
            belongings.add_namespaces(folder.path, PREFIX)
            plane = cast(ControlPlane, Folder(folder))
            node = KubeletNode(plane, lab.add_node("n1"), ["10.1.0.0/16"], pause.name, store)
            node.boot()
            yield node
    finally:
        folder.close()


def nothing_is_left() -> None:
    assert not existing(f"{PREFIX}-*")
    assert not [place for each in cgroups.hierarchies() for place in each.glob(f"{PREFIX}-*")]
    assert PREFIX not in Path("/proc/self/mountinfo").read_text()
    assert not (processes.root() / PREFIX).exists()
    assert not processes.members(processes.root() / PREFIX)


def test_a_node_is_a_machine_of_its_own() -> None:
    overcommit = Path("/proc/sys/vm/overcommit_memory").read_text()
    with booted() as node:
        assert node.run("hostname").strip() == "n1"
        assert sorted(node.run("ls", "/sys/class/net").split()) == ["eth0", "lo"]
        # What it writes to its disk is seen by nobody else; what it sets for the machine sets nothing.
        node.run(
            "sh",
            "-c",
            "echo 1 >/etc/netloom-test; echo 1 >/var/lib/netloom-test; echo 0 >/proc/sys/vm/overcommit_memory",
        )
        assert not Path("/etc/netloom-test").exists()
        assert not Path("/var/lib/netloom-test").exists()
        assert Path("/proc/sys/vm/overcommit_memory").read_text() == overcommit
        node.run("ctr", "--namespace=k8s.io", "run", "--detach", images.pause().name, "one")
        first = node.pid

        node.kill("containerd")
        node.start_containerd()
        assert "RUNNING" in node.run("ctr", "--namespace=k8s.io", "tasks", "list"), "containers outlive containerd"

        node.power_off()
        node.boot()
        assert node.pid != first
        assert node.run("cat", "/etc/netloom-test") == "1\n", "its disk is as it was"
        assert "RUNNING" not in node.run("ctr", "--namespace=k8s.io", "tasks", "list")
    nothing_is_left()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_of_a_node_whose_owner_is_ended(end: signal.Signals) -> None:
    image_store([images.pause()])
    code = "import test_kubelet_nodes as t, time\nwith t.booted(): print('up', flush=True); time.sleep(100)"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    environment["NODE_TEST_PREFIX"] = PREFIX
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "up\n", owner.communicate()[1]
        owner.send_signal(end)
        owner.wait(60)
    wait_for("the state folder to be gone", lambda: not (processes.root() / PREFIX).exists(), deadline=30)
    nothing_is_left()
