"""The benches run to their end, and what they count (not what they time) is right."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from netloom_e2e import bench, load, processes
from netloom_e2e.lab import wait_for

ALLOCATION = Path(__file__).parents[1] / "bench/allocation.py"
KEYS = {"nodes", "seconds", "nodes_per_s", "raw_per_s", "ratio", "writes_per_node", "rss_mib"}
NODES = 200
"""Few enough to be quick, and enough that what is written once does not count for much."""


@pytest.mark.usefixtures("control_plane_binaries")
def test_allocation_counts() -> None:
    result = bench.result_of(ALLOCATION, f"--nodes={NODES}", "--rounds=1")
    for scenario in (result, result["appearing"]):
        assert scenario.keys() >= KEYS
        assert scenario["nodes"] == NODES
        assert scenario["seconds"] > 0
        assert 1 <= scenario["writes_per_node"] < 1.5
        assert 20 < scenario["rss_mib"] <= 120
    assert result["writes_per_node"] <= 1.05


@pytest.mark.usefixtures("control_plane_binaries")
def test_allocation_leaves_nothing_behind_on_ctrl_c() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own have too long a path for the sockets of etcd
        folder = Path(name)
        environment = os.environ | {"TMPDIR": name}
        with subprocess.Popen(
            [sys.executable, ALLOCATION, "--nodes=500"], env=environment, stdout=subprocess.PIPE
        ) as running:
            try:
                wait_for("an operator to run", lambda: running.poll() or _operator_runs(folder), deadline=120)
                running.send_signal(signal.SIGINT)
                assert running.wait(60) == 130
            finally:
                running.kill()
        root = folder / f"netloom-e2e-{os.getuid()}"
        assert [path.name for path in root.iterdir()] == [".lock"]
        assert list(folder.iterdir()) == [root]


def _operator_runs(folder: Path) -> bool:
    """In a control plane below a folder, where it is the only program in Python."""
    states = folder.glob("netloom-e2e-*/own-*")
    return any(name.startswith("python") for state in states for name in processes.members(state).values())


def test_yardstick_writes_what_the_operator_writes() -> None:
    assert json.loads(load.body("netloomnodes", "yard-", 258)) == {
        "apiVersion": "netloom.dev/v1alpha1",
        "kind": "NetloomNode",
        "metadata": {
            "name": "yard-00258",
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": "yard-00258",
                    "uid": load.node("yard-", 258).metadata.uid,
                }
            ],
        },
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": "172.16.1.3"}],
            "ipam": {"mode": "cluster-pool", "podCIDRs": ["10.1.2.0/24"]},
        },
    }
    assert json.loads(load.body("netloomnodes", "yard-", 258, "multi-pool"))["spec"]["ipam"] == {
        "mode": "multi-pool",
        "pools": {"allocated": [{"pool": "default", "cidrs": ["10.1.2.0/24"]}]},
    }
