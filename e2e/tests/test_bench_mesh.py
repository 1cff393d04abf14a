"""The benches of the mesh run to their end, and what they count (not what they time) is right."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

E2E = Path(__file__).parents[1]


def result_of(bench: str, *options: str) -> dict[str, Any]:
    """What its last line says."""
    command = [sys.executable, str(E2E / "bench" / bench), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    word, _, text = done.stdout.splitlines()[-1].partition(" ")
    assert word == "RESULT"
    result: dict[str, Any] = json.loads(text)
    return result


@pytest.mark.usefixtures("control_plane_binaries")
def test_mesh() -> None:
    result = result_of("mesh.py", "--peers=50", "--rounds=1")
    engine, agent = result["engine"], result["agent"]
    assert engine["written"] == {"newneigh": 50, "newnexthop": 50, "newroute": 50}
    for figure in ("seconds", "ratio_same_ops", "ratio_classic", "ratio_pyroute2"):
        assert engine[figure] > 0
    assert agent.keys() >= {"seconds", "cpu_s"}
    assert 20 < agent["rss_mib"] < 120


@pytest.mark.usefixtures("control_plane_binaries")
def test_drift() -> None:
    result = result_of("drift.py", "--peers=50", "--times=12")
    assert result.keys() >= {"p50_ms", "p99_ms", "mass_s"}
    assert result["times"] == 12
    assert result["mass"].keys() == {"routes", "nexthops", "neighbours"}
    # A route that went with its nexthop is not counted by itself.
    assert result["repaired"] >= 12 + 50 + 50 + 50


@pytest.mark.usefixtures("control_plane_binaries")
def test_restart() -> None:
    result = result_of("restart.py", "--peers=50", "--restarts=2")
    assert result.keys() >= {"seconds", "kernel_ms"}
    assert (result["messages"], result["events"], result["lost"]) == (0, 0, 0)
    assert result["sent"] > 0


@pytest.mark.usefixtures("control_plane_binaries")
def test_join() -> None:
    result = result_of("join.py", "--nodes=2", "--joins=3")
    assert result.keys() >= {"p50_ms", "p99_ms"}
    assert (result["nodes"], result["joins"]) == (2, 3)
    assert 500 < result["bytes_per_agent"] < 20_000


def test_throughput() -> None:
    subprocess.run([E2E / "setup", "iperf3"], check=True, timeout=300)
    result = result_of("throughput.py", "--rounds=1", "--seconds=1")
    for mode in ("vxlan", "native"):
        assert result[f"{mode}_ratio"] > 0
        assert result[mode].keys() >= {"tcp_gbit_s", "udp_gbit_s", "tcp_by_hand_gbit_s", "udp_by_hand_gbit_s"}
