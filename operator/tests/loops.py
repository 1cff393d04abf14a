"""The event loops that tests run on: uvloop, as the roles do, and asyncio's, whose timers are exact.

What waits for timers, sockets or processes runs on both. `make check` leaves asyncio's to `make test`: the roles do not
run on it, and everything twice takes longer than somebody who edits code likes to wait.
"""

import asyncio

import pytest
import uvloop
from pytest_asyncio.plugin import LoopFactory

UVLOOP: dict[str, LoopFactory] = {"uvloop": uvloop.new_event_loop}
BOTH: dict[str, LoopFactory] = {**UVLOOP, "asyncio": asyncio.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """To be imported by a conftest: what is parametrized with `asyncio`, as one of two loops, is slow."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "asyncio" in item.callspec.id.split("-"):
            item.add_marker(pytest.mark.slow)
