"""The policies of what stands beside the guarded configuration: the record, what runs Cilium, and what it stands on.

No webhook asks about these: a policy costs no call, and is there when no guard runs.
"""

from typing import Any

from netloom.api.cilium import (
    AGENTS_NAME,
    CILIUM_NODES,
    CILIUM_POOLS,
    CONFIG_NAME,
    DAEMON_SETS,
    DEPLOYMENTS,
    OPERATOR_NAME,
)
from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.api.words import NODES_HOLD
from netloom.guard import cilium_workload as workload
from netloom.guard import wording
from netloom.guard.cilium import GUARDED_KEYS, IPAM
from netloom.guard.cluster_state import BREAK_GLASS_GROUP, CILIUM_IN_USE, CILIUM_MODE, RECORD_NAME
from netloom.webhook import cel, names
from netloom.webhook.names import Scope
from netloom.webhook.policy import policy, recorded, said
from netloom.webhook.rules import rule

Manifest = dict[str, Any]

PARTS = (AGENTS_NAME, OPERATOR_NAME, "cilium-config-agent")
"""Workloads, accounts and rights without which agents and operator neither go on nor start again."""
CRDS = tuple(f"{each.plural}.{each.group}" for each in (CILIUM_NODES, CILIUM_POOLS))
_HELM = "^helm[0-9.v-]*$"
"""Helm's field manager: the name of its program, which some call helm4."""
_RBAC = "rbac.authorization.k8s.io"


def record_writes(scope: Scope) -> list[Manifest]:
    """The record is the guard's to write; with no content, or with the one it has, anybody may apply it."""
    data = {of: f"{of}.?data.orValue({{}})" for of in ("object", "oldObject")}
    text = cel.filled(wording.RECORD_WRITTEN.text, {"group": cel.text(BREAK_GLASS_GROUP)})
    holds = (
        "request.operation == 'CREATE' ? variables.after.size() == 0"
        " : request.operation == 'DELETE' ? variables.before.size() == 0"
        " : variables.after == variables.before && object.?immutable == oldObject.?immutable"
    )
    return policy(
        scope,
        names.RECORD_POLICY,
        matched=rule("", "v1", ["configmaps"], scope="Namespaced"),
        namespace=scope.namespace,
        only=RECORD_NAME,
        conditions={"not-the-guard": f"!({cel.by(scope.record_users)})"},
        variables={
            "before": f"request.operation == 'CREATE' ? {{}} : {data['oldObject']}",
            "after": f"request.operation == 'DELETE' ? {{}} : {data['object']}",
        },
        validations={holds: f"'ConfigMap {scope.namespace}/{RECORD_NAME}: data: ' + {text}"},
        parameters=False,
    )


def definitions(scope: Scope) -> list[Manifest]:
    """Helm 4 applies what is in a chart's crds/ at any `helm install`, and only then looks whether that is refused. The
    definitions of another chart would take from live objects what they do not know. Upgrades bring theirs by a Job, and
    people by kubectl: both are other field managers."""
    return policy(
        scope,
        names.DEFINITIONS_POLICY,
        matched=rule("apiextensions.k8s.io", "v1", ["customresourcedefinitions"]) | {"operations": ["UPDATE"]},
        conditions={
            "of-netloom": f"{cel.NAME}.endsWith({cel.text(f'.{NETLOOM_NODES.group}')})",
            "by-helm-install": f"request.?options.?fieldManager.orValue('').matches({cel.text(_HELM)})",
        },
        variables={},
        validations={
            "object.?spec == oldObject.?spec": (
                f"'CustomResourceDefinition ' + {cel.NAME} + ': spec: ' + {cel.text(wording.DEFINITIONS_BY_HELM.text)}"
            )
        },
        parameters=False,
    )


def workloads(scope: Scope) -> list[Manifest]:
    """What in Cilium's DaemonSet and Deployment overrules its ConfigMap, and did not so before."""
    after, before = (_containers(of) for of in ("object", "oldObject"))
    found = _overrides(scope, "object"), _overrides(scope, "oldObject")
    return policy(
        scope,
        names.CILIUM_WORKLOADS_POLICY,
        matched=rule("apps", "v1", [DAEMON_SETS.plural, DEPLOYMENTS.plural], scope="Namespaced"),
        namespace=scope.cilium_namespace,
        conditions={
            "runs-cilium": f"request.operation != 'DELETE' && {cel.NAME} in {cel.texts((AGENTS_NAME, OPERATOR_NAME))}",
            "what-is-guarded": "request.operation != 'UPDATE' || object.?spec.?template != oldObject.?spec.?template",
        },
        variables={
            "mode": recorded(CILIUM_MODE, ""),
            "inUse": recorded(CILIUM_IN_USE, NODES_HOLD),
            "before": f"request.operation == 'CREATE' ? [] : {before}.map(c, {found[1]})",
            "new": f"{after}.map(c, {found[0]}.filter(x, !variables.before.exists(each, x in each)))",
            "found": "variables.new.filter(each, each.size() > 0).map(each, each.join('; '))",
        },
        validations={
            "variables.mode == '' || variables.found.size() == 0": (
                f"request.kind.kind + ' {scope.cilium_namespace}/' + {cel.NAME} + ': spec.template \\''"
                f" + variables.found.join('; ') + '\\': ' + {said(wording.CILIUM_OVERRIDE)}"
            )
        },
    )


