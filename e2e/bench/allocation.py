"""`make bench-allocation`: how fast N Nodes get their pod CIDRs, beside the fastest a bare client could write them.

Two scenarios, on a real API server and etcd on this machine, with the operator as a process that has the rights of
docs/examples/rbac.yaml and nothing more:

*existing*: N Nodes are there, the operator starts. The clock runs from the moment at which its first list arrives at
the API server (by the server's audit log: exact, and nothing is asked of the operator) until the API server has N
NetloomNodes (by a poll of one object's list, which says how many remain). Afterwards every one of them is read, and
has to hold a CIDR of its own. Beside it, the *raw* rate: a minimal client, a process like the operator, with as many
connections and the same user, that does nothing but POST the very bodies that the operator would write (see
`netloom_e2e.load`). Raw runs come before the first operator run and after each; all are printed, medians compared.

*appearing*: the operator runs and waits, then another process creates N Nodes as fast as it can. The clock runs from
the first Node's request to the last NetloomNode. Creating Nodes takes half of the API server for itself, so the raw
rate of the first scenario is no measure here: its raw rate is that of two bare clients at the same time, one creating
N Nodes, the other N NetloomNodes, from the first request to the last answer of both.

Writes are counted by the API server (`apiserver_request_total`), from before the operator starts until it has ended,
so that its last words count, too; writes_per_node has everything of netloom.dev and all Events in it, leases are
listed apart, as they cost the same with no nodes. rss_mib is the operator's highest resident memory (VmHWM).

Times suffer from whatever else the machine does, and `ratio` with them. So the CPU time per node is counted as well,
of the client and of API server and etcd together: on a quiet machine both sides are bound by it, and
raw_cpu_ms_per_node / cpu_ms_per_node ("CPU ratio") says on a busy one what `ratio` would be on a quiet one.

Ends with one line `RESULT {json}`. The exit status says whether the allocation was right, not whether it was fast.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from netloom.api.cluster_facts import OPERATOR_LEASE
from netloom.roles.operator import CONNECTIONS
from netloom_e2e import bench, crds, gauges, load
from netloom_e2e.bench import Wrong
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gauges import Counting, Usage, Write
from netloom_e2e.lab import wait_for
from netloom_e2e.load import Load
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.processes import Process

ROOT = Path(__file__).resolve().parents[2]
USER = "netloom-operator"
NETLOOM_NODES = "netloomnodes.v1alpha1.netloom.dev"
LEDGERS = "netloomledgers.v1alpha1.netloom.dev"
NETWORKS = "netloomnetworks.v1alpha1.netloom.dev"
POOLS = "netloomippools.v1alpha1.netloom.dev"
NETLOOM_NODES_PATH = "/apis/netloom.dev/v1alpha1/netloomnodes"
NETWORK_PATH = "/apis/netloom.dev/v1alpha1/netloomnetworks/default"
NODES_PATH = "/api/v1/nodes"
POOL = ipaddress.IPv4Network("10.0.0.0/8")
NETWORKS_OF = {
    "cluster-pool": f"""\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {{name: default}}
spec:
  ipam:
    mode: cluster-pool
    clusterPool: {{ipv4PodCIDRList: ["{POOL}"], ipv4MaskSize: 24}}
""",
    "multi-pool": f"""\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {{name: default}}
spec:
  ipam: {{mode: multi-pool}}
---
apiVersion: netloom.dev/v1alpha1
kind: NetloomIPPool
metadata: {{name: default}}
spec:
  ipv4: {{cidrs: ["{POOL}"], maskSize: 24}}
