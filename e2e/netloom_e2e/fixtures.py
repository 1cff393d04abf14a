"""pytest fixtures around one control plane per session. A conftest.py takes them by importing this module's names:

from netloom_e2e.fixtures import control_plane, crds_installed, kubectl
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netloom_e2e import binaries
from netloom_e2e.cluster import ControlPlane

CRDS = Path(__file__).parent.parent.parent / "crds"

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def control_plane(control_plane_binaries: Path) -> Iterator[ControlPlane]:
    """A control plane shared by the session's tests: leave it as you found it (see `ControlPlane.delete_all`)."""
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="session")
def control_plane_binaries(request: pytest.FixtureRequest) -> Path:
    """Builds them where they are missing, and lets the progress of that through pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture
    with capture.global_and_fixture_disabled():
        return binaries.find("kube-apiserver").parent


@pytest.fixture(scope="session")
def crds_installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the CRDs of this tree, established."""
    if manifests := sorted(CRDS.glob("*.yaml")):
        control_plane.kubectl("apply", "--server-side", *(f"--filename={manifest}" for manifest in manifests))
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    return control_plane


@pytest.fixture
def kubectl(control_plane: ControlPlane) -> Kubectl:
    return control_plane.kubectl
