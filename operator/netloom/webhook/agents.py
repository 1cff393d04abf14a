"""The policy netloom-agents: what an agent may write, which RBAC cannot say, as it knows no "only its own".

A token of a service account says on which node its pod runs, and the API server vouches for it. So whoever takes the
token from a node writes what that node's agent writes, and nothing of another node. One that names no node, or a
certificate, writes nothing.
"""

from typing import Any

from netloom.api.cluster_facts import agent_lease
from netloom.api.coordination import LEASES
from netloom.api.core import NOT_READY_TAINT
from netloom.api.events import EVENTS
from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.webhook import cel, names
from netloom.webhook.names import Scope
from netloom.webhook.policy import policy
from netloom.webhook.rules import rule

Manifest = dict[str, Any]

AGENT = "netloom-agent"
"""Source of the Events of all agents."""

NOT_OF_NETLOOM_NODE = ("?spec.?addresses", "?spec.?ipam.?mode", "?spec.?ipam.?podCIDRs", "?spec.?ipam.?pool")
"""Of a NetloomNode's spec, what is the operator's; all but what an agent is told below that it may change."""

_METADATA = tuple(f"?metadata.?{field}" for field in ("labels", "annotations", "finalizers", "ownerReferences"))
_NOT_OF_NODE = (
    *_METADATA,
    *(f"?spec.?{field}" for field in ("podCIDR", "podCIDRs", "providerID", "unschedulable", "configSource")),
)
"""All of a Node that somebody may write, but its taints."""

_ON = {name: f"(request.resource.resource == '{name}')" for name in (LEASES.plural, EVENTS.plural, "nodes")}
_OURS = f"(request.resource.resource == '{NETLOOM_NODES.plural}')"
_UPDATE = "request.operation == 'UPDATE'"
_DRAWS = f"(!({_UPDATE}) || dyn(oldObject).?spec.?ipam.?mode.orValue('') in ['', 'multi-pool'])"
"""The node draws on pools, or nobody has given it an address yet."""


def policies(scope: Scope) -> list[Manifest]:
    """The policy and its binding."""
    return policy(
        scope,
        names.AGENTS_POLICY,
        matched=[
            rule("netloom.dev", "v1alpha1", ["netloomnodes", "netloomnodes/status"]),
            rule(LEASES.group, LEASES.version, [LEASES.plural], scope="Namespaced"),
            rule("", "v1", ["nodes"]),
            rule("", "v1", [EVENTS.plural], scope="Namespaced"),
        ],
        conditions={"an-agent": cel.by(scope.agent_users)},
        variables={"name": cel.NAME, "own": cel.BOUND_NODES},
        validations=_its_own() | _of_netloom_node() | _of_node() | _of_events(),
        parameters=False,
    )


def _its_own() -> dict[str, str]:
    lease = cel.text(agent_lease(""))
    own = f"({_ON['leases']} ? variables.own.map(node, {lease} + node) : variables.own)"
    # A renewal is an update, and the first of them a creation; RBAC grants neither for one name alone.
    written = f"{_UPDATE} || ({_ON['leases']} && request.operation == 'CREATE')"
    return {
        f"{_ON['events']} || (({written}) && variables.name in {own})": (
            "request.kind.kind + ' ' + variables.name + ': metadata.name \\'' + variables.name + '\\': '"
            f" + ({_ON['leases']} ? 'an agent may only renew the Lease of its own node'"
            " : 'an agent may only update the ' + request.kind.kind + ' of its own node')"
            f" + {_WHICH} + 'Let the agent of that node write it, or the operator.'"
        )
    }


_WHICH = (
    "(variables.own.size() > 0 ? ', which is ' + variables.own[0] + '. '"
    " : ', and its token names none. Give it the token of a pod, which names its node from Kubernetes 1.32 on. ')"
)


def _of_netloom_node() -> dict[str, str]:
    head = "'NetloomNode ' + variables.name + "
    return {
        f"!{_OURS} || {_unchanged(NOT_OF_NETLOOM_NODE)}": (
            f"{head}': spec: an agent may only change encapsulations, sourceAddresses and ipam.pools. '"
            " + 'Leave the rest to the operator.'"
        ),
        # Agents enter blocks that their pods use and the object lacks, which nobody else does in other modes.
        f"!{_OURS} || {_DRAWS} || {_unchanged(('?spec.?ipam.?pools',))}": (
            f"{head}': spec.ipam.pools: an agent may only change them in IPAM mode multi-pool, and this node holds '"
            " + 'addresses of mode ' + dyn(oldObject).spec.ipam.mode + '. Leave them to the operator.'"
        ),
        f"!{_OURS} || {_unchanged(_METADATA)}": (
            f"{head}': metadata: an agent may change no labels, annotations, finalizers and ownerReferences. '"
            " + 'Leave them to the operator.'"
        ),
    }


def _of_node() -> dict[str, str]:
    taints = {of: f"dyn({of}).?spec.?taints.orValue([])" for of in ("object", "oldObject")}
    only_ours = (
        f"{taints['object']}.all(each, each in {taints['oldObject']}) && {taints['oldObject']}.all(each,"
        f" each.key == {cel.text(NOT_READY_TAINT)} || each in {taints['object']})"
    )
    return {
        f"!{_ON['nodes']} || ({_unchanged(_NOT_OF_NODE)} && ({_UPDATE} ? {only_ours} : true))": (
            f"'Node ' + variables.name + ': spec.taints: an agent may only take ' + {cel.text(NOT_READY_TAINT)}"
            " + ' off its Node. Leave the rest to whom it belongs.'"
        )
    }


def _of_events() -> dict[str, str]:
    """An agent's own, in which it says where it runs; about its node, or a pod, of which it is not said where it is."""

    def its_own(of: str) -> str:
        about = f"dyn({of}).?involvedObject"
        return (
            f"dyn({of}).?source.?component.orValue('') == '{AGENT}'"
            f" && dyn({of}).?source.?host.orValue('') in variables.own"
            f" && ({about}.?kind.orValue('') == 'Pod' || {about}.?name.orValue('') in variables.own)"
        )

    before = f"(request.operation == 'CREATE' ? true : {its_own('oldObject')})"
    after = f"(request.operation == 'DELETE' ? false : {its_own('object')})"
    return {
        f"!{_ON['events']} || ({after} && {before})": (
            "'Event ' + variables.name + ': source: an agent may only write Events from itself, about pods and its own"
            f" node' + {_WHICH} + 'Leave this one to whom it is from.'"
        )
    }


def _unchanged(fields: tuple[str, ...]) -> str:
    # The policy is about several kinds, of which each lacks fields of the others: told so (`dyn`), the API server does
    # not warn of it.
    same = " && ".join(f"dyn(object).{field} == dyn(oldObject).{field}" for field in fields)
    return f"({_UPDATE} ? ({same}) : true)"
