"""`make bench-prefilter-status`: what it costs to say of a NetloomPrefilter how it fares on NODES nodes.

A real API server with NODES Nodes, and the operator as a process with the rights of docs/examples/rbac.yaml. Agents are
a client that writes `status.prefilter` of their NetloomNodes as they would, AT_ONCE at a time. Every agent watches
prefilters, so each write of one is sent NODES times: `sent` is that product. Writes are counted by the API server
(`apiserver_request_total`), Leases and what agents write apart.

*rollout*: a prefilter is created, and all nodes say that it runs as fast as the API server takes it: *said_s*.
*settled_s*: from their last word until the object says so. *flapping*: one node fails and runs in turns, every two
seconds for two minutes. *failing*: 50 nodes fail, and the object has to name the first of them; ten of these leave;
then the selector is another. *cpu_ms*: the operator's, of all its features, meanwhile; *idle_cpu_ms*: in as long a time
as the flapping without anything that changes.

*per_event*: the rollout and the flapping again, by a client that follows the same objects with Netloom's own
list-watch, counts, and writes whenever its counts are others and its last write is answered, as reconcilers do that are
called for each change of what they watch.

Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from netloom.api.v1alpha1 import NETLOOM_NODES, PREFILTERS, NetloomNode
from netloom.runtime import log
from netloom.runtime.client import Api
from netloom.runtime.errors import Conflict, NotFound
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch
from netloom_e2e import bench, crds, gauges, load
from netloom_e2e.bench import Wrong
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.processes import Process

ROOT = Path(__file__).resolve().parents[2]
USER = "netloom-operator"
NODES_PATH, NAME = "/api/v1/nodes", "edge"
NETLOOM_NODES_PATH, PREFILTERS_PATH = NETLOOM_NODES.path(), PREFILTERS.path()
NETWORK = """\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {name: default}
spec:
  ipam: {mode: cluster-pool, clusterPool: {ipv4PodCIDRList: ["10.0.0.0/8"], ipv4MaskSize: 24}}
"""
AT_ONCE, FLAPS, FLAP_SECONDS = 16, 60, 2.0
FAILING, LEAVING = 50, 10
CONNECTIONS = 36
BROKEN = "eth0: there is no such device."


def node_name(number: int) -> str:
    """Of a Node, as `netloom_e2e.load` names it."""
    return f"node-{number:05}"


class Word(NamedTuple):
    """What an agent writes into the status of its NetloomNode."""

    number: int
    prefilter: dict[str, Any] | None


def word(number: int, generation: int, error: str = "") -> Word:
    """A node's agent says how the prefilter fares."""
    entries = {} if error else {"ipv4Entries": 1412}
    one = {"name": NAME, "generation": generation, "error": error, **entries}
    devices = [{"name": "eth0", "mode": "" if error else "native"}]
    return Word(number, {"devices": devices, "filters": [one]})


