"""The policies on a real API server, with no guard running: they refuse what the guard would, in the guard's words.

Each request is sent as a dry run, and what the API server says of it is compared with `netloom.guard.decide`.
"""

import itertools
import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
import pytest

from netloom.api.admission import AdmissionRequest, GroupVersionResource, UserInfo
from netloom.api.cilium import CILIUM_NODE_CONFIGS
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETWORKS, NetloomNode, NetloomNodeSpec, NodeIPAM
from netloom.guard.cluster_state import ClusterState, Users
from netloom.guard.decide import decide
from netloom.guard.record import wanted
from netloom.webhook.names import AGENT_USER, OPERATOR_USER, Guarded, Scope
from netloom_e2e.asking import put
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import PAST_THE_GUARD, Guards, apply, install_cilium, uninstall_cilium
from netloom_e2e.lab import wait_for

CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
NODE_CONFIGS = CILIUM_NODE_CONFIGS.path(namespace="kube-system")
NETWORK = NETWORKS.path("default")
ADMIN = "admin"
MODES = (None, "", " ", "cluster-pool", "multi-pool", "kubernetes", "crd", " cluster-pool ")
FLAGS = (None, "true", "1", "yes")
MIGRATION = "enable-cluster-pool-to-multi-pool-migration"


class Policies:
    """The policies alone, with a record that says what is in use."""

    def __init__(self, plane: ControlPlane, guarded: Guarded) -> None:
        self.plane = plane
        self.live = ClusterState(Users(frozenset({OPERATOR_USER}), frozenset({AGENT_USER})))
        self.guards = Guards(plane, Scope(guarded=guarded))

    def install(self, data: dict[str, str]) -> None:
        manifests = [each for each in self.guards.manifests if each["kind"] != "ValidatingWebhookConfiguration"]
        record = next(each for each in manifests if each["kind"] == "ConfigMap")
        record["data"] = data
        apply(self.plane, manifests, *PAST_THE_GUARD)

    def says(self, method: str, path: str, body: object = None) -> str:
        """What the policies say of a dry run; "" where they let it through."""
        try:
            self.plane.client.request(method, f"{path}?dryRun=All", body)
        except ApiFailure as failure:
            if failure.status == HTTPStatus.CONFLICT:
                return ""  # it is there already, which the API server sees last
            message: str = json.loads(str(failure).partition(": ")[2])["message"]
            assert "ValidatingAdmissionPolicy" in message, message
            return message.partition(" denied request: ")[2]
        return ""

    def guard_says(self, operation: Any, resource: tuple[str, str, str], old: Any, new: Any, user: str = ADMIN) -> str:
        """What the guard decides on the same request: the first thing it says, as a policy does."""
        metadata = (new or old)["metadata"]
        request = AdmissionRequest(
            uid="1",
            operation=operation,
            resource=GroupVersionResource(group=resource[0], version=resource[1], resource=resource[2]),
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            user_info=UserInfo(username=user),
            object=msgspec.Raw(json.dumps(new).encode()),
            old_object=msgspec.Raw(json.dumps(old).encode()),
        )
        refusals = decide(request, self.live).refusals
        return str(refusals[0]) if refusals else ""


@pytest.fixture
def cilium(control_plane: ControlPlane) -> Iterator[Policies]:
    """Two nodes hold addresses of mode cluster-pool."""
    policies = Policies(control_plane, "cilium")
    policies.live.recorded = {"ciliumMode": "cluster-pool", "ciliumInUse": "2 nodes hold addresses (a, b)"}
    policies.install(policies.live.recorded)
    probe = config(ipam="kubernetes")
    wait_for("the policy is in force", lambda: policies.says("POST", CONFIG_MAPS, probe), deadline=30)
    yield policies
    control_plane.kubectl(
        "delete", "--ignore-not-found", "configmap", "cilium-config", "-n", "kube-system", check=False
    )
    policies.guards.uninstall()
    control_plane.kubectl("delete", "--ignore-not-found", "configmap", "cilium-config", "-n", "kube-system")


