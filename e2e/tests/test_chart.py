"""The Helm chart without a cluster: it says what its sources say, and mistaken values are refused in words."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from netloom.cli.app import app
from netloom.runtime.yaml_documents import documents
from netloom.webhook.manifests import Installation, render
from netloom.webhook.names import Guarded, Scope
from netloom_e2e import chart_sources
from netloom_e2e.chart import CHART, CI, ROOT, SOME_IMAGE, ChartError, Manifest, helm, rendered, template
from netloom_e2e.chart_changes import Values, and_, defaults, texts

pytestmark = pytest.mark.usefixtures("helm_binary")

NAMESPACE = "netloom-system"
IMAGE = "registry.example/netloom:1"
GUARD_ALONE: dict[str, Any] = {
    "agent.enabled": False,
    "image": {"repository": "registry.example/netloom", "tag": "1", "pullPolicy": ""},
}


@pytest.mark.parametrize("files", [chart_sources.sources, chart_sources.renderings])
def test_what_has_its_source_elsewhere_is_up_to_date(files: Any) -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in files().items() if path.read_text() != text]
    assert not stale, "run `make chart`, and look at what it changed"


@pytest.mark.parametrize("values", sorted(CI.glob("*.yaml")), ids=lambda path: path.stem)
def test_helm_finds_no_fault(values: Path) -> None:
    there = "--set=prometheus.serviceMonitor.trustCRDsExist=true"  # what it looks at knows no kinds of anybody's
    said = helm("lint", "--strict", CHART, f"--values={values}", there)
    assert "0 chart(s) failed" in said
    assert "WARNING" not in said


def by_name(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {
        f"{each['kind']} {each['metadata']['name']}": each
        for each in manifests
        if "helm.sh/hook" not in each["metadata"].get("annotations", {})
    }


QUOTED = ("o'brien", r"back\slash")


@pytest.mark.parametrize(
    ("guarded", "values", "installation"),
    [
        ("cilium", {"guard.ciliumNamespace": "cilium"}, {}),
        ("all", {}, {}),
        ("netloom", {"guard.replicas": 1}, {"replicas": 1}),
        (
            "all",
            {"guard.tls": {"secretName": "own", "injectCaFrom": "a/b"}},
            {"tls_secret": "own", "inject_ca_from": "a/b"},
        ),
        (
            "netloom",
            {"guard.url": "https://[::1]:9443/", "guard.tls.caBundle": "Q0E="},
            {"url": "https://[::1]:9443", "ca_bundle": "Q0E="},
        ),
        (
            "cilium",
            {"guard.url": "https://guard.local:9443", "guard.users": [*QUOTED]},
            {"url": "https://guard.local:9443"},
        ),
    ],
)
def test_the_guard_alone_is_what_guard_install_prints(
    guarded: Guarded, values: dict[str, Any], installation: dict[str, Any]
) -> None:
    users: dict[str, Any] = {"guard_users": QUOTED} if "guard.users" in values else {}
    scope = Scope(guarded, NAMESPACE, values.get("guard.ciliumNamespace", "kube-system"), **users)
    wanted = by_name(render(Installation(scope=scope, image=IMAGE, **installation)))
    del wanted[f"Namespace {NAMESPACE}"]  # that of the release, which is there
    assert by_name(rendered(GUARD_ALONE | {"guard.for": guarded} | values)) == wanted


def test_as_part_of_the_operator_it_has_the_same_rights_and_rules() -> None:
    users = {"guard.operatorUsers": [*QUOTED], "guard.agentUsers": ["own"]}
    namespace = "elsewhere"
    accounts = [f"system:serviceaccount:{namespace}:netloom-{role}" for role in ("operator", "agent")]
    scope = Scope(
        "netloom",
        namespace,
        operator_users=(accounts[0], *QUOTED),
        agent_users=(accounts[1], *users["guard.agentUsers"]),
    )
    wanted = by_name(render(Installation(scope=scope, image=IMAGE, in_operator=True)))
    found = by_name(rendered(users, namespace=namespace))
    for name in (f"Namespace {namespace}", "ServiceAccount netloom-guard", "Deployment netloom-guard"):
        del wanted[name]
    del wanted["PodDisruptionBudget netloom-guard"]
    for name, each in wanted.items():
        for subject in each.get("subjects", []) if name.startswith(("ClusterRoleBinding", "RoleBinding")) else []:
            subject["name"] = "netloom-operator"
    wanted["Service netloom-guard"]["spec"]["selector"] = {"app.kubernetes.io/name": "netloom-operator"}
    assert {name: found[name] for name in wanted} == wanted
    (container,) = found["Deployment netloom-operator"]["spec"]["template"]["spec"]["containers"]
    assert {"--webhook-address=:9443", "--webhook-for=netloom", rf"--operator-user={QUOTED[1]}"} <= {*container["args"]}


OF_ROLES = {"--for": "--webhook-for", "--address": "--webhook-address"}
"""How `netloom operator` calls what `netloom webhook` calls so."""
OWN_SERVER = "--http-address"
"""Of the role, be it the guard's or the operator's: each has a port of its own."""
TLS = {"guard.tls": {"secretName": "own", "injectCaFrom": "a/b"}}
NOT_OF_THE_CHART = {
    **dict.fromkeys(
        ("--kubeconfig", "--context", "--identity", "--namespace"), "a pod is told of its cluster and itself"
    ),
    **dict.fromkeys(("--secret", "--configuration"), "names of objects, which are fixed in a release"),
    **dict.fromkeys(("--dns-name", "--tls-ca-file"), "where the guard runs elsewhere: guard.url"),
    **dict.fromkeys(("--log-format", "--log-level"), "debug.enabled, by the environment"),
}
"""Options of a guard that no pod of the chart is started with."""


def _guard_arguments(values: dict[str, Any]) -> list[str]:
    """What a pod tells its guard, in the words of `netloom webhook`."""
    ours = {name: role for role, name in OF_ROLES.items()}
    found = by_name(rendered(values | {"guard.operatorUsers": ["a"], "guard.agentUsers": ["b"]}))
    deployment = next(
        found[f"Deployment netloom-{each}"] for each in ("guard", "operator") if f"Deployment netloom-{each}" in found
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    pairs = [each.partition("=") for each in container.get("args") or container["command"][2:]]
    return [f"{ours.get(name, name)}={value}" for name, equals, value in pairs if equals and name != OWN_SERVER]


@pytest.mark.parametrize("tls", [{}, TLS], ids=["own certificates", "given certificates"])
@pytest.mark.parametrize("guarded", ["netloom", "all"])
def test_as_part_of_the_operator_it_is_told_what_the_guard_alone_is_told(guarded: Guarded, tls: dict[str, Any]) -> None:
    alone, with_operator = (
        _guard_arguments({"agent.enabled": each, "guard.for": guarded} | tls) for each in (False, True)
    )
    assert sorted(with_operator) == sorted(alone)


def test_a_guard_has_no_option_that_the_chart_forgot() -> None:
    """A new one is either given in `webhook.manifests.arguments`, or named here with the reason."""
    command = typer.main.get_command(app).commands["webhook"]  # type: ignore[attr-defined]
    options = {max(each.opts, key=len) for each in command.params} - {OWN_SERVER}
    told = {each.partition("=")[0] for each in _guard_arguments({"agent.enabled": False, "guard.for": "all"} | TLS)}
    assert options == told | NOT_OF_THE_CHART.keys()


@pytest.mark.parametrize("golden", sorted(chart_sources.GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_pods_are_started_by_words_that_netloom_knows(golden: Path) -> None:
    pods = [each for each in documents(golden.read_text()) if each["kind"] in ("DaemonSet", "Deployment")]
    assert pods
    for pod in pods:
        for container in pod["spec"]["template"]["spec"]["containers"]:
            role, *words = (*container.get("command", [])[1:], *container.get("args", []))
            command = typer.main.get_command(app).commands[role]  # type: ignore[attr-defined]
            command.make_context(role, words)


def test_agents_that_install_no_plugin_cannot_write_nodes() -> None:
    def rights(**values: Any) -> list[Manifest]:
        return [
            rule
            for rule in by_name(rendered(values))["ClusterRole netloom-agent"]["rules"]
            if "nodes" in rule["resources"]
        ]

    assert [rule["verbs"] for rule in rights()] == [["get", "list", "watch"], ["patch"]]
    assert [rule["verbs"] for rule in rights(**{"cni.install": False})] == [["get", "list", "watch"]]


POOL = {"default": {"ipv4": {"cidrs": ["10.60.0.0/16"], "maskSize": 27}}}
NO_EFFECT = "have no effect in ipam.mode=kubernetes. Leave them out, or set ipam.mode="
CIDRS4, CIDRS6 = (f"ipam.operator.clusterPoolIPv{family}PodCIDRList" for family in (4, 6))
CLUSTER_POOL = {"ipam.mode": "cluster-pool", CIDRS4: ["10.0.0.0/8"]}


def pools(**of: Any) -> dict[str, Any]:
    return {"ipam.mode": "multi-pool", "pools": of}


def ipv4(*cidrs: str, mask: int = 27) -> dict[str, Any]:
    return {"ipv4": {"cidrs": cidrs, "maskSize": mask}}


MISTYPED: list[tuple[dict[str, Any], str]] = [
    # What is no value of ours, or of another type.
    ({"operator.replica": 3}, "at '/operator': additional properties 'replica' not allowed"),
    ({"operator.replicas": "two"}, "at '/operator/replicas': got string, want integer"),
    ({"operator.replicas": 0}, "at '/operator/replicas': minimum: got 0, want 1"),
    ({"routingMode": "tunel"}, "at '/routingMode': value must be one of 'tunnel', 'native', 'hybrid'"),
    ({"operators": {}}, "at '': additional properties 'operators' not allowed"),
    ({"resources": {"requests": {"cpu": "lots"}}}, "at '/resources/requests/cpu': 'lots' does not match pattern"),
    ({"resources": {"request": {}}}, "at '/resources': additional properties 'request' not allowed"),
    ({"nodeSelector": {"a": True}}, "at '/nodeSelector/a': got boolean, want string"),
    ({"operator.podAnnotations": {"a": 1}}, "at '/operator/podAnnotations/a': got number, want string"),
    ({"tolerations": [{"operator": "Exist"}]}, "at '/tolerations/0/operator': value must be one of 'Exists', 'Equal'"),
    ({"affinity": {"podAfinity": {}}}, "at '/affinity': additional properties 'podAfinity' not allowed"),
    (
        {"updateStrategy.type": "Recreate"},
        "at '/updateStrategy/type': value must be one of 'RollingUpdate', 'OnDelete'",
    ),
    ({"extraEnv": [{"nam": "A"}]}, "at '/extraEnv/0': missing property 'name'"),
    ({"agent.seLinuxOptions": {"typ": "x"}}, "at '/agent/seLinuxOptions': additional properties 'typ' not allowed"),
    ({"guard.users": ["a\nb"]}, "at '/guard/users/0': 'a\\nb' does not match pattern"),
    ({"guard.ciliumNamespace": "Kube System"}, "at '/guard/ciliumNamespace': 'Kube System' does not match pattern"),
    ({"devices": ["eth0", "eth0"]}, "at '/devices': items at 0 and 1 are equal"),
    ({"devices": ["a b"]}, "at '/devices/0': 'a b' does not match pattern"),
    ({"network.nodeSelector": {"a": "b"}}, "at '/network/nodeSelector': additional properties 'a' not allowed"),
    (pools(a=ipv4("10.60.0.0/16", mask=33)), "at '/pools/a/ipv4/maskSize': maximum: got 33, want 32"),
    (pools(a=ipv4("10.60.0.0/16") | {"preAllocation": -1}), "at '/pools/a/preAllocation': minimum: got -1, want 0"),
    ({"agent.enabled": "yes"}, "at '/agent/enabled': got string, want boolean"),
    ({"tunnelPort": "8472"}, "at '/tunnelPort': got string, want integer"),
    ({"tunnelPort": 70000}, "at '/tunnelPort': maximum: got 70,000, want 65,535"),
    ({CIDRS4: "10.0.0.0/16"}, "PodCIDRList': got string, want array"),
    ({CIDRS4: [f"10.{each}.0.0/16" for each in range(33)]}, "PodCIDRList': maxItems: got 33, want 32"),
    ({"devices": "eth0"}, "at '/devices': got string, want array"),
    ({"ipam.mode": "Kubernetes"}, "at '/ipam/mode': value must be one of 'kubernetes', 'cluster-pool', 'multi-pool'"),
    ({"image.pullPolicy": "Sometimes"}, "at '/image/pullPolicy': value must be one of '', 'Always', 'IfNotPresent'"),
    (pools(a=ipv4("10.60.0.0/16") | {"draned": True}), "at '/pools/a': additional properties 'draned' not allowed"),
    (pools(a={"ipv5": {}}), "at '/pools/a': additional properties 'ipv5' not allowed"),
    (CLUSTER_POOL | {"ipam.operator.clusterPoolIPv4MaskSize": 31}, "MaskSize': maximum: got 31, want 30"),
]
"""By the schema, in Helm's words."""


