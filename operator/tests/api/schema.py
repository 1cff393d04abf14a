"""The comparison of a CustomResourceDefinition with the struct its objects are decoded into.

Both are written by hand, for different readers: the YAML for people who run clusters, the structs for code. What one
says and the other does not is a difference, given as a line of text that names the field.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from netloom.api.meta import Resource

CRDS = Path(__file__).parents[3] / "crds"

Schema = dict[str, Any]


def load(resource: Resource[Any]) -> dict[str, Any]:
    """The CustomResourceDefinition of a resource: the same to all, who changes it copies it."""
    return _load(resource.plural)


@functools.cache
def _load(plural: str) -> dict[str, Any]:
    definition: dict[str, Any] = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    return definition


def schema_of(definition: dict[str, Any]) -> Schema:
    """The schema of the only version."""
    (version,) = definition["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def defaulted(schema: Schema, value: Any) -> Any:
    """The value as the API server completes it: absent fields get their default, and those of what is there, theirs."""
    if isinstance(value, list):
        return [defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    if "additionalProperties" in schema:
        return {key: defaulted(schema["additionalProperties"], item) for key, item in value.items()}
    properties = schema.get("properties", {})
    absent = {name: field["default"] for name, field in properties.items() if "default" in field and name not in value}
    return {name: defaulted(properties.get(name, {}), item) for name, item in {**value, **absent}.items()}


def fields(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every field with its path, except those of metadata."""
    for name, field in schema.get("properties", {}).items():
        if path or name not in ("apiVersion", "kind", "metadata"):
            at = f"{path}.{name}" if path else name
            yield at, field
            yield from fields(at, field)
            yield from fields(f"{at}[]", field.get("items", {}))
            yield from fields(f"{at}{{}}", field.get("additionalProperties", {}))


def differences(schema: Schema, struct: type[msgspec.Struct]) -> list[str]:
    """What the schema of a kind and its struct do not agree on. What every object has is left out."""
    own = {name: field for name, field in schema["properties"].items() if name not in ("apiVersion", "kind")}
    own["metadata"] = {"type": "object", "properties": own.get("metadata", {}).get("properties", {})}
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)
    found = _object("", {**schema, "properties": own}, kind)
    return [line for line in found if not line.startswith("metadata.")]


def _object(path: str, schema: Schema, kind: inspect.StructType) -> list[str]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    fields = {field.encode_name: field for field in kind.fields}
    found: list[str] = []
    for name in properties | fields:
        at = f"{path}.{name}" if path else name
        if name not in fields or name not in properties:
            found.append(f"{at}: only in the {'schema' if name in properties else 'struct'}")
            continue
        if fields[name].required != (name in required):
            found.append(f"{at}: required only in the {'schema' if name in required else 'struct'}")
        found += _type(at, properties[name], fields[name].type) + _default(at, properties[name], fields[name])
    return found


def _type(path: str, schema: Schema, kind: inspect.Type) -> list[str]:
    match kind:
        case inspect.StructType() if schema["type"] == "object" and "properties" in schema:
            return _object(path, schema, kind)
        case inspect.VarTupleType(item_type=item) if schema["type"] == "array":
            return _type(f"{path}[]", schema["items"], item)
        case inspect.DictType(value_type=value) if "additionalProperties" in schema:
            return _type(f"{path}{{}}", schema["additionalProperties"], value)
        case inspect.UnionType(types=(inspect.StructType() | inspect.VarTupleType() as some, inspect.NoneType())):
            return _type(path, schema, some)
        case inspect.UnionType() | inspect.LiteralType() if "enum" in schema:
            only = sorted(set(schema["enum"]) ^ _values(kind))
            return [f"{path}: enum differs by {', '.join(map(repr, only))}"] if only else []
        case inspect.StrType() if schema["type"] == "string" and "enum" not in schema:
            return []
        case inspect.IntType() if schema["type"] == "integer":
            return []
        case inspect.BoolType() if schema["type"] == "boolean":
            return []
    return [f"{path}: {schema['type']} in the schema, {type(kind).__name__} in the struct"]


def _values(kind: inspect.Type) -> set[str]:
    literals = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return {str(value) for each in literals if isinstance(each, inspect.LiteralType) for value in each.values}


_ZERO = {"string": "", "integer": 0, "boolean": False, "array": (), "object": {}}
"""What an absent field without a default means to a reader."""


def _default(path: str, schema: Schema, field: inspect.Field) -> list[str]:
    """What an absent field means, to the API server and to whoever decodes the object."""
    if field.required:
        return [f"{path}: required, and has a default in the schema"] if "default" in schema else []
    struct = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(field.type, inspect.StructType):
        # Defaults are said once, at the innermost field; an object's own is {}, for those to apply where it is absent.
        if schema.get("default", {}) != {} or struct != msgspec.convert({}, field.type.cls):
            return [f"{path}: the default of an object is {{}}"]
        if "default" not in schema and defaulted(schema, {}) != {}:
            return [f"{path}: without default {{}}, the defaults inside only apply where it is given"]
        return []
    absent = None if isinstance(field.default, type(None)) else _ZERO[schema["type"]]
    api, struct = schema.get("default", absent), msgspec.to_builtins(struct)
    return [] if api == struct else [f"{path}: default {api!r} in the schema, {struct!r} in the struct"]
