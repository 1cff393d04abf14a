"""The guard as it is installed: its manifests and its rights on a real API server, and what follows from them.

Every test that installs something takes it away again; the control plane is the session's.
"""

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.webhook import certificates
from netloom.webhook.names import AGENT_USER, NAME, NAMESPACE, OPERATOR_USER, Guarded, Scope
from netloom_e2e import crds
from netloom_e2e.allocations import Cluster
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.components import ControllerManager
from netloom_e2e.guard import (
    CILIUM_KINDS,
    PAST_THE_GUARD,
    Guard,
    Guards,
    apply,
    install_cilium,
    type_warnings,
    uninstall_cilium,
)
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.operators import USER, Operators

NETLOOM = Path(sys.executable).with_name("netloom")
EVERYTHING: tuple[Guarded, ...] = ("cilium", "netloom", "all")
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "cilium-config", "namespace": "kube-system"},
    "data": {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8", "debug": "false"},
}
WEBHOOKS = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}"
BY_POLICY = "ValidatingAdmissionPolicy 'netloom-guard-cilium' with binding 'netloom-guard-cilium' denied request: "
BY_WEBHOOK = 'admission webhook "cilium-config.guard.netloom.dev" denied the request: '
MODE_LOCKED = (
    "ConfigMap kube-system/cilium-config: data.ipam 'kubernetes': the IPAM mode of a live cluster cannot change: "
    "1 node holds addresses (n1) of mode cluster-pool, and in mode kubernetes their pods would lose the network. "
    "Keep ipam: cluster-pool (Helm: --set ipam.mode=cluster-pool), or remove every node and its CiliumNode first, or "
    "build a new cluster in mode kubernetes and move the workloads there."
)


def cilium_node(name: str, *cidrs: str) -> dict[str, Any]:
    spec = {"ipam": {"podCIDRs": list(cidrs)}}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name}, "spec": spec}


