import asyncio
from collections.abc import Callable

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
)

__all__ = [
    "cluster",
    "control_plane",
    "control_plane_binaries",
    "crds_installed",
    "helm_binary",
    "kubectl",
    "operators",
]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"tidy": TidyLoop}