def test_mistyped_values_are_named() -> None:
    """Helm names all of them at once, so what concerns other values is put together."""
    rounds: list[tuple[dict[str, Any], list[str]]] = []
    for values, said in MISTYPED:
        values_of_round, words = next((each for each in rounds if not each[0].keys() & values.keys()), ({}, []))
        if not words:
            rounds.append((values_of_round, words))
        values_of_round.update(values)
        words.append(said)
    for values, words in rounds:
        with pytest.raises(ChartError) as refusal:
            template(values)
        text = str(refusal.value)
        assert [said for said in words if said not in text] == [], text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"agent.enabled": False, "guard.enabled": False}, "there is nothing to install. Set guard.enabled=true"),
    (
        {"guard.for": "cilium"},
        "guard.for=cilium leaves the network of these agents unguarded. Set guard.for to netloom",
    ),
    (
        {"guard.tls.secretName": "own"},
        "guard.tls.secretName: who vouches for that certificate is not said. Set guard.tls.caB",
    ),
    ({"guard.tls.caBundle": "Q0E="}, "which the given CA does not vouch for. Set guard.tls.secretName as well"),
    ({"ipam.mode": "cluster-pool"}, "no range is safe to guess. Set ipam.operator.clusterPoolIPv4PodCIDRList"),
    ({"ipam.operator.clusterPoolIPv4PodCIDRList": ["10.0.0.0/8"]}, NO_EFFECT + "cluster-pool."),
    ({"pools": POOL}, "pools " + NO_EFFECT + "multi-pool."),
    ({"pools": POOL, "agent.enabled": False}, "Leave pools out, or set agent.enabled=true."),
    ({"ipam.mode": "eni"}, "ipam.mode=eni is not served yet. Use kubernetes"),
    ({"ipam.mode": "crd"}, "routingMode=tunnel does not work with ipam.mode=crd. Set routingMode=native."),
    ({"ipam.mode": "gke", "routingMode": "native"}, "ipam.mode=gke needs ipv4NativeRoutingCIDR"),
    ({"autoDirectNodeRoutes": True}, "autoDirectNodeRoutes does not work with routingMode=tunnel"),
    ({"directRoutingSkipUnreachable": True}, "Set autoDirectNodeRoutes=true as well, or leave it off."),
    ({"MTU": 1000}, "MTU=1000: below 1280 bytes IPv6 does not work (RFC 8200). Set at least 1280"),
    ({"prometheus.serviceMonitor.enabled": True}, "Set prometheus.enabled=true as well."),
    ({"operator.prometheus.serviceMonitor.enabled": True}, "Set operator.prometheus.enabled=true as well."),
    # null takes a default away; of lists and maps it means none.
    ({"ipam": None}, "ipam, ipam.mode, ipam.operator, ipam.operator.clusterPoolIPv4MaskSize"),
    ({"guard.tls": None}, "guard.tls.injectCaFrom: missing. Where a file or --set says null, leave it out, so that"),
    ({"image.tag": None}, "image.tag: missing. Where a file or --set says null, leave it out"),
    # What the API server would refuse of pods, when all else is done.
    ({"extraEnv": [{"name": "NODE_NAME"}]}, "extraEnv: NODE_NAME is there already, by this chart or twice."),
    ({"operator.extraEnv": [{"name": "A"}, {"name": "A"}]}, "operator.extraEnv: A is there already"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is how these pods are found."),
    ({"operator.podDisruptionBudget.minAvailable": "x"}, 'minAvailable: "x" is no number of pods. Write one such as 1'),
    ({"operator.podDisruptionBudget.minAvailable": "100%"}, "minAvailable=100% with operator.replicas=2 lets no node"),
    ({"cni.binPath": "/opt/cni/.."}, 'cni.binPath: "/opt/cni/.." is no absolute path of a folder'),
    ({"cni.confPath": "/opt/cni/bin/"}, "cni.binPath and cni.confPath are both /opt/cni/bin, and container runtimes"),
    ({"cni.chainedPlugins": ["a,b"]}, 'cni.chainedPlugins: "a,b" is no plugin that could run behind Netloom'),
    (
        {"agent.features": "masquerad"},
        "agent.features: masquerad is no feature. Write * for all of them, or of tunnels,",
    ),
    ({"operator.features": ""}, "operator.features: nothing is no feature."),
    # And of the network, which comes last.
    (pools(**{"a..b": ipv4("10.60.0.0/16")}), "pools.a..b: a pool's name has lower case letters"),
    # Cilium's values.
    (
        {"tunnel": "disabled", "cni.exclusive": False, "operator.image": {"tag": "x"}, "hubble": {}, "l7Proxy": True},
        "cni.exclusive: other configurations stay where they are, and one that goes before Netloom's is reported. "
        "operator.image: roles have one image, image.repository. tunnel: set routingMode, and tunnelProtocol; "
        "tunnel=disabled is routingMode=native. hubble, l7Proxy: not done by Netloom; leave it out.",
    ),
    # CIDRs.
    (
        CLUSTER_POOL | {CIDRS4: ["10.0.0.0"]},
        CIDRS4 + ': "10.0.0.0" is not an IPv4 CIDR. Write one such as 10.244.0.0/16.',
    ),
    (CLUSTER_POOL | {CIDRS4: ["10.0.300.0/16"]}, '"10.0.300.0/16" is not an IPv4 CIDR.'),
    (CLUSTER_POOL | {CIDRS4: ["10.0.0.0/33"]}, '"10.0.0.0/33" is not an IPv4 CIDR.'),
    (CLUSTER_POOL | {CIDRS4: ["fd00::/48"]}, '"fd00::/48" is not an IPv4 CIDR.'),
    (CLUSTER_POOL | {CIDRS6: ["10.1.0.0/16"]}, '"10.1.0.0/16" is not an IPv6 CIDR. Write one such as fd00:42::/56.'),
    (CLUSTER_POOL | {CIDRS4: ["010.0.0.0/8"]}, '"010.0.0.0/8" is not an IPv4 CIDR.'),
    (CLUSTER_POOL | {CIDRS4: ["127.0.0.0/9"]}, "pods cannot use all of 127.0.0.0/9: the standards give 127.0.0.0/8"),
    (
        CLUSTER_POOL | {CIDRS4: ["0.0.0.0/0"]},
        "pods cannot use all of 0.0.0.0/0: the standards give 0.0.0.0/8 a meaning",
    ),
    (
        CLUSTER_POOL | {CIDRS6: ["fe80::/48"]},
        "pods cannot use all of fe80::/48: the standards give fe80::/10 a meaning",
    ),
    (CLUSTER_POOL | {CIDRS6: ["fd00:::/48"]}, '"fd00:::/48" is not an IPv6 CIDR.'),
    (CLUSTER_POOL | {CIDRS6: ["fd00::/129"]}, '"fd00::/129" is not an IPv6 CIDR.'),
    (CLUSTER_POOL | {CIDRS6: ["fd00::1:0:1/96"]}, "it is an address, not a network. Write fd00::1:0:0/96."),
    (CLUSTER_POOL | {CIDRS6: ["FD00:0::/48"]}, "FD00:0::/48 is not in canonical form (RFC 5952), and equal CIDRs must"),
    (CLUSTER_POOL | {CIDRS6: ["fd00:0:0:1:0:0:1:0/112"]}, "Write fd00::1:0:0:1:0/112."),
    (CLUSTER_POOL | {CIDRS6: ["fd00::/48", "fd00::/64"]}, f"fd00::/64 overlaps fd00::/48 of {CIDRS6}. Leave one"),
    (pools(a=ipv4("10.60.0.0/16") | {"reservedCIDRs": ["10.60.0.1/24"]}), "pools.a.reservedCIDRs: 10.60.0.1/24 has"),
    (CLUSTER_POOL | {CIDRS4: ["10.1.2.3/9"]}, "is an address, not a network. Write 10.0.0.0/9."),
    (CLUSTER_POOL | {CIDRS4: ["10.1.0.0/24", "10.0.0.0/8"]}, f"10.0.0.0/8 overlaps 10.1.0.0/24 of {CIDRS4}. Leave one"),
    (
        CLUSTER_POOL | {CIDRS4: ["10.0.0.0/25"]},
        "clusterPoolIPv4MaskSize=24: no part of that size fits into 10.0.0.0/25 of ipam.operator.cluster",
    ),
    (CLUSTER_POOL | {CIDRS6: ["fd00::/121"]}, "clusterPoolIPv6MaskSize to 121 or more, or use a larger CIDR."),
    ({"ipv4NativeRoutingCIDR": "10.0.0.1/8"}, "ipv4NativeRoutingCIDR: 10.0.0.1/8 has bits set after its prefix length"),
    ({"ipv6NativeRoutingCIDR": "10.0.0.0/8"}, 'ipv6NativeRoutingCIDR: "10.0.0.0/8" is not an IPv6 CIDR.'),
    ({"nonMasqueradeCIDRs": ["x"]}, 'nonMasqueradeCIDRs: "x" is not a CIDR.'),
    (pools(a=ipv4("10.60.0.1/16")), "pools.a.ipv4.cidrs: 10.60.0.1/16 has bits set after its prefix length"),
    (pools(a=ipv4("10.60.0.0/28")), "pools.a.ipv4.maskSize=27: no part of that size fits into 10.60.0.0/28"),
    (
        pools(a=ipv4("10.60.0.0/16"), b=ipv4("10.60.1.0/24")),
        "pools.b.ipv4.cidrs: 10.60.1.0/24 overlaps 10.60.0.0/16 of pools.a.ipv4.cidrs.",
    ),
    (pools(a={"ipv4": {"cidrs": ["10.60.0.0/16"]}}), "pools.a.ipv4 needs cidrs and maskSize"),
    (pools(a={}), "pools.a has neither ipv4 nor ipv6, so there is no address in it."),
    (pools(My_Pool=ipv4("10.60.0.0/16")), "Write pools.my-pool, for example."),
    # Single values.
    ({"tunnelPort": 30100}, "tunnelPort=30100 is one of the ports 30000 to 32767, which Kubernetes gives to Services"),
    ({"tunnelPort": 53}, "tunnelPort=53 is taken on most machines"),
    (
        {"guard.url": "http://guard"},
        'guard.url: "http://guard" is no URL that API servers could call. Write https://HOST',
    ),
    (
        {"guard.url": "https://g", "guard.tls.secretName": "x", "guard.tls.caBundle": "Q0E="},
        "has no effect with guard.url",
    ),
    ({"guard.tls.caBundle": "-----BEGIN"}, "guard.tls.caBundle is not base64."),
    ({"guard.tls.injectCaFrom": "own"}, 'guard.tls.injectCaFrom: "own" names no Certificate. Write NAMESPACE/NAME.'),
    ({"image.repository": ""}, "image.repository is not set, and no registry is known to have the image. Build it"),
    *(
        ({"image.repository": each}, f'image.repository: "{each}" is no place of an image. Write it without https://')
        for each in ("https://registry.example.com/netloom", "registry.example.com:5000/netloom:0.1.0", "netloom:1")
    ),
    ({"image.tag": "netloom:1"}, 'image.tag: "netloom:1" is no tag.'),
    ({"image.digest": "abc"}, 'image.digest: "abc" is no digest.'),
    ({"cni.binPath": "opt/cni"}, 'cni.binPath: "opt/cni" is no absolute path'),
    ({"k8sServiceHost": "https://api"}, 'k8sServiceHost: "https://api" is no host.'),
    ({"k8sServiceHost": "api:6443"}, 'k8sServiceHost: "api:6443" is no host.'),
    ({"k8sServicePort": "https"}, 'k8sServicePort: "https" is no port.'),
    ({"k8sServicePort": 70000}, 'k8sServicePort: "70000" is no port.'),
    ({"operator.podDisruptionBudget.minAvailable": 2}, "lets no node of an operator be drained."),
    ({"ipam.mode": "crd", "routingMode": "native", "autoDirectNodeRoutes": True}, "does not work with ipam.mode=crd"),
]


