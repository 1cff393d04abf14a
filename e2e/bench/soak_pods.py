"""`make soak-pods ROUNDS=20`: 110 pods fill a node of a real cluster (kubelet, containerd, runc) wired by Netloom, all
are deleted, and so on; after each round what pods have on a node is counted. See `netloom_e2e.pod_soak`.

*leaks* is what there is more of after the last round than before the first: addresses, devices, routes, neighbours,
rules, words of packet filters, files, namespaces, descriptors and threads of the agent. *growth_mib* is by how much the
agent's resident memory is larger after the last round than after the first, in which its own pools of memory have grown
to what so many pods take (*first_growth_mib*). Ends with `RESULT {json}`; the exit status is 0 only without leaks, and
with a growth of 5 MiB at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

from netloom_e2e import bench, kubelets, netloom_cluster
from netloom_e2e.bench import Wrong
from netloom_e2e.pod_soak import Round, Soak

MOST_MIB = 5.0


def run(rounds: int, pods: int) -> dict[str, Any]:
    """What RESULT says. Raises Wrong where anything is left."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} rounds of {pods} pods")
    kubelets.prepare()
    done: list[Round] = []
    with netloom_cluster.cluster(f"nlp{os.getpid() % 10000}", nodes=1, dual_stack=True) as bed:
        soak = Soak(bed)
        for number, each in enumerate(soak.rounds(rounds, pods), 1):
            done.append(each)
            left = "; ".join(each.left) or "nothing left"
            memory = f"{each.after.memory:.1f} MiB"
            console.print(f"round {number}: {each.started:.1f} s, {each.ended:.1f} s; agent {memory}; {left}")
    first, last = done[0].after.memory, done[-1].after.memory
    found = {
        "rounds": rounds,
        "pods": pods,
        "leaks": len(done[-1].left),
        "growth_mib": round(last - first, 2),
        "first_growth_mib": round(first - soak.before.memory, 2),
        "start_seconds": round(statistics.median(each.started for each in done), 1),
        "end_seconds": round(statistics.median(each.ended for each in done), 1),
    }
    if done[-1].left or last - first > MOST_MIB:
        raise Wrong(f"{found}: {'; '.join(done[-1].left)}")
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Pods that fill a node and go, again and again.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pods", type=int, default=110)
    options = parser.parse_args()
    return bench.conclude("soak-pods", lambda: run(options.rounds, options.pods))


if __name__ == "__main__":
    sys.exit(main())
