"""What pods get of the network, in Gbit/s: as iperf3 measures it, and what one CPU carries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

from netloom_e2e.bench import Wrong
from netloom_e2e.lab import Pod, wait_for

_IPERF: dict[str, tuple[str, ...]] = {"tcp": (), "udp": ("--udp", "--bitrate", "0")}
CPU = "cpu"
_BYTES = 1400

_BURSTS = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], 9))
    payload, found = bytes(int(sys.argv[2])), []
    for _ in range(200):
        began = time.perf_counter_ns()
        for _ in range(50):
            try:
                sock.send(payload)
            except ConnectionRefusedError:
                pass
        found.append(time.perf_counter_ns() - began)
print(sorted(found)[4] / 50)
"""


def measures(seconds: int) -> tuple[str, ...]:
    """What to measure, if each transport gets so many seconds."""
    return (*_IPERF, CPU) if seconds else (CPU,)


def gigabits(near: Pod, far: Pod, measure: str, seconds: int) -> float:
    """Gbit/s from pod to pod: of tcp or udp what arrived in this time; of cpu the datagrams that one CPU carries all
    the way, through both nodes, while they are sent: of 200 bursts of 50 the fifth fastest counts, so what else the
    machine does hardly matters. Raises Wrong."""
    if measure == CPU:
        said = near.run(sys.executable, "-SEc", _BURSTS, far.address, str(_BYTES), timeout=60)
        return 8 * _BYTES / float(said)
    return _iperf(near, far, measure, seconds)


def typical(measure: str, rates: Sequence[float]) -> float:
    """Of several rounds."""
    return max(rates) if measure == CPU else median(rates)


def ratio(measure: str, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of two series measured in turn, round by round: what else the machine does changes from minute to minute."""
    if measure == CPU:
        return max(ours) / max(theirs)
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def _iperf(near: Pod, far: Pod, transport: str, seconds: int) -> float:
    server = subprocess.Popen(
        [*far.enter, "iperf3", "--server", "--one-off", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for("iperf3 to listen", lambda: far.run("ss", "-Hltn", "sport = :5201").strip())
        command = ["iperf3", "--client", far.address, "--time", str(seconds), "--json", *_IPERF[transport]]
        said = json.loads(near.run(*command, check=False, timeout=seconds + 30))
        output, _ = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    if "error" in said:
        raise Wrong(f"iperf3 from {near.address} to {far.address}: {said['error']}")
    received: float = json.loads(output)["end"]["sum_received"]["bits_per_second"]
    return received / 1e9
