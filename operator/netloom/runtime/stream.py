"""From the bytes of a watch to typed events.

A watch answers with one JSON object per line. aiohttp's own line reader refuses a line above its buffer size, and an
object may be as large as the server stores (1.5 MiB in etcd by default, more where that was raised, and JSON escapes
enlarge it), so lines are cut here, up to a limit that only guards the process's memory.
"""

from typing import Generic, TypeVar

import msgspec
import structlog

from netloom.api.meta import Object, Resource, Struct
from netloom.runtime.errors import Status, from_status
from netloom.runtime.store import key_of
from netloom.runtime.wire import MetaOnly, decoder

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

EVENT_LIMIT = 64 << 20
"""Bytes that one event may have."""


class StreamBroken(Exception):
    """The stream says something that is no event; what came before it counts."""


class EventTooLarge(StreamBroken):
    """An event is longer than the limit."""


class OutOfOrder(StreamBroken):
    """The stream tells of something that lies behind what it told before."""


class LineSplitter:
    """Cuts chunks of bytes into lines."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out. Raises EventTooLarge."""
        *ended, rest = chunk.split(b"\n")
        if ended and self._parts:
            self._parts.append(ended[0])
            ended[0] = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                raise EventTooLarge(f"an event is longer than {self._limit} bytes")
        return [line for line in ended if line]

    @property
    def pending(self) -> int:
        """Bytes of a line whose end has not come."""
        return self._size


class ChangeEvent(Struct, Generic[T], frozen=True):
    """ADDED, MODIFIED or DELETED."""

    type: str
    object: T


class BookmarkEvent(Struct, frozen=True):
    """All events up to this version have been sent."""

    resource_version: str


class UndecodableEvent(Struct, frozen=True):
    """An event whose object does not fit its struct; `key` may be empty."""

    type: str
    key: str
    resource_version: str
    error: str


class _Any(Struct, frozen=True):
    type: str
    object: msgspec.Raw = msgspec.Raw(b"{}")


CHANGES = frozenset({"ADDED", "MODIFIED", "DELETED"})

WatchEvent = ChangeEvent[T] | BookmarkEvent | UndecodableEvent


def parse(resource: Resource[T], line: bytes) -> WatchEvent[T] | None:
    """One line as an event; None where its type is not known.

    Raises StreamBroken if it is no event at all, and ApiError where the server ends the watch and says why.
    """
    error = ""
    try:
        # The usual case in one pass: the object is decoded where it stands.
        event: ChangeEvent[T] = decoder(ChangeEvent[resource.type]).decode(line)  # type: ignore[name-defined]
        if event.type in CHANGES:
            if not event.object.metadata.name:
                raise StreamBroken("an object without a name")
            return event
    except msgspec.ValidationError as invalid:
        error = str(invalid)
    except msgspec.DecodeError as broken:
        raise StreamBroken(f"not JSON: {broken}") from broken
    try:
        other = decoder(_Any).decode(line)
        if other.type == "ERROR":
            raise from_status(decoder(Status).decode(other.object), where=f"watch of {resource.plural}")
        if other.type != "BOOKMARK" and other.type not in CHANGES:
            log.warning("unknown event ignored", kind=resource.kind, type=other.type)
            return None
        some = decoder(MetaOnly).decode(other.object)
    except msgspec.ValidationError as invalid:
        raise StreamBroken(f"not an event: {invalid}") from invalid
    version = some.metadata.resource_version
    if other.type == "BOOKMARK":
        return BookmarkEvent(resource_version=version)
    return UndecodableEvent(type=other.type, key=key_of(some), resource_version=version, error=error)
