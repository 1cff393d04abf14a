"""What `make soak-ipam` does, for a while that a test run can afford."""

from pathlib import Path

from netloom_e2e.allocations import Cluster
from netloom_e2e.operators import Operators
from netloom_e2e.pool_soak import live, soak

SECONDS = 20.0


def test_no_address_is_given_twice_lost_or_leaked(cluster: Cluster, operators: Operators, tmp_path: Path) -> None:
    with soak(cluster, operators, tmp_path, "nlsk", seed=11) as it:
        live(it, SECONDS)
        leaks = it.leaks(whole=False)
    assert (it.observer.duplicates, it.observer.lost, leaks, it.wrong) == (set(), set(), [], [])
    assert it.did["launched"] > 5
    assert it.did["agents killed"] + it.did["operators killed"] > 0
