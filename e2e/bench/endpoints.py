"""What it takes the kernel side to wire a pod, and to unwire it: `python e2e/bench/endpoints.py --pods 200`.

PODS network namespaces stand for pods. Their interfaces are made and removed one at a time, and then 30 at a time, both
with an address of each family; the messages that this took are counted, and how long the devices are there after that.
Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom_e2e import bench
from netloom_e2e.bench import percentile
from netloom_e2e.namespaces import NETNS, Namespace, add, existing, remove

AT_ONCE = 30


class Pod:
    """A pod's namespace, and what a plugin hands over of it."""

    def __init__(self, place: Namespace, number: int) -> None:
        self.netns = os.open(NETNS / place.name, os.O_RDONLY)
        self.inside = place.inside(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
        texts = (f"10.1.{number // 250}.{number % 250 + 1}", f"fd00:1::{number + 1:x}")
        self.endpoint = Endpoint(
            container=f"{number:064x}",
            interface="eth0",
            addresses=tuple(map(parse_address, texts)),
            netns=str(NETNS / place.name),
        )

    async def add(self, keeper: EndpointsKeeper) -> None:
        """As by CNI ADD."""
        await keeper.wire(self.endpoint, self.netns, self.inside.fileno())

    async def delete(self, keeper: EndpointsKeeper) -> None:
        """As by CNI DEL."""
        await keeper.unwire(self.endpoint.container, self.endpoint.interface)

    def close(self) -> None:
        """Both descriptors."""
        os.close(self.netns)
        self.inside.close()


async def each(pods: list[Pod], at_once: int, do: Callable[[Pod], Awaitable[None]]) -> list[float]:
    """Milliseconds that each took, so many at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(pod: Pod) -> float:
        async with slots:
            begin = time.perf_counter()
            await do(pod)
            return 1000 * (time.perf_counter() - begin)

    return await asyncio.gather(*(one(pod) for pod in pods))


async def measure(pods: list[Pod]) -> dict[str, Any]:
    """All figures."""
    keeper, found = EndpointsKeeper(), dict[str, Any]()
    await keeper.open()
    await keeper.apply(Endpoints())
    running = asyncio.create_task(keeper.run())
    console, rows = bench.console(), []
    for at_once in (1, AT_ONCE):
        for what, do in (("add", Pod.add), ("delete", Pod.delete)):
            before, begin = sum(keeper.stats.values()), time.perf_counter()
            times = await each(pods, at_once, lambda pod, do=do: do(pod, keeper))  # type: ignore[misc]
            seconds = time.perf_counter() - begin
            messages = (sum(keeper.stats.values()) - before) / len(pods)
            begin = time.perf_counter()
            while keeper.report.leaving:  # noqa: ASYNC110 (that a device is gone tells nobody)
                await asyncio.sleep(0.001)
            gone = 1000 * (time.perf_counter() - begin)
            name = f"{what}_{at_once}"
            p50, p99 = percentile(times, 50), percentile(times, 99)
            found[name] = {"p50_ms": p50, "p99_ms": p99, "messages": messages, "gone_ms": gone}
            rows.append(
                (name, f"{p50:.2f}", f"{p99:.2f}", f"{len(pods) / seconds:.0f}", f"{messages:.1f}", f"{gone:.0f}")
            )
    columns = ("", "p50 ms", "p99 ms", "per s", "messages here", "devices gone after ms")
    console.print(bench.table(f"{len(pods)} pods; {bench.circumstances()}", columns, rows))
    found["repaired"] = keeper.report.repaired
    running.cancel()
    await keeper.cleanup()
    await keeper.close()
    return found


def run(count: int) -> dict[str, Any]:
    """In namespaces of their own."""
    mark = f"nle{os.getpid() % 100000}"
    node, places = Namespace(f"{mark}-n"), [Namespace(f"{mark}-p{number}") for number in range(count)]
    pods: list[Pod] = []
    try:
        for place in (node, *places):
            add(place)
        node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        node.move_thread()
        pods = [Pod(place, number) for number, place in enumerate(places)]
        return asyncio.run(measure(pods))
    finally:
        for pod in pods:
            pod.close()
        remove(existing(f"{mark}-*"))


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Pods' interfaces made and removed by the kernel side.")
    parser.add_argument("--pods", type=int, default=200)
    options = parser.parse_args()
    return bench.conclude("bench-endpoints", lambda: run(options.pods))


if __name__ == "__main__":
    sys.exit(main())
