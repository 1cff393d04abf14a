"""An agent whose kernel side hangs does not count as one that works."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netloom.kernel.keeper.keeper import Keeper
from netloom.roles import feature_keepers
from netloom.roles.agent import STUCK, Agent
from netloom.roles.agent_sources import AgentOptions, cluster_sources
from netloom.runtime.client import Api
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.node import NodeFeature
from tests.roles.test_crashes import NODE_PATH, put_network, running
from tests.runtime.scripted import ScriptedApi, refuse, until

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


async def test_how_long_a_pass_has_been_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper: Keeper[Any, Any] = Keeper([])
    assert keeper.busy_seconds == 0
    under_way = asyncio.Event()

    async def hang() -> None:
        under_way.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(keeper, "_passes", hang)
    task = asyncio.create_task(keeper._converge())
    await under_way.wait()
    await asyncio.sleep(0.01)
    assert keeper.busy_seconds > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert keeper.busy_seconds == 0


async def test_how_long_the_kernel_has_been_asked_beside_the_passes() -> None:
    """Who makes a pod's device, say, holds up all passes, and none has begun."""
    keeper: Keeper[Any, Any] = Keeper([])
    await keeper.open()
    try:
        go = threading.Event()
        asked = asyncio.ensure_future(keeper._connect().call(lambda _commands: go.wait(10)))
        await until(lambda: keeper.busy_seconds > 0)
        go.set()
        assert await asked
        await until(lambda: keeper.busy_seconds == 0)
    finally:
        await keeper.close()


async def test_what_hangs_in_the_kernel_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of others the sockets are closed; its own stays open, as it is in use."""
    monkeypatch.setattr(feature_keepers, "CLOSE_SECONDS", 0.1)
    keepers: list[Keeper[Any, Any]] = [Keeper([]), Keeper([])]
    hangs = keepers[0]
    features: list[Any] = [SimpleNamespace(keeper=each, further=()) for each in keepers]
    go = threading.Event()
    try:
        async with feature_keepers.opened(features):
            sockets = [each._connect().commands._socket for each in keepers]
            hangs._thread.call(go.wait, 20)
        assert hangs.busy_seconds > 0
        assert [each.fileno() == -1 for each in sockets] == [False, True]
    finally:
        go.set()
        await hangs.close()
    assert {each.daemon for each in threading.enumerate() if each.name == "netloom-kernel"} <= {True}


async def test_an_agent_whose_kernel_does_not_answer_gives_no_sign_of_life(
    server: ScriptedApi, api: Api, tmp_path: Path
) -> None:
    put_network(server)
    server.put(NODE_PATH, {"metadata": {"name": "node-1", "generation": 1}, "spec": {}})
    options = AgentOptions(node_name="node-1", run_dir=tmp_path, grace_period=0.2)
    agent = Agent(options, cluster_sources(options, api), api, ())
    life = agent.life
    assert life is not None
    async with running(agent.manager):
        await until(lambda: life.given and len(server.objects[LEASES]) == 1)
        assert agent.facts()["signOfLife"] == "given"
        assert "sign of life" not in agent.manager.health.not_ready()
        agent._idle = lambda: "the kernel has not answered tunnels."  # type: ignore[method-assign]
        life.idle = agent._idle
        await until(lambda: not life.given)
        assert agent.manager.health.not_ready()["sign of life"].endswith("the kernel has not answered tunnels.")
        message = "The kernel side does not work: the kernel has not answered tunnels."
        assert agent.readiness() == Readiness(False, "Degraded", message)


async def test_which_keepers_count_as_stuck(server: ScriptedApi, api: Api, tmp_path: Path) -> None:
    options = AgentOptions(node_name="node-1", run_dir=tmp_path)
    agent = Agent(options, cluster_sources(options, api), api, ())
    busy = {"tunnels": (STUCK + 1, ()), "masquerade": (1.0, ()), "prefilter": (0.0, (1.0, STUCK + 1)), "pools": (0, ())}
    agent.features = [
        SimpleNamespace(  # type: ignore[misc]
            name=name,
            keeper=SimpleNamespace(busy_seconds=own) if own else None,
            further=[SimpleNamespace(busy_seconds=seconds) for seconds in others],
        )
        for name, (own, others) in busy.items()
    ]
    assert agent._idle() == "the kernel has not answered tunnels, prefilter for more than 60 s; see the kernel's log."
    agent.features = [each for each in agent.features if each.name not in ("tunnels", "prefilter")]
    assert agent._idle() == ""


class Writing(NodeFeature):
    name = "writing"
    is_writing = True


async def test_an_agent_that_may_not_write_its_lease_goes_on(server: ScriptedApi, api: Api, tmp_path: Path) -> None:
    put_network(server)
    server.put(NODE_PATH, {"metadata": {"name": "node-1", "generation": 1}, "spec": {}})
    server.on("create", *[refuse(403, "Forbidden", "leases is forbidden")] * 50)
    options = AgentOptions(node_name="node-1", run_dir=tmp_path, grace_period=0.4)
    agent = Agent(options, cluster_sources(options, api), api, ())
    async with running(agent.manager):
        await until(lambda: "sign of life" in agent.manager.health.not_ready())
        wrong = agent.manager.health.not_ready()
        assert list(wrong) == ["sign of life"]
        assert "leases is forbidden" in str(agent.facts()["signOfLife"])
        assert (agent.facts()["inSync"], agent.manager.crashes) == (True, ())
        agent.features = [Writing(agent.context)]
        assert (agent.facts()["inSync"], agent.facts()["errors"]) == (False, [])