def guard_install(*arguments: str) -> str:
    """What `netloom guard install` prints."""
    command = [str(NETLOOM), "guard", "install", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Cilium:
    """A cluster that runs Cilium, as far as the API server knows."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def add(self, manifest: dict[str, Any]) -> None:
        self.plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(manifest))

    def change(self, *options: str, **data: str) -> subprocess.CompletedProcess[str]:
        patch = ["--type=merge", "-p", json.dumps({"data": data})]
        return self.plane.kubectl(
            "patch", "configmap", "cilium-config", "-n", "kube-system", *patch, *options, check=False
        )

    def would_say(self, **data: str) -> str:
        """The refusal of a dry run; "" where there is none."""
        return self.change("--dry-run=server", **data).stderr


@pytest.fixture
def cilium(control_plane: ControlPlane) -> Iterator[Cilium]:
    """With the ConfigMap and without the CRDs, which its operator brings."""
    cilium = Cilium(control_plane)
    cilium.add(CONFIG)
    yield cilium
    uninstall_cilium(control_plane)
    control_plane.kubectl("delete", "--ignore-not-found", "configmap", "cilium-config", "-n", "kube-system")


@pytest.fixture
def guards(control_plane: ControlPlane) -> Iterator[Guards]:
    """Of Cilium only; nothing installed, nothing started yet."""
    guards = Guards(control_plane, Scope(guarded="cilium"))
    yield guards
    guards.kill()
    guards.uninstall()


def in_force(guards: Guards) -> Guard:
    guards.install()
    guard = guards.start()
    guards.wait_in_force(guard)
    return guard


@pytest.mark.parametrize("guarded", EVERYTHING)
def test_the_manifests_are_applied_and_applied_again(control_plane: ControlPlane, guarded: Guarded) -> None:
    text = guard_install("--for", guarded, "--image", "registry.example/netloom:1")
    manifests = list(yaml.safe_load_all(text))
    try:
        control_plane.kubectl("apply", "-f", "-", input=text)
        before = versions(control_plane, text)
        assert len(before) == len(manifests)
        control_plane.kubectl("apply", "-f", "-", input=text)
        assert versions(control_plane, text) == before
    finally:
        control_plane.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=text)
        gone(control_plane)


def versions(plane: ControlPlane, text: str) -> dict[str, str]:
    """Of all objects in a text of manifests."""
    items = json.loads(plane.kubectl("get", "-o", "json", "-f", "-", input=text).stdout)["items"]
    return {f"{each['kind']} {each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in items}


def gone(plane: ControlPlane) -> None:
    """Without a controller manager a namespace would stay in deletion for ever, and nothing could be made in it."""
    path = f"/api/v1/namespaces/{NAMESPACE}"
    namespace = plane.client.request("GET", path)
    namespace["spec"]["finalizers"] = []
    plane.client.request("PUT", f"{path}/finalize", namespace)


def test_install_applies_by_itself_and_says_what_it_did(control_plane: ControlPlane, guards: Guards) -> None:
    arguments = ["--for=cilium", f"--url={guards.url}", "--apply", f"--kubeconfig={control_plane.kubeconfig()}"]
    first = guard_install(*arguments).splitlines()
    assert f"ConfigMap {NAMESPACE}/{NAME}: created" in first
    assert first[-1] == f"ValidatingWebhookConfiguration {NAME}: created"
    again = guard_install(*arguments).splitlines()
    assert [line for line in again if not line.endswith(": unchanged")] == []
    assert "netloom:guards:cp-1" in guard_install(*arguments[:2], "--guard-user=netloom:guards:cp-1")
    # The same by another tool is no conflict about who owns what.
    control_plane.kubectl("apply", "--server-side", "-f", "-", input=guard_install(*arguments[:2]))


def test_the_types_in_the_policies_are_right(control_plane_binaries: Path) -> None:
    looks = ControllerManager(controllers=("validatingadmissionpolicy-status-controller",))
    with ControlPlane() as plane:
        crds.install(plane)
        install_cilium(plane)
        guards = Guards(plane)
        apply(plane, guards.manifests)
        plane.start_controller_manager(looks)
        policies = [
            each["metadata"]["name"] for each in guards.manifests if each["kind"] == "ValidatingAdmissionPolicy"
        ]
        assert type_warnings(plane) == {policy: [] for policy in policies}


def test_a_mode_change_of_cilium_is_refused(cilium: Cilium, guards: Guards) -> None:
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    in_force(guards)
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    assert guards.record()["ciliumInUse"] == "1 node holds addresses (n1)"
    refusal = cilium.change(ipam="kubernetes")
    assert refusal.returncode == 1
    assert MODE_LOCKED in refusal.stderr
    assert cilium.change(debug="true").returncode == 0, "other keys are nobody's business"


def test_the_process_that_answers_has_never_loaded_cryptography(guards: Guards) -> None:
    """It has made a CA and a certificate, by children, and is by 10 MiB the smaller for that."""
    guards.install()
    guard = guards.start()
    wait_for("the guard is ready", guard.ready, deadline=30)
    assert "cryptography" not in Path(f"/proc/{guard.process.pid}/maps").read_text()


def test_a_certificate_of_ones_own(control_plane: ControlPlane, guards: Guards, tmp_path: Path) -> None:
    """A wrong path ends the guard with a sentence; with the files there, it is ready once API servers know whom to
    trust."""
    guards.install()
    files = [f"--tls-cert-file={tmp_path / 'tls.crt'}", f"--tls-key-file={tmp_path / 'tls.key'}"]
    lost = guards.start(*files)
    wait_for("it has ended", lambda: lost.process.status is not None, deadline=30)
    assert lost.process.status == 1
    assert f"{tmp_path / 'tls.crt'} cannot be read: No such file or directory" in lost.process.tail()
    assert "Traceback" not in lost.process.tail()
    now = dt.datetime.now(dt.UTC)
    ca = certificates.new_ca(now)
    serving = certificates.issue(ca, ["127.0.0.1"], now)
    (tmp_path / "tls.crt").write_text(serving.certificate)
    (tmp_path / "tls.key").write_text(serving.key)
    guard = guards.start(*files)
    wait_for("it says why not", lambda: "and the caBundle is empty" in guard.readiness(), deadline=30)
    (tmp_path / "ca.crt").write_text(ca.certificate)
    text = guard_install("--for=cilium", f"--url={guards.url}", f"--ca-file={tmp_path / 'ca.crt'}")
    control_plane.kubectl("apply", "--server-side", "-f", "-", input=text)
    wait_for("the guard is ready", guard.ready, deadline=30)


def test_applying_again_takes_nothing_of_the_guard_away(cilium: Cilium, guards: Guards) -> None:
    """As GitOps does all the time, by either kind of apply."""
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    in_force(guards)
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    text = guard_install("--for=cilium", f"--url={guards.url}")
    for options in (["--server-side", "--force-conflicts"], []):
        cilium.plane.kubectl("apply", *options, "-f", "-", input=text)
        configuration = cilium.plane.client.request("GET", WEBHOOKS)
        assert all(each["clientConfig"].get("caBundle") for each in configuration["webhooks"])
        assert guards.record()["ciliumMode"] == "cluster-pool"


def test_the_policy_and_the_webhook_say_the_same(cilium: Cilium, guards: Guards) -> None:
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    in_force(guards)
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    wait_for("the policy answers", lambda: BY_POLICY in cilium.would_say(ipam="kubernetes"), deadline=20)
    assert MODE_LOCKED in cilium.would_say(ipam="kubernetes")
    cilium.plane.kubectl("delete", "validatingadmissionpolicybindings", "netloom-guard-cilium")
    wait_for("the webhook answers", lambda: BY_WEBHOOK in cilium.would_say(ipam="kubernetes"), deadline=20)
    assert MODE_LOCKED in cilium.would_say(ipam="kubernetes")


def test_the_policy_refuses_when_no_guard_runs(cilium: Cilium, guards: Guards) -> None:
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    guard = in_force(guards)
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    guard.kill()
    cilium.plane.kubectl("delete", "validatingwebhookconfigurations", NAME)
    wait_for("only the policy is asked", lambda: BY_POLICY in cilium.would_say(ipam="eni"), deadline=20)
    for mode in ("kubernetes", "multi-pool", "cluster-pool-v2beta"):
        assert "the IPAM mode of a live cluster cannot change" in cilium.change(ipam=mode).stderr
    assert 'enable-cluster-pool-to-multi-pool-migration: "true"' in cilium.change(ipam="multi-pool").stderr
    config = "/api/v1/namespaces/kube-system/configmaps"
    for path in (f"{config}/cilium-config", f"{config}?fieldSelector=metadata.name%3Dcilium-config"):
        with pytest.raises(ApiFailure, match="Cilium's configuration cannot be deleted while it is in use"):
            cilium.plane.client.request("DELETE", path)
    migration = {"ipam": "multi-pool", "enable-cluster-pool-to-multi-pool-migration": "true"}
    assert cilium.change(**migration).returncode == 0


def test_break_glass_is_a_group_and_what_it_did_is_told(cilium: Cilium, guards: Guards) -> None:
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    in_force(guards)
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    guards.kill()
    as_admin = ["--as=admin", "--as-group=system:masters"]
    assert cilium.change(*as_admin, ipam="kubernetes").returncode == 1
    assert cilium.change(*as_admin, "--as-group=netloom:break-glass", ipam="kubernetes").returncode == 0

    guard = guards.start()
    wait_for("the guard is ready", guard.ready, deadline=30)
    wait_for("a metric says it", lambda: guard.metric("netloom_guard_bypassed") == 1, deadline=20)
    events = [
        "get",
        "events",
        "-n",
        "kube-system",
        "--field-selector=reason=ModeBypassed",
        "-o",
        "jsonpath={..message}",
    ]
    wait_for("an Event says it", lambda: "past the guard" in cilium.plane.kubectl(*events).stdout, deadline=20)
    delete = ["delete", "configmap", NAME, "-n", NAMESPACE]
    assert "only the guard writes down" in cilium.plane.kubectl(*delete, check=False).stderr
    cilium.plane.kubectl(*delete, *PAST_THE_GUARD)
    wait_for("the new mode is recorded", lambda: guards.record().get("ciliumMode") == "kubernetes", deadline=20)
    wait_for("all is well", lambda: guard.metric("netloom_guard_bypassed") == 0, deadline=20)


def test_cilium_comes_later_and_goes_again(cilium: Cilium, guards: Guards) -> None:
    guard = in_force(guards)
    assert cilium.change(ipam="kubernetes").returncode == 0, "nobody holds an address"
    assert cilium.change(ipam="cluster-pool").returncode == 0
    install_cilium(cilium.plane)
    cilium.add(cilium_node("n1", "10.0.0.0/24"))
    wait_for("the mode is recorded", lambda: guards.record().get("ciliumMode") == "cluster-pool", deadline=20)
    assert MODE_LOCKED in cilium.change(ipam="kubernetes").stderr
    cilium.plane.delete_all(*CILIUM_KINDS)
    uninstall_cilium(cilium.plane)
    wait_for("the record is cleared", lambda: "ciliumMode" not in guards.record(), deadline=20)
    wait_for("the lock is open", lambda: cilium.change(ipam="kubernetes").returncode == 0, deadline=20)
    assert guard.ready()


def test_a_guard_that_lacks_a_right_says_which(cilium: Cilium, guards: Guards) -> None:
    guards.install()
    cilium.plane.kubectl("delete", "clusterrole", NAME)
    guard = guards.start()
    wait_for("it says what is missing", lambda: "customresourcedefinitions" in guard.readiness(), deadline=20)
    assert "is forbidden" in guard.readiness()


def test_every_operator_is_a_guard_if_it_is_told_to(cluster: Cluster, operators: Operators) -> None:
    plane = cluster.plane
    guards = Guards(plane, Scope(guarded="netloom", operator_users=(USER,)))
    guards.install()
    plane.kubectl("create", "clusterrolebinding", "operator-guards", "--clusterrole=netloom-guard", f"--user={USER}")
    plane.kubectl(
        "create", "rolebinding", "operator-guards", "--role=netloom-guard", f"--user={USER}", f"--namespace={NAMESPACE}"
    )
    try:
        leader = operators.start(leader_elect=True)
        wait_for("it leads", lambda: leader.healthy() and leader.metric("netloom_leading") == 1, deadline=30)
        waits = operators.start(
            f"--webhook-address=127.0.0.1:{guards.port}",
            f"--webhook-namespace={NAMESPACE}",
            f"--operator-user={USER}",
            leader_elect=True,
        )
        guards.wait_in_force(guards.started(waits))
        assert waits.metric("netloom_leading") == 0
        cluster.create_network(ipv4PodCIDRList=["10.244.0.0/16"])
        cluster.add_node("n1")
        wait_for("the node has its CIDR", cluster.served, deadline=20)
        refusal = plane.kubectl("delete", "netloomnodes", "n1", check=False)
        assert "the Node of this name lives and it holds 10.244" in refusal.stderr
        wait_for("the mode is recorded", lambda: guards.record().get("netloomMode") == "cluster-pool", deadline=20)
        assert guards.record()["netloomInUse"] == "1 node holds addresses (n1)"
    finally:
        operators.kill()
        guards.uninstall()
        plane.kubectl("delete", "clusterrolebinding", "operator-guards")
        plane.kubectl("delete", "rolebinding", "operator-guards", f"--namespace={NAMESPACE}")


def test_with_no_guard_only_guarded_writes_wait_for_one(cluster: Cluster) -> None:
    """The certificate is not even known yet, as right after an installation."""
    plane = cluster.plane
    guards = Guards(plane, Scope(guarded="all"))
    plane.client.request("POST", NETLOOM_NODES.path(), netloom_node("n1"))
    guards.install()
    try:
        ipam = '{"spec": {"ipam": {"podCIDRs": ["10.244.1.0/24"]}}}'
        wait_for(
            "the webhooks are in force",
            lambda: "failed calling webhook" in patched(plane, "netloomnodes", "n1", ipam, "--dry-run=server"),
            deadline=20,
        )
        agent = [f"--as={AGENT_USER}", "--as-group=system:masters"]
        own = "--as-user-extra=authentication.kubernetes.io/node-name=n1"
        operator = [f"--as={OPERATOR_USER}", "--as-group=system:masters"]
        tunnels = '{"spec": {"encapsulations": [{"protocol": "vxlan", "port": 8472}]}}'
        assert patched(plane, "netloomnodes", "n1", tunnels) == "", "no guarded field"
        mine = '{"spec": {"encapsulations": [{"protocol": "geneve", "port": 6081}]}}'
        assert patched(plane, "netloomnodes", "n1", mine, *agent, own) == "", "its own node"
        both = '{"spec": {"ipam": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/120"]}}}'
        assert patched(plane, "netloomnodes", "n1", both, *operator) == "", "the operator"
        collector = ["--as=system:serviceaccount:kube-system:generic-garbage-collector", "--as-group=system:masters"]
        other = ["-n", "kube-system", "configmap", "other"]
        assert plane.kubectl("create", *other, "--from-literal=ipam=x").returncode == 0
        assert plane.kubectl("delete", *other).returncode == 0
        assert plane.kubectl("delete", "netloomnodes", "n1", *collector).returncode == 0
        cluster.add_node("n2")
        refusal = plane.kubectl("create", "-n", "kube-system", "configmap", "cilium-config", check=False)
        assert 'failed calling webhook "cilium-config.guard.netloom.dev"' in refusal.stderr
        glass = ["--as=admin", "--as-group=system:masters", "--as-group=netloom:break-glass"]
        assert plane.kubectl("create", "-n", "kube-system", "configmap", "cilium-config", *glass).returncode == 0
        assert plane.kubectl("delete", "-n", "kube-system", "configmap", "cilium-config", *glass).returncode == 0
    finally:
        guards.uninstall()


def patched(plane: ControlPlane, resource: str, name: str, patch: str, *options: str) -> str:
    """What kubectl says where a merge patch is not taken."""
    return plane.kubectl("patch", resource, name, "--type=merge", "-p", patch, *options, check=False).stderr


def netloom_node(name: str) -> dict[str, Any]:
    return {"apiVersion": NETLOOM_NODES.api_version, "kind": NETLOOM_NODES.kind, "metadata": {"name": name}, "spec": {}}
