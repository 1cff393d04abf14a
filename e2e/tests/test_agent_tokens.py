"""What somebody can do who took the token of an agent from a node: the table of docs/guard.md, row by row.

The chart's account, Roles and policy, and tokens as kubelets get them: bound to a pod, and by it to a node. No guard
runs. Writes are dry runs, which RBAC and policies answer as any other.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom.webhook.names import NAMESPACE
from netloom_e2e import crds
from netloom_e2e.chart import rendered
from netloom_e2e.chart_release import AGENT, BREAK_GLASS
from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import account_kubeconfig, apply
from netloom_e2e.lab import wait_for

NETLOOM_DEV = "/apis/netloom.dev/v1alpha1"
OURS, NODES, SECRETS = f"{NETLOOM_DEV}/netloomnodes", "/api/v1/nodes", "/api/v1/secrets"
EVENTS = "/api/v1/namespaces/default/events"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
OTHERS = "Let the agent of that node write it, or the operator."
OWN_NODE = "an agent may only update the NetloomNode of its own node, which is a. " + OTHERS
NO_NODE = "and its token names none. Give it the token of a pod, which names its node from Kubernetes 1.32 on. "
BY_RBAC = " cannot "


class Tokens:
    """What the API server says to an agent on a node, or to one whose token names none; "" where it says yes."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.admin = plane.client_of("admin", BREAK_GLASS)
        self._clients = {
            node: Client.from_kubeconfig(account_kubeconfig(plane, *AGENT, node=node)) for node in ("a", "fixed", "")
        }

    def ask(self, method: str, path: str, body: object = None, *, node: str = "a") -> str:
        dry = "" if method == "GET" else "?dryRun=All"
        try:
            self._clients[node].request(method, f"{path}{dry}", body)
        except ApiFailure as failure:
            message: str = json.loads(str(failure).partition(": ")[2])["message"]
            return message
        return ""

    def patch(self, path: str, change: object, *, node: str = "a") -> str:
        return self.ask("PATCH", path, change, node=node)

    def create(self, path: str, manifest: object, *, node: str = "a") -> str:
        return self.ask("POST", path, manifest, node=node)


@pytest.fixture(scope="module")
def agent(control_plane_binaries: Path, helm_binary: Path) -> Iterator[Tokens]:
    with ControlPlane() as plane:
        plane.kubectl("create", "namespace", NAMESPACE)
        crds.install(plane)
        kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ServiceAccount")
        manifests = rendered({"network.create": False})
        apply(plane, [each for each in manifests if each["kind"] in kinds or "Role" in each["kind"]])
        admin = plane.client_of("admin", BREAK_GLASS)
        for name, mode in (("a", ""), ("b", ""), ("fixed", "cluster-pool")):
            taints = [{"key": key, "effect": "NoSchedule"} for key in ("node.netloom.dev/not-ready", "other")]
            admin.request("POST", NODES, {"metadata": {"name": name}, "spec": {"taints": taints}})
            node = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": name}}
            admin.request("POST", OURS, node | {"spec": {"ipam": {"mode": mode, "podCIDRs": ["10.0.0.0/24"]}}})
        made = Tokens(plane)
        wait_for("the policy is in force", lambda: OWN_NODE in _writes_tunnels(made, "b"), deadline=30)
        yield made


def _writes_tunnels(agent: Tokens, name: str, *, node: str = "a") -> str:
    spec = {"encapsulations": [{"protocol": "vxlan", "port": 8472}]}
    return agent.patch(f"{OURS}/{name}", {"spec": spec}, node=node)


REQUESTED = [{"pool": "a", "needed": {"ipv4Addrs": 14}}]
SEEN = {"status": {"absentAddresses": []}}


def test_it_says_of_its_node_what_an_agent_says(agent: Tokens) -> None:
    assert _writes_tunnels(agent, "a") == ""
    assert agent.patch(f"{OURS}/a", {"spec": {"sourceAddresses": ["192.0.2.1"]}}) == ""
    assert agent.patch(f"{OURS}/a", {"spec": {"ipam": {"pools": {"requested": REQUESTED, "allocated": []}}}}) == ""
    assert agent.patch(f"{OURS}/a/status", SEEN) == ""