def parts(scope: Scope) -> list[Manifest]:
    """Deletions by which Cilium would be taken away in use. `helm uninstall` begins with these, and with Services."""
    crd = "request.resource.resource == 'customresourcedefinitions'"
    matched = [
        rule("apps", "v1", [DAEMON_SETS.plural, DEPLOYMENTS.plural], scope="Namespaced"),
        rule("", "v1", ["serviceaccounts"], scope="Namespaced"),
        rule(_RBAC, "v1", ["roles", "rolebindings"], scope="Namespaced"),
        rule(_RBAC, "v1", ["clusterroles", "clusterrolebindings"]),
        rule("apiextensions.k8s.io", "v1", ["customresourcedefinitions"]),
    ]
    place = f"(request.?namespace.orValue('') == '' ? '' : '{scope.cilium_namespace}/')"
    return policy(
        scope,
        names.CILIUM_PARTS_POLICY,
        matched=[each | {"operations": ["DELETE"]} for each in matched],
        namespace=scope.cilium_namespace,
        conditions={
            "of-cilium": f"{cel.NAME} in ({crd} ? {cel.texts(CRDS)} : {cel.texts(PARTS)})",
            "not-orphaning": "request.?options.?propagationPolicy.orValue('') != 'Orphan'",
        },
        variables={
            "mode": recorded(CILIUM_MODE, ""),
            "inUse": recorded(CILIUM_IN_USE, NODES_HOLD),
            "name": cel.NAME,
        },
        validations={
            "variables.mode == ''": (
                f"request.kind.kind + ' ' + {place} + variables.name + ': metadata.name \\'' + variables.name + '\\': '"
                f" + {said(wording.CILIUM_PART)}"
            )
        },
    )


def _containers(of: str) -> str:
    pod = f"{of}.?spec.?template.?spec"
    return f"({pod}.?initContainers.orValue([]) + {pod}.?containers.orValue([]))"


def _overrides(scope: Scope, of: str) -> str:
    """For a container `c` of an object, what `guard.cilium_workload.overrides` finds of it."""
    namespace, text = scope.cilium_namespace, "(c.?command.orValue([]) + c.?args.orValue([])).join(' ')"
    plain = text + "".join(f".replace({cel.text(quote)}, '')" for quote in workload.QUOTES)

    def found(pattern: str, but: str) -> str:
        needed = " || ".join(f"t.contains({cel.text(each)})" for each in workload.NEEDED[pattern])
        each = f"(({needed}) ? t.findAll({cel.text(pattern)}) : []).map(f, f.trim().replace('=', ' ', 1))"
        return f"{each}.filter(f, {but}).map(f, c.name + ': ' + f)"

    limited = f"(t.matches({cel.text(workload.LIMITED)}) && !t.lowerAscii().matches({cel.text(workload.OPEN)}))"
    known = f"f.matches({cel.text(workload.known_sources(namespace))})"
    first = f"f.matches({cel.text(workload.first_source(namespace))})"
    ours = f"(c.name + ' ' + {text}).matches({cel.text(workload.CILIUM)})"
    flags = (
        found(workload.FLAG, f"f != '--{IPAM} ' + variables.mode")
        + " + "
        + found(workload.FOLDER, f"{ours} && f != '--config-dir {workload.CONFIG_DIR}'")
        + " + "
        + found(workload.ASSIGNED, f"f != '{workload.ENVIRONMENT[0]} ' + variables.mode")
        + " + "
        + found(workload.SOURCE, f"!({known} || ({limited} && {first}))")
    )
    key = "e.?valueFrom.?configMapKeyRef"
    guarded = (
        f"({key}.hasValue() ? {key}.?name.orValue('') == '{CONFIG_NAME}'"
        f" && {key}.?key.orValue('') in {cel.texts(GUARDED_KEYS)}"
        f" : !e.?valueFrom.hasValue() && e.name == '{workload.ENVIRONMENT[0]}'"
        " && e.?value.orValue('') == variables.mode)"
    )
    value = "(e.?valueFrom.hasValue() ? 'of another object' : e.?value.orValue(''))"
    environment = (
        f"c.?env.orValue([]).filter(e, e.name in {cel.texts(workload.ENVIRONMENT)} && !{guarded})"
        f".map(e, c.name + ': env ' + e.name + ' ' + {value})"
    )
    whole = f"(c.?envFrom.orValue([]).size() > 0 && {ours} ? [c.name + ': envFrom'] : [])"
    volumes = (
        f"{of}.?spec.?template.?spec.?volumes.orValue([]).exists(v, v.name == m.name"
        f" && v.?configMap.?name.orValue('') == '{CONFIG_NAME}' && v.?configMap.?items.orValue([]).size() == 0)"
    )
    mounts = (
        f"c.?volumeMounts.orValue([]).filter(m, m.mountPath.matches({cel.text(workload.MOUNTED)}) && !{volumes})"
        ".map(m, c.name + ': volume ' + m.name + ' at ' + m.mountPath)"
    )
    return f"([{plain}].map(t, {flags})[0] + {environment} + {whole} + {mounts})"
