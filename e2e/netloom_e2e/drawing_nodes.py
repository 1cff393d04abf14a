"""Nodes that draw on pools, many in one process: what an agent's allocator would ask for and give back, on a real API
server, and when the answer came. What an agent does with an address is no part of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch
from netloom_e2e.bench import Wrong

BLOCK = 14
"""Addresses of a /28 that pods can have."""
DEADLINE = 30.0


class DrawingNodes:
    """Those that have a NetloomNode. `needed`: addresses, by node and pool."""

    def __init__(self, api: Api, store: Store[NetloomNode]) -> None:
        self._api = api
        self._store = store
        self._changed: dict[str, asyncio.Event] = {}
        self.needed: dict[str, dict[str, int]] = {}
        self.writes = 0
        store.subscribe(lambda key, old, new: self._event(key).set())

    def _event(self, name: str) -> asyncio.Event:
        return self._changed.setdefault(name, asyncio.Event())

    def blocks(self, name: str, pool: str) -> tuple[str, ...]:
        """What it holds, as the watch has it."""
        obj = self._store.get(name)
        allocated = obj.spec.ipam.pools.allocated if obj is not None else ()
        return next((each.cidrs for each in allocated if each.pool == pool), ())

    def count(self) -> int:
        """NetloomNodes that hold blocks."""
        return sum(1 for obj in self._store.values() if obj.spec.ipam.pools.allocated)

    async def grow(self, name: str, pool: str) -> float:
        """A pod meets a pool of which nothing is left: seconds until there is a block more. Raises Wrong."""
        began = time.perf_counter()
        had = len(self.blocks(name, pool))
        needed = self.needed.setdefault(name, {})
        needed[pool] = BLOCK * had + 1
        await self._patch(name, {"requested": _requested(needed)})
        while len(self.blocks(name, pool)) <= had:
            event = self._event(name)
            event.clear()
            if time.perf_counter() - began > DEADLINE:
                raise Wrong(f"{name} got no block of {pool} within {DEADLINE:g} s")
            try:
                await asyncio.wait_for(event.wait(), 1.0)
            except TimeoutError:
                continue
        return time.perf_counter() - began

    async def shrink(self, name: str, pool: str) -> None:
        """Its pods end: it gives back its last block of the pool."""
        obj = self._store.get(name)
        if obj is None or not (held := self.blocks(name, pool)):
            return
        needed = self.needed.setdefault(name, {})
        needed[pool] = max(0, BLOCK * (len(held) - 1))
        kept = [
            {"pool": each.pool, "cidrs": [cidr for cidr in each.cidrs if each.pool != pool or cidr != held[-1]]}
            for each in obj.spec.ipam.pools.allocated
        ]
        allocated = [each for each in kept if each["cidrs"]]
        await self._patch(name, {"requested": _requested(needed), "allocated": allocated})

    async def _patch(self, name: str, pools: dict[str, Any]) -> None:
        patch = {"spec": {"ipam": {"pools": pools}}}
        self.writes += 1
        self._store.put(await self._api.patch(NETLOOM_NODES, name, patch))


def _requested(needed: dict[str, int]) -> list[dict[str, Any]]:
    asked = {"default": 1} | needed
    return [{"pool": pool, "needed": {"ipv4Addrs": count}} for pool, count in asked.items()]


@asynccontextmanager
async def drawing_nodes(kubeconfig: Path) -> AsyncIterator[DrawingNodes]:
    """Of all NetloomNodes, followed by one watch."""
    async with await Api.connect(str(kubeconfig), None, connections=64, user_agent="nodes") as api:
        store = Store(NETLOOM_NODES)
        watch = asyncio.create_task(ListWatch(api, store).run())
        try:
            await store.wait_synced()
            yield DrawingNodes(api, store)
        finally:
            watch.cancel()
