"""`make bench-webhook`: what the guard adds to a write, beside no webhook at all and beside Open Policy Agent.

A real API server with NODES CiliumNodes, each of which holds a block of the pool `default`. A client sends merge
patches at a fixed rate and times each from the moment it was due (`netloom_e2e.paced`). What is *added* is a percentile
with a webhook minus the same percentile without, medians over the rounds.

*guarded*: CiliumPodIPPools to which a CIDR is added and from which it is removed again, so that every write is a real
one, allowed, and asked about; half of them (the removals) make the decision look for holders. In each round, one after
the other at `--rate`: *none* (no webhook), *guard* (`netloom webhook` as a process, with its own manifests), *allow
all* (OPA, a Go program, with a policy that looks at nothing: what any webhook adds on this machine, whose cores the API
server shares with it); every other round in the opposite order. `p50_ratio` and `p99_ratio` are what the guard adds
divided by what *allow all* adds, and `cpu_ratio` is the same of the CPU time that their processes take: the one figure
that other work on the machine hardly moves. Where the machine cannot do the writes in time without any webhook, the
bench says so.
With `--floor`, *constant* as well: the guard's own HTTPS server with nothing to decide and nothing to follow, which no
guard on it can beat.
`handshakes` counts the guard's TLS handshakes in all rounds: an API server keeps 25 connections to a webhook, and opens
one for each call beyond those. It speaks HTTP/1.1 with all webhooks but those at a loopback address, and with OPA too,
which does not offer HTTP/2. `irregular` counts the requests that the guard did not answer in its short way: 0.
On a busy machine a write may overtake the one before it and change nothing: no webhook is asked then. The bench counts
those by the API server's own answers, says which they are and why, and fails if any other was not asked about.

*slowly*, in the first rounds: the same question put to OPA with the nodes in its data, which is what people take who
write policies of their own. It goes through the nodes at every removal, and with thousands of them cannot answer 200
requests/s in time: hence `--peer-rate`, which guard and OPA both can do.

*unguarded*: ConfigMaps, and cilium-config with changes of keys that are none of the guard's business. The guard counts
what it is asked: `unguarded.calls` has to be 0.
*refused*: an IPAM mode change, and a CIDR in use taken away: with the guard they have to fail, or the bench does.

decision_ms, decision_p50_ms: percentiles (99 and 50) of the decision function alone, in this process and in CPU time,
the worst of its questions. On a busy machine, whose caches others empty, the 99th may be four times what it is else.
rss_mib: the guard's highest resident memory (VmHWM) at the end.

Ends with one line `RESULT {json}`. The exit status says whether the answers were right, not whether they were fast.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from netloom.api.admission import AdmissionRequest, GroupVersionResource
from netloom.api.cilium import CILIUM_NODES
from netloom.guard.cluster_state import ClusterState, Users
from netloom.guard.decide import decide
from netloom_e2e import bench, binaries, gauges
from netloom_e2e.asked import account
from netloom_e2e.bench import Wrong
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import guarding, install_cilium
from netloom_e2e.paced import Answer, Request, paced
from netloom_e2e.policy_agent import Peer, asked, constant, opa

HERE = Path(__file__).resolve().parent
POOLS = "/apis/cilium.io/v2alpha1/ciliumpodippools"
NODES = "/apis/cilium.io/v2/ciliumnodes"
CONFIG = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
NONE, GUARD, OPA, ALLOW, CONSTANT = "none", "guard", "opa", "allow all", "constant"
HANDSHAKES, IRREGULAR = COUNTED = "netloom_guard_handshakes_total", "netloom_guard_irregular_requests_total"
LATE_MS = 50.0
"""Of a write without any webhook, in the median: more than ten times what an idle machine takes."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    p50: float
    p99: float


def block(number: int) -> str:
    """The block of the pool `default` that a node holds."""
    return f"10.{number >> 8 & 255}.{number & 255}.0/24"


def pool(number: int) -> str:
    return f"bench-{number:03}"


def cidrs(number: int, *, grown: bool) -> list[str]:
    own = f"172.{16 + number // 16}.{number % 16 * 16}.0/20"
    return [own, f"192.168.{number}.0/24"] if grown else [own]


