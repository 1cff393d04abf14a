"""`make bench-mesh`: how long a node with N peers takes, the engine alone and the whole agent.

*engine*: the peers are known, the clock runs until the kernel has acknowledged the last route (CPU time: until the
engine has also asked the kernel which device leads to each peer, for the MTU). Beside it, in turn, in
the same namespace and into equal tables, each a process of its own:

- `ip -batch` with the same operations (neighbour, nexthop object, route), read from a file that was written before;
- `ip -batch` the classic way: the encapsulation in every route, no nexthop objects;
- pyroute2, one call after the other, with flannel's scheme, as it has neither nexthop objects nor `encap ip`: FDB
  entry, neighbour, route. Only the calls are timed, not its import.

The time of `ip` is that of its process, the start included (2 ms). CPU time is that of each process, in user and kernel
mode; on a busy machine only the ratios of CPU times mean much. After every run the kernel's tables are read by `ip`
and compared with what they have to hold; the engine's and `ip -batch`'s are equal but for the ids.

ratio_same_ops is the engine's time over that of `ip -batch` (below 1: the engine is faster); ratio_classic and
ratio_pyroute2 say how many times the engine is faster. The classic way costs the square of the number of peers, so
above --classic-most peers it and pyroute2 are left out (null).

*agent*: N NetloomNodes are on a real API server. The clock runs from the start of the process (`netloom agent`, with
the rights of docs/examples/rbac.yaml) until the kernel's own event of the last of N routes, seen by another process.
CPU time is the agent's until then; rss_mib is what is resident then, peak_mib the most that ever was, read after two
seconds more. --features: of the agent; `tunnels,masquerade` to compare with versions that had no others.

Ends with one line `RESULT {json}`. The exit status says whether the tables were right, not whether it was fast.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console

from netloom_e2e import bench, gauges, peers
from netloom_e2e.bench import Cost, Wrong
from netloom_e2e.fleet import Fleet, fleet, sweep
from netloom_e2e.lab import Lab, Machine
from netloom_e2e.mesh import routes
from netloom_e2e.monitor import Monitor

CLASSIC_MOST = 10_000
_RUN_SECONDS = 300.0
_AGENT_SECONDS = 120.0
_LINGER_SECONDS = 2.0


class Engine:
    """The contenders, run in turn on one node."""

    def __init__(self, machine: Machine, count: int, folder: Path, console: Console) -> None:
        self._machine = machine
        self._count = count
        self._folder = folder
        self._console = console
        self._details: dict[str, Any] = {}

    def run(self, rounds: int, *, classic: bool) -> dict[str, Any]:
        """Rounds, each in the reverse order of the one before it."""
        contenders: list[tuple[str, Callable[[], Cost]]] = [("engine", self._engine), ("same_ops", self._same)]
        if classic:
            contenders += [("classic", self._classic), ("pyroute2", self._pyroute2)]
        costs: defaultdict[str, list[Cost]] = defaultdict(list)
        for number in range(rounds):
            for name, contend in contenders if number % 2 == 0 else reversed(contenders):
                costs[name].append(contend())
                peers.sweep(self._machine)
                seconds, cpu = costs[name][-1]
                self._console.print(f"  {name:9} {seconds:7.3f} s   [dim]{cpu:7.3f} s CPU[/dim]")
        return self._result({name: bench.median_cost(each) for name, each in costs.items()})

    def _result(self, cost: dict[str, Cost]) -> dict[str, Any]:
        engine, same = cost["engine"], cost["same_ops"]
        rows = [
            (name, f"{c.seconds:.3f}", f"{c.cpu_seconds:.3f}", f"{c.seconds / self._count * 1e6:.1f}")
            for name, c in cost.items()
        ]
        title = f"{self._count} peers into the kernel (medians)"
        self._console.print(bench.table(title, ("way", "seconds", "CPU s", "us per peer"), rows))

        def times(name: str, figure: Callable[[Cost], float]) -> float | None:
            return round(figure(cost[name]) / figure(engine), 2) if name in cost else None

        return {
            "seconds": round(engine.seconds, 4),
            "cpu_s": round(engine.cpu_seconds, 4),
            "us_per_peer": round(engine.seconds / self._count * 1e6, 2),
            "ratio_same_ops": round(engine.seconds / same.seconds, 3),
            "cpu_ratio_same_ops": round(engine.cpu_seconds / same.cpu_seconds, 3),
            "ratio_classic": times("classic", lambda c: c.seconds),
            "cpu_ratio_classic": times("classic", lambda c: c.cpu_seconds),
            "ratio_pyroute2": times("pyroute2", lambda c: c.seconds),
            "cpu_ratio_pyroute2": times("pyroute2", lambda c: c.cpu_seconds),
            **self._details,
        }

    def _engine(self) -> Cost:
        said = self._module("netloom_e2e.engine", "--local", self._machine.address)
        self._details = {"written": said["written"], "peak_mib": said["peak_mib"]}
        self._verify("the engine")
        return Cost(said["seconds"], said["cpu_seconds"])

    def _same(self) -> Cost:
        peers.add_external_device(self._machine)
        cost = self._batch("same.batch", peers.same_operations)
        self._verify("ip -batch")
        return cost

    def _classic(self) -> Cost:
        peers.add_external_device(self._machine)
        cost = self._batch("classic.batch", peers.classic_operations)
        self._count_routes("the classic way", len(routes(self._machine)))
        return cost

    def _pyroute2(self) -> Cost:
        peers.add_classic_device(self._machine)
        said = self._module("netloom_e2e.pyroute2_peers")
        self._count_routes("pyroute2", len(self._machine.ip("route", "show", "dev", peers.CLASSIC).splitlines()))
        return Cost(said["seconds"], said["cpu_seconds"])

    def _batch(self, name: str, lines: Callable[[int], Any]) -> Cost:
        file = self._folder / name
        if not file.exists():
            file.write_text("\n".join(lines(self._count)) + "\n")
        return bench.cost_of(["ip", "-n", self._machine.name, "-batch", str(file)])

    def _module(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", *words, "--peers", str(self._count)]
        said: dict[str, Any] = json.loads(self._machine.run(*command, timeout=_RUN_SECONDS))
        return said

    def _verify(self, who: str) -> None:
        found, wanted = peers.held(self._machine), peers.expected(self._count)
        if found != wanted:
            wrong = [cidr for cidr in {**found, **wanted} if found.get(cidr) != wanted.get(cidr)]
            raise Wrong(f"after {who}, {len(wrong)} of {self._count} peers are not in the kernel: {wrong[:3]}")

    def _count_routes(self, who: str, found: int) -> None:
        if found != self._count:
            raise Wrong(f"after {who} the kernel has {found} routes, not {self._count}")


class Start(NamedTuple):
    """An agent's start."""

    seconds: float
    cpu_seconds: float
    rss: float
    peak: float


