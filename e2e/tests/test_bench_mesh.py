"""The benches of the mesh run to their end, and what they count (not what they time) is right. They leave nothing."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import bench
from netloom_e2e.lab import NETNS

BENCHES = Path(__file__).parents[1] / "bench"
PEERS = 60


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """Of a bench that has ended: others run at the same time."""
    yield
    left = [(path.name, re.match(r"nlb(\d+)-", path.name)) for path in NETNS.iterdir()]
    assert [name for name, bench in left if bench and not Path(f"/proc/{bench[1]}").exists()] == []


def test_the_engine_writes_three_entries_a_peer_and_no_more() -> None:
    result = bench.result_of(BENCHES / "mesh.py", f"--peers={PEERS}", "--rounds=1", "--no-agent")
    engine = result["engine"]
    assert result.keys() == {"peers", "engine"}
    assert engine["written"] == {"newroute": PEERS, "newneigh": PEERS, "newnexthop": PEERS}
    assert all(engine[key] > 0 for key in ("seconds", "ratio_same_ops", "ratio_classic", "ratio_pyroute2"))
    assert all(engine[key] > 0 for key in ("cpu_s", "cpu_ratio_same_ops", "cpu_ratio_classic", "cpu_ratio_pyroute2"))


def test_what_a_message_costs_is_told_of_each_way_that_there_is() -> None:
    cost = bench.result_of(BENCHES / "codec.py", "--rounds=1")["us"]
    ways = {what: set(figures) for what, figures in cost.items()}
    for kind in ("route", "nexthop", "neighbour"):
        assert ways[f"encode a {kind}"] == {"pyroute2", "template"}
        assert ways[f"decode a {kind}"] == {"pyroute2", "by hand", "template"}
    for what in ("encode", "decode"):
        assert ways[f"{what} two elements"] == {"pyroute2", "by hand"}
    for what in ("encode a change of a link", "decode an address", "decode a link"):
        assert ways[what] == {"pyroute2"}


def test_the_slow_ways_are_left_out_where_they_would_take_minutes() -> None:
    words = [f"--peers={PEERS}", "--rounds=1", "--no-agent", f"--classic-most={PEERS - 1}"]
    engine = bench.result_of(BENCHES / "mesh.py", *words)["engine"]
    assert (engine["ratio_classic"], engine["ratio_pyroute2"]) == (None, None)


@pytest.mark.usefixtures("control_plane_binaries")
def test_the_whole_agent() -> None:
    agent = bench.result_of(BENCHES / "mesh.py", f"--peers={PEERS}", "--rounds=1")["agent"]
    assert agent["seconds"] > 0
    assert agent["cpu_s"] > 0
    assert 20 < agent["rss_mib"] <= agent["peak_mib"] < 120


@pytest.mark.usefixtures("control_plane_binaries")
def test_drift_is_repaired_whatever_it_is() -> None:
    times = 12
    result = bench.result_of(BENCHES / "drift.py", f"--peers={PEERS}", f"--times={times}")
    assert (result["peers"], result["times"]) == (PEERS, times)
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert result["mass"].keys() == {"routes", "nexthops", "neighbours"}
    assert result["mass_s"] == result["mass"]["routes"]["seconds"] > 0
    assert result["repaired"] >= times + 3 * PEERS


@pytest.mark.usefixtures("control_plane_binaries")
def test_a_restart_writes_nothing_and_loses_nothing() -> None:
    result = bench.result_of(BENCHES / "restart.py", f"--peers={PEERS}", "--restarts=2")
    assert counted(result, "messages", "events", "lost") == {"messages": 0, "events": 0, "lost": 0}
    assert result["sent"] > 300
    assert result["seconds"] * 1000 > result["kernel_ms"] > 0


@pytest.mark.usefixtures("control_plane_binaries")
def test_joins_reach_every_agent() -> None:
    result = bench.result_of(BENCHES / "join.py", "--nodes=3", "--joins=4")
    assert counted(result, "nodes", "joins") == {"nodes": 3, "joins": 4}
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert 300 < result["bytes_per_agent"] < 5000, "one event of one object"


def test_throughput_of_both_ways() -> None:
    subprocess.run([BENCHES.parent / "setup", "iperf3"], check=True, timeout=300)
    result = bench.result_of(BENCHES / "throughput.py", "--rounds=1", "--seconds=1")
    for who in ("plain", "masquerading"):
        ratios = [
            result[mode][f"{measure}_{who}_ratio"] for mode in ("vxlan", "native") for measure in ("tcp", "udp", "cpu")
        ]
        assert result[f"{who}_ratio"] == min(ratios) > 0


def counted(result: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: result[key] for key in keys}
