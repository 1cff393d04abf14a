"""The bench of the guard runs to its end, and what it counts is right: it fails by itself where an answer is wrong."""

import json
from pathlib import Path

import pytest

from netloom_e2e import bench
from netloom_e2e.asked import account
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.paced import Answer, Request, paced

WEBHOOK = Path(__file__).parents[1] / "bench/webhook.py"


@pytest.mark.usefixtures("control_plane_binaries")
def test_webhook_counts() -> None:
    result = bench.result_of(
        WEBHOOK, "--nodes=300", "--rounds=1", "--seconds=2", "--no-peer", "--floor", "--rate=50", "--peer-rate=50"
    )
    assert result["nodes"] == 300
    assert result["unguarded"]["calls"] == 0
    assert result["decision_ms"] >= result["decision_p50_ms"] > 0
    assert 30 < result["rss_mib"] <= 80
    assert {"p50_ms", "p99_ms", "floor_p50_ms", "floor_p99_ms", "handshakes"} <= result["guarded"].keys()
    assert result["guarded"]["irregular"] == 0  # the API server asks as the guard expects it to


A, B = (Request("PATCH", f"/pools/{name}", "{}") for name in "ab")
KNOWN = {A.path: "1", B.path: "2"}


def test_every_write_that_changes_something_is_asked_about() -> None:
    counted = account([A, B, A, B], [Answer(0, 1, "3"), Answer(0, 1, "4"), Answer(2, 3, "5"), Answer(2, 3, "6")], KNOWN)
    assert (counted.changed, counted.idle, counted.met) == (4, {}, 0)
    assert counted.explained(4) == []
    with pytest.raises(ValueError, match="4 writes changed a guarded field, and 3 calls asked about them"):
        counted.explained(3)


def test_a_write_that_overtakes_its_twin_is_named_with_it() -> None:
    """The removal is there first and finds nothing to remove; the addition is the one that changes the pool."""
    counted = account(
        [A, B, A, B], [Answer(0, 2.5, "5"), Answer(0, 1, "3"), Answer(1, 1.5, "1"), Answer(2, 3, "4")], KNOWN
    )
    assert (counted.changed, counted.met) == (3, 2)
    assert counted.explained(3) == [
        "1 of 4 writes changed nothing, and are nothing to ask about:",
        "  write 2: a was as it wanted it, as another of the same object was late: write 2 from 1.00 to 1.50 s, "
        "write 0 from 0.00 to 2.50 s",
    ]
    with pytest.raises(ValueError, match="3 writes changed a guarded field, and 2 calls"):
        counted.explained(2)
    assert counted.explained(4)[-1].startswith("1 calls more than writes that changed something: 2 writes met another")


@pytest.mark.usefixtures("control_plane_binaries")
def test_an_api_server_says_which_writes_changed_something(control_plane: ControlPlane) -> None:
    made = control_plane.client.request(
        "POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "counted"}, "data": {"x": "1"}}
    )
    path = "/api/v1/namespaces/default/configmaps/counted"
    requests = [Request("PATCH", path, json.dumps({"data": {"x": value}})) for value in ("1", "2", "2", "3")]
    seen = paced(control_plane.kubeconfig(), requests, 2)
    counted = account(requests, seen.answers, {path: made["metadata"]["resourceVersion"]})
    assert (counted.changed, list(counted.idle)) == (2, [0, 2])
    control_plane.client.request("DELETE", path)
