"""A node in a network namespace of its own, and data paths on it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pytest_asyncio.plugin import LoopFactory

from netloom.kernel.endpoints import kept_sockets
from netloom.kernel.mesh.keeper import MeshKeeper
from tests.kernel.netns import Lab, Namespace, prepare
from tests.kernel.prefilters import Filtered, mounted_bpffs
from tests.loops import BOTH, UVLOOP, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """Agents run on uvloop; what waits for its loop's timers is right on asyncio's as well, whose timers are exact."""
    waits = item.path.stem.endswith(("faults", "repair")) and item.get_closest_marker("slow") is None
    return BOTH if waits else UVLOOP


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    prepare()


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def node(lab: Lab) -> Iterator[Namespace]:
    """A node with an underlay device that holds 192.168.7.1; the test runs inside."""
    node, wire = lab.namespace("node"), lab.namespace("wire")
    lab.wire(node, "eth0", wire, "node", "address add 192.168.7.1/24 dev eth0")
    with node.entered():
        yield node


class Planes:
    """Opens data paths, and closes them at the end."""

    def __init__(self, run_directory: Path, stack: AsyncExitStack) -> None:
        self._run_directory = run_directory
        self._stack = stack

    async def open(self, **options: object) -> MeshKeeper:
        """A data path without resyncs by time: what is repaired is repaired by events."""
        plane = MeshKeeper(**{"run_directory": self._run_directory, "resync_seconds": None, **options})  # type: ignore[arg-type]
        await plane.open()
        self._stack.push_async_callback(plane.close)
        return plane


@pytest.fixture
async def planes(tmp_path: Path) -> AsyncIterator[Planes]:
    async with AsyncExitStack() as stack:
        yield Planes(tmp_path / "run", stack)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled: once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
async def filtered(node: Namespace, compiled: Path, tmp_path: Path) -> AsyncIterator[Filtered]:
    """The node of `node`, with a bpffs of its own."""
    with mounted_bpffs(tmp_path / "bpf") as bpffs:
        async with AsyncExitStack() as stack:
            yield Filtered(node, bpffs, compiled, stack)


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether pods' namespaces are there; else what goes with one is waited for."""
    monkeypatch.setattr(kept_sockets, "LOOK_SECONDS", 0.05)
