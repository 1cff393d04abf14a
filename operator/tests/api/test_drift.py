"""The CustomResourceDefinitions and the structs their objects are decoded into cannot drift apart."""

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from netloom.api.meta import Resource
from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS, PREFILTERS
from netloom.api.validation.ranges import RANGES
from tests.api.schema import CRDS, Schema, defaulted, differences, fields, load, schema_of

RESOURCES: list[Resource[Any]] = [NETWORKS, NETLOOM_NODES, POOLS, PREFILTERS, LEDGERS]
each_resource = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)


@each_resource
def test_schema_and_struct_agree(resource: Resource[Any]) -> None:
    assert differences(schema_of(load(resource)), resource.type) == []


@each_resource
def test_definition_and_resource_agree(resource: Resource[Any]) -> None:
    definition = load(resource)
    spec = definition["spec"]
    (version,) = spec["versions"]
    assert definition["metadata"]["name"] == f"{resource.plural}.{resource.group}"
    assert (spec["group"], version["name"], spec["names"]["plural"], spec["names"]["kind"], spec["scope"]) == (
        resource.group,
        resource.version,
        resource.plural,
        resource.kind,
        "Cluster",
    )
    assert ("status" in version.get("subresources", {})) == ("status" in resource.type.__struct_fields__)


def test_every_definition_has_a_struct() -> None:
    assert {file.stem for file in CRDS.glob("*.yaml")} == {resource.plural for resource in RESOURCES}


@each_resource
def test_what_is_absent_means_the_same_to_the_api_server_and_to_us(resource: Resource[Any]) -> None:
    completed = defaulted(schema_of(load(resource)), {})
    assert msgspec.convert(completed, resource.type) == msgspec.convert({}, resource.type)


@each_resource
def test_every_field_is_documented_with_its_default(resource: Resource[Any]) -> None:
    missing = []
    for path, schema in fields("", schema_of(load(resource))):
        text = schema.get("description", "")
        default = schema.get("default", {})
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        if not text or (default != {} and f"Default: {shown}." not in text):
            missing.append(path)
    assert missing == []


@each_resource
def test_lists_say_how_writers_share_them(resource: Resource[Any]) -> None:
    lists = [(path, schema) for path, schema in fields("", schema_of(load(resource))) if schema["type"] == "array"]
    assert [path for path, schema in lists if "x-kubernetes-list-type" not in schema] == []


@pytest.mark.parametrize(
    ("kind", "field", "bounds"), [(kind, field, bounds) for kind in RANGES for field, bounds in RANGES[kind].items()]
)
def test_ranges_agree(kind: str, field: str, bounds: tuple[int, int]) -> None:
    (resource,) = (resource for resource in RESOURCES if resource.kind == kind)
    schema = dict(fields("", schema_of(load(resource))))[field]
    assert (schema["minimum"], schema["maximum"]) == bounds


def test_conditions_are_the_same_everywhere() -> None:
    """Anchors do not reach from file to file."""
    with_status = [resource for resource in RESOURCES if "status" in resource.type.__struct_fields__]
    items = [dict(fields("", schema_of(load(resource))))["status.conditions"]["items"] for resource in with_status]
    assert len(items) == 4
    assert all(each == items[0] for each in items)


Change = Callable[[Schema], object]

DRIFTS: dict[str, tuple[Change, str]] = {
    "a field only in the schema": (
        lambda spec: spec["properties"].update(color={"type": "string"}),
        "spec.color: only in the schema",
    ),
    "a field only in the struct": (
        lambda spec: spec["properties"].pop("mtu"),
        "spec.mtu: only in the struct",
    ),
    "another type": (
        lambda spec: spec["properties"]["mtu"].update(type="string"),
        "spec.mtu: string in the schema, IntType in the struct",
    ),
    "a list of something else": (
        lambda spec: spec["properties"]["devices"]["items"].update(type="integer"),
        "spec.devices[]: integer in the schema, StrType in the struct",
    ),
    "another default": (
        lambda spec: spec["properties"]["mtu"].update(default=1500),
        "spec.mtu: default 1500 in the schema, 0 in the struct",
    ),
    "no default": (
        lambda spec: _routing(spec)["mode"].pop("default"),
        "spec.routing.mode: default '' in the schema, 'tunnel' in the struct",
    ),
    "defaults inside something absent": (
        lambda spec: spec["properties"]["routing"].pop("default"),
        "spec.routing: without default {}, the defaults inside only apply where it is given",
    ),
    "one more value": (
        lambda spec: _routing(spec)["mode"]["enum"].append("magic"),
        "spec.routing.mode: enum differs by 'magic'",
    ),
    "a field that only the schema requires": (
        lambda spec: spec.update(required=["mtu"]),
        "spec.mtu: required only in the schema",
    ),
}


def _routing(spec: Schema) -> dict[str, Any]:
    routing: dict[str, Any] = spec["properties"]["routing"]["properties"]
    return routing


@pytest.mark.parametrize(("change", "line"), DRIFTS.values(), ids=DRIFTS)
def test_drift_is_found(change: Change, line: str) -> None:
    schema = copy.deepcopy(schema_of(load(NETWORKS)))
    change(schema["properties"]["spec"])
    assert line in differences(schema, NETWORKS.type)


def test_a_requirement_of_the_struct_only_is_found() -> None:
    schema = copy.deepcopy(schema_of(load(NETLOOM_NODES)))
    schema["properties"]["spec"]["properties"]["addresses"]["items"].pop("required")
    assert differences(schema, NETLOOM_NODES.type) == [
        "spec.addresses[].type: required only in the struct",
        "spec.addresses[].ip: required only in the struct",
    ]
