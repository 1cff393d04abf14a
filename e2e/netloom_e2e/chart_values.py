"""values.yaml of the chart, read with its comments: the schema and the table of the guide follow from them.

Above a key, `# -- words` say what it is, and `# @schema {...}` adds to its JSON schema what the default does not say.
What is below a key with words is not ours to know, such as a pod's resources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

BEGIN, END = "<!-- values: by `make chart` -->\n", "<!-- end of values -->\n"
_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Value:
    """One key. default: as YAML has it. below: the keys under it, if these are ours to know."""

    name: str
    default: Any
    words: str
    extra: dict[str, Any]
    below: tuple[Value, ...] = field(default=())


def read(text: str) -> tuple[Value, ...]:
    """The values of a file of values. Raises ValueError where one is not told of."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    return tuple(_values(node, text.splitlines(), ""))


def _values(node: yaml.MappingNode, lines: list[str], path: str) -> Iterator[Value]:
    for key, value in node.value:
        words, extra = _comment(lines, key.start_mark.line)
        name = f"{path}{key.value}"
        default = yaml.SafeLoader("").construct_object(value, deep=True)
        known = isinstance(value, yaml.MappingNode) and value.value and not words
        below = tuple(_values(value, lines, f"{name}.")) if known else ()
        if not below and not words:
            raise ValueError(f"values.yaml, line {key.start_mark.line + 1}: there is no comment `# --` above {name}")
        yield Value(key.value, default, words, extra, below)


def _comment(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    """What the comment above a line says."""
    said: list[str] = []
    extra: dict[str, Any] = {}
    for number in range(line - 1, -1, -1):
        found = re.match(r"\s*# ?(.*)", lines[number])
        if not found:
            break
        if found[1].startswith("@schema "):
            extra = json.loads(found[1].removeprefix("@schema "))
        elif found[1].startswith("-- "):
            return " ".join([found[1].removeprefix("-- "), *said]), extra
        else:
            said.insert(0, found[1])
    return "", extra


def schema(values: tuple[Value, ...], foreign: Iterable[str], definitions: Mapping[str, Any]) -> str:
    """values.schema.json. A key that is not there is refused: it would be of no effect, without a word.

    foreign: names that the chart refuses in words of its own. definitions: what `$ref`s of comments stand for.
    """
    top = _object(values)
    for name in foreign:
        _permit(top, name.split("."))
    top["properties"]["global"] = {"type": "object"}  # what a chart above this one tells all of its parts
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of netloom"}
    return json.dumps(top | head | {"$defs": dict(definitions)}, indent=1) + "\n"


def required(values: tuple[Value, ...], path: str = "") -> Iterator[str]:
    """Names of what has to be there: sections, and what is one word or number. `null` takes it away, and so does Helm
    where it goes by the values of a chart before."""
    for each in values:
        name = f"{path}{each.name}"
        if each.below or not isinstance(each.default, list | dict):
            yield name
        yield from required(each.below, f"{name}.")


def _permit(at: dict[str, Any], path: list[str]) -> None:
    """Lets a name through to the templates, which say more of it than a schema can."""
    for key in path:
        if key not in at["properties"]:
            at["properties"][key] = {}
            return
        at = at["properties"][key]


def _object(values: tuple[Value, ...]) -> dict[str, Any]:
    properties = {each.name: _object(each.below) if each.below else _leaf(each) for each in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _leaf(value: Value) -> dict[str, Any]:
    return {"type": _TYPES[type(value.default)], "description": value.words, **value.extra}


def with_table(page: str, values: tuple[Value, ...]) -> str:
    """A page with the table of values in its place."""
    before, found, rest = page.partition(BEGIN)
    assert found, f"there is no line {BEGIN!r} in the page"
    rows = ["| Value | Default | |\n", "|---|---|---|\n", *_rows(values, "")]
    return f"{before}{BEGIN}{''.join(rows)}{END}{rest.partition(END)[2]}"


def _rows(values: tuple[Value, ...], path: str) -> Iterator[str]:
    for each in values:
        if each.below:
            yield from _rows(each.below, f"{path}{each.name}.")
            continue
        default = json.dumps(each.default)
        shown = f"`{default}`" if len(default) <= 60 else "see values.yaml"
        words = each.words.replace("|", "\\|")
        yield f"| `{path}{each.name}` | {shown} | {words}{_choices(each)} |\n"


def _choices(value: Value) -> str:
    named = [f"`{each}`" for each in value.extra.get("enum", ()) if each]
    return f" One of {', '.join(named)}." if named else ""
