"""Objects to bytes and back.

Decoders are made once per type. One object that does not fit its struct must not hide the others of a list.
"""

import functools
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from netloom.api.meta import Object, ObjectMeta, Resource, Struct
from netloom.runtime.errors import Unavailable
from netloom.runtime.store import key_of

T = TypeVar("T", bound=Object)


class ListMeta(Struct, frozen=True):
    """metav1.ListMeta: at which version the list was taken, how to get its next chunk, and how many come after it."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class Page(Struct, Generic[T], frozen=True):
    """One answer to a list request."""

    metadata: ListMeta = ListMeta()
    items: list[T] | None = None


class Listing(Struct, Generic[T], frozen=True):
    """All objects of a kind as they were at `resource_version`. `unreadable` names those that could not be decoded."""

    objects: list[T]
    resource_version: str
    unreadable: Mapping[str, str] = msgspec.field(default_factory=dict)


class MetaOnly(Struct, frozen=True):
    """Any object, of which only the metadata is wanted."""

    metadata: ObjectMeta = ObjectMeta()


ENCODER = msgspec.json.Encoder()


@functools.cache
def _head(api_version: str, kind: str) -> bytes:
    return ENCODER.encode({"apiVersion": api_version, "kind": kind})[:-1]


def encode(res: Resource[T], obj: T) -> bytes:
    """The object as the API server takes it: apiVersion and kind, then the struct's fields that are not at default."""
    body = ENCODER.encode(obj)
    head = _head(res.api_version, res.kind)
    return head + b"," + body[1:] if len(body) > 2 else head + b"}"


@functools.cache
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """The one decoder of a type."""
    return msgspec.json.Decoder(kind)


def decode(res: Resource[T], body: bytes | msgspec.Raw) -> T:
    """An object from the API server's bytes. Raises Unavailable if it does not fit: the server is not to be trusted."""
    try:
        obj: T = decoder(res.type).decode(body)
    except msgspec.MsgspecError as error:
        raise Unavailable(0, "BadAnswer", f"{res.kind} not readable: {error}") from error
    return obj


def decode_page(res: Resource[T], body: bytes, unreadable: dict[str, str]) -> Page[T]:
    """One chunk. One object that does not fit its struct must not hide the others: it is left out and named."""
    try:
        page: Page[T] = decoder(Page[res.type]).decode(body)  # type: ignore[name-defined]
        return page
    except msgspec.ValidationError:
        return _decode_each(res, body, unreadable)
    except msgspec.DecodeError as error:
        raise Unavailable(0, "BadAnswer", f"list of {res.plural} is not JSON: {error}") from error


def _decode_each(res: Resource[T], body: bytes, unreadable: dict[str, str]) -> Page[T]:
    try:
        raw = decoder(Page[msgspec.Raw]).decode(body)  # type: ignore[type-var]
        named = [(key_of(decoder(MetaOnly).decode(item)), item) for item in raw.items or []]
    except msgspec.ValidationError as error:
        raise Unavailable(0, "BadAnswer", f"what should be a list of {res.plural} is none: {error}") from error
    objects: list[T] = []
    for name, item in named:
        try:
            objects.append(decoder(res.type).decode(item))
        except msgspec.ValidationError as error:
            unreadable[name] = str(error)
    return Page(metadata=raw.metadata, items=objects)
