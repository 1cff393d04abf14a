"""JSON schemas of values that are Kubernetes' own or those of our definitions: `$defs` of values.schema.json.

What the API server would refuse of them is to be refused by Helm, before anything is done: of a release, pods and the
network are written after all else.
"""

from __future__ import annotations

from typing import Any

from netloom.runtime.yaml_documents import documents
from netloom_e2e.crds import FOLDER

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_QUANTITY: Schema = {
    "type": ["string", "number"],
    "pattern": r"^[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$",
}
_SHARE: Schema = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"}


def _closed(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _named(**properties: Schema) -> Schema:
    return _closed(name=_TEXT, **properties) | {"required": ["name"]}


def _each(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _strategy(*types: str) -> Schema:
    rolling = _closed(maxSurge=_SHARE, maxUnavailable=_SHARE) | {"type": ["object", "null"]}
    return _closed(type={"enum": [*types]}, rollingUpdate=rolling)


def definitions() -> dict[str, Schema]:
    """All of them, by name."""
    amounts: Schema = {"type": "object", "additionalProperties": _QUANTITY}
    toleration = _closed(
        key=_TEXT,
        operator={"enum": ["Exists", "Equal", "Lt", "Gt"]},
        value=_TEXT,
        effect={"enum": ["", "NoSchedule", "PreferNoSchedule", "NoExecute"]},
        tolerationSeconds={"type": "integer"},
    )
    kinds = ("nodeAffinity", "podAffinity", "podAntiAffinity")
    network, pool = (_spec(name) for name in ("netloomnetworks", "netloomippools"))
    cut = network["ipam"]["properties"]["clusterPool"]["properties"]
    return {
        "affinity": _closed(**{each: {"type": ["object", "null"]} for each in kinds}),
        "daemonSetStrategy": _strategy("RollingUpdate", "OnDelete"),
        "deploymentStrategy": _strategy("RollingUpdate", "Recreate"),
        "clusterCIDRs": cut["ipv4PodCIDRList"],
        "devices": network["devices"],
        "environment": _each(_named(value=_TEXT, valueFrom={"type": "object"})),
        "labels": {"type": "object", "additionalProperties": _TEXT},
        "names": _each(_named()),
        "networks": network["masquerade"]["properties"]["nonMasqueradeCIDRs"],
        "nodeSelector": network["nodeSelector"],
        "pool": _closed(**pool),
        "resources": _closed(limits=amounts, requests=amounts, claims=_each({"type": "object"})),
        "seLinux": _closed(level=_TEXT, role=_TEXT, type=_TEXT, user=_TEXT),
        "tolerations": _each(toleration),
        "users": _each(_TEXT | {"pattern": r"^\S(.*\S)?$"}),
    }


def _spec(plural: str) -> dict[str, Schema]:
    """The properties of a definition's spec."""
    [definition] = documents((FOLDER / f"{plural}.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return {name: _plain(each) for name, each in spec["properties"].items()}


_KEPT = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "maxItems")
"""What is required is told by templates, with an example."""


def _plain(schema: Schema) -> Schema:
    """What JSON schema has of it, too."""
    found = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        found |= _closed(**{name: _plain(each) for name, each in schema["properties"].items()})
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = _plain(schema[key])
    if schema.get("x-kubernetes-list-type") == "set":
        found["uniqueItems"] = True
    return found
