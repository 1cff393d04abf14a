import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from netloom_e2e.background import TidyLoop
from netloom_e2e.fixtures import (
    cluster,
    control_plane,
    control_plane_binaries,
    crds_installed,
    helm_binary,
    kubectl,
    operators,
    release,
)
from tests.collection import pytest_collection

__all__ = [
    "cluster",
    "control_plane",
    "control_plane_binaries",
    "crds_installed",
    "helm_binary",
    "kubectl",
    "operators",
    "pytest_collection",
    "release",
]

os.environ.setdefault("GOGC", "400")
"""For whatever is started in Go: a test's control plane lives for a minute, and memory is there, unlike processors. An
API server takes a sixth less of a core to start, and a tenth less until 200 tests have asked it 2,300 times."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"tidy": TidyLoop}


LONGEST = (
    "test_other_kernels.py",  # 333 s beside another worker, most of it one virtual machine's
    "test_guard.py",  # 611 requests
    "test_kubelets.py",  # one cluster, through all routing modes
    "test_chart_life.py",  # one cluster, images exchanged five times
    "test_kernel_machine.py",  # one test of 1,200 steps
    "test_mode_race.py",  # one of 44 s
    "test_pool_soak.py",  # one of half a minute, as the next
    "test_demo.py",
    "test_liveness.py",
    "test_rights.py",
    "test_chart_uninstall.py",
    "test_kubelet_uninstall.py",
    "test_bench_webhook.py",
    "test_chart_release.py",  # a release from installation to uninstallation, by Helm
    "test_kubelet_pools.py",  # a cluster each, as the next three
    "test_bench_cni.py",
    "test_cluster_demo.py",
    "test_cluster_command.py",
    "test_guard_certificates.py",  # half a minute or more, as the rest
    "test_bench.py",
    "test_restores.py",
    "test_check.py",
    "test_node_changes.py",
    "test_mtu.py",
    "test_bench_mesh.py",
    "test_node_addresses.py",
)
"""Files whose few tests take long, longest first; `make test` names the longest tests at its end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` gives three workers a file each as they become free: what takes long is to begin first, so that none
    is idle at the end. The rest by how many tests they have; by that alone (what pytest-xdist would do itself,
    without --no-loadscope-reorder), a file with one test of some minutes would be the last.
    """
    tests = Counter(item.path for item in items)

    def turn(path: Path) -> tuple[int, int, str]:
        return (LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)), -tests[path], path.name

    items.sort(key=lambda item: turn(item.path))
