"""`make bench-join`: a node appears in the API, and --nodes agents have a route to it.

Each agent is a process of its own (`netloom agent`, as users run it, with the rights of docs/examples/rbac.yaml) in a
network namespace of its own, and all share this machine's CPUs with the API server: what a join costs 100 machines is
here done by one.

The clock runs from the request that creates the NetloomNode, which holds its pod CIDR and what its agent would have
announced already, until the kernel's own event of the route in the last of all namespaces, seen by another process.
The next join follows when the last is done. p50_ms and p99_ms are of the joins (the slowest agent of each);
agent_p50_ms and agent_p99_ms of all agents of all joins.

bytes_per_agent is what went over an agent's network device per join in both directions, with the headers of TLS, TCP,
IP and Ethernet: nothing else talks there. The node's agent does not exist, so no status is written meanwhile. As a
check, nodes leave again at the end, and the routes have to go.

Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from rich.console import Console

from netloom_e2e import bench, gauges, peers
from netloom_e2e.agents import NODES
from netloom_e2e.bench import Wrong, percentile
from netloom_e2e.client import Client
from netloom_e2e.fleet import Fleet, fleet, netloom_node
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import PROTOCOL
from netloom_e2e.monitor import Monitor

_AT_ONCE = 4
"""Agents that start at the same time: more would only wait for the CPUs."""
_SYNC_SECONDS = 180.0
_JOIN_SECONDS = 30.0
_LEAVE_SECONDS = 60.0
_LEAVE = 3


def _start_all(made: Fleet, count: int, console: Console) -> list[Machine]:
    """All agents, in sync with each other."""
    machines = [made.add() for _ in range(count)]
    began = time.monotonic()
    for at in range(0, count, _AT_ONCE):
        together = machines[at : at + _AT_ONCE]
        for machine in together:
            made.start(machine)
        for machine in together:
            made.in_sync(machine, count - 1, deadline=_SYNC_SECONDS)
    rss = sum(gauges.usage(agent.pid).rss for agent in made.agents.values())
    console.print(
        f"{count} agents, a process each, in sync after {time.monotonic() - began:.0f} s; {rss:.0f} MiB in all"
    )
    return machines


def _bytes(lab: Lab) -> int:
    """Both directions of all nodes' devices, as the switch's ports counted them."""
    ports = json.loads(lab.switch.ip("-j", "-s", "link", "show", "type", "veth"))
    return sum(int(port["stats64"][way]["bytes"]) for port in ports for way in ("rx", "tx"))


def _join(client: Client, monitor: Monitor, number: int, agents: int) -> list[float]:
    """Seconds, agent by agent."""
    made = peers.peer(number)
    monitor.pass_over(0.02)
    began = time.monotonic()
    client.request("POST", NODES, netloom_node(made.name, made.underlay, made.cidr, announced=True))
    there: dict[int, float] = {}
    while len(there) < agents:
        if time.monotonic() > began + _JOIN_SECONDS:
            raise Wrong(f"{made.name} has a route on {len(there)} of {agents} nodes after {_JOIN_SECONDS:g} s")
        for event in monitor.events(0.02):
            if event.key == ("route", made.cidr) and event.value:
                there.setdefault(event.where, event.at - began)
    return [*there.values()]


def _leave(client: Client, machines: list[Machine], number: int) -> None:
    gone = peers.peer(number)
    client.request("DELETE", f"{NODES}/{gone.name}")
    for machine in machines:
        words = ("route", "show", gone.cidr, "type", "unicast", "proto", PROTOCOL)
        wait_for(f"{gone.name} to be gone", lambda m=machine, w=words: not m.ip(*w), deadline=_LEAVE_SECONDS)  # type: ignore[misc]


def _measure(made: Fleet, agents: int, joins: int, console: Console) -> dict[str, Any]:
    machines, client = _start_all(made, agents, console), made.plane.client
    time.sleep(1.0)  # until the agents have written their conditions
    with Monitor(machines, ["route"]) as monitor:
        _join(client, monitor, joins, agents)  # to warm up: it is not counted
        cpu = [gauges.usage(agent.pid).cpu_seconds for agent in made.agents.values()]
        before = _bytes(made.lab)
        found = [_join(client, monitor, number, agents) for number in range(joins)]
        moved = _bytes(made.lab) - before
        used = sum(gauges.usage(agent.pid).cpu_seconds for agent in made.agents.values()) - sum(cpu)
    for number in range(min(_LEAVE, joins)):
        _leave(client, machines, number)
    last, every = [max(each) for each in found], [seconds for each in found for seconds in each]
    result = {
        "nodes": agents,
        "joins": joins,
        "p50_ms": round(percentile(last, 50) * 1000, 1),
        "p99_ms": round(percentile(last, 99) * 1000, 1),
        "agent_p50_ms": round(percentile(every, 50) * 1000, 1),
        "agent_p99_ms": round(percentile(every, 99) * 1000, 1),
        "bytes_per_agent": round(moved / agents / joins),
        "cpu_ms_per_agent": round(used / agents / joins * 1000, 2),
        "agents": "a process each",
    }
    columns = ("", "p50 ms", "p99 ms", "max ms")
    rows = [
        (name, *(f"{1000 * value:.0f}" for value in (percentile(each, 50), percentile(each, 99), max(each))))
        for name, each in (("on all agents", last), ("on an agent", every))
    ]
    console.print(bench.table(f"{joins} joins, {agents} agents: from the request to the route", columns, rows))
    console.print(f"per join and agent: {result['bytes_per_agent']} bytes, {result['cpu_ms_per_agent']} ms of CPU time")
    return result


def run(agents: int, joins: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(bench.circumstances())
    with fleet(f"nlb{os.getpid() % 100000}") as made:
        return _measure(made, agents, joins, console)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="From a node's appearance in the API to a route on N agents.")
    parser.add_argument("--nodes", type=int, default=100, help="agents")
    parser.add_argument("--joins", type=int, default=100)
    options = parser.parse_args()
    return bench.conclude("bench-join", lambda: run(options.nodes, options.joins))


if __name__ == "__main__":
    sys.exit(main())
