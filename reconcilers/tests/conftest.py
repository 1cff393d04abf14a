"""The loops that tests run on."""

import asyncio

import pytest
import uvloop
from pytest_asyncio.plugin import LoopFactory


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The roles run on uvloop; nothing here may depend on that."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
