"""Nodes that draw on pools, from a pod that meets an empty pool to the block it waits for; a part of `make bench-ipam`.

N nodes, which are no machines, and the operator as a process with the rights that it has in production; all share this
machine's CPUs with the API server. Blocks of /28 of three pools. *alone*: one node after the other grows, each by a
pool of its turn. *churn*: nodes grow at a steady rate, evenly spread, while as many give blocks back. A growth's clock
runs from before the request is written to the event of the own object that has the block. Writes are counted by the
API server while nothing but growth happens: of the node's request, the ledger's commit and the operator's answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from rich.console import Console

from netloom.roles.operator import CONNECTIONS
from netloom_e2e import bench, crds, gauges, load
from netloom_e2e.allocations import Cluster
from netloom_e2e.bench import percentile
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.drawing_nodes import DrawingNodes, drawing_nodes
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import RBAC, running

POOLS = {"default": "10.0.0.0/12", "blue": "10.16.0.0/12", "green": "10.32.0.0/12"}
ALONE = 50
GROWTHS_PER_SECOND = 20.0


def manifests() -> str:
    """What a user applies."""
    network = "apiVersion: netloom.dev/v1alpha1\nkind: NetloomNetwork\nmetadata: {name: default}\n"
    network += "spec:\n  ipam: {mode: multi-pool}\n"
    pools = (
        f"---\napiVersion: netloom.dev/v1alpha1\nkind: NetloomIPPool\nmetadata: {{name: {name}}}\n"
        f"spec:\n  ipv4: {{cidrs: [{cidr}], maskSize: 28}}\n"
        for name, cidr in POOLS.items()
    )
    return network + "".join(pools)


async def _alone(nodes: DrawingNodes, names: list[str]) -> list[float]:
    pools = list(POOLS)
    return [await nodes.grow(names[number % len(names)], pools[number % 3]) for number in range(ALONE)]


async def _churn(nodes: DrawingNodes, names: list[str], seconds: float, *, give_back: bool) -> list[float]:
    """Each node does one thing at a time."""
    rng, until = random.Random(1), time.perf_counter() + seconds
    busy: set[str] = set()
    found: list[float] = []

    async def one(name: str, pool: str, grow: bool) -> None:
        try:
            if grow:
                found.append(await nodes.grow(name, pool))
            else:
                await nodes.shrink(name, pool)
        finally:
            busy.discard(name)

    async with asyncio.TaskGroup() as group:
        while time.perf_counter() < until:
            for grow in (True, False) if give_back else (True,):
                if free := [name for name in names if name not in busy]:
                    name = rng.choice(free)
                    busy.add(name)
                    group.create_task(one(name, rng.choice(list(POOLS)), grow))
            await asyncio.sleep(1 / GROWTHS_PER_SECOND)
    return found


async def _measure(
    plane: ControlPlane, names: list[str], seconds: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    async with drawing_nodes(plane.kubeconfig()) as nodes:
        alone = await _alone(nodes, names)
        before, asked = _writes(plane), nodes.writes
        steady = await _churn(nodes, names, seconds / 2, give_back=False)
        await asyncio.sleep(6.0)  # until the last marks are taken away
        asked = nodes.writes - asked
        writes = {"operator": (_writes(plane) - before - asked) / len(steady), "nodes": asked / len(steady)}
        churn = await _churn(nodes, names, seconds, give_back=True)
    return {"alone": alone, "steady": steady, "churn": churn}, writes


def _writes(plane: ControlPlane) -> int:
    return sum(
        count
        for write, count in gauges.writes(plane.client).items()
        if write.group == "netloom.dev" or write.resource == "events"
    )


def growth(count: int, console: Console, seconds: float) -> dict[str, Any]:
    """Of so many nodes, on a control plane of its own. Raises Wrong, TimeoutError."""
    with ControlPlane() as plane:
        crds.install(plane)
        plane.kubectl("apply", "--server-side", "--filename", str(RBAC))
        plane.kubectl("apply", "--filename", "-", input=manifests())
        cluster = Cluster(plane)
        with running(plane) as operators:
            operators.start(leader_elect=True)
            with load.prepared(plane.kubeconfig(), "nodes", count, "node-", CONNECTIONS) as nodes:
                nodes.go()
                nodes.result()
            wait_for(f"{count} nodes to have their first blocks", cluster.served, deadline=60 + count / 10, every=0.5)
            found, writes = asyncio.run(_measure(plane, sorted(cluster.nodes()), seconds))
    rows = [
        (name, str(len(each)), *(f"{1000 * percentile(each, percent):.0f}" for percent in (50, 99, 100)))
        for name, each in found.items()
    ]
    console.print(bench.table(f"Growth, {count} nodes", ("", "growths", "p50 ms", "p99 ms", "max ms"), rows))
    console.print(f"writes per growth: {writes['operator']:.2f} of the operator, {writes['nodes']:.2f} of the nodes")
    churn = found["churn"]
    return {
        "nodes": count,
        "growths": len(churn),
        "p50_ms": round(percentile(churn, 50) * 1000, 1),
        "p99_ms": round(percentile(churn, 99) * 1000, 1),
        "alone_p50_ms": round(percentile(found["alone"], 50) * 1000, 1),
        "writes": round(writes["operator"], 2),
        "requests": round(writes["nodes"], 2),
    }
