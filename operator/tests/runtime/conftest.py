"""A scripted API server and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from pytest_asyncio.plugin import LoopFactory

from netloom.runtime.client import Api
from tests.loops import BOTH, pytest_collection_modifyitems
from tests.runtime.scripted import ScriptedApi, serving

__all__ = ["pytest_collection_modifyitems"]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The roles run on uvloop, whose timers, sockets and processes are code of its own; asyncio's loop is the rule."""
    return BOTH


@pytest.fixture
async def server() -> AsyncIterator[ScriptedApi]:
    async with serving() as running:
        yield running


@pytest.fixture
def kubeconfig(server: ScriptedApi, tmp_path: Path) -> str:
    return write_kubeconfig(tmp_path / "kubeconfig", {"server": server.url}, {"token": "secret"})


@pytest.fixture
async def api(kubeconfig: str) -> AsyncIterator[Api]:
    async with await Api.connect(kubeconfig, timeout=5.0) as client:
        yield client


def write_kubeconfig(path: Path, cluster: dict[str, object], user: dict[str, object]) -> str:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "tester"}}],
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "tester", "user": user}],
            }
        )
    )
    return str(path)
