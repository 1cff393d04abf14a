"""Pieces of CEL that the webhooks' conditions and the policies are made of.

Where failurePolicy is Fail, an expression that fails to evaluate is a refusal. So nothing here reads a field that may
be missing but by `?`: the API server leaves out what is empty, `request.userInfo.groups` and `object` at DELETE too.
"""

import string
from collections.abc import Iterable, Mapping

from netloom.guard.cluster_state import BREAK_GLASS_GROUP
from netloom.guard.node import NODE_NAME

NO_BREAK_GLASS = f"!('{BREAK_GLASS_GROUP}' in request.userInfo.?groups.orValue([]))"

USER = "request.userInfo.?username.orValue('')"

BOUND_NODES = f"request.userInfo.?extra[?'{NODE_NAME}'].orValue([])"
"""The node of the pod that the user's token is bound to, as a list; without such a token an empty one."""

TARGET = "(request.operation == 'DELETE' ? oldObject : object)"
"""The object that is written or deleted."""

NAME = f"{TARGET}.?metadata.?name.orValue('')"
"""Its name, taken from the object: a deletion of a whole collection has none in `request.name`, and rules with
resourceNames do not match it."""


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def texts(values: Iterable[str]) -> str:
    """A list of string literals."""
    return "[" + ", ".join(map(text, values)) + "]"


def filled(template: str, values: Mapping[str, str]) -> str:
    """A text as an expression of type string. values: such an expression for each of its placeholders."""
    parts: list[str] = []
    for literal, placeholder, _, _ in string.Formatter().parse(template):
        parts += [text(literal)] if literal else []
        parts += [values[placeholder]] if placeholder else []
    return " + ".join(parts)


def by(users: Iterable[str]) -> str:
    """Whether one of these users asks."""
    return f"{USER} in {texts(users)}"


def spellings(of: str, field: str, keys: Iterable[str]) -> str:
    """A list of the keys of a map that Cilium takes for one of these (`api.cilium.spellings`), in no order. field: the
    map, written as after `object.`, with `?`."""
    return f"{of}.{field}.orValue({{}}).filter(key, key.lowerAscii() in {texts(keys)})"


def rewritten(field: str, keys: Iterable[str]) -> str:
    """Whether an update changes one of these keys of such a map, however it is spelled."""
    changed = f".exists(key, object.{field}[?key] != oldObject.{field}[?key])"
    return f"({' || '.join(spellings(of, field, keys) + changed for of in ('object', 'oldObject'))})"


def differs(field: str) -> str:
    """Whether an update changes a field, written as after `object.`, with `?` where it may be missing."""
    return f"object.{field} != oldObject.{field}"