""",
}
"""What a user applies, by IPAM mode; each node gets one /24."""
WARM_UP = 500
SECONDS_PER_NODE = 0.1
"""Ten nodes a second: slower than that is broken."""
PREFIX = "node-"
YARDSTICK = "yard-"
"""Of the raw client's objects: as long as the others' names."""


@dataclass(frozen=True)
class Timed:
    """Something that made `nodes` NetloomNodes. CPU in seconds while the clock ran: its own, and the server's."""

    nodes: int
    seconds: float
    cpu: float
    server_cpu: float

    @property
    def per_second(self) -> float:
        return self.nodes / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Per node, in all: what the rate is bound by where nothing else runs, and stays the same where much does."""
        return (self.cpu + self.server_cpu) / self.nodes * 1000


@dataclass(frozen=True)
class Run(Timed):
    """The operator."""

    memory: Usage
    writes: Counter[Write]

    @property
    def writes_per_node(self) -> float:
        counted = sum(count for write, count in self.writes.items() if write.group == "netloom.dev" or _is_event(write))
        return counted / self.nodes


@dataclass(frozen=True)
class Outcome:
    """All runs of one scenario."""

    runs: list[Run]
    raw: list[Timed]

    def result(self) -> dict[str, Any]:
        seconds = statistics.median(run.seconds for run in self.runs)
        raw = statistics.median(burst.per_second for burst in self.raw)
        nodes = self.runs[0].nodes
        return {
            "nodes": nodes,
            "seconds": round(seconds, 3),
            "nodes_per_s": round(nodes / seconds, 1),
            "raw_per_s": round(raw, 1),
            "ratio": round(nodes / seconds / raw, 3),
            "writes_per_node": round(max(run.writes_per_node for run in self.runs), 4),
            "rss_mib": round(max(run.memory.peak for run in self.runs), 1),
            "cpu_ms_per_node": round(statistics.median(run.cpu_ms for run in self.runs), 3),
            "raw_cpu_ms_per_node": round(statistics.median(run.cpu_ms for run in self.raw), 3),
        }


class Bench:
    """One API server, on which everything is measured in turn."""

    def __init__(
        self, plane: ControlPlane, lists: gauges.Lists, nodes: int, console: Console, mode: str = "cluster-pool"
    ) -> None:
        self._plane = plane
        self._mode = mode
        self._lists = lists
        self._nodes = nodes
        self._console = console
        self._kubeconfig = plane.kubeconfig(USER)
        self._deadline = 30 + nodes * SECONDS_PER_NODE
        self._allocated = Counting(plane.client.connection(60), NETLOOM_NODES_PATH)

    def prepare(self) -> None:
        """CRDs, the operator's rights; and the API server's first steps, which are slower than the rest."""
        crds.install(self._plane)
        self._plane.kubectl("apply", "-f", str(ROOT / "docs/examples/rbac.yaml"))
        self._raw(min(WARM_UP, self._nodes))

    def existing(self, rounds: int) -> Outcome:
        """The Nodes are there before the operator."""
        self._console.print(f"[bold]existing[/bold]: {self._nodes} Nodes are there, the operator starts")
        with self._load("nodes", self._nodes, PREFIX, admin=True) as nodes:
            nodes.go()
            nodes.result()
        raw, runs = [self._say_raw(self._raw(self._nodes))], []
        for _ in range(rounds):
            runs.append(self._say_run(self._start_over_nodes()))
            raw.append(self._say_raw(self._raw(self._nodes)))
        self._plane.delete_all("nodes")
        return Outcome(runs, raw)

    def appearing(self, rounds: int) -> Outcome:
        """The operator is there before the Nodes."""
        self._console.print(f"[bold]appearing[/bold]: the operator runs, {self._nodes} Nodes are created at full speed")
        raw, runs = [self._say_raw(self._raw_with_nodes())], []
        for _ in range(rounds):
            runs.append(self._say_run(self._nodes_over_operator()))
            raw.append(self._say_raw(self._raw_with_nodes()))
        return Outcome(runs, raw)

    # One measurement each; all leave no NetloomNode behind.

    def _raw(self, count: int) -> Timed:
        with self._load("netloomnodes", count, YARDSTICK) as client:
            before = self._server_cpu()
            client.go()
            burst = client.result()
            server = self._server_cpu() - before
        self._plane.delete_all(NETLOOM_NODES)
        return Timed(count, burst.seconds, burst.cpu_seconds, server)

    def _raw_with_nodes(self) -> Timed:
        with (
            self._load("nodes", self._nodes, YARDSTICK, admin=True) as nodes,
            self._load("netloomnodes", self._nodes, YARDSTICK) as netloom_nodes,
        ):
            before = self._server_cpu()
            nodes.go()
            netloom_nodes.go()
            both = nodes.result(), netloom_nodes.result()
            server = self._server_cpu() - before
        self._plane.delete_all("nodes", NETLOOM_NODES)
        seconds = max(each.ended for each in both) - min(each.began for each in both)
        return Timed(self._nodes, seconds, both[1].cpu_seconds, server)

    def _start_over_nodes(self) -> Run:
        self._apply_network()
        before, started = gauges.writes(self._plane.client), time.time()
        with self._operator() as operator:
            wait_for("the operator's first list", lambda: self._lists.first(started), deadline=30, every=0.01)
            cpu, server_cpu = gauges.usage(operator.pid).cpu_seconds, self._server_cpu()
            began = self._lists.first(started)
            ended = self._allocated.reach(self._nodes, began, began + self._deadline)
            used, server_used = gauges.usage(operator.pid), self._server_cpu()
            self._verify()
        timed = Timed(self._nodes, ended - began, used.cpu_seconds - cpu, server_used - server_cpu)
        return self._finished(timed, used, before)

    def _nodes_over_operator(self) -> Run:
        self._apply_network()
        before = gauges.writes(self._plane.client)
        with self._operator() as operator, self._load("nodes", self._nodes, PREFIX, admin=True) as nodes:
            wait_for("the operator to take the network", self._network_ready, deadline=30, every=0.05)
            cpu, server_cpu, now = gauges.usage(operator.pid).cpu_seconds, self._server_cpu(), time.time()
            nodes.go()
            ended = self._allocated.reach(self._nodes, now, now + self._deadline)
            used, server_used = gauges.usage(operator.pid), self._server_cpu()
            began = nodes.result().began
            self._verify()
        timed = Timed(self._nodes, ended - began, used.cpu_seconds - cpu, server_used - server_cpu)
        run = self._finished(timed, used, before)
        self._plane.delete_all("nodes")
        del run.writes[Write("", "nodes", "POST", "201")]  # the load's
        return run

    def _finished(self, timed: Timed, memory: Usage, before: Counter[Write]) -> Run:
        """Counts when the operator has ended, and sweeps the table for the next."""
        writes = gauges.writes(self._plane.client)
        writes.subtract(before)
        self._plane.delete_all(NETLOOM_NODES, LEDGERS, NETWORKS, POOLS)
        self._plane.kubectl("delete", "lease", "--ignore-not-found", "-n", "kube-system", OPERATOR_LEASE)
        return Run(timed.nodes, timed.seconds, timed.cpu, timed.server_cpu, memory, +writes)

    # The actors

    @contextmanager
    def _operator(self) -> Iterator[Process]:
        """The real process, as a user starts it: its modules are compiled. Ends as a pod ends, by SIGTERM."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        command: list[str | Path] = [NETLOOM, "operator", "--kubeconfig", self._kubeconfig]
        command += ["--http-address", "127.0.0.1:0"]
        operator = self._plane.folder.spawn("operator", command, env=environment)
        try:
            yield operator
            operator.send(signal.SIGTERM)
            operator.popen.wait(30)
        except Exception:  # wherever it comes from, the operator's log may say why
            self._console.print(f"--- end of the operator's log\n{operator.tail()}", markup=False)
            raise
        finally:
            operator.kill()

    def _load(self, kind: str, count: int, prefix: str, *, admin: bool = False) -> AbstractContextManager[Load]:
        kubeconfig = self._plane.kubeconfig() if admin else self._kubeconfig
        return load.prepared(kubeconfig, kind, count, prefix, CONNECTIONS, self._mode)

    def _apply_network(self) -> None:
        self._plane.kubectl("apply", "-f", "-", input=NETWORKS_OF[self._mode])

    def _network_ready(self) -> bool:
        conditions = self._plane.client.request("GET", NETWORK_PATH).get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _server_cpu(self) -> float:
        return sum(gauges.usage(pid).cpu_seconds for pid in self._plane.pids.values())

    # Right or wrong

    def _verify(self) -> None:
        """Every Node has a NetloomNode of its own, that holds one block of the pool, which no other overlaps."""
        nodes = self._items(NODES_PATH)
        uids = {node["metadata"]["name"]: node["metadata"]["uid"] for node in nodes}
        found = self._items(NETLOOM_NODES_PATH)
        if sorted(uids) != sorted(each["metadata"]["name"] for each in found) or len(uids) != self._nodes:
            raise Wrong(f"{len(uids)} Nodes have {len(found)} NetloomNodes, or of other names")
        blocks = []
        for each in found:
            name, ipam = each["metadata"]["name"], each["spec"].get("ipam", {})
            of_pools = [cidr for of in ipam.get("pools", {}).get("allocated", []) for cidr in of["cidrs"]]
            cidrs = [*ipam.get("podCIDRs", []), *of_pools]
            owners = [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
            if len(cidrs) != 1 or owners != [uids[name]]:
                raise Wrong(f"NetloomNode {name} holds {cidrs} and is owned by {owners}, not by {uids[name]}")
            blocks.append((ipaddress.IPv4Network(cidrs[0]), name))
        blocks.sort()
        for (cidr, name), (other, holder) in itertools.pairwise(blocks):
            if cidr.overlaps(other):
                raise Wrong(f"{cidr} of {name} overlaps {other} of {holder}")
        if not all(cidr.subnet_of(POOL) for cidr, _ in blocks):
            raise Wrong(f"blocks outside {POOL} were given")

    def _items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._plane.client.request("GET", path, timeout=60)["items"]
        return items

    # As it goes

    def _say_raw(self, raw: Timed) -> Timed:
        self._say("raw", raw, "")
        return raw

    def _say_run(self, run: Run) -> Run:
        memory = f"{run.memory.rss:.0f} MiB, at most {run.memory.peak:.0f}"
        self._say("netloom", run, f"; {memory}; {run.writes_per_node:.3f} writes per node")
        return run

    def _say(self, who: str, timed: Timed, more: str) -> None:
        ms = 1000 / timed.nodes
        cpu = f"CPU ms per node: {timed.cpu * ms:.2f} client, {timed.server_cpu * ms:.2f} API server and etcd"
        self._console.print(f"  {who:8} {timed.seconds:7.3f} s {timed.per_second:8.1f} per s   [dim]{cpu}{more}[/dim]")


def _is_event(write: Write) -> bool:
    return write.resource == "events"


def _summary(outcomes: dict[str, Outcome]) -> Table:
    columns = ("scenario", "nodes", "seconds", "nodes/s", "raw/s", "ratio", "CPU ratio", "writes per node", "RSS MiB")
    rows = []
    for name, outcome in outcomes.items():
        result = outcome.result()
        cells = [f"{result['seconds']:.2f}", f"{result['nodes_per_s']:.0f}", f"{result['raw_per_s']:.0f}"]
        cpu = result["raw_cpu_ms_per_node"] / result["cpu_ms_per_node"]
        cells += [
            f"{result['ratio']:.2f}",
            f"{cpu:.2f}",
            f"{result['writes_per_node']:.3f}",
            f"{result['rss_mib']:.0f}",
        ]
        rows.append([name, str(result["nodes"]), *cells])
    return bench.table("Allocation (medians)", columns, rows)


def _writes_table(outcomes: dict[str, Outcome]) -> Table:
    """Of the last run of each scenario."""
    last = {name: outcome.runs[-1].writes for name, outcome in outcomes.items()}
    table = Table(title="Writes in the last run, as the API server counted them", title_justify="left")
    for column in ("resource", "verb", "code"):
        table.add_column(column)
    for name in last:
        table.add_column(name, justify="right")
    for write in sorted({write for writes in last.values() for write in writes}, key=lambda write: write[1:]):
        counts = [str(writes[write] or "") for writes in last.values()]
        table.add_row(f"{write.resource} {write.group}".strip(), write.verb, write.code, *counts)
    return table


def run(nodes: int, rounds: int, mode: str = "cluster-pool") -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netloom-bench-")))
        lists = gauges.Lists(folder, USER)
        plane = stack.enter_context(ControlPlane(apiserver_flags=lists.flags))
        runs = Bench(plane, lists, nodes, console, mode)
        runs.prepare()
        console.print(f"{bench.circumstances()}, {CONNECTIONS} connections")
        outcomes = {"existing": runs.existing(rounds), "appearing": runs.appearing(rounds)}
    console.print(_summary(outcomes), _writes_table(outcomes))
    return outcomes["existing"].result() | {"appearing": outcomes["appearing"].result()}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Allocation for N nodes beside the raw create rate.")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="operator runs per scenario")
    parser.add_argument("--mode", choices=sorted(NETWORKS_OF), default="cluster-pool", help="IPAM mode")
    options = parser.parse_args()
    return bench.conclude("bench-allocation", lambda: run(options.nodes, options.rounds, options.mode))


if __name__ == "__main__":
    sys.exit(main())
