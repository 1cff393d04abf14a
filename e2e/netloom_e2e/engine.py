"""The engine alone, as a process: from typed peers through the difference into the kernel, and no API server.

The tunnel device is made first, then the peers become known and the clock runs until the kernel has acknowledged the
last route. The CPU time is that of the whole `apply`, which afterwards asks the kernel which device leads to each peer,
for the MTU. Prints what it took as one line of JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from netloom.runtime import log, loop
from netloom_e2e import peers


class Timed(CommandSocket):
    """Knows when the kernel has acknowledged the last write."""

    acknowledged = 0.0

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        refusals = super().execute(messages)
        self.acknowledged = time.perf_counter()
        return refusals


async def measure(local: str, peer_count: int) -> dict[str, object]:
    """Seconds, CPU seconds, and what was written. Raises RuntimeError if something was refused."""
    with tempfile.TemporaryDirectory() as folder:
        commands = Timed()
        plane = MeshKeeper(run_directory=Path(folder), resync_seconds=None, commands=lambda: commands)
        await plane.open()
        try:
            await plane.apply(peers.desired(local, 0))
            wanted = peers.desired(local, peer_count)
            before = plane.stats
            began, cpu = time.perf_counter(), time.process_time()
            report = await plane.apply(wanted)
            used = {"seconds": commands.acknowledged - began, "cpu_seconds": time.process_time() - cpu}
        finally:
            await plane.close()
    if not report.in_sync or report.peers != peer_count:
        raise RuntimeError(f"not in sync: {report}")
    written = {kind: count for kind, number in plane.stats.items() if (count := number - before.get(kind, 0))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**used, "written": written, "peak_mib": round(peak, 1)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Peers into the kernel by Netloom's engine.")
    parser.add_argument("--local", required=True, help="this node's underlay address")
    parser.add_argument("--peers", type=int, required=True)
    options = parser.parse_args()
    log.configure("json", "warning")
    print(json.dumps(loop.run(measure(options.local, options.peers))))


if __name__ == "__main__":
    main()
