"""The bench of the guard runs to its end, and what it counts is right: it fails by itself where an answer is wrong."""

from pathlib import Path

import pytest

from netloom_e2e import bench

WEBHOOK = Path(__file__).parents[1] / "bench/webhook.py"


@pytest.mark.usefixtures("control_plane_binaries")
def test_webhook_counts() -> None:
    result = bench.result_of(
        WEBHOOK, "--nodes=300", "--rounds=1", "--seconds=2", "--no-peer", "--rate=50", "--peer-rate=50"
    )
    assert result["nodes"] == 300
    assert result["unguarded"]["calls"] == 0
    assert result["decision_ms"] > 0
    assert 30 < result["rss_mib"] <= 80
