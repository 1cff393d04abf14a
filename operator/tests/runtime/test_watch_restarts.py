"""How soon a watch follows again after the API server was away, and how much it asks meanwhile. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from netloom.api.core import NODES, Node
from netloom.runtime.store import Store
from netloom.runtime.watch import EVERY_NODE, ListWatch, WatchTiming
from tests.runtime import virtual
from tests.runtime.outages import Restarting

DOWN = 3.0
"""Seconds that a kube-apiserver takes to come back."""


Loop = Callable[[], Any]

pytestmark = virtual.on_both_loops


def watching(
    loop: Loop, server: Restarting, timing: WatchTiming, scene: Callable[[ListWatch[Node]], Awaitable[None]]
) -> None:
    async def main() -> None:
        watch: ListWatch[Node] = ListWatch(server, Store(NODES), timing=timing)  # type: ignore[arg-type]
        task = asyncio.create_task(watch.run())
        await scene(watch)
        task.cancel()
        await asyncio.wait([task])

    virtual.run(main(), loop)


def now() -> float:
    return asyncio.get_running_loop().time()


async def following(watch: ListWatch[Any]) -> float:
    """When the watch follows again."""
    while not watch.following:
        await asyncio.sleep(0.01)
    return now()


@pytest.mark.parametrize("timing", [WatchTiming(), EVERY_NODE])
@pytest.mark.parametrize("distance", [20.0, 45.0])
def test_every_restart_of_six_costs_the_same(loop: Loop, timing: WatchTiming, distance: float) -> None:
    outages = [(30 + distance * number, 30 + distance * number + DOWN) for number in range(6)]
    server = Restarting(outages)

    async def scene(watch: ListWatch[Node]) -> None:
        for begin, end in outages:
            await asyncio.sleep(end - now())
            assert not watch.following
            assert await following(watch) - end < DOWN + 2
            # Three or four that are refused, one that is told to come again, a list and a watch (or that and a 410).
            assert len(server.during(begin, begin + distance)) <= 9

    watching(loop, server, timing, scene)


@pytest.mark.parametrize(("timing", "late"), [(WatchTiming(), 4.0 + 2.0), (EVERY_NODE, 30.0 + 2.0)])
def test_after_a_long_outage_the_longest_pause_is_all_there_is_to_wait(
    loop: Loop, timing: WatchTiming, late: float
) -> None:
    server = Restarting([(30.0, 930.0)])

    async def scene(watch: ListWatch[Node]) -> None:
        await asyncio.sleep(930.0 - now())
        assert await following(watch) - 930.0 < late
        assert len(server.during(30.0, 930.0)) < 900.0 / (timing.cap / 2) + 10

    watching(loop, server, timing, scene)


@pytest.mark.parametrize("timing", [WatchTiming(), EVERY_NODE])
@pytest.mark.parametrize("after", [0.0, 1.0, 9.0])
def test_a_server_that_ends_every_watch_soon_is_asked_seldom(loop: Loop, timing: WatchTiming, after: float) -> None:
    server = Restarting(closes_after=after)

    async def scene(watch: ListWatch[Node]) -> None:
        await asyncio.sleep(3600.0)
        # A question and a watch for each pause.
        assert len(server.requests) < 2 * 3600.0 / (timing.cap / 2 + after) + 20

    watching(loop, server, timing, scene)


def test_a_stream_that_lives_for_its_time_is_followed_by_the_next_at_once(loop: Loop) -> None:
    server = Restarting(closes_after=100.0)

    async def scene(watch: ListWatch[Node]) -> None:
        await following(watch)
        while now() < 1050.0:
            assert watch.following
            await asyncio.sleep(0.05)

    watching(loop, server, WatchTiming(inactivity=1000.0, lifetime=(100.0, 100.0)), scene)
    assert [what for _, what in server.requests] == ["list", "watch", *["ask", "watch"] * 10]


def test_a_cache_that_was_resumed_after_an_outage_is_verified_within_its_time(loop: Loop) -> None:
    """5,000 agents list within a minute and a half, not within a second; what is small is listed at once."""

    drawn = []
    for _ in range(20):
        server = Restarting([(30.0, 33.0)], forgets=False)

        async def scene(watch: ListWatch[Node], server: Restarting = server) -> None:
            await asyncio.sleep(200.0)
            lists = [when for when, what in server.requests if what == "list"]
            drawn.append(lists[1] - 33.0)
            assert len(lists) == 2
            assert len(server.requests) < 14

        watching(loop, server, WatchTiming(inactivity=1000.0, verify=(90.0, 90.0), cap=30.0), scene)
    assert max(drawn) < 100.0
    assert max(drawn) - min(drawn) > 30.0