class Agent:
    """The whole agent, started again and again on one node."""

    def __init__(self, fleet: Fleet, machine: Machine, count: int, console: Console) -> None:
        self._fleet = fleet
        self._machine = machine
        self._count = count
        self._console = console

    def run(self, rounds: int) -> dict[str, Any]:
        """Medians; peak_mib is the most of all."""
        starts = []
        for _ in range(rounds):
            starts.append(start := self._start())
            more = f"{start.cpu_seconds:.2f} s CPU, {start.rss:.0f} MiB, at most {start.peak:.0f}"
            self._console.print(f"  agent     {start.seconds:7.3f} s   [dim]{more}[/dim]")
        result = {
            "seconds": round(median(start.seconds for start in starts), 3),
            "cpu_s": round(median(start.cpu_seconds for start in starts), 3),
            "rss_mib": round(median(start.rss for start in starts), 1),
            "peak_mib": round(max(start.peak for start in starts), 1),
        }
        columns = ("whole agent", "seconds", "CPU s", "RSS MiB", "peak MiB")
        title = f"From process start to the last of {self._count} routes (medians)"
        self._console.print(bench.table(title, columns, [("start", *(str(figure) for figure in result.values()))]))
        return result

    def _start(self) -> Start:
        with Monitor([self._machine], ["route"]) as monitor:
            began = time.monotonic()
            agent = self._fleet.start(self._machine)
            ended = self._last_route(monitor, began)
            used = gauges.usage(agent.pid)
        found = peers.held(self._machine)
        if found != peers.expected(self._count):
            raise Wrong(f"the kernel has {len(found)} of {self._count} peers")
        self._fleet.in_sync(self._machine, self._count)
        time.sleep(_LINGER_SECONDS)
        peak = gauges.usage(agent.pid).peak
        self._fleet.stop(self._machine)
        sweep(self._machine)
        return Start(ended - began, used.cpu_seconds, used.rss, peak)

    def _last_route(self, monitor: Monitor, began: float) -> float:
        """The event with which the number of our routes in the kernel became that of the peers."""
        there: set[str] = set()
        while time.monotonic() < began + _AGENT_SECONDS:
            for event in monitor.events(0.2):
                (there.add if event.value else there.discard)(event.key[1])
                if len(there) == self._count:
                    return event.at
            self._fleet.check(self._machine)
        raise Wrong(
            f"{len(there)} of {self._count} routes after {_AGENT_SECONDS:g} s:\n{self._fleet.tail(self._machine)}"
        )


def run(count: int, rounds: int, features: str, *, agent: bool, classic: bool) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console, prefix = bench.console(), f"nlb{os.getpid()}"
    result: dict[str, Any] = {"peers": count}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netloom-bench-")))
        console.print(bench.circumstances())
        console.print(f"[bold]engine[/bold]: {count} peers into the kernel, beside other ways")
        with Lab(prefix) as lab:
            result["engine"] = Engine(lab.add_node("engine"), count, folder, console).run(rounds, classic=classic)
        if agent:
            console.print(f"[bold]agent[/bold]: {count} NetloomNodes are there, the agent of one more node starts")
            made = stack.enter_context(fleet(prefix, features))
            made.populate(count)
            result["agent"] = Agent(made, made.add(), count, console).run(rounds)
    return result


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="A mesh of N peers: the engine beside others, and the whole agent.")
    parser.add_argument("--peers", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-agent", action="store_true", help="the engine only, without a control plane")
    parser.add_argument("--classic-most", type=int, default=CLASSIC_MOST, help="most peers for the slow ways")
    parser.add_argument("--features", default="*", help="of the agent, as `netloom agent --features` has them")
    options = parser.parse_args()
    if not 0 < options.peers <= peers.MOST:
        parser.error(f"--peers is from 1 to {peers.MOST}")
    classic = options.peers <= options.classic_most
    return bench.conclude(
        "bench-mesh",
        lambda: run(options.peers, options.rounds, options.features, agent=not options.no_agent, classic=classic),
    )


if __name__ == "__main__":
    sys.exit(main())
