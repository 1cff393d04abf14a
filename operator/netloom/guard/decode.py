"""From the raw objects of a request to values; what cannot be read is refused by name, never guessed."""

import functools
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import msgspec

from netloom.api.admission import AdmissionRequest
from netloom.api.meta import Object, ObjectMeta, Resource, Struct
from netloom.api.problem import Problem

T = TypeVar("T", bound=Object)

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises: wrong types or no JSON, no UTF-8, and JSON that is nested too deeply."""


class UnreadableObject(Exception):
    """An object of the request is none of its kind."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


class Change(msgspec.Struct, Generic[T], frozen=True):
    """What a request does to one object: `old` is None at CREATE, `new` at DELETE."""

    request: AdmissionRequest
    name: str
    """Kind and name as a Problem has it."""
    old: T | None
    new: T | None

    @property
    def user(self) -> str:
        return self.request.user_info.username

    @property
    def key(self) -> str:
        """metadata.name"""
        obj = self.new or self.old
        return self.request.name or (obj.metadata.name if obj else "")


class _Named(Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


def change_of(request: AdmissionRequest, resource: Resource[T]) -> Change[T]:
    """The request's objects as values. Raises UnreadableObject."""
    name = name_of(request, resource.kind)
    new = None if request.operation == "DELETE" else _read(name, resource, request.object, "the object")
    old = None if request.operation == "CREATE" else _read(name, resource, request.old_object, "the stored object")
    return Change(request, name, old, new)


def name_of(request: AdmissionRequest, kind: str) -> str:
    """Kind and name of what the request is about, as far as they can be read."""
    name, namespace = request.name, request.namespace
    for raw in () if name else (request.object, request.old_object):
        with suppress(*UNREADABLE):
            name = name or _decoder(_Named).decode(raw).metadata.name
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _read(name: str, resource: Resource[T], raw: msgspec.Raw, what: str) -> T:
    try:
        return cast(T, _decoder(resource.type).decode(raw))
    except UNREADABLE as error:
        message = f"{what} cannot be read as a {resource.kind} ({error}), so nothing can be said about what changes."
        way_out = "Write it as its CustomResourceDefinition has it, or see docs/guard.md on how to pass the guard."
        raise UnreadableObject(Problem(name, "object", "", "Unreadable", message, way_out)) from error


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