@pytest.mark.parametrize(
    ("values", "said"), REFUSED, ids=lambda each: next(iter(each)) if isinstance(each, dict) else ""
)
def test_mistaken_values_are_refused_with_the_way_out(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ChartError) as refusal:
        template(values)
    assert said in str(refusal.value)


def test_what_is_well_written_is_taken() -> None:
    """Unusual, but right."""
    odd = {
        "agent.features": " -masquerade , -probe",
        "cni.chainedPlugins": [],
        "extraEnv": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
        "guard.operatorUsers": ["John Doe"],
        "k8sServiceHost": "fd00::1",
        "nonMasqueradeCIDRs": ["0.0.0.0/0", "::/0", "1:2:3:4:5:6:7:8/128", "1:0:2:3:4:5:6:7/128"],
        "operator.podDisruptionBudget.minAvailable": "50%",
        "operator.updateStrategy.type": "Recreate",
        "resources": {"requests": {"cpu": 0.5, "memory": "1.5Gi"}, "limits": {"cpu": 2, "ephemeral-storage": "1e9"}},
        "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 1}],
    }
    assert by_name(rendered(odd))["Deployment netloom-operator"]["spec"]["strategy"] == {"type": "Recreate"}


def test_null_leaves_out_lists_and_maps_and_nothing_else(tmp_path: Path) -> None:
    known = yaml.safe_load((CHART / "files" / "known.yaml").read_text())
    maps = [name for name, default in defaults().items() if isinstance(default, list | dict)]
    assert not {*maps}.intersection(known["required"])
    image = {"image": {"repository": SOME_IMAGE}}
    alone: Values = {"agent": {"enabled": False}, **image}
    base: Values = {"dashboards": {"enabled": True}, **image}
    variants = {name: and_(base, name, None) for name in maps} | {"alone": alone, "": base}
    variants |= {f"alone {name}": and_(alone, name, None) for name in maps if name.startswith("guard.")}
    found = texts(variants, tmp_path)
    assert all("null" not in text for texts in found.values() for text in texts if "netloom-dashboard" not in text)


