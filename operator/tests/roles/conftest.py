"""Roles in this process, on an API server and a kernel in which faults can be injected."""

import pytest
from pytest_asyncio.plugin import LoopFactory

from tests.kernel.conftest import lab, node
from tests.loops import UVLOOP
from tests.runtime.conftest import api, kubeconfig, server

__all__ = ["api", "kubeconfig", "lab", "node", "server"]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """What roles run on."""
    return UVLOOP