def owned_by(name: str) -> list[dict[str, str]]:
    return [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": "u"}]


METADATA = {
    "labels": {"x": "y"},
    "annotations": {"x": "y"},
    "finalizers": ["x.dev/y"],
    "ownerReferences": owned_by("b"),
}


def test_it_changes_nothing_else_of_its_node(agent: Tokens) -> None:
    said = "NetloomNode a: spec: an agent may only change encapsulations, sourceAddresses and ipam.pools. Leave the"
    address = {"type": "InternalIP", "ip": "192.0.2.9"}
    more = {"podCIDRs": ["10.0.0.0/24", "10.9.0.0/24"]}
    for spec in ({"ipam": more}, {"ipam": {"mode": "kubernetes"}}, {"addresses": [address]}):
        assert said in agent.patch(f"{OURS}/a", {"spec": spec}), spec
    pools = {"spec": {"ipam": {"pools": {"allocated": [{"pool": "x", "cidrs": ["10.8.0.0/28"]}]}}}}
    said = (
        "spec.ipam.pools: an agent may only change them in IPAM mode multi-pool, and this node holds addresses of mode"
    )
    assert f"NetloomNode fixed: {said} cluster-pool." in agent.patch(f"{OURS}/fixed", pools, node="fixed")
    said = "NetloomNode a: metadata: an agent may change no labels, annotations, finalizers and ownerReferences. Leave"
    for field, value in METADATA.items():
        assert said in agent.patch(f"{OURS}/a", {"metadata": {field: value}}), field


@pytest.fixture(params=[False, True], ids=["with its rights", "with all rights"])
def all_rights(request: pytest.FixtureRequest, agent: Tokens) -> Iterator[bool]:
    """The policy does not depend on what RBAC grants."""
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    if request.param:
        subject = {"kind": "ServiceAccount", "namespace": AGENT.namespace, "name": AGENT.name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        agent.admin.request("POST", bindings, {"metadata": {"name": "all"}, "roleRef": role, "subjects": [subject]})
        wait_for("it may do all", lambda: agent.ask("GET", SECRETS) == "", deadline=30)
    yield request.param
    if request.param:
        agent.admin.request("DELETE", f"{bindings}/all")
        wait_for("it may not", lambda: agent.ask("GET", SECRETS), deadline=30)


def test_it_writes_no_other_node(agent: Tokens, all_rights: bool) -> None:
    said = f"NetloomNode b: metadata.name 'b': {OWN_NODE}"
    assert said in _writes_tunnels(agent, "b")
    assert said in agent.patch(f"{OURS}/b/status", SEEN)
    for field, value in METADATA.items():
        assert said in agent.patch(f"{OURS}/b", {"metadata": {field: value}}), field
    # RBAC is asked first, and has these in no Role of an agent's.
    other = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "c"}}
    for name, refusal in (
        ("a", agent.ask("DELETE", f"{OURS}/a")),
        ("b", agent.ask("DELETE", f"{OURS}/b")),
        ("c", agent.create(OURS, other)),
    ):
        wanted = f"NetloomNode {name}: metadata.name '{name}': {OWN_NODE}" if all_rights else BY_RBAC
        assert wanted in refusal


def test_a_token_that_names_no_node_writes_nothing(agent: Tokens, all_rights: bool) -> None:
    said = f"an agent may only update the NetloomNode of its own node, {NO_NODE}{OTHERS}"
    assert said in _writes_tunnels(agent, "a", node="")
    assert said in agent.patch(f"{OURS}/a/status", SEEN, node="")
    assert NO_NODE in agent.patch(f"{NODES}/a", {"spec": {"taints": None}}, node="")
    assert NO_NODE in agent.create(EVENTS, event("a", about="a"), node="")
    assert NO_NODE in agent.create(LEASES, lease("netloom-agent-a"), node="")
    if all_rights:
        assert NO_NODE in agent.ask("DELETE", f"{OURS}/a", node="")


def test_of_nodes_it_takes_one_taint_off_its_own(agent: Tokens) -> None:
    taints = agent.admin.request("GET", f"{NODES}/a")["spec"]["taints"]
    other = {"spec": {"taints": [each for each in taints if each["key"] != "node.netloom.dev/not-ready"]}}
    assert len(other["spec"]["taints"]) == len(taints) - 1
    assert agent.patch(f"{NODES}/a", other) == ""
    said = "Node a: spec.taints: an agent may only take node.netloom.dev/not-ready off its Node. Leave the rest to whom"
    mine = {"key": "mine", "effect": "NoExecute"}
    assert said in agent.patch(f"{NODES}/a", {"spec": {"taints": [*taints, mine]}})
    assert said in agent.patch(f"{NODES}/a", {"spec": {"taints": None}})
    assert said in agent.patch(f"{NODES}/a", {"spec": {"unschedulable": True}})
    for field, value in METADATA.items():
        assert said in agent.patch(f"{NODES}/a", {"metadata": {field: value}}), field
    assert "an agent may only update the Node of its own node, which is a. " in agent.patch(f"{NODES}/b", other)
    conditions = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    assert BY_RBAC in agent.patch(f"{NODES}/a/status", conditions)


