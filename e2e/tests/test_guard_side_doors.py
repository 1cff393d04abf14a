"""The ways past the guard that do not lead through `ipam` of cilium-config, on a real API server.

One cluster lives through all of it. The table is asked twice: with a guard running, and with none, when the policies
are alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.api.cilium import ContainersSpec
from netloom.guard.cilium_workload import overrides
from netloom.runtime.yaml_documents import documents
from netloom.webhook.names import (
    CILIUM_PARTS_POLICY,
    CILIUM_POLICY,
    CILIUM_WORKLOADS_POLICY,
    RECORD_POLICY,
    Scope,
)
from netloom_e2e.asking import HelmAsk
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import PAST_THE_GUARD, Guards, apply, install_cilium, uninstall_cilium
from netloom_e2e.lab import wait_for

Manifest = dict[str, Any]
Change = Callable[[Manifest], None]

CHART = Path(__file__).parents[1] / "netloom_e2e" / "cilium_chart"
PARTS: list[Manifest] = list(documents((Path(__file__).parent / "guard" / "cilium-workloads.yaml").read_text()))
VALUES = {"ipam": {"operator": {"clusterPoolIPv4PodCIDRList": ["10.0.0.0/16"]}}, "extraObjects": PARTS}
CONFIG = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
RECORD = "/api/v1/namespaces/netloom-system/configmaps/netloom-guard"
AGENTS = "/apis/apps/v1/namespaces/kube-system/daemonsets/cilium"
OPERATOR = "/apis/apps/v1/namespaces/kube-system/deployments/cilium-operator"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CILIUM_NODES = "/apis/cilium.io/v2/ciliumnodes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
IN_USE = "3 nodes hold addresses (a, b, c) of mode cluster-pool"
ANEW = (
    "delete the record, which is then made anew: kubectl delete configmap netloom-guard -n netloom-system --as=admin "
    "--as-group=system:masters --as-group=netloom:break-glass"
)
RUNNING, STOPPED = "with the guard", "with no guard"


def cilium_node(number: int) -> Manifest:
    spec = {"ipam": {"podCIDRs": [f"10.0.{number}.0/24"]}}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "abc"[number]}, "spec": spec}


@dataclass
class Cluster:
    """Cilium, as far as the API server knows: its configuration, what runs it, and three nodes."""

    plane: ControlPlane
    guards: Guards

    def says(self, method: str, path: str, body: object = None, user: str = "", by: str = "") -> str:
        """What is said of a dry run, without by whom; "" where it goes through."""
        message = self.answer(method, path, body, user, by)
        for start in (" denied request: ", " denied the request: "):
            if start in message:
                return message.partition(start)[2]
        return message

    def answer(self, method: str, path: str, body: object = None, user: str = "", by: str = "") -> str:
        """The API server's whole message on a dry run; "" where it goes through."""
        client = self.plane.client_of(user, ("system:masters",)) if user else self.plane.client
        sign = "&" if "?" in path else "?"
        try:
            client.request(method, f"{path}{sign}dryRun=All{f'&fieldManager={by}' if by else ''}", body)
        except ApiFailure as failure:
            return str(json.loads(str(failure).partition(": ")[2])["message"])
        return ""

    def changed(self, path: str, change: Change) -> Manifest:
        """An object as it is, with a change made."""
        found: Manifest = self.plane.client.request("GET", path)
        change(found)
        return found

    def events(self, reason: str) -> str:
        options = ["-A", f"--field-selector=reason={reason}", "-o", "jsonpath={range .items[*]}{.message}{'\\n'}{end}"]
        return self.plane.kubectl("get", "events", *options).stdout

    def recorded(self, mode: str = "cluster-pool") -> None:
        wait_for(f"{mode} is recorded", lambda: self.guards.record().get("ciliumMode", "") == mode, deadline=20)

    def add_nodes(self) -> None:
        for number in range(3):
            node = cilium_node(number)
            apply(
                self.plane, [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": node["metadata"]["name"]}}, node]
            )

    def policies_see(self) -> None:
        """Each by itself: the API server takes up new ones once a second, and what was applied together may come in
        two turns. Who refused is looked at, as a guard that runs says the same."""
        overruling = deepcopy(next(each for each in PARTS if each["kind"] == "DaemonSet"))
        flag("--ipam=kubernetes")(overruling)
        probes: dict[str, tuple[str, str, object]] = {
            CILIUM_POLICY: ("DELETE", CONFIG, None),
            CILIUM_WORKLOADS_POLICY: ("POST", AGENTS.rpartition("/")[0], overruling),
            CILIUM_PARTS_POLICY: ("DELETE", f"{CRDS}/ciliumnodes.cilium.io", None),
            RECORD_POLICY: ("PATCH", RECORD, {"data": {"ciliumMode": "kubernetes"}}),
        }

        def unseen() -> list[str]:
            answers = {policy: self.answer(*probe) for policy, probe in probes.items()}
            said = {policy: IN_USE if policy != RECORD_POLICY else "only the guard writes" for policy in probes}
            refused = "ValidatingAdmissionPolicy '{0}' with binding '{0}' denied request"
            return [
                each for each in probes if not (refused.format(each) in answers[each] and said[each] in answers[each])
            ]

        wait_for("the policies are in force and see the record", lambda: unseen() == [], deadline=30)


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane, helm_binary: Path) -> Iterator[Cluster]:
    plane = control_plane
    install_cilium(plane)
    guards = Guards(plane, Scope(guarded="cilium"))
    cluster = Cluster(plane, guards)
    try:
        installed = HelmAsk("install", CHART, VALUES).run(plane)
        assert installed.returncode == 0, installed.stderr
        cluster.add_nodes()
        guards.install()
        guards.wait_in_force(guards.start())
        cluster.recorded()
        cluster.policies_see()
        yield cluster
    finally:
        guards.kill()
        guards.uninstall()
        uninstall_cilium(plane)
        options = [
            f"--kube-{each.removeprefix('--')}".replace("--kube-as=", "--kube-as-user=") for each in PAST_THE_GUARD
        ]
        plane.helm("uninstall", "cilium", "--namespace=kube-system", *options, check=False)
        plane.delete_all("nodes")
        plane.delete_all("events", namespace="kube-system")
        plane.delete_all("events", namespace="netloom-system")


