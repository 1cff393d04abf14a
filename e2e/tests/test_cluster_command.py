"""`make cluster WIRED_BY=nobody` and `make cluster-down`, with one node, on which Netloom is installed by hand."""

import os
import subprocess
import sys

import pytest

from netloom_e2e import binaries, kubelets, netloom_image, processes
from netloom_e2e.chart import ROOT
from netloom_e2e.fixtures import built
from netloom_e2e.namespaces import existing

NAME = f"nlm{os.getpid() % 10000}"
ASKED = """
set -e
kubectl get nodes --output=name
helm install netloom chart/netloom --namespace=netloom-system --create-namespace --wait --timeout=2m \
    --set=image.repository=registry.example.com/netloom,image.tag=0.1.0,operator.replicas=1 >&2
kubectl rollout status --namespace=kube-system deployment/coredns --timeout=90s >&2
kubectl exec --namespace=kube-system deployment/coredns -- /coredns -version
"""


@pytest.fixture(autouse=True)
def prepared() -> None:
    with built():
        kubelets.prepare()
        netloom_image.netloom()
        binaries.helm()


def tool(*words: str) -> str:
    """What `netloom-e2e` prints for a shell to evaluate."""
    command = [sys.executable, "-m", "netloom_e2e", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_stays_up_and_is_taken_down() -> None:
    try:
        shell = ["bash", "-c", tool("cluster", "--nodes=1", "--wired-by=nobody", f"--name={NAME}") + ASKED]
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        assert done.stdout.startswith("node/n1\nCoreDNS-"), done
    finally:
        tool("down", f"--name={NAME}")
    assert not existing(f"{NAME}-*")
    assert not (processes.root() / NAME).exists()
