"""`make bench-restart`: an agent with N peers is restarted while a flow runs through its node's tunnel.

Two nodes that exist, each with an agent and a pod, and N NetloomNodes besides, on a real API server. A pod of one
node pings a pod of the other, 500 times a second. Meanwhile the first node's agent is ended (by SIGTERM and by SIGKILL
in turn) and started again. Counted, for each restart:

- seconds: from the start of the process until it answers, at /status, that all N + 1 peers are in sync (asked every
  10 ms once it listens);
- kernel_ms: the part of it in which the kernel's tables were read, as the agent measured it;
- messages: requests that the agent wrote to the kernel by its own count, and events of routes, nexthops and neighbours
  that anybody caused by the kernel's: 0 is right;
- lost: echo requests without an answer, of the whole flow: 0 is right.

Medians of seconds and kernel_ms, sums of messages and lost. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console

from netloom_e2e import bench, gauges, peers
from netloom_e2e.bench import Wrong
from netloom_e2e.fleet import Fleet, fleet, pod_address
from netloom_e2e.lab import Machine, Pod, parse_ping, wait_for
from netloom_e2e.mesh import state
from netloom_e2e.monitor import Monitor

_MTU = 1450
_INTERVAL = 0.002
_BEFORE, _AFTER = 0.5, 1.0
"""Seconds of the flow around a restart."""
_SYNC_SECONDS = 60.0
_ASK_EVERY = 0.01
_PORT = 9964


class Restart(NamedTuple):
    """What one came to."""

    by: str
    seconds: float
    cpu_seconds: float
    kernel_ms: float
    written: int
    events: int
    sent: int
    lost: int


class Status(http.client.HTTPConnection):
    """GET /status of the agent in a namespace, without a process for each question."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("127.0.0.1", _PORT, timeout=5)
        self._machine = machine

    def connect(self) -> None:
        """Called by `request`."""
        self.sock = self._machine.inside(lambda: socket.create_connection((self.host, self.port), self.timeout))

    def ask(self) -> dict[str, Any]:
        """Empty while nobody listens."""
        try:
            self.request("GET", "/status")
            return dict(json.loads(self.getresponse().read()))
        except (OSError, http.client.HTTPException):
            self.close()
            return {}


def _restart(made: Fleet, machine: Machine, flow: tuple[Pod, Pod], count: int, by: signal.Signals) -> Restart:
    near, far = flow
    command = near.ping_command(far.address, count=1_000_000, interval=_INTERVAL, wait=1)
    with (
        Monitor([machine]) as monitor,
        subprocess.Popen([*near.enter, *command], stdout=subprocess.PIPE, text=True) as ping,
    ):
        try:
            time.sleep(_BEFORE)
            made.agents[machine.node].send_signal(by)
            made.agents.pop(machine.node).wait(30)
            status = Status(machine)
            said: dict[str, Any] = {}

            def whole() -> bool:
                made.check(machine)
                said.clear()
                said.update(status.ask())
                return bool(said.get("inSync")) and said["peers"] == count

            began = time.monotonic()
            agent = made.start(machine)
            wait_for(f"{count} peers in sync", whole, deadline=_SYNC_SECONDS, every=_ASK_EVERY)
            seconds = time.monotonic() - began
            cpu = gauges.usage(agent.pid).cpu_seconds
            time.sleep(_AFTER)
            said.update(status.ask())
            status.close()
        finally:
            ping.send_signal(signal.SIGINT)  # it prints its summary
        output, _ = ping.communicate(timeout=30)
        events = sum(1 for event in monitor.events(0.1) if _is_ours(event.value, event.key))
    counted = parse_ping(output)
    return Restart(
        by.name, seconds, cpu, said["kernelReadMs"], said["netlinkWrites"], events, counted.sent, counted.lost
    )


def _is_ours(value: bytes, key: tuple[str, str]) -> bool:
    """The kernel itself makes neighbours of the underlay and of pods come and go: those are not permanent."""
    return key[0] != "neighbour" or bool(value)


def _measure(made: Fleet, count: int, restarts: int, console: Console) -> dict[str, Any]:
    made.populate(count)
    one, two = made.add(), made.add()
    for machine in (one, two):
        made.start(machine)
    for machine in (one, two):
        made.in_sync(machine, count + 1)
    flow = one.add_pod("a", pod_address(1), mtu=_MTU), two.add_pod("b", pod_address(2), mtu=_MTU)
    wait_for("the pods to see each other", lambda: flow[0].ping(flow[1].address).lost == 0)
    before = state(one)
    done = []
    for number in range(restarts):
        by = (signal.SIGTERM, signal.SIGKILL)[number % 2]
        done.append(restart := _restart(made, one, flow, count + 1, by))
        if state(one) != before:
            raise Wrong(f"the kernel's tables are not what they were before the restart by {restart.by}")
        console.print(
            f"  {restart.by:8} {restart.seconds:7.3f} s   [dim]{restart.cpu_seconds:.2f} s CPU, kernel "
            f"{restart.kernel_ms:.0f} ms; {restart.lost} of {restart.sent} lost; {restart.written} written[/dim]"
        )
    result = {
        "peers": count,
        "seconds": round(median(each.seconds for each in done), 3),
        "cpu_s": round(median(each.cpu_seconds for each in done), 3),
        "kernel_ms": round(median(each.kernel_ms for each in done), 1),
        "messages": sum(each.written for each in done),
        "events": sum(each.events for each in done),
        "lost": sum(each.lost for each in done),
        "sent": sum(each.sent for each in done),
    }
    title = f"{restarts} restarts with {count} peers (medians, sums)"
    columns = ("", "seconds", "CPU s", "kernel ms", "messages", "events", "lost", "of packets")
    console.print(bench.table(title, columns, [["restart", *(str(figure) for figure in [*result.values()][1:])]]))
    return result


def run(count: int, restarts: int, features: str) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(bench.circumstances())
    with fleet(f"nlb{os.getpid()}", features) as made:
        return _measure(made, count, restarts, console)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Restarts of an agent with N peers, under a running flow.")
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--features", default="*", help="of the agents, as `netloom agent --features` has them")
    options = parser.parse_args()
    if not 0 < options.peers <= peers.MOST:
        parser.error(f"--peers is from 1 to {peers.MOST}")
    return bench.conclude("bench-restart", lambda: run(options.peers, options.restarts, options.features))


if __name__ == "__main__":
    sys.exit(main())