def test_values_of_cilium_are_not_ours() -> None:
    cilium = yaml.safe_load((CHART / "files" / "cilium.yaml").read_text())
    ours = {*defaults(), *yaml.safe_load((CHART / "files" / "known.yaml").read_text())["required"]}
    assert not ours.intersection([*cilium["otherwise"], *cilium["not"]])


def test_no_job_uninstalls_where_hooks_are_applied_like_the_rest() -> None:
    """As by `helm template | kubectl apply`."""
    text = helm("template", "netloom", CHART, "--namespace=netloom-system", f"--set=image.repository={SOME_IMAGE}")
    assert "kind: DaemonSet" in text
    assert "netloom-uninstall" not in text


def test_without_the_kinds_of_prometheus_operator_nothing_refers_to_them() -> None:
    with pytest.raises(ChartError, match=r"set prometheus.serviceMonitor.trustCRDsExist=true"):
        helm("template", "netloom", CHART, f"--set=image.repository={SOME_IMAGE},prometheus.rules.enabled=true")


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    source = "".join(
        file.read_text()
        for root in ("operator/netloom", "reconcilers/netloom_reconcilers")
        for file in (ROOT / root).rglob("*.py")
    )
    there = set(re.findall(r'"(netloom_\w+)"', source))
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    found = {name.removesuffix("_total") for name in re.findall(r"netloom_\w+", " ".join(asked))}
    assert len(found) > 10
    assert found <= there


def test_a_package_has_what_is_needed_and_no_more(tmp_path: Path) -> None:
    helm("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.iterdir()
    shutil.unpack_archive(package, tmp_path)
    packed = {
        str(file.relative_to(tmp_path / "netloom")) for file in (tmp_path / "netloom").rglob("*") if file.is_file()
    }
    here = {str(file.relative_to(CHART)) for file in CHART.rglob("*") if file.is_file()}
    assert packed == {file for file in here if not file.startswith(("ci/", "."))}
