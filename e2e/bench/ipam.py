"""`make bench-ipam`: how fast pods get their addresses.

*socket*: a real agent in a namespace of its own, with a /16 and a /64, is asked for an address of each family by its
socket. `in_flight` requests are under way at any time, each by a connection that stays; 250 pods get their addresses,
as on a node that begins, then all are released, and so on. Each answer is written down before. per_s and the latencies
are those of the allocations; of them `connecting` is what a program sees that connects anew for each, one by one. The
quietest_round is the fastest of these: on a machine that others use as well, it comes nearest to what it could do. The
client is Python and runs on the same machine, so its own time is in all of it. The run directory is on a tmpfs, as /run
is: on a disk a write may wait for the journal, and for whoever else writes.

*host_local*: the CNI's plugin host-local, which is what most clusters give addresses by: the same networks, as many at
once, but a process for each, as a container runtime starts it. A process that does nothing (`exec_ms`) shows what of
that any plugin costs; Netloom's own plugin will cost it, too, beside what `connecting` says.

*growth_100*: 100 nodes that draw on three pools, from a pod that meets an empty pool to the block it waits for;
*growth_1000*: the same with 1,000 of them. *growth* is the first of these. See `netloom_e2e.pool_growth`.

*bulk*: 5,000 nodes that join at once and get their first block of one pool, beside the fastest a bare client could
write them: `make bench-allocation` in mode multi-pool, `ratio` and the rest as there.

*fsync*: what a checkpoint would cost whose records are on a disk before the answer: one record, appended and synced, in
the folder of temporary files. The agent does without; see docs/ipam.md.

Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import allocation

from netloom_e2e import bench, binaries, gauges, lone_agent
from netloom_e2e.addresses import ADDRESSES, AddressSocket
from netloom_e2e.bench import Wrong
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.pool_growth import growth

CIDRS = ("10.42.0.0/16", "fd00:42::/64")
PODS = 250
ROUNDS = 20
BULK_ROUNDS = 1
EXECS = 200
MEMORY = "/dev/shm"


class Pace(NamedTuple):
    """seconds: of each request. took: of all together."""

    seconds: list[float]
    took: float

    def result(self) -> dict[str, float]:
        ms = [1000 * each for each in self.seconds]
        return {
            "per_s": round(len(ms) / self.took, 1),
            "p50_ms": round(bench.percentile(ms, 50), 3),
            "p99_ms": round(bench.percentile(ms, 99), 3),
        }


class Owner(NamedTuple):
    """A pod's container."""

    name: str
    container: str


def owners(count: int, prefix: str) -> list[Owner]:
    return [Owner(f"default/{prefix}-{number}", f"{prefix}{number:040x}") for number in range(count)]


# ------------------------------------------------------------------------------------------------------- the socket


def _allocation(owner: Owner) -> bytes:
    body = json.dumps({"name": owner.name, "container": owner.container}).encode()
    return b"POST %s HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n%s" % (ADDRESSES.encode(), len(body), body)


def _release(owner: Owner) -> bytes:
    query = f"{ADDRESSES}?name={owner.name}&container={owner.container}"
    return f"DELETE {query} HTTP/1.1\r\nHost: agent\r\n\r\n".encode()


