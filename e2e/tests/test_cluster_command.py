"""`make cluster` and `make cluster-down`, with one node, whose pods the CNI's own bridge wires."""

import os
import subprocess
import sys

import pytest

from netloom_e2e import kubelets, processes
from netloom_e2e.fixtures import built
from netloom_e2e.namespaces import existing

NAME = f"nlm{os.getpid() % 10000}"
ASKED = """
kubectl get nodes --output=name
kubectl exec --namespace=kube-system deployment/coredns -- /coredns -version
"""


@pytest.fixture(autouse=True)
def prepared() -> None:
    with built():
        kubelets.prepare()


def tool(*words: str) -> str:
    """What `netloom-e2e` prints for a shell to evaluate."""
    command = [sys.executable, "-m", "netloom_e2e", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_stays_up_and_is_taken_down() -> None:
    try:
        shell = ["bash", "-c", tool("cluster", "--nodes=1", "--wired-by=bridge", f"--name={NAME}") + ASKED]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.startswith("node/n1\nCoreDNS-"), done
    finally:
        tool("down", f"--name={NAME}")
    assert not existing(f"{NAME}-*")
    assert not (processes.root() / NAME).exists()
