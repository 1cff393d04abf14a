"""The bench of pods' networks runs to its end."""

from pathlib import Path

from netloom_e2e import bench

SCRIPT = Path(__file__).parents[1] / "bench/cni.py"


def test_both_ways_to_wire_a_pod_are_measured() -> None:
    result = bench.result_of(SCRIPT, "--rounds=1", "--pods=2", "--replicas=0")
    for what in ("add", "del", "add_30", "del_30"):
        assert result[f"{what}_ratio"] > 0
        assert result[f"{what}_p99_ms"] >= result[f"{what}_p50_ms"] > 0
        assert result[f"bridge_{what}_p99_ms"] >= result[f"bridge_{what}_p50_ms"] > 0
