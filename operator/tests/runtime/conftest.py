"""A scripted API server and a client of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
import yaml
from pytest_asyncio.plugin import LoopFactory

from netloom.runtime.client import Api
from tests.runtime.scripted import ScriptedApi, serving


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The roles run on uvloop, whose timers, sockets and processes are code of its own; asyncio's loop is the rule."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


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
