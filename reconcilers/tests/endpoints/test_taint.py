"""The taint that keeps pods away: taken off once, by compare-and-swap, and nothing else with it."""

import asyncio
from typing import Any

import pytest

from netloom.api.core import NOT_READY_TAINT as KEY
from netloom.api.core import TaintedSpec
from netloom.api.meta import ObjectMeta
from netloom.runtime.errors import ApiError, Conflict, Forbidden, NotFound, Unavailable
from netloom_reconcilers.node.endpoints import taint as module
from netloom_reconcilers.node.endpoints.taint import Taint, TaintedNode

OURS = {"key": KEY, "effect": "NoSchedule"}
OTHER = {"key": "mine", "value": "x", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}


class Server:
    """An API server that fails as it is told."""

    def __init__(self, *taints: dict[str, Any]) -> None:
        self.taints: list[dict[str, Any]] = list(taints)
        self.version = 7
        self.fails: list[ApiError] = []
        self.reads = 0
        self.patches: list[Any] = []

    async def get(self, res: object, name: str) -> TaintedNode:
        self.reads += 1
        if self.fails:
            raise self.fails.pop(0)
        meta = ObjectMeta(name=name, resource_version=str(self.version))
        return TaintedNode(metadata=meta, spec=TaintedSpec(taints=tuple(self.taints)))

    async def patch(self, res: object, name: str, patch: Any) -> None:
        self.patches.append(patch)
        if self.fails:
            raise self.fails.pop(0)
        assert patch["metadata"]["resourceVersion"] == str(self.version)
        self.taints = patch["spec"]["taints"] or []


def taint(server: Server, ready: list[bool], told: list[str] | None = None) -> Taint:
    api: Any = server
    made = Taint(api, "n1", lambda: ready[0], lambda: told.append(made.error) if told is not None else None)
    return made


async def test_it_is_taken_off_and_others_stay_as_they_are() -> None:
    server = Server(OTHER, OURS, {**OURS, "effect": "NoExecute"})
    assert await taint(server, [True]).remove()
    assert server.taints == [OTHER]
    assert server.patches == [{"metadata": {"resourceVersion": "7"}, "spec": {"taints": [OTHER]}}]
    server = Server(OURS)
    assert await taint(server, [True]).remove()
    assert server.patches[0]["spec"] == {"taints": None}


async def test_nothing_is_written_where_there_is_none() -> None:
    server = Server(OTHER)
    assert await taint(server, [True]).remove()
    assert server.patches == []


@pytest.mark.parametrize(
    ("error", "again", "said"),
    [
        (NotFound(404, "NotFound", "no such node"), True, ""),
        (Forbidden(403, "Forbidden", "cannot get nodes"), False, "right to patch nodes"),
        (Unavailable(0, "Unavailable", "no answer"), False, "cannot be taken off yet"),
    ],
)
async def test_what_stands_in_the_way(error: ApiError, again: bool, said: str) -> None:
    server, told = Server(OURS), list[str]()
    made = taint(server, [True], told)
    server.fails.append(error)
    assert await made.remove() is again
    assert said in made.error
    assert bool(made.error) is bool(said) is bool(told)
    assert await made.remove()
    assert made.error == ""
    assert made.removed == 1


async def test_others_who_write_the_node_at_the_same_moment_do_not_delay_it() -> None:
    """As a kubelet and controllers do whenever a node becomes ready."""
    server = Server(OURS)
    server.fails += [Conflict(409, "Conflict", "changed")] * 3
    assert await taint(server, [True]).remove()
    assert server.taints == []
    server.taints, server.fails = [OURS], [Conflict(409, "Conflict", "changed")] * 1000
    assert not await taint(server, [True]).remove()
    assert len(server.fails) > 900, "and it does not ask for ever"


async def test_it_waits_until_the_node_can_route_and_looks_again_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.001)
    server, ready = Server(OURS), [False]
    made = taint(server, ready)
    task = asyncio.create_task(made.run())

    async def until(condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                made.look_soon()
                await asyncio.sleep(0.001)

    for _ in range(5):
        made.look_soon()
        await asyncio.sleep(0)
    assert server.reads == 0
    ready[0] = True  # and nobody says so
    async with asyncio.timeout(10):
        while not server.reads:
            await asyncio.sleep(0.001)
    server.taints = [OURS]
    server.fails += [Conflict(409, "Conflict", "changed")] * 3
    await until(lambda: server.taints == [])
    server.taints = [OURS]  # the Node was made anew
    await until(lambda: server.taints == [])
    assert made.removed == 3
    task.cancel()
    await asyncio.wait([task])
