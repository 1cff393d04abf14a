"""Conditions and Events of the allocation, written only when something changed."""

import datetime as dt
from typing import Literal, Protocol, TypeVar

import msgspec

from netloom.api.events import ObjectReference
from netloom.api.meta import Condition, Object, Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, NetloomNetwork, NetloomNode
from netloom.runtime.errors import Conflict, NotFound
from netloom_reconcilers.allocation_metrics import WRITES
from netloom_reconcilers.writes import Requests

FIELD_MANAGER = "netloom-operator"
MESSAGE_LIMIT = 32768

Status = Literal["True", "False"]
T = TypeVar("T", bound=Object)


class Recorder(Protocol):
    """`netloom.runtime.events.EventRecorder`, as far as it is used here."""

    def event(self, ref: ObjectReference, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None: ...


class Conditions:
    """Each write is a server-side apply of one condition, so that other writers' conditions stay."""

    def __init__(self, api: Requests, events: Recorder) -> None:
        self._api = api
        self._events = events

    async def node(self, obj: NetloomNode, status: Status, reason: str, message: str) -> NetloomNode | None:
        """Condition `Allocated`; the object as written, or None where nothing had to be."""
        return await self._set(NETLOOM_NODES, obj, obj.status.conditions, "Allocated", status, reason, message)

    async def network(self, obj: NetloomNetwork, status: Status, reason: str, message: str) -> NetloomNetwork | None:
        """Condition `Ready`; the object as written, or None where nothing had to be."""
        return await self._set(NETWORKS, obj, obj.status.conditions, "Ready", status, reason, message)

    async def _set(
        self,
        res: Resource[T],
        obj: T,
        before: tuple[Condition, ...],
        type_: str,
        status: Status,
        reason: str,
        message: str,
    ) -> T | None:
        meta = obj.metadata
        old = next((each for each in before if each.type == type_), None)
        new = Condition(
            type=type_,
            status=status,
            reason=reason,
            message=message[:MESSAGE_LIMIT],
            last_transition_time=old.last_transition_time if old and old.status == status else _now(),
            observed_generation=meta.generation,
        )
        if old is not None and (old.status, old.reason, old.message) == (status, reason, new.message):
            return None
        reference = ObjectReference(api_version=res.api_version, kind=res.kind, name=meta.name, uid=meta.uid)
        self._events.event(reference, "Normal" if status == "True" else "Warning", reason, message)
        patch = {
            "metadata": {"name": meta.name, "uid": meta.uid},
            "status": {"conditions": [msgspec.to_builtins(new)]},
        }
        WRITES.labels(res.kind, "apply").inc()
        try:
            return await self._api.patch(
                res, meta.name, patch, subresource="status", kind="apply", field_manager=FIELD_MANAGER
            )
        except (Conflict, NotFound):
            return None  # it was deleted, or re-created: its next reconcile says what holds then


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
