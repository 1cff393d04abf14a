"""`make bench-install NODES=3`: from the start of `helm install` to all nodes Ready, on a real cluster (kubelet,
containerd, runc) whose machines have the image; again and again, each time on a cluster of its own.

*seconds* is the median, *all_seconds* each of them. It is not before Helm says that all of the release is ready
(`--wait`), so operators and the guard are in it. Ends with `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

from netloom_e2e import bench, kubelets, netloom_cluster


def run(rounds: int, nodes: int) -> dict[str, Any]:
    """What RESULT says."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} times on {nodes} nodes")
    kubelets.prepare()
    found = []
    for number in range(1, rounds + 1):
        with netloom_cluster.cluster(f"nli{os.getpid() % 10000}", nodes=nodes, values={}) as bed:
            found.append(bed.seconds["network"] - bed.seconds["nodes"])
        console.print(f"{number}: all nodes Ready {found[-1]:.1f} s after the start of helm install")
    return {
        "rounds": rounds,
        "nodes": nodes,
        "seconds": round(statistics.median(found), 1),
        "all_seconds": [round(each, 1) for each in found],
    }


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="From helm install to nodes that are Ready.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    return bench.conclude("install", lambda: run(options.rounds, options.nodes))


if __name__ == "__main__":
    sys.exit(main())
