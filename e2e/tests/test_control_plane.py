"""The test bed itself: what it promises to the tests that stand on it."""

from netloom_e2e.cluster import ControlPlane


def test_admin_may_and_nobody_may_not(control_plane: ControlPlane) -> None:
    assert "no" in control_plane.kubectl("get", "nodes").stderr.lower()
    refused = control_plane.kubectl("get", "nodes", check=False, user="nobody")
    assert refused.returncode == 1
    assert 'nodes is forbidden: User "nobody" cannot list resource "nodes"' in refused.stderr
