"""What an installation of the guard consists of, and above all: what it does not touch."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from netloom.api.errors import UserError
from netloom.webhook.manifests import Installation, render
from netloom.webhook.names import LABEL, OPERATOR_USER, Guarded, Scope

IMAGE = "registry.example/netloom:1"
URL = "https://127.0.0.1:9443"
SCOPES: tuple[Guarded, ...] = ("cilium", "netloom", "all")

Manifest = dict[str, Any]


def installed(guarded: Guarded = "all", **options: Any) -> list[Manifest]:
    return render(Installation(scope=Scope(guarded=guarded), **({"image": IMAGE} | options)))


def named(manifests: list[Manifest]) -> list[str]:
    return [f"{each['kind']} {each['metadata']['name']}" for each in manifests]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def webhooks(guarded: Guarded = "all", **options: Any) -> list[Manifest]:
    found: list[Manifest] = only(installed(guarded, **options), "ValidatingWebhookConfiguration")["webhooks"]
    return found


def strings(value: object) -> Iterator[str]:
    """All texts in a manifest, keys included."""
    if isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(strings, [*value, *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(strings, value))
    elif isinstance(value, str):
        yield value


def test_for_cilium_there_is_nothing_of_our_network() -> None:
    manifests = installed("cilium")
    assert named(manifests) == [
        "Namespace netloom-system",
        "ServiceAccount netloom-guard",
        "ClusterRole netloom-guard",
        "ClusterRoleBinding netloom-guard",
        "Role netloom-guard",
        "RoleBinding netloom-guard",
        "Role netloom-guard-cilium",
        "RoleBinding netloom-guard-cilium",
        "ConfigMap netloom-guard",
        "Service netloom-guard",
        "Deployment netloom-guard",
        "PodDisruptionBudget netloom-guard",
        "ValidatingAdmissionPolicy netloom-guard-cilium",
        "ValidatingAdmissionPolicyBinding netloom-guard-cilium",
        "ValidatingAdmissionPolicy netloom-guard-cilium-node-config",
        "ValidatingAdmissionPolicyBinding netloom-guard-cilium-node-config",
        "ValidatingAdmissionPolicy netloom-guard-cilium-workloads",
        "ValidatingAdmissionPolicyBinding netloom-guard-cilium-workloads",
        "ValidatingAdmissionPolicy netloom-guard-cilium-parts",
        "ValidatingAdmissionPolicyBinding netloom-guard-cilium-parts",
        "ValidatingAdmissionPolicy netloom-guard-record-writes",
        "ValidatingAdmissionPolicyBinding netloom-guard-record-writes",
        "ValidatingAdmissionPolicy netloom-guard-record",
        "ValidatingAdmissionPolicyBinding netloom-guard-record",
        "ValidatingWebhookConfiguration netloom-guard",
    ]
    ours = {"netloomnetworks", "netloomnodes", "netloomippools", "netloom.dev", "NetloomNetwork", "NetloomNode"}
    assert ours.isdisjoint(strings(manifests))
    assert not any("netloom-operator" in text or "netloom-agent" in text for text in strings(manifests))
    assert [each["name"] for each in webhooks("cilium")] == [
        "cilium-config.guard.netloom.dev",
        "cilium-pool.guard.netloom.dev",
        "cilium-node.guard.netloom.dev",
        "cilium-node-config.guard.netloom.dev",
    ]


def test_for_netloom_there_is_nothing_of_cilium() -> None:
    manifests = installed("netloom")
    theirs = {"ciliumnodes", "ciliumpodippools", "ciliumnodeconfigs", "cilium.io", "configmaps"}
    roles = only(manifests, "ClusterRole")
    assert theirs.isdisjoint(strings([roles, *webhooks("netloom")]))
    assert "Role netloom-guard-cilium" not in named(manifests)


@pytest.mark.parametrize("guarded", SCOPES)
def test_what_the_webhooks_can_hold_up(guarded: Guarded) -> None:
    """Whatever fails, only writes of the guarded kinds can be refused, and none that a condition keeps out."""
    for webhook in webhooks(guarded):
        (rule,) = webhook["rules"]
        guardable = {"netloomnetworks", "netloomnetworks/status", "netloomippools", "netloomnodes", "configmaps"}
        assert set(rule["resources"]) <= guardable | {"ciliumpodippools", "ciliumnodes", "ciliumnodeconfigs"}
        assert "*" not in strings(rule)
        made = [] if rule["resources"] == ["ciliumnodes"] else ["CREATE"]
        assert rule["operations"] == [*made, "UPDATE", "DELETE"]
        assert webhook["failurePolicy"] == "Fail"
        assert 0 < webhook["timeoutSeconds"] <= 5
        assert webhook["sideEffects"] == "None"
        conditions = {each["name"]: each["expression"] for each in webhook["matchConditions"]}
        assert "netloom:break-glass" in conditions["no-break-glass"]
        assert "request.operation" in conditions["what-is-guarded"]


def test_config_maps_are_guarded_by_name_in_one_namespace() -> None:
    (webhook,) = (each for each in webhooks("cilium") if each["rules"][0]["resources"] == ["configmaps"])
    assert webhook["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert webhook["matchConditions"][0]["expression"].endswith(".?metadata.?name.orValue('') == 'cilium-config'")


def test_node_configs_are_guarded_in_one_namespace_and_both_versions() -> None:
    matched = next(each for each in webhooks("cilium") if each["rules"][0]["resources"] == ["ciliumnodeconfigs"])
    policy = next(
        each for each in installed("cilium") if each["metadata"]["name"] == "netloom-guard-cilium-node-config"
    )
    constraints = policy["spec"]["matchConstraints"]
    assert matched["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert matched["rules"][0]["apiVersions"] == ["v2", "v2alpha1"]
    assert constraints["namespaceSelector"] == matched["namespaceSelector"]
    assert constraints["resourceRules"] == matched["rules"]


@pytest.mark.parametrize("guarded", SCOPES)
def test_break_glass_takes_away_all_that_stands_in_the_way(guarded: Guarded) -> None:
    manifests = installed(guarded)
    in_the_way = {"ValidatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    labelled = {each["kind"] for each in manifests if LABEL in each["metadata"].get("labels", {})}
    assert labelled == in_the_way
    for policy in (each for each in manifests if each["kind"] == "ValidatingAdmissionPolicy"):
        assert any("netloom:break-glass" in each["expression"] for each in policy["spec"]["matchConditions"])


@pytest.mark.parametrize("guarded", SCOPES)
def test_the_rights_are_the_least(guarded: Guarded) -> None:
    manifests = installed(guarded)
    for role in (each for each in manifests if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in strings(rule)
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            if role["kind"] == "ClusterRole" and writes:
                assert rule["resources"] == ["validatingwebhookconfigurations"]
                assert (writes, rule["resourceNames"]) == ({"patch"}, ["netloom-guard"])
            if set(rule["resources"]) & {"secrets", "configmaps"} and rule["verbs"] != ["create"]:
                assert rule["resourceNames"]


def test_the_pods_are_as_restricted_as_pods_in_the_network_of_the_host_can_be() -> None:
    pod = only(installed(), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["hostNetwork"] is True, "the guard must not need the network that it guards"
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert container["command"][:2] == ["netloom", "webhook"]


def test_two_replicas_on_two_nodes_of_which_one_stays() -> None:
    manifests = installed()
    spec = only(manifests, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    apart = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert apart["requiredDuringSchedulingIgnoredDuringExecution"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert only(manifests, "PodDisruptionBudget")["spec"]["minAvailable"] == 1
    alone = named(installed(replicas=1))
    assert "PodDisruptionBudget netloom-guard" not in alone, "it would hold up every drain of that node for ever"


def test_a_guard_at_a_url_needs_neither_service_nor_deployment() -> None:
    manifests = installed(image="", url=URL)
    assert {"Service", "Deployment", "PodDisruptionBudget"}.isdisjoint(each["kind"] for each in manifests)
    assert [each["clientConfig"] for each in webhooks(image="", url=f"{URL}/")] == [{"url": f"{URL}/validate"}] * 7


def test_what_the_guard_writes_is_left_out() -> None:
    """Else whoever applies the manifests again, as GitOps does all the time, would take it away."""
    assert "data" not in only(installed(), "ConfigMap")
    assert all("caBundle" not in each["clientConfig"] for each in webhooks())


def test_certificates_of_cert_manager() -> None:
    manifests = installed(tls_secret="guard-tls", inject_ca_from="netloom-system/guard")
    annotations = only(manifests, "ValidatingWebhookConfiguration")["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": "netloom-system/guard"}
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "tls", "secret": {"secretName": "guard-tls"}}]
    assert "--tls-cert-file=/etc/netloom-guard/tls/tls.crt" in pod["containers"][0]["command"]
    assert "secrets" not in strings([each for each in manifests if each["kind"] == "Role"])


def test_a_given_ca_stands_in_every_webhook() -> None:
    bundles = [each["clientConfig"]["caBundle"] for each in webhooks(tls_secret="guard-tls", ca_bundle="UEVN")]
    assert bundles == ["UEVN"] * 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": ""}, "--image"),
        ({"replicas": 0}, "--replicas 0"),
        ({"url": "http://127.0.0.1:9443"}, "https:// only"),
        ({"url": "https://:9443"}, "no host in it"),
        ({"url": "https://[::1:9443"}, "no host in it"),
        ({"tls_secret": "guard-tls"}, "--ca-file"),
        ({"ca_bundle": "UEVN"}, "--tls-secret"),
    ],
    ids=json.dumps,
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        installed(**options)


def test_only_guards_write_the_record() -> None:
    """Nobody else is left out of the policy: an operator is a guard where Netloom is guarded."""
    account = "system:serviceaccount:netloom-system:netloom-guard"
    named = replace(Scope("cilium"), guard_users=("cp-1",))
    assert named.record_users == (account, "cp-1")
    assert Scope("netloom").record_users == (account, OPERATOR_USER)
    manifests = render(Installation(scope=named, image="x"))
    policy = next(each for each in manifests if each["metadata"]["name"] == "netloom-guard-record-writes")
    conditions = {each["name"]: each["expression"] for each in policy["spec"]["matchConditions"]}
    assert conditions["not-the-guard"] == f"!(request.userInfo.?username.orValue('') in ['{account}', 'cp-1'])"
