"""The control plane that other tests stand on: what it promises them, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netloom_e2e import binaries, crds, processes
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane, ControlPlaneError, KubectlError
from netloom_e2e.components import ControllerManager
from netloom_e2e.lab import wait_for

pytestmark = pytest.mark.usefixtures("control_plane_binaries")

READER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: node-reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: node-readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: node-reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: node-readers}]
"""

OWNER = """
import sys
from netloom_e2e.cluster import ControlPlane
with ControlPlane() as plane:
    print(plane.state, flush=True)
    sys.stdin.read()
"""


def node(name: str, **metadata: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, **metadata}}


def test_it_serves_the_version_that_was_built(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"]
    assert version["serverVersion"]["gitVersion"] == binaries.KUBERNETES_VERSION


def test_rbac_grants_to_a_group_and_refuses_everybody_else(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "-f", "-", input=READER)
    control_plane.kubeconfig("agent:n1", groups=["node-readers"])

    with pytest.raises(KubectlError, match='User "nobody" cannot list resource "nodes"'):
        control_plane.kubectl("get", "nodes", user="nobody")
    control_plane.kubectl("get", "nodes", user="agent:n1", groups=["node-readers"])
    with pytest.raises(KubectlError, match='User "agent:n1" cannot delete resource "nodes"'):
        control_plane.kubectl("delete", "node", "n1", user="agent:n1", groups=["node-readers"])


def test_users_with_like_names_are_kept_apart(control_plane: ControlPlane) -> None:
    wanted = [("a", ("b",)), ("a+b", ()), ("a/b", ()), ("a:b", ())]
    assert len({control_plane.kubeconfig(user, groups) for user, groups in wanted}) == len(wanted)
    for user, groups in wanted:
        answer = control_plane.kubectl("auth", "whoami", "-o", "json", user=user, groups=groups)
        seen = json.loads(answer.stdout)["status"]["userInfo"]
        assert (seen["username"], tuple(seen.get("groups", ()))) == (user, (*groups, "system:authenticated"))


def test_a_stranger_is_not_let_in(control_plane: ControlPlane, tmp_path: Path) -> None:
    other = ControlPlane()
    try:
        other.open()  # its authority is enough, nobody asks its API server
        foreign = other.kubeconfig().read_text().replace(other.url, control_plane.url)
        assert other.url != control_plane.url
        (tmp_path / "foreign.yaml").write_text(foreign)
        with pytest.raises(KubectlError, match="certificate signed by unknown authority"):
            control_plane.kubectl(f"--kubeconfig={tmp_path}/foreign.yaml", "get", "nodes")
    finally:
        other.stop()


def test_two_at_once_know_nothing_of_each_other(control_plane: ControlPlane) -> None:
    with ControlPlane() as other:
        other.client.request("POST", "/api/v1/nodes", node("of-the-other"))
        assert other.kubectl("get", "nodes", "-o", "name").stdout == "node/of-the-other\n"
        assert control_plane.kubectl("get", "nodes", "-o", "name").stdout == ""
        state, pids = other.state, processes.members(other.state)
        assert sorted(pids.values()) == ["etcd", "kube-apiserver"]
    assert not state.exists()
    assert not any(processes.is_running(pid) for pid in pids)
    control_plane.client.request("GET", "/readyz")


def test_delete_all_takes_finalizers_off(control_plane: ControlPlane) -> None:
    for i in range(3):
        control_plane.client.request("POST", "/api/v1/nodes", node(f"n{i}", finalizers=["netloom.dev/test"]))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}
    control_plane.client.request("POST", "/apis/coordination.k8s.io/v1/namespaces/default/leases", lease)

    control_plane.delete_all("nodes")
    control_plane.delete_all("leases.v1.coordination.k8s.io", namespace="default")

    assert control_plane.kubectl("get", "nodes,leases", "-o", "name").stdout == ""


def test_the_crds_of_this_tree_are_served(crds_installed: ControlPlane) -> None:
    kinds = crds_installed.kubectl("api-resources", "--api-group=netloom.dev", "-o", "name").stdout.split()
    assert sorted(f"{kind.removesuffix('.netloom.dev')}.yaml" for kind in kinds) == sorted(
        p.name for p in crds.FOLDER.glob("*.yaml")
    )
    for kind in kinds:
        plural = kind.removesuffix(".netloom.dev")
        assert crds_installed.client.request("GET", f"/apis/netloom.dev/v1alpha1/{plural}")["items"] == []