class Connections:
    """Of one client; an answer is small, and comes in one piece."""

    def __init__(self, path: Path, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets = [_connected(path) for _ in range(count)]
        for number, each in enumerate(self._sockets):
            self._selector.register(each, selectors.EVENT_READ, number)

    def ask(self, requests: Sequence[bytes]) -> tuple[Pace, list[bytes]]:
        """All of them, as many at once as there are connections."""
        waiting, sent, answers, seconds = iter(requests), [0.0] * len(self._sockets), list[bytes](), list[float]()
        began = time.perf_counter()
        for number, each in enumerate(self._sockets[: len(requests)]):
            sent[number] = time.perf_counter()
            each.sendall(next(waiting))
        while len(answers) < len(requests):
            for key, _ in self._selector.select():
                answers.append(self._sockets[key.data].recv(65536))
                now = time.perf_counter()
                seconds.append(now - sent[key.data])
                if (request := next(waiting, None)) is not None:
                    sent[key.data] = now
                    self._sockets[key.data].sendall(request)
        return Pace(seconds, time.perf_counter() - began), answers

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._selector.close()


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def by_socket(path: Path, in_flight: int, rounds: int) -> list[Pace]:
    """PODS allocations as fast as they go, each round anew. Raises Wrong where one fails, or two have one address."""
    connections, paces = Connections(path, in_flight), list[Pace]()
    for number in range(rounds):
        pods = owners(PODS, f"r{number}")
        pace, answers = connections.ask([_allocation(each) for each in pods])
        paces.append(pace)
        given = [_addresses(answer) for answer in answers]
        if len({address for each in given for address in each}) != 2 * PODS:
            raise Wrong(f"{PODS} pods have other addresses than two each of their own")
        _, answers = connections.ask([_release(each) for each in pods])
        if any(b" 200 " not in each[:20] for each in answers):
            raise Wrong(f"a release was answered by {answers}")
    connections.close()
    return paces


def _addresses(answer: bytes) -> list[str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head[:20]:
        raise Wrong(f"a request was answered by {answer!r}")
    return [each["address"] for each in json.loads(body)["addresses"]]


def connecting(path: Path) -> Pace:
    """One by one, by a connection of its own each."""
    seconds, began = [], time.perf_counter()
    for owner in owners(PODS, "c"):
        at = time.perf_counter()
        with _connected(path) as each:
            each.sendall(_allocation(owner))
            _addresses(each.recv(65536))
        seconds.append(time.perf_counter() - at)
    return Pace(seconds, time.perf_counter() - began)


def socket_part(stack: ExitStack, folder: Path, in_flight: int, rounds: int) -> dict[str, Any]:
    """The agent, asked."""
    memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netloom-bench-", dir=MEMORY)))
    machine = stack.enter_context(Lab(f"nlbi{os.getpid() % 10000}")).add_node("n1")
    run_dir = memory / "run"
    agent = lone_agent.started(stack, machine, folder, CIDRS, run_dir)
    path = run_dir / "agent.sock"

    def answers() -> bool:
        try:
            return AddressSocket(path).ask("GET", "/v1/status")[0] == 204
        except OSError:
            return False

    wait_for("the agent to give addresses", answers, deadline=60)
    by_socket(path, in_flight, 2)
    before, began = gauges.usage(agent.pid).cpu_seconds, time.perf_counter()
    paces = by_socket(path, in_flight, rounds)
    used, wall = gauges.usage(agent.pid).cpu_seconds - before, time.perf_counter() - began
    pace = Pace([each for pace in paces for each in pace.seconds], sum(pace.took for pace in paces))
    quietest = min(paces, key=lambda pace: pace.took).result()
    figures: dict[str, Any] = {
        "in_flight": in_flight,
        **pace.result(),
        "quietest_round": quietest,
        "cpu_share": round(used / wall, 2),
    }
    figures["cpu_ms"] = round(1000 * used / (2 * PODS * rounds), 3)
    return figures | {"connecting": connecting(path).result()}


# ---------------------------------------------------------------------------------------------------- what is beside it


def host_local(folder: Path, in_flight: int) -> dict[str, Any]:
    """The plugin, run once per pod."""
    plugin = binaries.host_local()
    ipam = {"type": "host-local", "dataDir": str(folder / "host-local"), "ranges": [[{"subnet": c}] for c in CIDRS]}
    configuration = json.dumps({"cniVersion": "1.0.0", "name": "bench", "type": "ptp", "ipam": ipam})

    def add(owner: Owner) -> float:
        environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": owner.container, "CNI_NETNS": "/proc/self/ns/net"}
        environment |= {"CNI_IFNAME": "eth0", "CNI_PATH": str(plugin.parent), "CNI_NETNS_OVERRIDE": "true"}
        at = time.perf_counter()
        done = subprocess.run(
            [plugin], input=configuration, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - at
        if done.returncode or len(json.loads(done.stdout)["ips"]) != 2:
            raise Wrong(f"host-local ended with {done.returncode}: {done.stdout}{done.stderr}")
        return seconds

    pace = _at_once(add, owners(EXECS, "h"), in_flight)
    nothing = _at_once(lambda owner: bench.cost_of(["/bin/true"]).seconds, owners(EXECS, "n"), in_flight)
    return pace.result() | {"in_flight": in_flight, "exec_ms": nothing.result()["p50_ms"]}


def _at_once(work: Callable[[Owner], float], items: Iterable[Owner], in_flight: int) -> Pace:
    began = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        seconds = list(pool.map(work, items))
    return Pace(seconds, time.perf_counter() - began)


def fsync(folder: Path) -> dict[str, float]:
    """Of one record at a time."""
    seconds, record = [], b"x" * 120
    descriptor = os.open(folder / "record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(200):
        at = time.perf_counter()
        os.write(descriptor, record)
        os.fdatasync(descriptor)
        seconds.append(time.perf_counter() - at)
    os.close(descriptor)
    ms = [1000 * each for each in seconds]
    return {"p50_ms": round(statistics.median(ms), 3), "p99_ms": round(bench.percentile(ms, 99), 3)}


def run(
    in_flight: int, rounds: int, nodes: int, growing: Sequence[int], seconds: float, *, peer: bool
) -> dict[str, Any]:
    """All of it; what RESULT says. nodes: of `bulk`. growing: nodes of each `growth`, which churns for so many seconds.
    peer: host-local, too. Raises Wrong."""
    console = bench.console()
    if peer:
        binaries.host_local()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netloom-bench-")))
        console.print(bench.circumstances())
        found = {"socket": socket_part(stack, folder, in_flight, rounds), "fsync": fsync(folder)}
        if peer:
            found["host_local"] = host_local(folder, in_flight)
    asked = found["socket"]
    rows = [
        ("Netloom's socket", asked),
        ("of these, the quietest round", asked["quietest_round"]),
        ("the same, connecting each time, one by one", asked["connecting"]),
        *([("host-local, a process each", found["host_local"])] if peer else []),
    ]
    cells = [(name, *(f"{each[key]:,.2f}" for key in ("per_s", "p50_ms", "p99_ms"))) for name, each in rows]
    title = f"Addresses for pods, one of each family, {in_flight} at once"
    console.print(bench.table(title, ("", "per s", "p50 ms", "p99 ms"), cells))
    disk = found["fsync"]
    console.print(f"agent: {asked['cpu_ms']} ms of CPU per request")
    console.print(f"one record on disk by fdatasync: p50 {disk['p50_ms']} ms, p99 {disk['p99_ms']} ms")
    if peer:
        console.print(f"a process that does nothing: {found['host_local']['exec_ms']} ms")
    grown = {f"growth_{count}": growth(count, console, seconds) for count in growing}
    found |= grown | ({"growth": next(iter(grown.values()))} if grown else {})
    if nodes:
        found["bulk"] = allocation.run(nodes, BULK_ROUNDS, "multi-pool")
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Addresses for pods, by the node's socket and by host-local.")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {PODS} pods each")
    parser.add_argument("--nodes", type=int, default=5000, help="that join at once; 0: none do")
    parser.add_argument("--growth", type=int, nargs="*", default=[100, 1000], help="nodes that draw on pools")
    parser.add_argument("--growth-seconds", type=float, default=20.0, help="of growth and giving back")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without host-local")
    options = parser.parse_args()
    asked = options.in_flight, options.rounds, options.nodes, options.growth, options.growth_seconds
    return bench.conclude("bench-ipam", lambda: run(*asked, peer=options.peer))


if __name__ == "__main__":
    sys.exit(main())
