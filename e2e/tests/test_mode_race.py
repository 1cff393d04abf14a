"""The first node gets its CIDR while a change of the IPAM mode is in flight: a real operator, a real API server.

Whichever comes first wins, and the other follows it or is refused. What must never come out is a changed mode beside
addresses of the old one.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from netloom_e2e.allocations import NETWORKS, Cluster
from netloom_e2e.client import ApiFailure, collection_path
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operators

ROUNDS = 28
"""A round takes 1.2 s, as freed blocks wait a second for company before the lock is cleared."""
SPREAD = 0.05
"""Seconds around a round's moment at which the Node and the change are sent."""
STEP = 0.02
"""Seconds by which the change is sent later where it came first the last time, and sooner where it did not: so most
rounds are near the edge, however long the operator needs from a Node to the lock on this machine."""
OTHER = {"cluster-pool": "kubernetes", "kubernetes": "cluster-pool"}
RANGES = {"cluster-pool": "10.70.", "kubernetes": "10.71."}


def test_a_mode_change_and_the_first_node_never_pass_each_other(cluster: Cluster, operators: Operators) -> None:
    cluster.create_network(ipv4PodCIDRList=["10.70.0.0/16"])
    operator = operators.start()
    wait_for("the operator runs", operator.healthy)
    offsets = random.Random(5)
    mode, lead, outcomes = "cluster-pool", 0.0, Counter[str]()
    for number in range(ROUNDS):
        name = f"node-{number}"
        change, join = offsets.uniform(-SPREAD, SPREAD), offsets.uniform(-SPREAD, SPREAD)
        if collide(cluster, name, OTHER[mode], change + lead, join):
            mode, lead = OTHER[mode], lead + STEP
            outcomes["changed"] += 1
        else:
            lead -= STEP
            outcomes["refused"] += 1
        wait_for("the node has its CIDR", cluster.served)
        judge(cluster, name, mode)
        cluster.remove_nodes(name)
        wait_for("the lock is clear", lambda: not mode_in_force(cluster))
    assert set(outcomes) == {"changed", "refused"}, outcomes


def collide(cluster: Cluster, name: str, mode: str, change: float, join: float) -> bool:
    """Sends both so many seconds from the round's moment; whether the change was taken."""
    refusals: list[str] = []

    def change_mode() -> None:
        try:
            patch = {"spec": {"ipam": {"mode": mode}}}
            cluster.client.request("PATCH", f"{collection_path(NETWORKS)}/default", patch)
        except ApiFailure as failure:
            refusals.append(str(failure))

    def join_node() -> None:
        cluster.add_node(name, pod_cidrs=["10.71.0.0/24"])

    moment = time.monotonic() + max(0.0, -change, -join)
    both = [at(moment + change, change_mode), at(moment + join, join_node)]
    for each in both:
        each.join()
    assert all("422" in text and "the IPAM mode of a live cluster cannot change" in text for text in refusals)
    return not refusals


def at(moment: float, send: Callable[[], None]) -> threading.Thread:
    timer = threading.Timer(moment - time.monotonic(), send)
    timer.start()
    return timer


def judge(cluster: Cluster, name: str, mode: str) -> None:
    """One mode everywhere, and the address is of it."""
    network, obj = cluster.network(), cluster.netloom_node(name)
    modes = (network["spec"]["ipam"]["mode"], network["status"]["ipam"]["mode"], obj["spec"]["ipam"]["mode"])
    assert modes == (mode, mode, mode)
    (cidr,) = cluster.check()[name]
    assert str(cidr).startswith(RANGES[mode])


def mode_in_force(cluster: Cluster) -> str:
    mode: str = cluster.network().get("status", {}).get("ipam", {}).get("mode", "")
    return mode
