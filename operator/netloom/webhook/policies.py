"""The ValidatingAdmissionPolicies: the lock that the API server keeps by itself, with no guard running.

Their parameter is the record, the ConfigMap in which the guard writes down what is in use (`guard.record`). While there
is none, or nothing is in use, they let everything through. A policy is asked before a webhook, so that a user reads the
same words from either (`guard.wording`).
"""

from typing import Any

from netloom.api.cilium import CONFIG_NAME, DEFAULT_MODE
from netloom.api.v1alpha1 import IN_USE_FINALIZER
from netloom.api.words import NODES_HOLD
from netloom.guard import wording
from netloom.guard.cilium import GUARDED_KEYS, IPAM, MIGRATION, MIGRATION_MODES, TRUE
from netloom.guard.cluster_state import CILIUM_IN_USE, CILIUM_MODE, NETLOOM_IN_USE, NETLOOM_MODE
from netloom.webhook import agents, cel, names
from netloom.webhook.names import Scope
from netloom.webhook.policy import policy, recorded, said
from netloom.webhook.rules import cilium_node_configs, rule
from netloom.webhook.side_doors import definitions, parts, record_writes, workloads

Manifest = dict[str, Any]

_CREATE, _UPDATE, _DELETE = (
    f"request.operation != '{each}' || variables.mode == ''" for each in ("CREATE", "UPDATE", "DELETE")
)
"""How a validation of one operation begins: the others pass, and all do while nothing is in use."""
_SAME = "variables.mode == variables.wanted"


def policies(scope: Scope) -> list[Manifest]:
    """Policies and their bindings."""
    found: list[Manifest] = []
    if scope.netloom:
        found += _network(scope) + agents.policies(scope) + definitions(scope)
    if scope.cilium:
        found += _cilium(scope) + _cilium_node_config(scope) + workloads(scope) + parts(scope)
    return found + record_writes(scope) + _kept(scope)


def _kept(scope: Scope) -> list[Manifest]:
    """A policy that refuses nothing, without the label: it and its binding stay when the others are deleted.

    The API server watches the ConfigMaps of parameters only while a binding needs them. What it once stopped to watch
    it never watches again until it is restarted (policy_source.go of k8s.io/apiserver 1.37: the watch is one of a
    factory that starts each kind once), so policies that come back would go by the record as it was then, for ever.
    """
    matched = rule("guard.netloom.dev", "v1", ["nothing"])
    found = policy(
        scope, names.KEPT_POLICY, matched=matched, variables={}, validations={"true": "'nothing is refused'"}
    )
    for each in found:
        del each["metadata"]["labels"]
    return found


def _network(scope: Scope) -> list[Manifest]:
    head = "'NetloomNetwork ' + variables.name + ': "
    deleted = said(wording.NETWORK_DELETED)
    finalizer = cel.text(IN_USE_FINALIZER)
    spec_mode = f"{head}spec.ipam.mode \\'' + variables.wanted + '\\': ' + "
    return policy(
        scope,
        names.NETWORK_POLICY,
        matched=rule("netloom.dev", "v1alpha1", ["netloomnetworks", "netloomnetworks/status"]),
        variables={
            "name": cel.NAME,
            "locked": "request.operation == 'CREATE' ? '' : oldObject.?status.?ipam.?mode.orValue('')",
            "mode": "variables.locked != '' ? variables.locked : " + recorded(NETLOOM_MODE, ""),
            "inUse": recorded(NETLOOM_IN_USE, NODES_HOLD),
            "wanted": "request.operation == 'DELETE' ? '' : object.?spec.?ipam.?mode.orValue('cluster-pool')",
        },
        validations={
            f"{_CREATE} || {_SAME}": spec_mode + said(wording.NETWORK_CREATED),
            f"{_UPDATE} || {_SAME} || variables.wanted == oldObject.?spec.?ipam.?mode.orValue('cluster-pool')": (
                spec_mode + said(wording.NETWORK_MODE)
            ),
            _DELETE: f"{head}metadata.name \\'' + variables.name + '\\': ' + {deleted}",
            f"{_UPDATE} || object.?status.?ipam == oldObject.?status.?ipam || {cel.by(scope.operator_users)}": (
                f"{head}status.ipam: ' + " + said(wording.NETWORK_UNLOCKED)
            ),
            f"{_UPDATE} || !oldObject.metadata.?deletionTimestamp.hasValue()"
            f" || !({finalizer} in oldObject.metadata.?finalizers.orValue([]))"
            f" || {finalizer} in object.metadata.?finalizers.orValue([]) || {cel.by(scope.operator_users)}": (
                f"{head}metadata.finalizers: ' + {deleted}"
            ),
        },
    )