class Rig:
    """The control plane, and whoever gathers on it."""

    def __init__(self, plane: ControlPlane, nodes: int, console: Console) -> None:
        self.numbers = range(nodes)
        self.said = 0.0
        """Seconds that all agents took for their words of the last rollout."""
        self._plane = plane
        self._console = console

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def prepare(self) -> None:
        """All but the gatherer."""
        crds.install(self._plane)
        self._plane.kubectl("apply", "-f", str(ROOT / "docs/examples/rbac.yaml"))
        self._plane.kubectl("apply", "-f", "-", input=NETWORK)
        with load.prepared(self._plane.kubeconfig(), "nodes", self.nodes, "node-", CONNECTIONS) as nodes:
            nodes.go()
            nodes.result()

    @contextmanager
    def operator(self) -> Iterator[int]:
        """Its process id. Health is left out: it would tell all these nodes that they have no agents."""
        command: list[str | Path] = [NETLOOM, "operator", "--kubeconfig", self._plane.kubeconfig(USER)]
        command += ["--http-address", "127.0.0.1:0", "--features=-health"]
        operator: Process = self._plane.folder.spawn("operator", command)
        try:
            allocated = gauges.Counting(self._plane.client.connection(60), NETLOOM_NODES_PATH)
            allocated.reach(self.nodes, time.time(), time.time() + 300)
            yield operator.pid
            operator.send(signal.SIGTERM)
            operator.popen.wait(30)
        except Exception:
            self._console.print(f"--- end of the operator's log\n{operator.tail()}", markup=False)
            raise
        finally:
            operator.kill()

    @contextmanager
    def per_event(self) -> Iterator[int]:
        """The process id of the other way to do it."""
        command = [
            sys.executable,
            __file__,
            "--per-event",
            str(self._plane.kubeconfig(USER)),
            "--nodes",
            str(self.nodes),
        ]
        with subprocess.Popen(command) as process:
            try:
                yield process.pid
            finally:
                process.kill()

    def apply(self, **labels: str) -> int:
        """Writes the prefilter; its generation."""
        spec = {"denyCIDRs": ["192.0.2.0/24"], "nodeSelector": {"matchLabels": labels}}
        manifest = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomPrefilter", "metadata": {"name": NAME}}
        self._plane.kubectl("apply", "-f", "-", input=json.dumps(manifest | {"spec": spec}))
        return int(self._plane.client.request("GET", f"{PREFILTERS_PATH}/{NAME}")["metadata"]["generation"])

    def start_over(self) -> None:
        """No prefilter, and no node says anything of one."""
        self._plane.client.request("DELETE", f"{PREFILTERS_PATH}/{NAME}")
        self.say([Word(each, None) for each in self.numbers])

    def status(self) -> dict[str, Any]:
        """Of the prefilter."""
        return dict(self._plane.client.request("GET", f"{PREFILTERS_PATH}/{NAME}").get("status") or {})

    def say(self, words: Iterable[Word]) -> float:
        """Agents write. Seconds that it took."""

        def write(one: Word) -> None:
            path = f"{NETLOOM_NODES_PATH}/{node_name(one.number)}/status"
            self._plane.client.request("PATCH", path, {"status": {"prefilter": one.prefilter}}, timeout=60)

        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            deque(threads.map(write, words), maxlen=0)
        return time.monotonic() - began

    def leave(self, count: int) -> None:
        """The first nodes leave the cluster."""
        for number in self.numbers[:count]:
            self._plane.client.request("DELETE", f"{NODES_PATH}/{node_name(number)}")
        self.numbers = self.numbers[count:]

    def until(self, what: str, active: int, failed: int, selected: int, *, deadline: float = 300) -> float:
        """Waits until the object counts so. Seconds."""
        began, wanted = time.monotonic(), {"selected": selected, "active": active, "failed": failed}
        try:
            wait_for(what, lambda: self.status().get("nodes") == wanted, deadline=deadline, every=0.1)
        except TimeoutError as error:
            raise Wrong(f"{error}: {str(self.status())[:2000]}") from error
        return time.monotonic() - began

    def measured(self, pid: int, what: str, work: Callable[[], float]) -> dict[str, float]:
        """What was written and used meanwhile; settled_s is what the work returns."""
        before, cpu = gauges.writes(self._plane.client), gauges.usage(pid).cpu_seconds
        settled = work()
        used = gauges.usage(pid)
        counted = gauges.writes(self._plane.client)
        counted.subtract(before)
        own = sum(count for each, count in counted.items() if each.resource.startswith("netloomprefilters"))
        events = sum(count for each, count in counted.items() if each.resource == "events")
        found = {
            "writes": own,
            "sent": own * self.nodes,
            "events": events,
            "settled_s": round(settled, 1),
            "cpu_ms": round(1000 * (used.cpu_seconds - cpu)),
            "rss_mib": round(used.rss, 1),
        }
        self._console.print(f"  {what:22} {found}", markup=False)
        return found

    def rollout(self) -> float:
        """A new prefilter, which all nodes take over."""
        generation = self.apply()
        self.said = self.say(word(number, generation) for number in self.numbers)
        return self.until("all to be active", self.nodes, 0, self.nodes)

    def flapping(self) -> float:
        """One node fails and runs in turns; it ends well."""
        generation = self.apply()
        for turn in range(FLAPS):
            self.say([word(self.numbers[1], generation, BROKEN if turn % 2 == 0 else "")])
            time.sleep(FLAP_SECONDS)
        return self.until("the end of it", self.nodes, 0, self.nodes)

    def idle(self) -> float:
        """Nothing changes, for as long as one node flaps."""
        time.sleep(FLAPS * FLAP_SECONDS)
        return 0.0

    def failing(self) -> float:
        """Some fail, of which some leave; then the selector is another."""
        generation, failing = self.apply(), self.numbers[:FAILING]
        self.say([word(number, generation, BROKEN) for number in failing])
        settled = self.until("failures", self.nodes - FAILING, FAILING, self.nodes)
        named = [each["node"] for each in self.status()["failures"]]
        if named != [node_name(number) for number in range(len(named))] or not named:
            raise Wrong(f"of nodes that failed it names {named}")
        self.leave(LEAVING)
        self.until("nodes that left", self.nodes - FAILING + LEAVING, FAILING - LEAVING, self.nodes)
        self.apply(nowhere="true")
        self.until("another selector", 0, 0, 0)
        return settled


