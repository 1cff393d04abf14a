"""From the bytes of a manifest file to typed objects, or to sentences that name file, document and field.

Without an API server nobody else looks at what is written: kubectl's strict field check, the CRD's schema and the
order of YAML's surprises are all on this side. So unknown fields are errors here, as with `kubectl apply`, and text
stays text: YAML 1.1 would make a date of `2024-01-01` and the number 36,672,610 of the MAC address `10:20:30:40:50`.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import msgspec.inspect
import yaml

from netloom.api import problem
from netloom.api.meta import Object, Resource
from netloom.runtime.store import key_of
from netloom.runtime.yaml_documents import documents

Kind = tuple[str, str]
"""apiVersion and kind."""

Validate = Callable[[Object], Iterable[problem.Problem]]
"""What is wrong with an object that has the right types."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_AT = re.compile(r"^(?P<what>.*?) - at `\$\.?(?P<field>.*)`$", re.DOTALL)
_NOT_TYPED_WHOLE = frozenset({"apiVersion", "kind", "metadata", "status"})
"""Fields that the structs do not have, or sections of which they hold only some of what an exported object has."""


class ManifestProblem(msgspec.Struct, frozen=True):
    """What is wrong with a manifest. `document` counts from 1, 0 is the file as a whole; `field` may be empty."""

    file: str
    document: int
    field: str
    message: str

    def __str__(self) -> str:
        document = f"document {self.document}" if self.document else ""
        return f"{', '.join(filter(None, (self.file, document, self.field)))}: {self.message}"


class Manifest(msgspec.Struct, frozen=True):
    """One object of a file."""

    document: int
    kind: Kind
    key: str
    object: Any


class InvalidManifests(Exception):
    """A file cannot be used as it is; `problems` says why."""

    def __init__(self, *problems: ManifestProblem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def parse(
    file: str,
    content: bytes,
    resources: Mapping[Kind, Resource[Any]],
    ignored: Collection[Kind] = (),
    validate: Validate = lambda obj: (),
) -> list[Manifest]:
    """All objects of a file but those of `ignored` kinds. Raises InvalidManifests: it is taken whole or not at all."""
    found: list[Manifest] = []
    problems: list[ManifestProblem] = []
    seen: dict[tuple[Kind, str], int] = {}
    for number, document in _documents(file, content):
        try:
            manifest = _object(file, number, document, resources, ignored)
        except InvalidManifests as error:
            problems += error.problems
            continue
        if manifest is None:
            continue
        first = seen.setdefault((manifest.kind, manifest.key), number)
        if first != number:
            message = f"{manifest.kind[1]} {manifest.key} is in document {first} already"
            problems.append(ManifestProblem(file, number, "", message))
        found.append(manifest)
        for wrong in validate(manifest.object):
            if wrong.severity == "error":
                message = f"{manifest.kind[1]} {manifest.key}: {wrong.text}"
                problems.append(ManifestProblem(file, number, wrong.field, message))
    if problems:
        raise InvalidManifests(*problems)
    return found


def _documents(file: str, content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each document; the items of a `kind: List` count as parts of its document."""
    try:
        if file.endswith(".json"):
            found = [msgspec.json.decode(content)]
        else:
            found = documents(content, _Loader)
    except (yaml.YAMLError, msgspec.DecodeError, UnicodeDecodeError) as error:
        message = " ".join(str(error).replace('in "<byte string>", ', "").split())
        raise InvalidManifests(ManifestProblem(file, 0, "", message)) from error
    for number, document in enumerate(found, start=1):
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            for item in document["items"]:
                yield number, item
        elif document is not None:
            yield number, document


def _object(
    file: str, number: int, document: Any, resources: Mapping[Kind, Resource[Any]], ignored: Collection[Kind]
) -> Manifest | None:
    def refused(field: str, message: str) -> InvalidManifests:
        return InvalidManifests(ManifestProblem(file, number, field, message))

    if not isinstance(document, dict):
        raise refused("", "is no object")
    document = _without_nulls(document)
    kind = (str(document.get("apiVersion") or ""), str(document.get("kind") or ""))
    if kind in ignored:
        return None
    resource = resources.get(kind)
    if resource is None:
        known = ", ".join(sorted(f"{name} ({version})" for version, name in resources))
        raise refused("kind", f"{kind[1] or 'nothing'} ({kind[0] or 'no apiVersion'}) is not read here, only {known}")
    if unknown := unknown_field(document, resource.type):
        raise refused(unknown, "there is no such field")
    try:
        obj: Object = msgspec.convert(document, resource.type)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        raise refused(match["field"] if match else "", match["what"] if match else str(error)) from error
    if not _NAME.fullmatch(obj.metadata.name) or len(obj.metadata.name) > 253:
        raise refused("metadata.name", f"{obj.metadata.name!r} is not the name of an object")
    return Manifest(number, kind, key_of(obj), obj)


def _without_nulls(value: Any) -> Any:
    """A field that is null is one that is absent, as for the API server (`kubectl create --dry-run` prints such)."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def unknown_field(document: Mapping[str, Any], type_: Any) -> str:
    """Path of the first field that the struct does not have, "" if it has all."""
    typed = {name: value for name, value in document.items() if name not in _NOT_TYPED_WHOLE}
    return _unknown("", typed, msgspec.inspect.type_info(type_))


def _unknown(path: str, value: Any, type_: msgspec.inspect.Type | None) -> str:
    if type_ is None:
        return path
    match type_, value:
        case msgspec.inspect.StructType(cls=cls), dict():
            fields = _fields(cls)
            parts = ((f"{path}.{name}".lstrip("."), inner, fields.get(str(name))) for name, inner in value.items())
        case msgspec.inspect.VarTupleType(item_type=inner), list():
            parts = ((f"{path}[{index}]", item, inner) for index, item in enumerate(value))
        case msgspec.inspect.UnionType(types=types), _:
            answers = [_unknown(path, value, inner) for inner in types]
            return "" if "" in answers else answers[0]
        case _:
            return ""
    return next((found for part in parts if (found := _unknown(*part))), "")


@functools.cache
def _fields(struct: Any) -> dict[str, msgspec.inspect.Type]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: field.type for field in info.fields}


class _Loader(yaml.CSafeLoader):
    """YAML 1.1 without its dates and its numbers in base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] not in ("timestamp", "int", "float")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"), list("-+0123456789")
)