def _cilium(scope: Scope) -> list[Manifest]:
    head = f"'ConfigMap {scope.cilium_namespace}/{CONFIG_NAME}: "
    key = f"(variables.keys.size() == 0 || {cel.text(IPAM)} in variables.keys ? {cel.text(IPAM)} : variables.keys[0])"
    shown = f"{head}data.' + {key} + (variables.asked == '' ? '' : ' \\'' + variables.asked + '\\'') + ': ' + "
    migration = f"(variables.migrates ? {cel.text(f' {wording.CILIUM_MIGRATION}')} : '')"
    another_mode = f"{shown}{said(wording.CILIUM_MODE)} + {migration}"
    agreed = "variables.keys.all(key, object.data[key].trim() == variables.asked.trim())"
    as_before = f"request.operation == 'UPDATE' && !{cel.rewritten('?data', [IPAM])}"
    binary = cel.spellings("object", "?binaryData", GUARDED_KEYS)
    flagged = f"(variables.migrates && variables.flag in {cel.texts(sorted(TRUE))})"
    return policy(
        scope,
        names.CILIUM_POLICY,
        matched=rule("", "v1", ["configmaps"], scope="Namespaced"),
        namespace=scope.cilium_namespace,
        only=CONFIG_NAME,
        variables={
            "mode": recorded(CILIUM_MODE, ""),
            "inUse": recorded(CILIUM_IN_USE, NODES_HOLD),
            "keys": f"request.operation == 'DELETE' ? [] : {cel.spellings('object', '?data', [IPAM])}",
            "binary": (
                f"request.operation == 'DELETE' ? [] : request.operation == 'CREATE' ? {binary}"
                f" : {binary}.filter(key, object.?binaryData[?key] != oldObject.?binaryData[?key])"
            ),
            "asked": _data("object", IPAM, "DELETE"),
            "old": _data("oldObject", IPAM, "CREATE") + ".trim()",
            "wanted": _or_default("variables.asked.trim()"),
            "oldMode": _or_default("variables.old"),
            "flag": _data("object", MIGRATION, "DELETE") + ".trim()",
            "migrates": "variables.mode == 'cluster-pool' && variables.wanted == 'multi-pool'",
        },
        validations={
            "variables.mode == '' || variables.binary.size() == 0": (
                f"{head}binaryData.' + variables.binary[0] + ': ' + {said(wording.CILIUM_BINARY)}"
            ),
            f"variables.mode == '' || {agreed} || ({as_before})": (
                f"{head}data.{IPAM}: ' + " + said(wording.CILIUM_SPELLINGS)
            ),
            f"{_CREATE} || {_SAME} || {flagged}": another_mode,
            f"{_UPDATE} || {_SAME} || variables.wanted == variables.oldMode || variables.asked.trim() == ''"
            f" || ({flagged} && variables.oldMode in ['cluster-pool', 'multi-pool'])": another_mode,
            f"{_UPDATE} || variables.old == '' || variables.asked.trim() != ''": (
                f"{head}data.' + {key} + ': ' + {said(wording.CILIUM_UNSET)}"
            ),
            _DELETE: f"{head}metadata.name \\'{CONFIG_NAME}\\': ' + " + said(wording.CILIUM_DELETED),
        },
    )


def _cilium_node_config(scope: Scope) -> list[Manifest]:
    others = {
        of: f"{cel.spellings(of, '?spec.?defaults', [IPAM])}"
        f".filter(key, {of}.spec.defaults[key].trim() != variables.mode)"
        for of in ("object", "oldObject")
    }
    modes = {of: f"{keys}.map(key, {of}.spec.defaults[key].trim())[?0]" for of, keys in others.items()}
    head = f"'CiliumNodeConfig {scope.cilium_namespace}/' + variables.name + ': "
    value = "(variables.wanted == '' ? '' : ' \\'' + variables.wanted + '\\'')"
    source, target = map(cel.text, MIGRATION_MODES)
    hint = cel.text(" " + wording.CILIUM_NODE_MIGRATION)
    migration = f"(variables.mode == {source} && variables.wanted == {target} ? {hint} : '')"
    other_mode = said(wording.CILIUM_NODE_MODE, wanted="shown")
    other_nodes = said(wording.CILIUM_NODE_SELECTOR, wanted="shown")
    return policy(
        scope,
        names.CILIUM_NODE_CONFIG_POLICY,
        matched=cilium_node_configs(),
        namespace=scope.cilium_namespace,
        variables={
            "mode": recorded(CILIUM_MODE, ""),
            "inUse": recorded(CILIUM_IN_USE, NODES_HOLD),
            "name": cel.NAME,
            "key": f"request.operation == 'DELETE' ? '' : {others['object']}[?0].orValue({cel.text(IPAM)})",
            "wanted": f"request.operation == 'DELETE' ? variables.mode : {modes['object']}.orValue(variables.mode)",
            "old": f"request.operation == 'CREATE' ? variables.mode : {modes['oldObject']}.orValue(variables.mode)",
            "shown": f"variables.wanted == '' ? {cel.text(wording.CILIUM_NO_MODE)} : variables.wanted",
        },
        validations={
            f"variables.mode == '' || {_SAME} || variables.wanted == variables.old": (
                f"{head}spec.defaults.' + variables.key + {value} + ': ' + {other_mode} + {migration}"
            ),
            f"{_UPDATE} || {_SAME} || variables.wanted != variables.old"
            " || object.?spec.?nodeSelector == oldObject.?spec.?nodeSelector": (
                f"{head}spec.nodeSelector: ' + {other_nodes} + {migration}"
            ),
        },
    )


def _data(of: str, key: str, missing_at: str) -> str:
    """The value of a key of cilium-config, however it is spelled; of several, the one in lower case."""
    others = f"{cel.spellings(of, '?data', [key])}.map(key, {of}.data[key])[?0]"
    return f"(request.operation == '{missing_at}' ? '' : {of}.?data[?{cel.text(key)}].or({others}).orValue(''))"


def _or_default(mode: str) -> str:
    return f"{mode} == '' ? {cel.text(DEFAULT_MODE)} : {mode}"