def lease(name: str) -> dict[str, Any]:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}


def test_of_leases_it_renews_its_own(agent: Tokens) -> None:
    assert agent.create(LEASES, lease("netloom-agent-a")) == ""
    said = "an agent may only renew the Lease of its own node, which is a. "
    for name in ("netloom-agent-b", "netloom-operator", "a", "xnetloom-agent-a"):
        assert said in agent.create(LEASES, lease(name))
    assert BY_RBAC in agent.create(LEASES.replace(NAMESPACE, "kube-system"), lease("netloom-agent-a"))


def event(host: str, *, about: str, kind: str = "NetloomNode", component: str = "netloom-agent") -> dict[str, Any]:
    told = {"apiVersion": "v1", "kind": kind, "name": about, "namespace": "default" if kind == "Pod" else ""}
    source = {"component": component, "host": host}
    return {"metadata": {"name": "e", "namespace": "default"}, "involvedObject": told, "source": source}


def test_of_events_it_writes_those_of_its_node(agent: Tokens) -> None:
    for own in (event("a", about="a"), event("a", about="a", kind="Node"), event("a", about="any", kind="Pod")):
        assert agent.create(EVENTS, own) == ""
    said = "Event e: source: an agent may only write Events from itself, about pods and its own node, which is a. Leave"
    for other in (
        event("b", about="a"), event("a", about="b"), event("a", about="default", kind="NetloomNetwork"),
        event("a", about="a", component="kubelet"),
    ):  # fmt: skip
        assert said in agent.create(EVENTS, other), other
    agent.admin.request("POST", EVENTS, event("b", about="b"))
    assert said in agent.patch(f"{EVENTS}/e", {"message": "all is well"})
    assert said in agent.patch(f"{EVENTS}/e", event("a", about="a") | {"message": "all is well"})
    assert BY_RBAC in agent.ask("DELETE", f"{EVENTS}/e")


def test_it_reads_what_agents_read_and_no_secrets(agent: Tokens) -> None:
    for kind in (OURS, f"{NETLOOM_DEV}/netloomnetworks", f"{NETLOOM_DEV}/netloomippools", NODES, "/api/v1/pods"):
        assert agent.ask("GET", kind) == "", kind
    assert agent.ask("GET", "/api/v1/namespaces/default") == ""
    for kind in (SECRETS, "/api/v1/configmaps", "/api/v1/serviceaccounts", f"{NETLOOM_DEV}/netloomledgers", LEASES):
        assert BY_RBAC in agent.ask("GET", kind), kind


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PATCH", f"{NETLOOM_DEV}/netloomnetworks/default"),
        ("PATCH", f"{NETLOOM_DEV}/netloomnetworks/default/status"),
        ("POST", f"{NETLOOM_DEV}/netloomippools"),
        ("PATCH", f"{NETLOOM_DEV}/netloomippools/default/status"),
        ("POST", f"{NETLOOM_DEV}/netloomledgers"),
        ("POST", "/api/v1/namespaces/default/pods"),
        ("PATCH", "/api/v1/namespaces/default/pods/p/status"),
        ("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{AGENT.name}/token"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        ("PATCH", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/netloom-agents"),
    ],
)
def test_nothing_else_is_its_to_write(agent: Tokens, method: str, path: str) -> None:
    assert BY_RBAC in agent.ask(method, path, {"metadata": {"name": "x"}})


def test_what_cannot_be_evaluated_is_refused_to_agents_and_to_nobody_else(agent: Tokens) -> None:
    """The policy's own failure; the last of these tests that needs it whole."""
    policy = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/netloom-agents"
    spec = agent.admin.request("GET", policy)["spec"]
    spec["validations"].insert(0, {"expression": "dyn(object).spec.missing == ''"})
    agent.admin.request("PATCH", policy, {"spec": spec})
    wait_for("it goes by that", lambda: "no such key: missing" in _writes_tunnels(agent, "a"), deadline=30)
    agent.admin.request("PATCH", f"{OURS}/a?dryRun=All", {"metadata": {"labels": {"x": "y"}}})


def test_without_the_guard_nothing_confines_an_agent() -> None:
    manifests = rendered({"guard.enabled": False})
    assert not [each for each in manifests if each["kind"].startswith("Validating")]
    assert "ClusterRole netloom-agent" in {f"{each['kind']} {each['metadata']['name']}" for each in manifests}