def config(ipam: str | None = None, flag: str | None = None) -> dict[str, Any]:
    data = {key: value for key, value in (("ipam", ipam), (MIGRATION, flag)) if value is not None}
    metadata = {"name": "cilium-config", "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"debug": "false"} | data}


def test_cilium_config_made_anew(cilium: Policies) -> None:
    for ipam, flag in itertools.product(MODES, FLAGS):
        new = config(ipam, flag)
        by_guard = cilium.guard_says("CREATE", ("", "v1", "configmaps"), None, new)
        assert cilium.says("POST", CONFIG_MAPS, new) == by_guard, new


@pytest.mark.parametrize("before", [None, "", "cluster-pool", "multi-pool", "kubernetes"])
def test_cilium_config_changed(cilium: Policies, before: str | None) -> None:
    path = f"{CONFIG_MAPS}/cilium-config"
    old = config(before)
    cilium.plane.kubectl(
        "create", "-f", "-", "--as=admin", "--as-group=system:masters", "--as-group=netloom:break-glass",
        input=json.dumps(old),
    )  # fmt: skip
    refused = 0
    for ipam, flag in itertools.product(MODES, FLAGS):
        new = config(ipam, flag)
        by_guard = cilium.guard_says("UPDATE", ("", "v1", "configmaps"), old, new)
        assert cilium.says("PUT", path, new) == by_guard, (old, new)
        refused += bool(by_guard)
    assert refused >= 8
    by_guard = cilium.guard_says("DELETE", ("", "v1", "configmaps"), old, None)
    assert cilium.says("DELETE", path) == by_guard != ""


SPELLINGS = (
    {"IPAM": "kubernetes"},
    {"IPAM": " cluster-pool "},
    {"Ipam": ""},
    {"ipam": "cluster-pool", "IPAM": "kubernetes"},
    {"ipam": "kubernetes", "IPAM": "cluster-pool"},
    {"ipam": "cluster-pool", "IPAM": "cluster-pool"},
    {"IPAM": "multi-pool", MIGRATION: "true"},
    {"ipam": "multi-pool", MIGRATION.upper(): "true"},
)
"""Cilium's library reads all keys in lower case."""


def spelled(data: dict[str, str]) -> dict[str, Any]:
    return config() | {"data": data}


def test_keys_of_cilium_config_count_however_they_are_spelled(cilium: Policies) -> None:
    configurations = [config("cluster-pool"), *map(spelled, SPELLINGS)]
    refused = 0
    for old in (None, *configurations):
        if old is not None:
            put(cilium.plane, old)
        for new in configurations:
            operation, method = ("CREATE", "POST") if old is None else ("UPDATE", "PUT")
            path = CONFIG_MAPS if old is None else f"{CONFIG_MAPS}/cilium-config"
            by_guard = cilium.guard_says(operation, ("", "v1", "configmaps"), old, new)
            assert cilium.says(method, path, new) == by_guard, (old, new)
            refused += bool(by_guard)
    assert refused >= 20


def test_other_config_maps_are_left_alone(cilium: Policies) -> None:
    other = config("kubernetes")
    other["metadata"]["name"] = "other"
    assert cilium.says("POST", CONFIG_MAPS, other) == ""
    other["metadata"] = {"name": "cilium-config", "namespace": "default"}
    assert cilium.says("POST", "/api/v1/namespaces/default/configmaps", other) == ""


@pytest.fixture
def node_configs(cilium: Policies) -> Iterator[Policies]:
    """With Cilium's kinds, which come after the policies here."""
    install_cilium(cilium.plane)
    try:
        probe = node_config("probe", "kubernetes")
        wait_for("the policy is in force", lambda: cilium.says("POST", NODE_CONFIGS, probe), deadline=30)
        yield cilium
    finally:
        uninstall_cilium(cilium.plane)


def node_config(name: str, ipam: str | None = None, zone: str = "a", version: str = "v2") -> dict[str, Any]:
    return {
        "apiVersion": f"cilium.io/{version}",
        "kind": "CiliumNodeConfig",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {
            "defaults": {"debug": "false"} | ({} if ipam is None else {"ipam": ipam}),
            "nodeSelector": {"matchLabels": {"zone": zone}},
        },
    }


def test_cilium_node_configs(node_configs: Policies) -> None:
    """Made anew, changed into each other, and deleted."""
    plane, resource = node_configs.plane, ("cilium.io", "v2", "ciliumnodeconfigs")
    refused = 0
    for number, before in enumerate(MODES):
        name = f"some-{number}"
        old = node_config(name, before)
        by_guard = node_configs.guard_says("CREATE", resource, None, old)
        assert node_configs.says("POST", NODE_CONFIGS, old) == by_guard, old
        put(plane, old)
        path = f"{NODE_CONFIGS}/{name}"
        stored = plane.client.request("GET", path)
        for ipam, zone in itertools.product(MODES, ("a", "b")):
            new = stored | {"spec": node_config(name, ipam, zone)["spec"]}
            by_guard = node_configs.guard_says("UPDATE", resource, stored, new)
            assert node_configs.says("PUT", path, new) == by_guard, (stored, new)
            refused += bool(by_guard)
        for defaults, zone in itertools.product(SPELLINGS, ("a", "b")):
            new = stored | {"spec": node_config(name, None, zone)["spec"] | {"defaults": dict(defaults)}}
            by_guard = node_configs.guard_says("UPDATE", resource, stored, new)
            assert node_configs.says("PUT", path, new) == by_guard, (stored, new)
        assert node_configs.says("DELETE", path) == node_configs.guard_says("DELETE", resource, stored, None) == ""
    assert refused >= 50
    older = node_config("older", "kubernetes", version="v2alpha1")
    path = f"/apis/cilium.io/v2alpha1/namespaces/kube-system/{CILIUM_NODE_CONFIGS.plural}"
    assert node_configs.says("POST", path, older) == node_configs.guard_says("CREATE", resource, None, older) != ""


@pytest.fixture
def netloom(crds_installed: ControlPlane) -> Iterator[Policies]:
    """Two nodes hold addresses of mode cluster-pool, and the network is not there (yet)."""
    policies = Policies(crds_installed, "netloom")
    for name in ("a", "b"):
        ipam = NodeIPAM(mode="cluster-pool", pod_cidrs=("10.244.1.0/24",))
        node = NetloomNode(metadata=ObjectMeta(name=name), spec=NetloomNodeSpec(ipam=ipam))
        policies.live.netloom_node(name, None, node)
    policies.install(wanted(policies.live))
    probe = network("kubernetes")
    wait_for("the policy is in force", lambda: policies.says("POST", NETWORKS.path(), probe), deadline=30)
    yield policies
    policies.guards.uninstall()
    wait_for("the policies are gone", lambda: not policies.says("POST", NETWORKS.path(), probe), deadline=30)
    crds_installed.delete_all("netloomnetworks.v1alpha1.netloom.dev", "netloomnodes.v1alpha1.netloom.dev")


NETWORK_RESOURCE = ("netloom.dev", "v1alpha1", "netloomnetworks")


def network(mode: str, *, name: str = "default", status: str = "") -> dict[str, Any]:
    ipam: dict[str, Any] = {"mode": mode}
    if mode == "cluster-pool":
        ipam["clusterPool"] = {"ipv4PodCIDRList": ["10.244.0.0/16"]}
    manifest = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNetwork", "metadata": {"name": name}}
    manifest["spec"] = {"ipam": ipam}
    return manifest | ({"status": {"ipam": {"mode": status}}} if status else {})


def test_a_network_made_anew_in_another_mode(netloom: Policies) -> None:
    for mode in ("kubernetes", "cluster-pool", "multi-pool"):
        by_guard = netloom.guard_says("CREATE", NETWORK_RESOURCE, None, network(mode))
        assert netloom.says("POST", NETWORKS.path(), network(mode)) == by_guard
        assert bool(by_guard) == (mode != "cluster-pool")


def by_helm(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    """As Helm creates it, of a release in that namespace."""
    marks = {"labels": {"app.kubernetes.io/managed-by": "Helm"}}
    marks["annotations"] = {"meta.helm.sh/release-name": "any", "meta.helm.sh/release-namespace": namespace}
    return manifest | {"metadata": manifest["metadata"] | marks}


def test_what_its_own_release_creates_waits_for_no_guard_and_gets_past_no_policy(netloom: Policies) -> None:
    """A release makes network, pools and guard in one go. Nothing else is created without the guard's word."""
    webhooks = [each for each in netloom.guards.manifests if each["kind"] == "ValidatingWebhookConfiguration"]
    apply(netloom.plane, webhooks)
    ours, spec = netloom.guards.scope.namespace, {"ipv4": {"cidrs": ["10.60.0.0/16"], "maskSize": 28}}
    pool = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomIPPool", "metadata": {"name": "p"}, "spec": spec}
    same, other = network("cluster-pool"), network("kubernetes")

    def said(resource: str, manifest: dict[str, Any]) -> str:
        try:
            netloom.plane.client.request("POST", f"{resource}?dryRun=All", manifest)
        except ApiFailure as failure:
            return str(failure)
        return ""

    pools = NETWORKS.path().replace("netloomnetworks", "netloomippools")
    wait_for("no guard is reached", lambda: "failed calling webhook" in said(pools, pool), deadline=30)
    for resource, manifest in ((pools, pool), (NETWORKS.path(), same)):
        assert "failed calling webhook" in said(resource, manifest)
        assert "failed calling webhook" in said(resource, by_helm(manifest, "shop"))
        assert said(resource, by_helm(manifest, ours)) == ""
    by_guard = netloom.guard_says("CREATE", NETWORK_RESOURCE, None, other)
    assert netloom.says("POST", NETWORKS.path(), by_helm(other, ours)) == by_guard != ""


@pytest.mark.parametrize("locked", [False, True], ids=["by the record", "by its status"])
def test_a_network_that_is_in_use(netloom: Policies, locked: bool) -> None:
    stored = netloom.plane.client.request("POST", NETWORKS.path(), network("cluster-pool"))
    if locked:
        netloom.plane.kubectl(
            "patch", "netloomnetworks", "default", "--subresource=status", "--type=merge",
            "-p", '{"status": {"ipam": {"mode": "cluster-pool"}}}', "--as", OPERATOR_USER, "--as-group=system:masters",
        )  # fmt: skip
        stored = netloom.plane.client.request("GET", NETWORK)
    else:
        # With the lock in its status, the rules of the CRD are asked before any policy.
        changed = stored | {"spec": network("kubernetes")["spec"]}
        assert (
            netloom.says("PUT", NETWORK, changed)
            == netloom.guard_says("UPDATE", NETWORK_RESOURCE, stored, changed)
            != ""
        )
    wider = json.loads(json.dumps(stored))
    wider["spec"]["ipam"]["clusterPool"]["ipv4PodCIDRList"].append("10.245.0.0/16")
    assert netloom.says("PUT", NETWORK, wider) == ""
    assert netloom.says("DELETE", NETWORK) == netloom.guard_says("DELETE", NETWORK_RESOURCE, stored, None) != ""
    edited = stored | {"status": {"ipam": {"ledgers": ["x"]}}}
    by_guard = netloom.guard_says("UPDATE", NETWORK_RESOURCE, stored, edited)
    assert netloom.says("PUT", f"{NETWORK}/status", edited) == by_guard != ""
    conditions = [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Yes",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
    seen = stored | {"status": {**stored.get("status", {}), "conditions": conditions}}
    assert netloom.says("PUT", f"{NETWORK}/status", seen) == ""


def test_a_network_that_waits_for_its_deletion_keeps_its_finalizer(netloom: Policies) -> None:
    waiting = network("cluster-pool")
    waiting["metadata"]["finalizers"] = ["netloom.dev/in-use"]
    netloom.plane.client.request("POST", NETWORKS.path(), waiting)
    netloom.plane.kubectl(
        "delete", "netloomnetworks", "default", "--wait=false",
        "--as=admin", "--as-group=system:masters", "--as-group=netloom:break-glass",
    )  # fmt: skip
    stored = netloom.plane.client.request("GET", NETWORK)
    freed = stored | {"metadata": {**stored["metadata"], "finalizers": []}}
    by_guard = netloom.guard_says("UPDATE", NETWORK_RESOURCE, stored, freed)
    assert netloom.says("PUT", NETWORK, freed) == by_guard != ""
