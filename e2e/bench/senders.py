"""`make bench-senders`: what it costs pods' traffic that each node knows who may send through its tunnels.

Two nodes with a VXLAN tunnel made by hand, a pod on each. iperf3 sends TCP, then UDP, with and without the table of
senders of a cluster of 5,000 nodes on both, in turn; the order changes from round to round. Once as they are, and once
with a rule that masquerades, as then connections are tracked, and the table spares the outer packets that.

A ratio is the throughput with the table over that without, measured one right after the other, and of all rounds the
median. `cpu` is the datagrams that one CPU carries all the way, and hardly minds what else the machine does. Ends with
one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from netloom.cidr import Cidr, parse_address
from netloom.kernel.senders.keeper import SendersKeeper
from netloom.kernel.senders.senders import Senders, TunnelPort
from netloom_e2e import bench
from netloom_e2e.bench import Wrong
from netloom_e2e.fleet import pod_address, pod_cidr
from netloom_e2e.lab import Lab, Machine
from netloom_e2e.traffic import gigabits, measures, ratio, typical
from tests.kernel.netns import Namespace

PEERS = 5000
MTU = 1450
DEVICE = "hand0"
MASQUERADE = "table ip hand {\nchain c { type nat hook postrouting priority 100; ip daddr 203.0.113.1 masquerade\n}\n}"


def _tunnel(one: Machine, two: Machine) -> None:
    for machine in (one, two):
        machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        device = f"id 1 local {machine.address} dev eth0 dstport 8472 nolearning"
        machine.batch([f"link add {DEVICE} type vxlan {device}", f"link set {DEVICE} up"])
    macs = {m.node: json.loads(m.ip("-j", "link", "show", DEVICE))[0]["address"] for m in (one, two)}
    for machine, other, number in ((one, two, 2), (two, one, 1)):
        machine.run("bridge", "fdb", "add", macs[other.node], "dev", DEVICE, "dst", other.address)
        neighbour = f"neigh add {other.address} lladdr {macs[other.node]} dev {DEVICE} nud permanent"
        machine.batch([neighbour, f"route add {pod_cidr(number)} via {other.address} dev {DEVICE} onlink"])


def _cluster(own: int, other: Machine, number: int) -> Senders:
    """As one of the two nodes sees it, with all the others that are not there."""
    desired = Senders()
    desired.ports = (TunnelPort("vxlan", 8472),)
    desired.set_nodes([("me", (), (Cidr.parse(pod_cidr(own)),))], 0)
    desired.set_nodes([("peer", (parse_address(other.address),), (Cidr.parse(pod_cidr(number)),))], 0)
    for i in range(PEERS):
        high, low = divmod(i, 250)
        source, pods = parse_address(f"172.16.{high}.{low + 1}"), Cidr.parse(f"100.{64 + high}.{low}.0/24")
        desired.set_nodes([(f"node-{i}", (source,), (pods,))], 0)
    return desired


@asynccontextmanager
async def _tables(one: Machine, two: Machine) -> AsyncIterator[list[tuple[SendersKeeper, Senders]]]:
    found = []
    try:
        for machine, desired in ((one, _cluster(1, two, 2)), (two, _cluster(2, one, 1))):
            keeper = SendersKeeper(resync_seconds=None)
            with Namespace(machine.name).entered():
                await keeper.open()
            found.append((keeper, desired))
        yield found
    finally:
        for keeper, _desired in found:
            await keeper.close()


async def _compare(one: Machine, two: Machine, rounds: int, seconds: int) -> dict[str, float]:
    near, far = one.pods["p"], two.pods["p"]
    rates: defaultdict[tuple[bool, str], list[float]] = defaultdict(list)
    async with _tables(one, two) as tables:
        for number in range(rounds):
            for kept in (True, False) if number % 2 == 0 else (False, True):
                for keeper, desired in tables:
                    report = await keeper.apply(desired if kept else Senders())
                    if not report.in_sync:
                        raise Wrong(f"the table of senders: {report}")
                for measure in measures(seconds):
                    rates[kept, measure].append(gigabits(near, far, measure, seconds))
        for keeper, _desired in tables:
            await keeper.cleanup()
    found = {}
    for measure in measures(seconds):
        found[f"{measure}_gbit_s"] = round(typical(measure, rates[True, measure]), 3)
        found[f"{measure}_ratio"] = round(ratio(measure, rates[True, measure], rates[False, measure]), 3)
    return found


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} rounds of {seconds} s")
    with Lab(f"nlb{os.getpid() % 100000}") as lab:
        one, two = lab.add_node("s1"), lab.add_node("s2")
        _tunnel(one, two)
        for number, machine in enumerate((one, two), 1):
            machine.add_pod("p", pod_address(number), mtu=MTU)
        found = {"plain": asyncio.run(_compare(one, two, rounds, seconds))}
        for machine in (one, two):
            subprocess.run([*machine.enter, "nft", "-f", "-"], input=MASQUERADE, text=True, check=True, timeout=30)
        found["tracked"] = asyncio.run(_compare(one, two, rounds, seconds))
    rows = [
        (what, key.removesuffix("_ratio"), f"{value:.3f}")
        for what, each in found.items()
        for key, value in each.items()
        if key.endswith("_ratio")
    ]
    console.print(bench.table("With the table, to without", ("", "", "ratio"), rows))
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="What a table of senders costs the traffic of pods.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each throughput; 0: cpu alone")
    options = parser.parse_args()
    return bench.conclude("bench-senders", lambda: run(options.rounds, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
