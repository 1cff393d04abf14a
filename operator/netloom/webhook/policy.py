"""How a ValidatingAdmissionPolicy and its binding are put together, and what all of them say and read."""

from collections.abc import Mapping
from typing import Any

from netloom.guard import wording
from netloom.guard.cluster_state import RECORD_NAME
from netloom.webhook import cel
from netloom.webhook.names import Scope
from netloom.webhook.rules import admission_object, match_conditions, namespace_selector

Manifest = dict[str, Any]


def said(refusal: wording.Wording, *, wanted: str = "wanted") -> str:
    """The text of a refusal, with a policy's variables in it."""
    values = {"in_use": "variables.inUse", "mode": "variables.mode", "wanted": f"variables.{wanted}"}
    return cel.filled(refusal.text, values)


def recorded(key: str, otherwise: str) -> str:
    """What the record has of a key."""
    return f"params.?data[?{cel.text(key)}].orValue({cel.text(otherwise)})"


def policy(
    scope: Scope,
    name: str,
    *,
    matched: Manifest | list[Manifest],
    variables: Mapping[str, str],
    validations: Mapping[str, str],
    parameters: bool = True,
    conditions: Mapping[str, str] | None = None,
    namespace: str = "",
    only: str = "",
) -> list[Manifest]:
    """A policy and its binding. validations: what has to hold, and what is said where it does not.

    parameters: whether it goes by the record. only: the name of the one object that is guarded.
    """
    # Whole, with what the API server would fill in: server-side apply compares this block as one, and would see a
    # conflict between two tools that apply the very same.
    constraints = {
        "resourceRules": matched if isinstance(matched, list) else [matched],
        "matchPolicy": "Equivalent",
        "namespaceSelector": namespace_selector(namespace) if namespace else {},
        "objectSelector": {},
    }
    record = {"name": RECORD_NAME, "namespace": scope.namespace, "parameterNotFoundAction": "Allow"}
    spec = {
        "failurePolicy": "Fail",
        **({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}} if parameters else {}),
        "matchConstraints": constraints,
        "matchConditions": match_conditions(conditions or {}, only),
        "variables": [{"name": each, "expression": text} for each, text in variables.items()],
        "validations": [
            {"expression": holds, "messageExpression": says, "reason": "Forbidden"}
            for holds, says in validations.items()
        ],
    }
    binding = {"policyName": name, "validationActions": ["Deny"], **({"paramRef": record} if parameters else {})}
    return [
        admission_object("ValidatingAdmissionPolicy", name, spec=spec),
        admission_object("ValidatingAdmissionPolicyBinding", name, spec=binding),
    ]
