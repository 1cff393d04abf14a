"""core/v1 Event: what `kubectl describe` shows below an object.

core/v1 and events.k8s.io/v1 are two views of the same stored objects. core/v1 is written here because its `count` can
be raised by a patch, and `kubectl get events` shows it as "x5 over 10m".
"""

from typing import Any

import msgspec

from netloom.api.meta import Object, ObjectMeta, Resource, Struct


class ObjectReference(Struct, frozen=True):
    """core/v1 ObjectReference: which object an event is about."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""

    @classmethod
    def of(cls, resource: Resource[Any], obj: Object) -> "ObjectReference":
        """To an object of that kind."""
        meta, kind = obj.metadata, resource.kind
        return cls(api_version=resource.api_version, kind=kind, name=meta.name, namespace=meta.namespace, uid=meta.uid)


class EventSource(Struct, frozen=True):
    """Event.source."""

    component: str = ""
    host: str = ""


class Event(Struct, frozen=True):
    """core/v1 Event. `type` is "Normal" or "Warning", `reason` CamelCase, `message` at most 1,024 bytes."""

    metadata: ObjectMeta = ObjectMeta()
    involved_object: ObjectReference = msgspec.field(default_factory=ObjectReference)
    reason: str = ""
    message: str = ""
    type: str = ""
    count: int = 0
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    source: EventSource = msgspec.field(default_factory=EventSource)
    reporting_component: str = ""
    reporting_instance: str = ""


EVENTS = Resource("", "v1", "events", Event)
