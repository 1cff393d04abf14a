"""docs/adding-a-reconciler.md shows code that works: this runs it, and compares it with what the page prints."""

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, Address, NetloomNode, NetloomNodeSpec
from netloom.runtime.store import Store

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "hosts_reconciler.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hosts_reconciler", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node(name: str, ip: str, version: int = 1) -> NetloomNode:
    return NetloomNode(
        metadata=ObjectMeta(name=name, resource_version=str(version)),
        spec=NetloomNodeSpec(addresses=(Address(type="InternalIP", ip=ip), Address(type="Hostname", ip=name))),
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_the_file_follows_the_nodes_and_is_written_only_when_it_differs(
    example: ModuleType, tmp_path: Path
) -> None:
    nodes, path = Store(NETLOOM_NODES), tmp_path / "hosts"
    reconciler = example.HostsReconciler(nodes, path)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reconciler.controller.run())
        nodes.put(node("b", "10.0.0.2", 1))
        nodes.put(node("a", "10.0.0.1", 2))
        nodes.synced.set()
        await until(lambda: path.exists() and path.read_text() == "10.0.0.1 a\n10.0.0.2 b\n")
        assert reconciler.writes == 1, "both nodes were known before the first run"

        path.write_text("edited by hand\n")
        nodes.remove("b", "3")
        await until(lambda: path.read_text() == "10.0.0.1 a\n")
        assert reconciler.writes == 2
        running.cancel()


def test_the_page_prints_the_code_that_runs() -> None:
    page = (DOCS / "adding-a-reconciler.md").read_text()
    code = EXAMPLE.read_text().split("\n\n\n")
    for part in code[1:]:
        assert part.strip() in page, f"docs/adding-a-reconciler.md differs from {EXAMPLE.name} in:\n{part}"
