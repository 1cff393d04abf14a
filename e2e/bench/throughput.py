"""`make bench-throughput`: what pods get of the network, through Netloom's mesh and through one made by hand.

Pairs of nodes on one Ethernet segment, a pod on each: two of Netloom's (their agents take the objects from manifests,
as nothing here needs an API server), and two pairs that a person has set up. The *plain* one is the limit: with `ip` a
VXLAN device with one VNI, an FDB entry, a neighbour and a route; for native routing a route by the other node's
address, and no more, so its pods reach nobody outside. The *masquerading* one is the peer: the same, and the rule that
anybody would type for that. iperf3 sends TCP, then UDP, from pod to pod, in turn on all pairs; the order changes from
round to round. All of it shares this machine's CPUs, so what is compared is the work per byte. All nodes' `eth0` have
generic receive offload on, as a network card has.

A ratio is Netloom's throughput over a hand-made pair's, measured one right after the other, and of all rounds the
median: what else the machine does changes from minute to minute. `cpu` looks at the same with less scatter: the
datagrams that one CPU carries all the way, of the best bursts. plain_ratio and masquerading_ratio are the lowest of
all; all are in `vxlan` and `native`. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from netloom_e2e import bench
from netloom_e2e.fleet import netloom_node, network, pod_address, pod_cidr
from netloom_e2e.lab import Lab, Machine, Pod, wait_for
from netloom_e2e.mesh import NETLOOM, facts
from netloom_e2e.peers import CLASSIC
from netloom_e2e.traffic import gigabits, measures, ratio, typical

MTU = {"vxlan": 1450, "native": 1500}
ROUTING: dict[str, dict[str, object]] = {
    "vxlan": {"mode": "tunnel"},
    "native": {"mode": "native", "autoDirectNodeRoutes": True},
}
PLAIN, MASQUERADING = "plain", "masquerading"
_RULE = "ip saddr {own} ip daddr != 10.250.0.0/15 masquerade"
_DATAGRAM = 28
"""Bytes of the headers of IP and UDP."""
_SYNC_SECONDS = 30.0


@dataclass(frozen=True)
class Pair:
    """Two pods that reach each other in some way."""

    encapsulation: str
    near: Pod
    far: Pod


def _ends(lab: Lab, first: int, encapsulation: str) -> list[Machine]:
    ends = [lab.add_node(f"{encapsulation[0]}{number}") for number in (first, first + 1)]
    for machine in ends:
        machine.run("ethtool", "-K", "eth0", "gro", "on")
    return ends


def _pods(one: Machine, two: Machine, first: int, encapsulation: str, mtu: int) -> Pair:
    near, far = (m.add_pod("p", pod_address(n), mtu=mtu) for n, m in ((first, one), (first + 1, two)))
    wait_for(f"the pods of {encapsulation}", lambda: near.ping(far.address, payload=mtu - _DATAGRAM).lost == 0)
    return Pair(encapsulation, near, far)


@contextmanager
def _netloom(lab: Lab, first: int, mode: str, folder: Path) -> Iterator[Pair]:
    """Two agents on manifests."""
    one, two = _ends(lab, first, "netloom")
    manifests = folder / f"{mode}-manifests"
    manifests.mkdir()
    objects = [network(**ROUTING[mode])]
    objects += [netloom_node(m.node, m.address, pod_cidr(n)) for n, m in ((first, one), (first + 1, two))]
    for number, each in enumerate(objects):
        (manifests / f"{number}.json").write_text(json.dumps(each))
    with ExitStack() as stack:
        for machine in (one, two):
            log = stack.enter_context((folder / f"{mode}-{machine.node}.log").open("w"))
            command = [str(NETLOOM), "agent", "--manifests", str(manifests), "--node-name", machine.node]
            agent = machine.popen([*command, "--run-dir", str(folder / f"{mode}-{machine.node}")], stdout=log)
            stack.callback(agent.wait, 10)
            stack.callback(agent.kill)
        wait_for(f"Netloom's {mode} mode", lambda: all(map(_in_sync, (one, two))), deadline=_SYNC_SECONDS)
        yield _pods(one, two, first, f"netloom {mode}", MTU[mode])


def _in_sync(machine: Machine) -> bool:
    said = facts(machine)
    return bool(said.get("inSync")) and said["peers"] == 1


def _by_hand(lab: Lab, first: int, mode: str, *, masquerade: bool) -> Pair:
    """What a person would type."""
    one, two = _ends(lab, first, "hand")
    for machine in (one, two):
        machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        if masquerade:
            hook = "{ type nat hook postrouting priority srcnat; }"
            own = pod_cidr(first if machine is one else first + 1)
            for words in ("table ip n", f"chain ip n p {hook}", f"rule ip n p {_RULE.format(own=own)}"):
                machine.run("nft", f"add {words}")
        if mode == "vxlan":
            device = f"id 1 local {machine.address} dev eth0 dstport 8472 nolearning"
            machine.batch([f"link add {CLASSIC} type vxlan {device}", f"link set {CLASSIC} up"])
    macs = {m.node: json.loads(m.ip("-j", "link", "show", _device(mode)))[0]["address"] for m in (one, two)}
    for machine, other, number in ((one, two, first + 1), (two, one, first)):
        if mode == "native":
            machine.ip("route", "add", pod_cidr(number), "via", other.address, "dev", "eth0")
            continue
        machine.run("bridge", "fdb", "add", macs[other.node], "dev", CLASSIC, "dst", other.address)
        machine.batch(
            [
                f"neigh add {other.address} lladdr {macs[other.node]} dev {CLASSIC} nud permanent",
                f"route add {pod_cidr(number)} via {other.address} dev {CLASSIC} onlink",
            ]
        )
    kind = MASQUERADING if masquerade else PLAIN
    return _pods(one, two, first, f"{kind} {mode}", MTU[mode])


def _device(mode: str) -> str:
    return CLASSIC if mode == "vxlan" else "eth0"


def _compare(
    lab: Lab, first: int, mode: str, folder: Path, times: tuple[int, int], console: Console
) -> dict[str, float]:
    """What RESULT says of a mode."""
    rounds, seconds = times
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with _netloom(lab, first, mode, folder) as ours:
        pairs = {"": ours}
        pairs[PLAIN] = _by_hand(lab, first + 2, mode, masquerade=False)
        pairs[MASQUERADING] = _by_hand(lab, first + 4, mode, masquerade=True)
        order = list(pairs)
        for _ in range(rounds):
            for measure in measures(seconds):
                for who in order:
                    rate = gigabits(pairs[who].near, pairs[who].far, measure, seconds)
                    found[who, measure].append(rate)
                    console.print(f"  {pairs[who].encapsulation:20} {measure} {rate:7.2f} Gbit/s")
            order.append(order.pop(0))
    result = {
        "_".join(filter(None, (measure, who, "gbit_s"))): round(typical(measure, rates), 3)
        for (who, measure), rates in found.items()
    }
    for measure in measures(seconds):
        for who in (PLAIN, MASQUERADING):
            result[f"{measure}_{who}_ratio"] = round(ratio(measure, found["", measure], found[who, measure]), 3)
    return result


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} rounds of {seconds} s")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="netloom-bench-") as name, Lab(f"nlb{os.getpid() % 100000}") as lab:
        for first, mode in ((1, "vxlan"), (7, "native")):
            found[mode] = _compare(lab, first, mode, Path(name), (rounds, seconds), console)
    columns = ("gbit_s", f"{PLAIN}_gbit_s", f"{MASQUERADING}_gbit_s", f"{PLAIN}_ratio", f"{MASQUERADING}_ratio")
    rows = [
        (f"{mode} {t}", *(f"{each[f'{t}_{column}']:.2f}" for column in columns))
        for mode, each in found.items()
        for t in measures(seconds)
    ]
    heads = ("", "Netloom Gbit/s", PLAIN, MASQUERADING, f"/ {PLAIN}", f"/ {MASQUERADING}")
    console.print(bench.table("Pod to pod", heads, rows))
    lowest = {
        f"{who}_ratio": min(each[f"{t}_{who}_ratio"] for each in found.values() for t in measures(seconds))
        for who in (PLAIN, MASQUERADING)
    }
    return lowest | found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Throughput from pod to pod, beside meshes made by hand.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=1, help="of each throughput; 0: cpu alone")
    options = parser.parse_args()
    return bench.conclude("bench-throughput", lambda: run(options.rounds, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