async def gather_per_event(kubeconfig: str, nodes: int) -> None:
    """See the module: *per_event*."""
    async with await Api.connect(kubeconfig, None, user_agent="per-event") as api:
        store: Store[NetloomNode] = Store(NETLOOM_NODES)
        counted, changed = {"active": 0, "failed": 0}, asyncio.Event()

        def told(key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
            for obj, by in ((old, -1), (new, 1)):
                for each in obj.status.prefilter.filters if obj is not None and obj.status.prefilter else ():
                    counted["failed" if each.error else "active"] += by
            changed.set()

        store.subscribe(told)
        async with asyncio.TaskGroup() as group:
            group.create_task(ListWatch(api, store).run())
            written: dict[str, int] = {}
            while True:
                await changed.wait()
                changed.clear()
                if (now := {"selected": nodes, **counted}) != written:
                    try:
                        await api.patch(PREFILTERS, NAME, {"status": {"nodes": now}}, subresource="status")
                        written = now
                    except (Conflict, NotFound):
                        pass


def run(nodes: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(f"{nodes} nodes, {bench.circumstances()}")
    with ControlPlane() as plane:
        rig = Rig(plane, nodes, console)
        rig.prepare()
        result: dict[str, Any] = {"nodes": nodes}
        with rig.operator() as pid:
            for name, work in (("rollout", rig.rollout), ("flapping", rig.flapping)):
                result[name] = rig.measured(pid, name, work)
            result["rollout"]["said_s"] = round(rig.said, 1)
            idle = rig.measured(pid, "idle", rig.idle)
            result["flapping"]["idle_cpu_ms"] = idle["cpu_ms"]
            if idle["writes"]:
                raise Wrong(f"{idle['writes']} writes though nothing changed")
            result["failing"] = rig.measured(pid, "failing", rig.failing)
        rig.start_over()
        with rig.per_event() as pid:
            result["per_event"] = {
                name: rig.measured(pid, f"{name}, per event", work)
                for name, work in (("rollout", rig.rollout), ("flapping", rig.flapping))
            }
    console.print(f"at the end: {bench.circumstances()}")
    return result


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--per-event", metavar="KUBECONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.per_event:
        log.configure("auto", "error")
        asyncio.run(gather_per_event(options.per_event, options.nodes))
        return 0
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return bench.conclude("bench-prefilter-status", lambda: run(options.nodes))


if __name__ == "__main__":
    sys.exit(main())
