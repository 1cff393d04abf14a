"""The ValidatingWebhookConfiguration: which writes the API server asks the guard about.

As few as possible, since with failurePolicy Fail each of them is refused while no guard runs: guarded kinds only, and
of their updates only those that change a guarded field. What meets no condition costs no call and knows no outage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from netloom.api.cilium import (
    CILIUM_NODE_CONFIG_VERSIONS,
    CILIUM_NODE_CONFIGS,
    CILIUM_NODES,
    CILIUM_POOLS,
    CONFIG_NAME,
)
from netloom.api.meta import Resource
from netloom.api.v1alpha1 import POOLS
from netloom.guard.cilium import GUARDED_KEYS, IPAM
from netloom.guard.node import GARBAGE_COLLECTOR
from netloom.webhook import cel
from netloom.webhook.names import LABEL, NAME, PATH, Scope

Manifest = dict[str, Any]

TIMEOUT_SECONDS = 3

_UPDATE = "request.operation != 'UPDATE'"

_ALLOCATED = {of: f"{of}.?spec.?ipam.?pools.?allocated.orValue([])" for of in ("object", "oldObject")}
_COMPARED_BLOCKS = 512
"""Each is looked for among those of before, and an expression that costs too much is a refusal: a node with more blocks
than that, and a third of a million steps, has the guard compare them."""
_ENTERS_BLOCKS = (
    f"{cel.differs('?spec.?ipam.?pools.?allocated')}"
    f" && ({_ALLOCATED['object']}.map(each, each.?cidrs.orValue([]).size()).sum() > {_COMPARED_BLOCKS}"
    f" || {_ALLOCATED['object']}.exists(each, each.?cidrs.orValue([]).exists(cidr, !{_ALLOCATED['oldObject']}"
    ".exists(before, before.pool == each.pool && cidr in before.?cidrs.orValue([])))))"
)
"""An update that adds blocks to what a node holds of pools. To take some away is no matter for the guard."""

_HELMS = {
    "?labels": ("app.kubernetes.io/managed-by", "Helm"),
    "?annotations": ("meta.helm.sh/release-namespace", ""),
}
"""What Helm puts on all that it creates; the namespace is that of the release."""


def _not_installed(scope: Scope) -> dict[str, str]:
    """Not what the guard's own release creates: it makes the network, its pools and the guard in one go, and no guard
    runs when the first are made, so all of these writes would be refused.

    Bound to the namespace of the guard, so that other releases, which may well bring pools, are asked about. A network
    that is made anew in another mode is refused by a policy, which needs no guard.
    """
    of_release = " && ".join(
        f"object.metadata.{field}[?{cel.text(key)}].orValue('') == {cel.text(value or scope.namespace)}"
        for field, (key, value) in _HELMS.items()
    )
    return {"not-of-its-own-release": f"request.operation != 'CREATE' || !({of_release})"}


def webhook_configuration(scope: Scope, client: Mapping[str, Any], annotations: Mapping[str, str]) -> Manifest:
    """client: `clientConfig` of every webhook, without caBundle where the guard is to fill it in."""
    webhooks = []
    if scope.netloom:
        webhooks += [_network(scope), _pool("pool", POOLS, _not_installed(scope)), _node(scope)]
    if scope.cilium:
        webhooks += [_cilium_config(scope), _pool("cilium-pool", CILIUM_POOLS), _cilium_node(scope)]
        webhooks += [_cilium_node_config(scope)]
    webhooks = [webhook | {"clientConfig": dict(client)} for webhook in webhooks]
    configuration = admission_object("ValidatingWebhookConfiguration", NAME, webhooks=webhooks)
    if annotations:
        configuration["metadata"]["annotations"] = dict(annotations)
    return configuration


def admission_object(kind: str, name: str, **content: Any) -> Manifest:
    """With the label of all that stands between a user and a write."""
    metadata = {"name": name, "labels": {LABEL: ""}}
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": metadata, **content}


def _network(scope: Scope) -> Manifest:
    # The operator writes status.ipam before the first address and after the last, and lets go of a network that is
    # being deleted once nothing is in use any more; nobody else has to.
    operator = cel.by(scope.operator_users)
    freed = "oldObject.metadata.?deletionTimestamp.hasValue() && " + cel.differs("metadata.?finalizers")
    in_force = f"(({cel.differs('?status.?ipam')} || ({freed})) && !({operator}))"
    return _webhook(
        "network",
        rule("netloom.dev", "v1alpha1", ["netloomnetworks", "netloomnetworks/status"]),
        {**_not_installed(scope), "what-is-guarded": f"{_UPDATE} || {cel.differs('?spec')} || {in_force}"},
    )


def _pool(name: str, kind: Resource[Any], conditions: Mapping[str, str] | None = None) -> Manifest:
    found = {**(conditions or {}), "what-is-guarded": f"{_UPDATE} || {cel.differs('?spec')}"}
    return _webhook(name, rule(kind.group, kind.version, [kind.plural]), found)


def _node(scope: Scope) -> Manifest:
    agent = f"{cel.by(scope.agent_users)} && object.metadata.name in {cel.BOUND_NODES}"
    own = f"request.operation == 'UPDATE' && {agent} && !({_ENTERS_BLOCKS})"
    collected = f"request.operation == 'DELETE' && {cel.by([GARBAGE_COLLECTOR])}"
    return _webhook(
        "node",
        rule("netloom.dev", "v1alpha1", ["netloomnodes"]),
        {
            "not-the-operator": f"!({cel.by(scope.operator_users)})",
            "not-the-agent-of-the-node": f"!({own})",
            "not-the-garbage-collector": f"!({collected})",
            "what-is-guarded": (
                "request.operation == 'DELETE'"
                " || (request.operation == 'CREATE' && object.?spec.?ipam.hasValue())"
                f" || (request.operation == 'UPDATE' && ({cel.differs('?spec.?ipam')}))"
            ),
        },
    )


def _cilium_config(scope: Scope) -> Manifest:
    return _webhook(
        "cilium-config",
        rule("", "v1", ["configmaps"], scope="Namespaced"),
        {
            "what-is-guarded": f"{_UPDATE} || {cel.rewritten('?data', GUARDED_KEYS)}"
            f" || {cel.rewritten('?binaryData', GUARDED_KEYS)}"
        },
        only=CONFIG_NAME,
    ) | {"namespaceSelector": namespace_selector(scope.cilium_namespace)}


def _cilium_node(scope: Scope) -> Manifest:
    # What Cilium itself writes causes no call, and a new object none at all.
    cilium = f"{cel.USER}.startsWith('system:serviceaccount:{scope.cilium_namespace}:')"
    matched = rule(CILIUM_NODES.group, CILIUM_NODES.version, [CILIUM_NODES.plural])
    return _webhook(
        "cilium-node",
        matched | {"operations": ["UPDATE", "DELETE"]},
        {
            "not-cilium": f"!({cilium})",
            "not-the-garbage-collector": f"!({cel.by([GARBAGE_COLLECTOR])})",
            "what-is-guarded": f"{_UPDATE} || {cel.differs('?spec.?ipam')}",
        },
    )


def _cilium_node_config(scope: Scope) -> Manifest:
    # Of a selector, only where there is a mode that more or other nodes could get.
    defaults = "?spec.?defaults"
    written = f"{_UPDATE} && {cel.spellings(cel.TARGET, defaults, [IPAM])}.size() > 0"
    selected = f"{cel.spellings('object', defaults, [IPAM])}.size() > 0 && {cel.differs('?spec.?nodeSelector')}"
    moved = f"{cel.rewritten(defaults, [IPAM])} || ({selected})"
    return _webhook(
        "cilium-node-config",
        cilium_node_configs(),
        {"what-is-guarded": f"({written}) || (request.operation == 'UPDATE' && ({moved}))"},
    ) | {"namespaceSelector": namespace_selector(scope.cilium_namespace)}


def cilium_node_configs() -> Manifest:
    """Every write of a CiliumNodeConfig. Clusters serve one version or both; one that none serves does no harm."""
    kind = CILIUM_NODE_CONFIGS
    versions = {"apiVersions": list(CILIUM_NODE_CONFIG_VERSIONS)}
    return rule(kind.group, kind.version, [kind.plural], scope="Namespaced") | versions


def namespace_selector(namespace: str) -> Manifest:
    """Just this namespace; the API server itself puts that label on every one."""
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _webhook(name: str, matched: Manifest, conditions: Mapping[str, str], *, only: str = "") -> Manifest:
    return {
        "name": f"{name}.guard.netloom.dev",
        "rules": [matched],
        "matchPolicy": "Equivalent",
        "matchConditions": match_conditions(conditions, only),
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECONDS,
        "admissionReviewVersions": ["v1"],
    }


def match_conditions(conditions: Mapping[str, str], only: str) -> list[Manifest]:
    """These, below those that every webhook and policy has. only: the name of the one object that is guarded."""
    # The name first of all: it is what keeps the other ConfigMaps of the namespace out.
    first = {"name": f"{cel.NAME} == {cel.text(only)}"} if only else {}
    every = first | {"no-break-glass": cel.NO_BREAK_GLASS} | dict(conditions)
    return [{"name": name, "expression": expression} for name, expression in every.items()]


def rule(group: str, version: str, resources: Sequence[str], *, scope: str = "Cluster") -> Manifest:
    """Every write of these resources (list subresources as well)."""
    return {
        "apiGroups": [group],
        "apiVersions": [version],
        "resources": list(resources),
        "operations": ["CREATE", "UPDATE", "DELETE"],
        "scope": scope,
    }


def client_config(scope: Scope, url: str, ca_bundle: str) -> Manifest:
    """How the API server reaches the guard. url: where there is no Service. ca_bundle: base64 of PEM, or ""."""
    service = {"name": NAME, "namespace": scope.namespace, "path": PATH, "port": 443}
    reach: Manifest = {"url": url.rstrip("/") + PATH} if url else {"service": service}
    return reach | ({"caBundle": ca_bundle} if ca_bundle else {})