def guarded(count: int, subjects: int) -> list[Request]:
    """Each pool grows, and shrinks the next time."""
    return [
        Request(
            "PATCH",
            f"{POOLS}/{pool(number % subjects)}",
            json.dumps({"spec": {"ipv4": {"cidrs": cidrs(number % subjects, grown=number // subjects % 2 == 0)}}}),
        )
        for number in range(count)
    ]


def unguarded(count: int, subjects: int) -> list[Request]:
    """ConfigMaps of no interest, and cilium-config's keys of no interest."""
    return [
        Request(
            "PATCH",
            f"{CONFIG_MAPS}/{pool(number % subjects)}" if number % 4 else CONFIG,
            json.dumps({"data": {"debug": str(number)}}),
        )
        for number in range(count)
    ]


def prepare(plane: ControlPlane, nodes: int, subjects: int) -> None:
    """Cilium's kinds and objects, as of a cluster of that many nodes in mode multi-pool."""
    install_cilium(plane)
    default = {"cidrs": ["10.0.0.0/8"], "maskSize": 24}
    plane.client.request("POST", POOLS, _pool("default", default))
    for number in range(subjects):
        subject = {"cidrs": cidrs(number, grown=False), "maskSize": 28}
        plane.client.request("POST", POOLS, _pool(pool(number), subject))
    data = {"ipam": "multi-pool", "debug": "false"}
    plane.client.request("POST", CONFIG.rpartition("/")[0], {"metadata": {"name": "cilium-config"}, "data": data})
    for number in range(subjects):
        plane.client.request("POST", CONFIG_MAPS, {"metadata": {"name": pool(number)}, "data": {"debug": "false"}})
    _create_nodes(plane, nodes)


def _pool(name: str, ipv4: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2alpha1",
        "kind": "CiliumPodIPPool",
        "metadata": {"name": name},
        "spec": {"ipv4": ipv4},
    }


def _create_nodes(plane: ControlPlane, count: int) -> None:
    """One connection; about a millisecond each."""
    connection = plane.client.connection(60)
    for number in range(count):
        connection.request("POST", NODES, json.dumps(_node(number)), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 201:
            raise Wrong(f"CiliumNode {number}: HTTP {answer.status}: {text[:300]!r}")
    connection.close()


def _node(number: int) -> dict[str, Any]:
    allocated = [{"pool": "default", "cidrs": [block(number)]}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": f"worker-{number:04}"},
        "spec": {"ipam": {"pools": {"allocated": allocated}}},
    }


def _shrink() -> tuple[str, dict[str, Any]]:
    """A change that takes away what nodes hold."""
    return f"{POOLS}/default", {"spec": {"ipv4": {"cidrs": ["172.31.0.0/16"]}}}


def _change_mode() -> tuple[str, dict[str, Any]]:
    return CONFIG, {"data": {"ipam": "kubernetes"}}


def _refused(plane: ControlPlane, path: str, patch: dict[str, Any]) -> bool:
    """Whether a change is refused on its merits, as a dry run."""
    try:
        plane.client.request("PATCH", f"{path}?dryRun=All", patch)
    except ApiFailure as failure:
        return "denied" in str(failure)
    return False


def timed(plane: ControlPlane, requests: Sequence[Request], rate: float, what: str) -> tuple[Latency, list[Answer]]:
    """Raises Wrong if any of them failed."""
    seen = paced(plane.kubeconfig(), requests, rate)
    if seen.statuses.keys() != {"200"}:
        raise Wrong(f"{what}: answers by status: {seen.statuses}")
    return _latency(seen.seconds), seen.answers


def _latency(seconds: Sequence[float]) -> Latency:
    return Latency(*(bench.percentile(seconds, percent) * 1000 for percent in (50, 99)))


def median(latencies: Sequence[Latency]) -> Latency:
    return Latency(statistics.median(each.p50 for each in latencies), statistics.median(each.p99 for each in latencies))


def decisions(nodes: int, rounds: int = 2000) -> dict[str, Latency]:
    """Of the decision function, in CPU time, by question, with that many nodes held in its indexes."""
    live = ClusterState(Users(frozenset(), frozenset()))
    for number in range(nodes):
        held = msgspec.convert(_node(number), CILIUM_NODES.type)
        live.cilium_node(held.metadata.name, None, held)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cilium-config", "namespace": "kube-system"},
    }
    questions = {
        "pool grows": _question("ciliumpodippools", _default(["10.0.0.0/8"]), _default(["10.0.0.0/8", "11.0.0.0/8"])),
        "pool loses a CIDR in use": _question("ciliumpodippools", _default(["10.0.0.0/8"]), _default(["11.0.0.0/8"])),
        "mode changes": _question(
            "configmaps", config | {"data": {"ipam": "multi-pool"}}, config | {"data": {"ipam": "kubernetes"}}
        ),
    }
    found = {}
    for name, request in questions.items():
        seconds = []
        for _ in range(rounds):
            began = time.thread_time()
            decide(request, live)
            seconds.append(time.thread_time() - began)
        found[name] = _latency(seconds)
    if [decide(request, live).allowed for request in questions.values()] != [True, False, False]:
        raise Wrong("a decision is wrong")
    return found


def _default(cidrs: list[str]) -> dict[str, Any]:
    return _pool("default", {"cidrs": cidrs, "maskSize": 24})


def _question(plural: str, old: dict[str, Any], new: dict[str, Any]) -> AdmissionRequest:
    group = "" if plural == "configmaps" else "cilium.io"
    return AdmissionRequest(
        uid="bench",
        operation="UPDATE",
        resource=GroupVersionResource(group=group, version="", resource=plural),
        name=old["metadata"]["name"],
        namespace=old["metadata"].get("namespace", ""),
        old_object=msgspec.Raw(json.dumps(old).encode()),
        object=msgspec.Raw(json.dumps(new).encode()),
    )


class Rounds:
    """The measurements on one control plane, told as they are made."""

    def __init__(self, plane: ControlPlane, options: argparse.Namespace, console: Console) -> None:
        self.latencies: dict[str, list[Latency]] = {}
        self.cpu: dict[str, list[float]] = {}
        """Of a webhook's process, in seconds per write."""
        self.peak = 0.0
        """Of a guard's memory, in MiB."""
        self.unguarded_calls = 0
        self.counted: Counter[str] = Counter()
        """By guards, in all rounds of guarded writes: COUNTED."""
        self._plane = plane
        self._options = options
        self._console = console
        self._began = time.monotonic()
        self._subjects = int(options.rate)
        """As many objects as writes in a second: a patch seldom overtakes the one before it."""

    def say(self, what: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:4.0f} s  {what}")

    def run(self) -> None:
        """All rounds. Raises Wrong if an answer is."""
        options = self._options
        for number in range(options.rounds):
            self.say(f"round {number + 1} of {options.rounds}")
            aside = number < options.slow_rounds
            turns = [self._without, self._with_guard, *([self._with_peers] if options.peer else [])]
            turns += [self._with_constant] if options.floor else []
            for turn in turns if number % 2 == 0 else reversed(turns):
                turn(aside)

    def _without(self, aside: bool) -> None:
        self._fast(NONE)
        if aside:
            self._slow(NONE)
            self._measure(f"unguarded {NONE}", unguarded(2 * self._subjects, self._subjects), self._options.rate)

    def _with_guard(self, aside: bool) -> None:
        with guarding(self._plane, "cilium") as guards:
            for change in (_shrink(), _change_mode()):
                if not _refused(self._plane, *change):
                    raise Wrong(f"{change} is let through")
            known, before, seen = self._versions(), guards.requests(), guards.counted(*COUNTED)
            requests, answers = self._fast(GUARD, *guards.pids)
            self.counted += guards.counted(*COUNTED) - seen
            try:
                lines = account(requests, answers, known).explained(int(guards.requests() - before))
            except ValueError as error:
                raise Wrong(str(error)) from error
            for line in lines:
                self.say(line)
            if aside:
                self._slow(GUARD)
                before = guards.requests()
                requests = unguarded(2 * self._subjects, self._subjects)
                self._measure(f"unguarded {GUARD}", requests, self._options.rate)
                self.unguarded_calls += int(guards.requests() - before)
            self.peak = max(self.peak, *(gauges.usage(pid).peak for pid in guards.pids))

    def _with_peers(self, aside: bool) -> None:
        with self._asked(opa(HERE / "opa/allow.rego", {})) as pid:
            self._fast(ALLOW, pid)
        if aside:
            nodes = {each["metadata"]["name"]: each for each in map(_node, range(self._options.nodes))}
            with self._asked(opa(HERE / "opa/guard.rego", nodes)):
                self._slow(OPA)

    def _with_constant(self, aside: bool) -> None:
        with self._asked(constant()) as pid:
            self._fast(CONSTANT, pid)

    def _asked(self, peer: Peer) -> AbstractContextManager[int]:
        return asked(self._plane, peer, lambda: _refused(self._plane, *_shrink()))

    def _fast(self, by: str, *pids: int) -> tuple[list[Request], list[Answer]]:
        """pids: of the webhook's processes."""
        options = self._options
        requests = guarded(2 * self._subjects * math.ceil(options.seconds / 2), self._subjects)  # all grow, all shrink
        before = sum(gauges.usage(pid).cpu_seconds for pid in pids)
        answers = self._measure(f"guarded {by}", requests, options.rate)
        used = sum(gauges.usage(pid).cpu_seconds for pid in pids) - before
        self.cpu.setdefault(by, []).append(used / len(requests))
        return requests, answers

    def _slow(self, by: str) -> None:
        few = min(self._subjects, max(20, math.ceil(self._options.peer_rate * self._options.seconds / 2)))
        self._measure(f"slowly {by}", guarded(2 * few, few), self._options.peer_rate)

    def _measure(self, what: str, requests: Sequence[Request], rate: float) -> list[Answer]:
        latency, answers = timed(self._plane, requests, rate, what)
        self.latencies.setdefault(what, []).append(latency)
        self.say(f"{len(requests)} writes at {rate:g}/s, {what}: p50 {latency.p50:.2f} ms, p99 {latency.p99:.2f} ms")
        return answers

    def _versions(self) -> dict[str, str]:
        """The resourceVersion of each pool, by its path."""
        pools = self._plane.client.request("GET", POOLS)["items"]
        return {f"{POOLS}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in pools}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All of it, on a control plane of its own."""
    console.print(f"[bold]The guard[/] with {options.nodes} CiliumNodes, {bench.circumstances()}")
    if options.peer:
        binaries.opa()
    alone = decisions(options.nodes)
    with ControlPlane() as plane:
        rounds = Rounds(plane, options, console)
        prepare(plane, options.nodes, int(options.rate))
        rounds.run()
    if rounds.unguarded_calls:
        raise Wrong(f"{rounds.unguarded_calls} calls for writes that are not guarded")
    medians = {name: median(each) for name, each in rounds.latencies.items()}
    _show(console, medians, alone)
    console.print(f"at the end: {bench.circumstances()}")
    if (late := medians[f"guarded {NONE}"].p50) > LATE_MS:
        console.print(
            f"The machine cannot do {options.rate:g} writes/s: without any webhook, half of them took {late:.0f} ms "
            "and more. Latencies at that rate, and their ratios, say nothing; repeat it on an idle machine, or with a "
            "lower --rate."
        )
    cpu = {by: statistics.median(each) * 1000 for by, each in rounds.cpu.items()}
    added, slow = _added(medians, "guarded", GUARD), _added(medians, "slowly", GUARD)
    fast: dict[str, Any] = {"p50_ms": added.p50, "p99_ms": added.p99, "cpu_ms": round(cpu[GUARD], 3)}
    fast |= {"handshakes": int(rounds.counted[HANDSHAKES]), "irregular": int(rounds.counted[IRREGULAR])}
    slowly: dict[str, Any] = {"p50_ms": slow.p50, "p99_ms": slow.p99}
    ratio = None
    if options.peer:
        least, peer = _added(medians, "guarded", ALLOW), _added(medians, "slowly", OPA)
        fast |= {"allow_p50_ms": least.p50, "allow_p99_ms": least.p99}
        fast |= {"p50_ratio": _ratio(added.p50, least.p50), "p99_ratio": _ratio(added.p99, least.p99)}
        fast |= {"allow_cpu_ms": round(cpu[ALLOW], 3), "cpu_ratio": _ratio(cpu[GUARD], cpu[ALLOW])}
        slowly |= {"opa_p50_ms": peer.p50, "opa_p99_ms": peer.p99}
        ratio = _ratio(slow.p50, peer.p50)
    if options.floor:
        floor = _added(medians, "guarded", CONSTANT)
        fast |= {"floor_p50_ms": floor.p50, "floor_p99_ms": floor.p99, "floor_cpu_ms": round(cpu[CONSTANT], 3)}
    return {
        "nodes": options.nodes,
        "guarded": fast,
        "slowly": slowly,
        "ratio": ratio,
        "unguarded": {"calls": rounds.unguarded_calls, "p99_ms": _added(medians, "unguarded", GUARD).p99},
        "decision_ms": round(max(each.p99 for each in alone.values()), 3),
        "decision_p50_ms": round(max(each.p50 for each in alone.values()), 3),
        "rss_mib": round(rounds.peak, 1),
    }


def _ratio(ours: float, theirs: float) -> float | None:
    """None where the machine was so busy that the other is not above nothing."""
    return round(ours / theirs, 3) if theirs > 0 else None


def _added(medians: Mapping[str, Latency], what: str, by: str) -> Latency:
    with_it, without = medians[f"{what} {by}"], medians[f"{what} {NONE}"]
    return Latency(round(with_it.p50 - without.p50, 2), round(with_it.p99 - without.p99, 2))


def _show(console: Console, medians: Mapping[str, Latency], alone: Mapping[str, Latency]) -> None:
    rows = [(name, f"{each.p50:.2f}", f"{each.p99:.2f}") for name, each in medians.items()]
    console.print(bench.table("Latency of writes, ms", ("writes, webhook", "p50", "p99"), rows))
    questions = [(name, f"{each.p50:.3f}", f"{each.p99:.3f}") for name, each in alone.items()]
    console.print(bench.table("The decision alone, ms of CPU time", ("question", "p50", "p99"), questions))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="What the guard adds to a write.")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without Open Policy Agent")
    parser.add_argument("--floor", action="store_true", help="also a constant on the guard's own server")
    parser.add_argument("--peer-rate", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=3, help="those in which all else is measured, too")
    options = parser.parse_args()
    return bench.conclude("bench-webhook", lambda: run(options, bench.console()))


if __name__ == "__main__":
    sys.exit(main())