@pytest.fixture(scope="module", params=[RUNNING, STOPPED])
def asked(request: pytest.FixtureRequest, cluster: Cluster) -> Cluster:
    if request.param == STOPPED:
        cluster.guards.kill()
    elif not cluster.guards.running:
        cluster.guards.wait_in_force(cluster.guards.start())
    cluster.policies_see()
    return cluster


def pod(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


def flag(*words: str, container: int = 0) -> Change:
    return lambda manifest: pod(manifest)["containers"][container]["args"].extend(words)


def variable(container: int = 0, **entry: Any) -> Change:
    return lambda manifest: pod(manifest)["containers"][container].setdefault("env", []).append(entry)


def source(text: str, *more: str) -> Change:
    def change(manifest: Manifest) -> None:
        pod(manifest)["initContainers"][0]["command"][2:] = [f"--source={text}", *more]

    return change


def put_at(path: str, value: Any) -> Change:
    def change(manifest: Manifest) -> None:
        found: Any = pod(manifest)
        *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
        for key in keys:
            found = found[key]
        found[last] = value

    return change


def reference(name: str, key: str) -> Manifest:
    return {"configMapKeyRef": {"name": name, "key": key}}


OTHER = "config-map:kube-system/other"
OVERRIDES: dict[str, tuple[str, Change, str]] = {
    "a flag": (AGENTS, flag("--ipam=kubernetes"), "cilium-agent: --ipam kubernetes"),
    "a flag in two words": (AGENTS, flag("--ipam", "kubernetes"), "cilium-agent: --ipam kubernetes"),
    "a flag of the command": (
        AGENTS,
        put_at("containers.0.command", ["sh", "-c", "exec cilium-agent --ipam=eni"]),
        "cilium-agent: --ipam eni",
    ),
    "a flag of the operator": (OPERATOR, flag("--ipam=kubernetes"), "cilium-operator: --ipam kubernetes"),
    "another CIDR": (
        OPERATOR,
        flag("--cluster-pool-ipv4-cidr=10.9.0.0/16"),
        "cilium-operator: --cluster-pool-ipv4-cidr 10.9.0.0/16",
    ),
    "a variable": (AGENTS, variable(name="CILIUM_IPAM", value="eni"), "cilium-agent: env CILIUM_IPAM eni"),
    "a variable of the operator": (
        OPERATOR,
        variable(name="CILIUM_CLUSTER_POOL_IPV4_MASK_SIZE", value="26"),
        "cilium-operator: env CILIUM_CLUSTER_POOL_IPV4_MASK_SIZE 26",
    ),
    "a variable from elsewhere": (
        AGENTS,
        variable(name="CILIUM_IPAM", valueFrom=reference("other", "ipam")),
        "cilium-agent: env CILIUM_IPAM of another object",
    ),
    "all variables from elsewhere": (
        AGENTS,
        put_at("containers.0.envFrom", [{"configMapRef": {"name": "other"}}]),
        "cilium-agent: envFrom",
    ),
    "another ConfigMap": (
        AGENTS,
        source(f"config-map:kube-system/cilium-config,{OTHER},cilium-node-config:kube-system"),
        f"config: --source config-map:kube-system/cilium-config,{OTHER},cilium-node-config:kube-system",
    ),
    "the Nodes": (AGENTS, source("config-map:cilium-config,node"), "config: --source config-map:cilium-config,node"),
    "another ConfigMap that may set the mode": (
        AGENTS,
        source(f"config-map:cilium-config,{OTHER}", "--allow-config-keys=debug,IPAM"),
        f"config: --source config-map:cilium-config,{OTHER}",
    ),
    "another ConfigMap first": (
        AGENTS,
        source(f"{OTHER},config-map:cilium-config", "--allow-config-keys=debug"),
        f"config: --source {OTHER},config-map:cilium-config",
    ),
    "another folder": (AGENTS, put_at("containers.0.args", ["--config-dir=/x"]), "cilium-agent: --config-dir /x"),
    "another ConfigMap at the folder": (
        OPERATOR,
        put_at("volumes.0.configMap.name", "other"),
        "cilium-operator: volume cilium-config-path at /tmp/cilium/config-map",
    ),
    "another key as the file": (
        OPERATOR,
        put_at("volumes.0.configMap.items", [{"key": "x", "path": "ipam"}]),
        "cilium-operator: volume cilium-config-path at /tmp/cilium/config-map",
    ),
    "two at once": (
        AGENTS,
        lambda manifest: (source("node")(manifest), flag("--ipam=gke")(manifest))[0],
        "config: --source node; cilium-agent: --ipam gke",
    ),
    "a flag in a shell's quotes": (
        AGENTS,
        put_at("containers.0.command", ["sh", "-c", "exec cilium-agent '--ipam=eni' --\"ipam\" 'gke'"]),
        "cilium-agent: --ipam eni; cilium-agent: --ipam gke",
    ),
    "a variable that a shell sets": (
        AGENTS,
        put_at("containers.0.command", ["sh", "-c", "export CILIUM_IPAM='eni'; exec cilium-agent"]),
        "cilium-agent: CILIUM_IPAM eni",
    ),
    "the folder, spelled in another way": (
        OPERATOR,
        lambda manifest: (
            put_at("volumes.0.configMap.name", "other")(manifest),
            put_at("containers.0.volumeMounts.0.mountPath", "/tmp//cilium/./config-map")(manifest),
        )[0],
        "cilium-operator: volume cilium-config-path at /tmp//cilium/./config-map",
    ),
    # What is harmless goes through.
    "sidecars with long scripts": (
        AGENTS,
        lambda manifest: pod(manifest)["containers"].extend(
            {"name": f"sidecar-{number}", "image": "sidecar", "args": ["echo --some --words\n" * 6000]}
            for number in range(4)
        ),
        "",
    ),
    "the mode in force, as a shell has it": (
        AGENTS,
        put_at(
            "containers.0.command", ["sh", "-c", "CILIUM_IPAM=cluster-pool exec cilium-agent '--ipam=cluster-pool'"]
        ),
        "",
    ),
    "the mode in force": (AGENTS, flag("--ipam=cluster-pool"), ""),
    "the mode in force as a variable": (AGENTS, variable(name="CILIUM_IPAM", value="cluster-pool"), ""),
    "the guarded key as a variable": (
        AGENTS,
        variable(name="CILIUM_IPAM", valueFrom=reference("cilium-config", "ipam")),
        "",
    ),
    "the sources by their defaults": (AGENTS, source("config-map,cilium-node-config"), ""),
    "no source said": (AGENTS, put_at("initContainers.0.command", ["cilium", "build-config"]), ""),
    "another ConfigMap that may set something else": (
        AGENTS,
        source(f"config-map:kube-system/cilium-config,{OTHER}", "--allow-config-keys=debug,enable-hubble"),
        "",
    ),
    "another image": (AGENTS, put_at("containers.0.image", "quay.io/cilium/cilium:v1.20.1"), ""),
    "another flag": (OPERATOR, flag("--ipam-something=x", "--debug"), ""),
    "something for another container": (AGENTS, flag("--config-dir=/y", "--source=nodes", container=1), ""),
    "variables of another container": (
        AGENTS,
        put_at("containers.1.envFrom", [{"configMapRef": {"name": "other"}}]),
        "",
    ),
}


def override(kind: str, name: str, found: str) -> str:
    return (
        f"{kind} kube-system/{name}: spec.template '{found}': it overrules the ConfigMap cilium-config, or puts "
        f"something else in its place, while that is in use: {IN_USE}, and with other settings their pods would lose "
        "the network when Cilium restarts. Take it out, and write what is needed into cilium-config; another source of "
        "the agents' configuration may be given together with daemon.allowedConfigOverrides (Helm) that names no key "
        "of IPAM."
    )


def test_what_runs_cilium_does_not_overrule_its_configuration(asked: Cluster) -> None:
    for name, (path, change, found) in OVERRIDES.items():
        manifest = asked.changed(path, change)
        expected = override(manifest["kind"], manifest["metadata"]["name"], found) if found else ""
        assert asked.says("PUT", path, manifest) == expected, name
        made_anew = {key: manifest[key] for key in ("apiVersion", "kind", "spec")}
        metadata = {"name": manifest["metadata"]["name"]}
        said = asked.says("POST", path.rpartition("/")[0], made_anew | {"metadata": metadata})
        assert said == expected or (not found and "already exists" in said), name
        # The guard finds the same where it is there already.
        spec = msgspec.convert(pod(manifest), ContainersSpec)
        assert "; ".join(overrides(spec, "kube-system", "cluster-pool")) == found, name


def test_what_was_there_before_may_stay(asked: Cluster) -> None:
    """And may be taken out; the rest goes on."""
    manifest = asked.changed(AGENTS, flag("--ipam=kubernetes"))
    asked.plane.client_of("admin", ("system:masters", "netloom:break-glass")).request("PUT", AGENTS, manifest)
    other = asked.changed(AGENTS, put_at("containers.0.image", "quay.io/cilium/cilium:v1.20.1"))
    assert asked.says("PUT", AGENTS, other) == ""
    assert "--ipam eni" in asked.says("PUT", AGENTS, asked.changed(AGENTS, flag("--ipam=eni")))
    if asked.guards.running:
        (guard,) = asked.guards.running
        wait_for("a metric says it", lambda: guard.metric("netloom_guard_bypassed") == 1, deadline=20)
        said = "spec.template 'cilium-agent: --ipam kubernetes': it overrules the ConfigMap cilium-config"
        wait_for("an Event says it", lambda: said in asked.events("ModeBypassed"), deadline=20)
        assert "the guard was bypassed" in guard.process.log.read_text()
    fixed = asked.changed(AGENTS, lambda manifest: pod(manifest)["containers"][0]["args"].pop())
    asked.plane.client.request("PUT", AGENTS, fixed)
    if asked.guards.running:
        wait_for("all is well", lambda: guard.metric("netloom_guard_bypassed") == 0, deadline=20)


BINARY = (
    "ConfigMap kube-system/cilium-config: binaryData.IPAM: a key of Cilium's configuration cannot be binary data "
    f"while it is in use: {IN_USE}, and Cilium's operator, which reads it like any other, would go by it. Write it "
    "under data."
)
WRITTEN = (
    "ConfigMap netloom-system/netloom-guard: data: only the guard writes down which IPAM mode is in force: with "
    "another entry the mode could be changed under live nodes. Leave it as it is. If a change of the mode was meant "
    "and made, delete this ConfigMap as a member of the group netloom:break-glass (docs/guard.md, Break-glass), and "
    "the guard makes it anew. A guard with a user name of its own has to be named: netloom guard install --guard-user."
)


def part(what: str) -> str:
    return (
        f"{what}: Cilium cannot be taken away while it is in use: {IN_USE}, new pods would get no network, and what "
        "is installed anew in another mode takes it from the others. Remove every node and its CiliumNode first. To "
        "make this object anew under running pods, delete it with --cascade=orphan. If this was helm uninstall, what "
        "it did delete comes back with helm rollback."
    )


def test_binary_data_is_no_way_in(asked: Cluster) -> None:
    assert asked.says("PATCH", CONFIG, {"binaryData": {"IPAM": "a3ViZXJuZXRlcw=="}}) == BINARY
    assert asked.says("PATCH", CONFIG, {"binaryData": {"other": "a3ViZXJuZXRlcw=="}}) == ""


def test_only_the_guard_writes_the_record(asked: Cluster) -> None:
    wanted = {"data": {"ciliumMode": "kubernetes"}}
    record = asked.plane.client.request("GET", RECORD)
    collection = RECORD.rpartition("/")[0]
    assert asked.says("PATCH", RECORD, wanted) == WRITTEN
    assert asked.says("PATCH", RECORD, wanted, by="netloom-guard-cilium") == WRITTEN
    assert asked.says("PATCH", RECORD, {"data": None}) == WRITTEN
    assert asked.says("PATCH", RECORD, {"immutable": True}) == WRITTEN
    assert asked.says("PUT", RECORD, record | wanted) == WRITTEN
    assert asked.says("DELETE", RECORD) == WRITTEN
    assert asked.says("DELETE", f"{collection}?fieldSelector=metadata.name%3Dnetloom-guard") == WRITTEN
    assert asked.says("POST", collection, {"metadata": {"name": "netloom-guard"}} | wanted) == WRITTEN
    assert asked.says("PATCH", RECORD, wanted, user="system:serviceaccount:netloom-system:netloom-guard") == ""
    assert asked.says("PATCH", RECORD, {"metadata": {"labels": {"team": "network"}}}) == ""
    asked.guards.install()  # applying again is no write of it
    assert asked.guards.record()["ciliumMode"] == "cluster-pool"


def test_what_cilium_stands_on_is_not_deleted(asked: Cluster) -> None:
    assert asked.says("DELETE", AGENTS) == part("DaemonSet kube-system/cilium: metadata.name 'cilium'")
    named = "kube-system/cilium-operator: metadata.name 'cilium-operator'"
    assert asked.says("DELETE", OPERATOR) == part(f"Deployment {named}")
    accounts = "/api/v1/namespaces/kube-system/serviceaccounts"
    assert asked.says("DELETE", f"{accounts}/cilium-operator") == part(f"ServiceAccount {named}")
    assert asked.says("DELETE", f"{RBAC}/clusterroles/cilium") == part("ClusterRole cilium: metadata.name 'cilium'")
    binding = "ClusterRoleBinding cilium: metadata.name 'cilium'"
    assert asked.says("DELETE", f"{RBAC}/clusterrolebindings/cilium") == part(binding)
    name = "ciliumnodes.cilium.io"
    crd = part(f"CustomResourceDefinition {name}: metadata.name '{name}'")
    assert asked.says("DELETE", f"{CRDS}/{name}") == crd
    assert asked.says("DELETE", AGENTS, {"propagationPolicy": "Orphan"}) == "", "the pods go on"
    assert asked.says("DELETE", f"{CRDS}/ciliumnodeconfigs.cilium.io") == ""


def test_helm_uninstall_leaves_what_nodes_need_and_there_is_a_way_back(asked: Cluster) -> None:
    """Helm goes on past what is refused: Services are deleted, and come back by a rollback."""
    answer = HelmAsk("uninstall", CHART, {}).run(asked.plane)
    assert (answer.returncode, "failed to delete release: cilium" in answer.stderr) == (1, True)
    left = {f"{each['kind']} {each['metadata']['name']}" for each in PARTS if there(asked.plane, each)}
    assert left == {f"{each['kind']} {each['metadata']['name']}" for each in PARTS} - {"Service hubble-peer"}
    assert asked.plane.client.request("GET", CONFIG)["data"]["ipam"] == "cluster-pool"
    back = asked.plane.helm("rollback", "cilium", "1", "--namespace=kube-system", check=False)
    assert back.returncode == 0, back.stderr
    assert all(there(asked.plane, each) for each in PARTS)
    status = asked.plane.helm("status", "cilium", "--namespace=kube-system", "-o", "json").stdout
    assert json.loads(status)["info"]["status"] == "deployed"


def there(plane: ControlPlane, manifest: Manifest) -> bool:
    return plane.kubectl("get", "-f", "-", input=json.dumps(manifest), check=False).returncode == 0


def test_a_living_node_keeps_what_it_holds(cluster: Cluster) -> None:
    if not cluster.guards.running:
        cluster.guards.wait_in_force(cluster.guards.start())
    lives = (
        "the Node of this name lives and holds 10.0.1.0/24: Cilium's operator would give that to other nodes, while "
        "pods here go on with it."
    )
    node = f"{CILIUM_NODES}/b"
    remove = "Remove the Node (kubectl delete node b), and Cilium deletes this object."
    removed = f"CiliumNode b: metadata.name 'b': {lives} {remove}"
    assert cluster.says("DELETE", node) == removed
    leave = f"CiliumNode b: spec.ipam: {lives} Leave spec.ipam to Cilium's operator and the agent of the node."
    assert cluster.says("PATCH", node, {"spec": {"ipam": None}}) == leave
    assert cluster.says("PATCH", node, {"spec": {"ipam": {"podCIDRs": ["10.0.9.0/24"]}}}) == leave
    more = {"spec": {"ipam": {"podCIDRs": ["10.0.1.0/24", "10.0.7.0/24"]}}}
    assert cluster.says("PATCH", node, more) == ""


def test_what_cilium_and_controllers_write_causes_no_call(cluster: Cluster) -> None:
    before = cluster.guards.requests()
    agent = "system:serviceaccount:kube-system:cilium"
    operator = "system:serviceaccount:kube-system:cilium-operator"
    node = f"{CILIUM_NODES}/b"
    assert cluster.says("PATCH", node, {"spec": {"health": {"ipv4": "10.0.1.7"}}}, user=agent) == ""
    assert cluster.says("PATCH", f"{node}/status", {"status": {"ipam": {"operator-status": {}}}}, user=agent) == ""
    assert cluster.says("PATCH", node, {"spec": {"ipam": {"podCIDRs": ["10.0.8.0/24"]}}}, user=operator) == ""
    assert cluster.says("DELETE", node, user=operator) == ""
    assert cluster.says("POST", CILIUM_NODES, cilium_node(2) | {"metadata": {"name": "new"}}, user=agent) == ""
    assert cluster.says("PATCH", node, {"metadata": {"labels": {"team": "x"}}}) == "", "an administrator's note"
    controller = "system:serviceaccount:kube-system:daemon-set-controller"
    assert cluster.says("PATCH", f"{AGENTS}/status", {"status": {"observedGeneration": 7}}, user=controller) == ""
    assert cluster.says("PATCH", AGENTS, {"metadata": {"annotations": {"deprecated": "1"}}}) == ""
    assert cluster.guards.requests() == before
    assert cluster.says("DELETE", f"{CILIUM_NODES}/b") != ""
    assert cluster.guards.requests() == before + 1, "a call is seen, if there is one"


def test_a_record_that_was_edited_all_the_same_opens_nothing(cluster: Cluster) -> None:
    """With no policy in the way: by a guard that runs, and by one that starts behind it."""
    bindings = [f"{name}" for name in ("netloom-guard-cilium", "netloom-guard-record-writes")]
    cluster.plane.kubectl("delete", "validatingadmissionpolicybindings", *bindings)
    changed = {"data": {"ipam": "kubernetes"}}
    wanted = {"data": {"ciliumMode": "kubernetes"}}
    wait_for("the record may be written", lambda: cluster.says("PATCH", RECORD, wanted) == "", deadline=20)

    def is_locked() -> None:
        assert "of mode cluster-pool, and in mode kubernetes" in cluster.says("PATCH", CONFIG, changed)
        cluster.recorded()
        assert "of mode cluster-pool, and in mode kubernetes" in cluster.says("PATCH", CONFIG, changed)

    cluster.plane.client.request("PATCH", RECORD, wanted)
    is_locked()
    said = "data.ciliumMode: somebody but the guard wrote down which IPAM mode is in force; what is live counts"
    wait_for("an Event says it", lambda: said in cluster.events("RecordTampered"), deadline=20)
    cluster.guards.kill()
    cluster.plane.client.request("PATCH", RECORD, wanted)
    cluster.guards.wait_in_force(cluster.guards.start())
    is_locked()
    assert cluster.guards.running[0].metric("netloom_guard_bypassed") == 0
    apply(cluster.plane, [each for each in cluster.guards.manifests if each["metadata"]["name"] in bindings])
    cluster.policies_see()


def test_nodes_that_lose_their_cilium_nodes_hold_addresses_all_the_same(cluster: Cluster) -> None:
    operator = cluster.plane.client_of("system:serviceaccount:kube-system:cilium-operator", ("system:masters",))
    for name in "abc":
        operator.request("DELETE", f"{CILIUM_NODES}/{name}")
    (guard,) = cluster.guards.running
    wait_for("they are missed", lambda: guard.metric("netloom_guard_vanished_nodes") == 3, deadline=20)
    said = (
        "Nodes live whose CiliumNodes were deleted or emptied (a, b, c): their pods have their addresses all the same"
    )
    wait_for("an Event says it", lambda: said in cluster.events("CiliumNodesVanished"), deadline=20)
    locked = f"the IPAM mode of a live cluster cannot change: {IN_USE}"
    assert locked in cluster.says("PATCH", CONFIG, {"data": {"ipam": "kubernetes"}})
    # A Node that leaves counts no more, and one whose CiliumNode comes back is as before.
    cluster.plane.client.request("DELETE", "/api/v1/nodes/c")
    apply(cluster.plane, [cilium_node(0)])
    wait_for("one is missed", lambda: guard.metric("netloom_guard_vanished_nodes") == 1, deadline=20)
    two = "2 nodes hold addresses (a, b)"
    wait_for("two are recorded", lambda: cluster.guards.record().get("ciliumInUse") == two, deadline=20)
    # A guard that starts when all is gone knows only the record, and keeps it.
    cluster.guards.kill()
    operator.request("DELETE", f"{CILIUM_NODES}/a")
    guard = cluster.guards.start()
    cluster.guards.wait_in_force(guard)
    said = f"Nodes live, and no CiliumNode holds addresses any more ({two} before)"
    wait_for("an Event says it", lambda: said in cluster.events("CiliumNodesVanished"), deadline=20)
    assert cluster.guards.record() == {"ciliumMode": "cluster-pool", "ciliumInUse": two}
    assert two in cluster.says("PATCH", CONFIG, {"data": {"ipam": "kubernetes"}})
    # As the message advises, for who knows that nobody has addresses any more.
    assert ANEW in cluster.events("CiliumNodesVanished")
    cluster.plane.kubectl("delete", "configmap", "netloom-guard", "-n", "netloom-system", *PAST_THE_GUARD)
    wait_for(
        "the lock is open", lambda: cluster.says("PATCH", CONFIG, {"data": {"ipam": "kubernetes"}}) == "", deadline=20
    )
    assert guard.metric("netloom_guard_vanished_nodes") == 0
