"""pytest fixtures around one control plane per session. A conftest.py takes them by importing this module's names:

from netloom_e2e.fixtures import control_plane, crds_installed, kubectl
"""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom_e2e import binaries, crds
from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS, Cluster
from netloom_e2e.build_cache import BinariesError
from netloom_e2e.client import collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import Lab
from netloom_e2e.netloom_cluster import Release
from netloom_e2e.operators import RBAC, Operators, running

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def control_plane(control_plane_binaries: Path) -> Iterator[ControlPlane]:
    """A control plane shared by the session's tests: leave it as you found it (see `ControlPlane.delete_all`)."""
    with ControlPlane(hosts=[Lab.address]) as running:
        yield running


@pytest.fixture(scope="session")
def control_plane_binaries(request: pytest.FixtureRequest) -> Path:
    """Builds them where they are missing; for tests that start control planes of their own, too.

    The progress of it is let through pytest's capture, and it does not count towards a test's time-out.
    """
    return _made(request, lambda: binaries.find("kube-apiserver")).parent


@pytest.fixture(scope="session")
def helm_binary(request: pytest.FixtureRequest) -> Path:
    """Builds Helm where it is missing, for tests that call `ControlPlane.helm`; progress and time-out as above."""
    return _made(request, binaries.helm)


def _made(request: pytest.FixtureRequest, make: Callable[[], Path]) -> Path:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture
    with built(), capture.global_and_fixture_disabled(), _timeout_suspended():
        return make()


@contextmanager
def built() -> Iterator[None]:
    """For what may have to be built: where that fails, so does the test, in the build's words."""
    try:
        yield
    except BinariesError as error:
        pytest.fail(str(error), pytrace=False)


@contextmanager
def _timeout_suspended() -> Iterator[None]:
    """pytest-timeout counts with this timer, the fixtures of a test included."""
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)


@pytest.fixture(scope="session")
def crds_installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the CRDs of this tree, established and served."""
    crds.install(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def release(bed: KubeletCluster) -> Release:
    """What Helm installed in a module's cluster of kubelets, whose fixture is called `bed`."""
    assert isinstance(bed.network, Release)
    return bed.network


@pytest.fixture
def kubectl(control_plane: ControlPlane) -> Kubectl:
    return control_plane.kubectl


@pytest.fixture
def cluster(crds_installed: ControlPlane) -> Iterator[Cluster]:
    """The shared control plane for tests of the allocation, emptied afterwards."""
    for each in _rights():
        crds_installed.client.apply(_path_of(each), each)
    yield Cluster(crds_installed)
    crds_installed.delete_all(NETWORKS, "nodes", NETLOOM_NODES, LEDGERS, POOLS)
    crds_installed.delete_all("events", namespace="default")
    crds_installed.delete_all("leases.v1.coordination.k8s.io", namespace="kube-system")


@functools.cache
def _rights() -> list[dict[str, Any]]:
    """Operators'. Each test has them anew, as tests take some away."""
    return list(yaml.load_all(RBAC.read_text(), yaml.CSafeLoader))


def _path_of(manifest: dict[str, Any]) -> str:
    """Of an object of RBAC."""
    meta = manifest["metadata"]
    _, version = manifest["apiVersion"].split("/")
    resource = f"{manifest['kind'].lower()}s.{version}.rbac.authorization.k8s.io"
    return f"{collection_path(resource, meta.get('namespace', ''))}/{meta['name']}"


@pytest.fixture
def operators(cluster: Cluster) -> Iterator[Operators]:
    """Starts operator processes; they are dead before the cluster is emptied."""
    with running(cluster.plane) as started:
        yield started
