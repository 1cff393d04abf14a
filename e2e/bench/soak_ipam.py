"""`make soak-ipam MINUTES=10`: pods come and go on three nodes that draw on three pools, while the operator and agents
are killed or frozen, pools edited, and blocks taken out of NetloomNodes by hand. See `netloom_e2e.pool_soak`.

An observer that reads only the API server and the kernel counts *duplicates* (an address of two pods, overlapping
blocks of two nodes) and *lost* addresses (of a running pod, in no block of its node for 30 s). *leaks* is what did not
come back when all pods have ended: addresses, blocks beyond each node's first, entries in ledgers. Ends with
`RESULT {json}`; the exit status is 0 only if all three are 0. `--seed` repeats what was done, not its timing.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from netloom_e2e import bench, crds
from netloom_e2e.allocations import Cluster
from netloom_e2e.bench import Wrong
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Lab
from netloom_e2e.operators import RBAC, running
from netloom_e2e.pool_soak import live, soak


def run(minutes: float, seed: int) -> dict[str, Any]:
    """What RESULT says. Raises Wrong where anything is."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="netloom-soak-") as folder, ControlPlane(hosts=[Lab.address]) as plane:
        crds.install(plane)
        plane.kubectl("apply", "--server-side", "--filename", str(RBAC))
        cluster = Cluster(plane)
        with (
            running(plane) as operators,
            soak(cluster, operators, Path(folder), f"nls{os.getpid() % 10000}", seed) as it,
        ):
            for minute in range(int(minutes)):
                live(it, 60.0)
                console.print(f"minute {minute + 1}: {sum(it.did.values())} things done, {len(it.running)} pods run")
            live(it, 60.0 * (minutes % 1))
            leaks = it.leaks()
    found = {
        "minutes": minutes,
        "seed": seed,
        "duplicates": len(it.observer.duplicates),
        "lost": len(it.observer.lost),
        "leaks": len(leaks),
        "looks": it.observer.looks,
        "did": dict(it.did),
    }
    if wrong := [*sorted(it.observer.duplicates), *sorted(it.observer.lost), *leaks, *it.wrong]:
        raise Wrong(f"{found}: {'; '.join(wrong)}")
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Pods on pools, with everything that can go wrong.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    return bench.conclude("soak-ipam", lambda: run(options.minutes, options.seed))


if __name__ == "__main__":
    sys.exit(main())
