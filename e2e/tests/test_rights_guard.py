"""The guard alone, beside Cilium, may do what it does and no more: as test_rights.py, for `agent.enabled=false`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.webhook.names import NAME
from netloom_e2e import crds
from netloom_e2e.chart_release import GUARD, Release
from netloom_e2e.client import collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import CILIUM_KINDS, Guard, install_cilium
from netloom_e2e.lab import wait_for
from netloom_e2e.rights import Audit, accounts, granted

KUBE_SYSTEM = "/api/v1/namespaces/kube-system/configmaps"
HELD = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}}


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path, helm_binary: Path, audit: Audit) -> Iterator[ControlPlane]:
    with ControlPlane(apiserver_flags=audit.flags) as made:
        made.kubectl("create", "namespace", GUARD.namespace)
        install_cilium(made)
        yield made


def test_the_guard_may_do_what_it_does_and_no_more(plane: ControlPlane, audit: Audit, tmp_path: Path) -> None:
    release = Release(plane, tmp_path)
    release.put("install", "agent.enabled=false")
    guard = release.guard()
    _is_bypassed(release, guard)
    release.meddle_with_the_record("ciliumMode")
    release.helm("test")
    guard.stop()
    release.end_the_authority()
    release.guard().stop()
    assert GUARD in accounts(release.rights)
    assert audit.all_faults(release.rights) == {}

    # And of Netloom's kinds, where these are guarded as well.
    crds.install(plane)
    release.put("upgrade", "agent.enabled=false", "guard.for=all")
    release.guard().stop()
    rights = granted(release.rights, GUARD)
    assert "netloomnodes" in {each.resource for each in rights}
    assert audit.faults(GUARD, rights) == {}


def _is_bypassed(release: Release, guard: Guard) -> None:
    """A guard that records modes, and tells of somebody who got past it."""
    client = release.client
    client.request("POST", KUBE_SYSTEM, {"metadata": {"name": "cilium-config"}, "data": {"ipam": "cluster-pool"}})
    client.request("POST", collection_path(CILIUM_KINDS[0]), HELD | {"metadata": {"name": "c1"}})
    wait_for("the mode is recorded", lambda: release.record().get("ciliumMode") == "cluster-pool", deadline=20)
    for ipam, bypassed in (("kubernetes", 1), ("cluster-pool", 0), ("kubernetes", 1)):
        client.request("PATCH", f"{KUBE_SYSTEM}/cilium-config", {"data": {"ipam": ipam}})
        wait_for("the guard noticed", lambda b=bypassed: guard.metric("netloom_guard_bypassed") == b, deadline=20)
    wait_for("its Event is counted", lambda: NAME in release.counted("kube-system"), deadline=30)
