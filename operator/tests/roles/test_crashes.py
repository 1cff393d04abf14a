"""A component that crashes shows where people look: in the condition, the Event and `netloom status`, not in a log."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.api.cluster_facts import ClusterFacts
from netloom.api.v1alpha1 import NetloomNetwork
from netloom.api.verdict import judge
from netloom.cli.local_agent import Facts, LocalAgent
from netloom.kernel.masquerade.keeper import MasqueradeKeeper
from netloom.roles.agent import Agent
from netloom.roles.agent_sources import AgentOptions, cluster_sources
from netloom.roles.feature_keepers import opened
from netloom.roles.operator import Operator, OperatorOptions
from netloom.runtime.client import Api
from netloom.runtime.manager import Manager
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from tests.kernel.netns import Namespace
from tests.runtime.scripted import ScriptedApi, until

NETWORK_PATH = "/apis/netloom.dev/v1alpha1/netloomnetworks"
NODE_PATH = "/apis/netloom.dev/v1alpha1/netloomnodes"
EVENTS_PATH = "/api/v1/namespaces/default/events"
FAULT = "'uvloop.loop.Handle' object has no attribute 'when'"


def crashes(times: int, run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`run`, which crashes so often before."""
    left = times

    async def crash(*arguments: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            raise AttributeError(FAULT)
        await run(*arguments)

    return crash


def put_network(server: ScriptedApi) -> None:
    spec = {"ipam": {"mode": "cluster-pool", "clusterPool": {"ipv4PodCIDRList": ["10.0.0.0/16"], "ipv4MaskSize": 24}}}
    server.put(NETWORK_PATH, {"metadata": {"name": "default", "generation": 1}, "spec": spec})


@asynccontextmanager
async def running(manager: Manager) -> AsyncIterator[None]:
    manager._delays = (0.2, 60.0)
    task = asyncio.create_task(manager.run())
    try:
        yield
    finally:
        manager.stop()
        await task


def said(server: ScriptedApi, path: str, type_: str) -> list[tuple[str, str, str]]:
    """Each condition of the type that was written, in order: status, reason, message."""
    found = [each for _, at, _, obj in server.history if at == path for each in _conditions(obj, type_)]
    return [each for number, each in enumerate(found) if number == 0 or found[number - 1] != each]


def _conditions(obj: dict[str, Any], type_: str) -> list[tuple[str, str, str]]:
    listed = obj.get("status", {}).get("conditions", [])
    return [(each["status"], each["reason"], each["message"]) for each in listed if each["type"] == type_]


@pytest.mark.slow
async def test_an_allocation_that_crashes_again_and_again(
    server: ScriptedApi, api: Api, monkeypatch: pytest.MonkeyPatch
):
    put_network(server)
    monkeypatch.setattr(CommitQueue, "_gather", crashes(3, CommitQueue._gather))
    operator = Operator(api, OperatorOptions(leader_elect=False))
    async with running(operator.manager):
        await until(lambda: len(said(server, NETWORK_PATH, "Ready")) == 2)
        crash = "In the operator, allocation crashed: " + FAULT + ". It is started again; the log has the details."
        good = "Nodes are given their pod CIDRs in IPAM mode cluster-pool."
        assert said(server, NETWORK_PATH, "Ready") == [("False", "OperatorCrashed", crash), ("True", "Accepted", good)]
        assert not operator.manager.health.not_ready()
        broken = next(obj for _, at, _, obj in server.history if at == NETWORK_PATH and "status" in obj)
        network = msgspec.convert(broken, NetloomNetwork)
        shown = judge(ClusterFacts(nodes=[], netloom_nodes=[], network=network, agents={}, operator=None))
        assert f"NetloomNetwork default: Ready=False OperatorCrashed: {crash}" in map(str, shown.problems)
        await until(lambda: len(server.objects[EVENTS_PATH]) == 2)
        told = [(event["type"], event["reason"]) for event in server.objects[EVENTS_PATH].values()]
        assert told == [("Warning", "OperatorCrashed"), ("Normal", "Accepted")]


@pytest.mark.slow
async def test_a_part_of_an_agent_that_crashes(
    node: Namespace, server: ScriptedApi, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_network(server)
    ipam = {"mode": "cluster-pool", "podCIDRs": ["10.0.1.0/24"]}
    spec = {"addresses": [{"type": "InternalIP", "ip": "192.168.7.1"}], "ipam": ipam}
    server.put(NODE_PATH, {"metadata": {"name": "node-1", "generation": 1}, "spec": spec})
    monkeypatch.setattr(MasqueradeKeeper, "run", crashes(2, MasqueradeKeeper.run))
    options = AgentOptions(node_name="node-1", run_dir=tmp_path)
    agent = Agent(options, cluster_sources(options, api), api)
    crash = f"nftables crashed: {FAULT}. It is started again; the log has the details."
    async with opened(agent.features), running(agent.manager):
        await until(lambda: ("False", "Degraded", crash) in said(server, NODE_PATH, "DataplaneReady"))
        assert agent.facts()["errors"] == [crash]
        assert agent.facts()["inSync"] is False
        (problem,) = LocalAgent(msgspec.convert(agent.facts(), Facts)).problems
        assert problem.message == f"agent of this machine (node-1): {crash}"
        await until(lambda: said(server, NODE_PATH, "DataplaneReady")[-1][0] == "True")
        assert agent.facts()["errors"] == []