def test_a_restart_of_the_api_server_keeps_port_and_data() -> None:
    with ControlPlane() as plane:
        plane.client.request("POST", "/api/v1/nodes", node("n1"))
        url = plane.url

        plane.kill_apiserver()
        with pytest.raises(ConnectionRefusedError):
            plane.client.request("GET", "/readyz")
        plane.start_apiserver()
        assert plane.url == url
        assert plane.kubectl("get", "nodes", "-o", "name").stdout == "node/n1\n"

        plane.pause_apiserver()
        with pytest.raises(TimeoutError):
            plane.client.request("GET", "/readyz", timeout=0.3)
        plane.resume_apiserver()
        assert plane.client.request("GET", "/api/v1/nodes/n1")["metadata"]["name"] == "n1"


def test_the_controller_manager_gives_nodes_their_cidrs() -> None:
    cidrs = ControllerManager(cluster_cidrs=("10.7.0.0/16", "fd00:7::/48"))
    with ControlPlane(controller_manager=cidrs) as plane:
        plane.client.request("POST", "/api/v1/nodes", node("n1"))

        def pod_cidrs() -> list[str]:
            found: list[str] = plane.client.request("GET", "/api/v1/nodes/n1")["spec"].get("podCIDRs", [])
            return found

        wait_for("pod CIDRs of n1", pod_cidrs)
        assert pod_cidrs() == ["10.7.0.0/24", "fd00:7::/64"]

        # The garbage collector works, with the rights of its own ServiceAccount: what a node owns goes with it.
        uid = plane.client.request("GET", "/api/v1/nodes/n1")["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid}
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "owned-by-n1", "ownerReferences": [owner]},
        }
        plane.client.request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
        plane.kubectl("delete", "node", "n1")
        plane.kubectl("wait", "--for=delete", "clusterrole/owned-by-n1", "--timeout=30s")


def test_a_flag_that_is_wrong_is_told_with_the_end_of_the_log() -> None:
    before = processes.folders()
    with pytest.raises(ControlPlaneError) as error:
        ControlPlane(apiserver_flags=["--no-such-flag"]).start()
    assert str(error.value).startswith("kube-apiserver ended with status 1:\n")
    assert "unknown flag: --no-such-flag" in str(error.value)
    assert processes.folders() == before


def test_kill_9_of_the_owner_leaves_nothing() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout
        state = Path(owner.stdout.readline().strip())
        pids = processes.members(state)
        assert sorted(pids.values()) == ["etcd", "kube-apiserver"]
        owner.kill()
    wait_for(f"{state} to vanish", lambda: not state.exists())
    assert not any(processes.is_running(pid) for pid in pids)


def test_kubebuilder_assets_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in binaries.ENVTEST_PROGRAMS:
        (tmp_path / program).symlink_to(binaries.built() / program)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with ControlPlane() as plane:
        started = {Path(f"/proc/{pid}/cwd").readlink() for pid in processes.members(plane.state)}
        assert started == {plane.state}
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in processes.members(plane.state)]
        assert sorted(commands) == [f"{tmp_path}/{program}".encode() for program in ("etcd", "kube-apiserver")]
        assert "v1.37.2" in plane.kubectl("version").stdout


def test_an_api_failure_carries_the_servers_words(control_plane: ControlPlane) -> None:
    with pytest.raises(ApiFailure, match='nodes \\\\"n9\\\\" not found') as failure:
        control_plane.client.request("GET", "/api/v1/nodes/n9")
    assert failure.value.status == 404


def test_the_shell_gets_a_kubectl_that_works() -> None:
    cli = f"{sys.executable} -m netloom_e2e"
    script = f"""
        set -e
        trap '{cli} down --name nltest' EXIT
        eval "$({cli} up --name nltest)"
        kubectl create namespace of-the-shell
        {cli} up --name nltest >/dev/null
        kubectl get namespace of-the-shell -o name
        kill -9 $(pgrep -f '^[^ ]*/kube-apiserver .*/nltest/')
        {cli} up --name nltest
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert "namespace/of-the-shell\n" in done.stdout, done.stderr
    assert "'nltest' is up already" in done.stderr
    assert "'nltest' is there but does not answer; `e2e/netloom-e2e down --name nltest` removes it" in done.stderr
    assert done.stderr.endswith("control plane 'nltest' is gone\n")
    assert done.returncode == 1
    assert not processes.folder_of("nltest").exists()


def test_the_signals_of_a_terminal_do_not_reach_the_servers(control_plane: ControlPlane) -> None:
    groups = {os.getpgid(pid) for pid in processes.members(control_plane.state)}
    assert os.getpgid(0) not in groups
