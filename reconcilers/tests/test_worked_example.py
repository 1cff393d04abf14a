"""docs/adding-a-reconciler.md shows code that works: this runs it, by itself and as a feature of a real agent on a real
kernel, and compares it with what the page prints."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, Address, NetloomNode, NetloomNodeSpec
from netloom.roles import agent as role
from netloom.roles import node_plan
from netloom.roles.agent_sources import AgentOptions
from netloom.roles.feature_keepers import opened
from netloom.roles.sources import Sources
from netloom.runtime.store import Store
from netloom_reconcilers.features.node import Obstacle
from tests.kernel.netns import Namespace
from tests.runtime.scripted import until

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


@pytest.fixture
def machine(node: Namespace) -> Namespace:
    return node


def write(folder: Path, kind: str, name: str, **spec: object) -> None:
    made = {"apiVersion": "netloom.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    staged = folder / f"{name}.staged"
    staged.write_text(json.dumps(made))
    staged.rename(folder / f"{name}.json")


@pytest.fixture
def options(tmp_path: Path) -> AgentOptions:
    """Of node a, in a directory of manifests with a network and the nodes a and b."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    pool = {"ipv4PodCIDRList": ["10.42.0.0/16"]}
    write(manifests, "NetloomNetwork", "default", ipam={"mode": "cluster-pool", "clusterPool": pool})
    for number, name in enumerate(("a", "b"), 1):
        write(
            manifests,
            "NetloomNode",
            name,
            addresses=[{"type": "InternalIP", "ip": f"192.168.7.{number}"}],
            ipam={"mode": "cluster-pool", "podCIDRs": [f"10.42.{number}.0/24"]},
        )
    (tmp_path / "run").mkdir()
    return AgentOptions(node_name="a", manifests=manifests, run_dir=tmp_path / "run")


@asynccontextmanager
async def running(agent: role.Agent) -> AsyncIterator[None]:
    async with opened(agent.features):
        task = asyncio.create_task(agent.manager.run())
        try:
            yield
        finally:
            agent.manager.stop()
            await task


async def test_it_runs_as_a_feature_of_an_agent(example: ModuleType, machine: Namespace, options: AgentOptions) -> None:
    """One class and one line: it is started, told, planned and cleaned up beside the others."""
    features, path = (*role.FEATURES, example.HostsFeature), options.run_dir / "hosts"
    assert f"write {path}" in [change.text for change in (await node_plan.plan(options, features)).changes]
    assert not path.exists()

    agent = role.Agent(options, Sources(None, options.manifests), None, features)
    assert agent.manager.health.not_ready()["hosts"] == "nothing applied yet"
    agent.features[0].obstacle = Obstacle("NoNetwork", "there is no network")
    assert agent.manager.health.not_ready()["tunnels"] == "nothing applied yet: there is no network"
    async with running(agent):
        await until(lambda: bool(agent.facts()["inSync"]))
        assert path.read_text() == "192.168.7.1 a\n192.168.7.2 b\n"
        assert "10.42.2.0/24" in machine.ip("route")
        assert agent.facts() | {"features": [each.name for each in features], "hostsWrites": 1} == agent.facts()
        assert agent.manager.health.not_ready() == {}
        assert await node_plan.plan(options, features) == node_plan.NodePlan([])

        assert options.manifests is not None
        path.unlink()
        path.mkdir()
        write(options.manifests, "NetloomNode", "c", addresses=[{"type": "InternalIP", "ip": "192.168.7.3"}])
        await until(lambda: f"{path} cannot be written" in str(agent.facts()["errors"]))
        path.rmdir()
        await until(lambda: path.exists() and "192.168.7.3 c" in path.read_text())
        await until(lambda: not agent.facts()["errors"])

    planned = await node_plan.cleanup(options.run_dir, features, dry_run=True)
    assert f"remove {path}" in [change.text for change in planned.changes]
    assert path.exists()
    assert await node_plan.cleanup(options.run_dir, features) == planned
    assert not path.exists()
    assert await node_plan.cleanup(options.run_dir, features) == node_plan.NodePlan([])


async def test_it_is_switched_off_and_on_by_its_name(
    example: ModuleType, machine: Namespace, options: AgentOptions
) -> None:
    features, path = (*role.FEATURES, example.HostsFeature), options.run_dir / "hosts"
    for wanted, written in (("-hosts", False), ("hosts", True)):
        asked = AgentOptions(node_name="a", manifests=options.manifests, run_dir=options.run_dir, features=wanted)
        agent = role.Agent(asked, Sources(None, asked.manifests), None, features)
        async with running(agent):
            await until(lambda agent=agent: bool(agent.facts()["inSync"]))  # type: ignore[misc]
            assert agent.manager.health.not_ready() == {}
        assert path.exists() is written


def test_the_page_prints_the_code_that_runs() -> None:
    page = (DOCS / "adding-a-reconciler.md").read_text()
    code = EXAMPLE.read_text().split("\n\n\n")
    for part in code:
        assert part.strip() in page, f"docs/adding-a-reconciler.md differs from {EXAMPLE.name} in:\n{part}"
