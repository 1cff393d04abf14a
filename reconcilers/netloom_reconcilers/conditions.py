"""Conditions and the Events that go with them, written only when something changed."""

from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import msgspec

from netloom.api.events import ObjectReference
from netloom.api.meta import Condition, Object, Resource
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, NetloomNetwork, NetloomNode
from netloom.runtime.clock import timestamp
from netloom.runtime.errors import Conflict, NotFound
from netloom_reconcilers.writes import Dated

OPERATOR, AGENT = "netloom-operator", "netloom-agent"
ADDRESSES = "netloom-operator-addresses"
"""Field managers: who owns which condition in managedFields. One each: what it applied and does not list again goes.
A feature of the agent that has a condition applies it as `manager_of`."""
MESSAGE_LIMIT = 32768

Status = Literal["True", "False"]


def manager_of(feature: str) -> str:
    """The field manager of a feature of the agent."""
    return f"{AGENT}-{feature}"


class Recorder(Protocol):
    """`netloom.runtime.events.EventRecorder`, as far as it is used here."""

    def event(self, ref: ObjectReference, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None: ...


class HasConditions(Protocol):
    """The status of a kind that has conditions."""

    @property
    def conditions(self) -> tuple[Condition, ...]: ...


class Conditioned(Object, Protocol):
    """An object with conditions."""

    @property
    def status(self) -> HasConditions: ...


T = TypeVar("T", bound=Conditioned)


class Conditions:
    """Each write is a server-side apply of one condition, so that other writers' conditions stay.

    A change is told as an Event, too; that all is well from the beginning is no news.
    """

    def __init__(
        self,
        api: Dated,
        events: Recorder,
        field_manager: str = OPERATOR,
        *,
        on_write: Callable[[str], object] | None,
    ) -> None:
        """`on_write` is called with the kind of the object before each write: who writes counts."""
        self._api = api
        self._events = events
        self._field_manager = field_manager
        self._on_write = on_write

    async def node(self, obj: NetloomNode, status: Status, reason: str, message: str) -> NetloomNode | None:
        """Condition `Allocated`; the object as written, or None where nothing had to be."""
        return await self.set(NETLOOM_NODES, obj, "Allocated", status, reason, message)

    async def network(self, obj: NetloomNetwork, status: Status, reason: str, message: str) -> NetloomNetwork | None:
        """Condition `Ready`; the object as written, or None where nothing had to be."""
        return await self.set(NETWORKS, obj, "Ready", status, reason, message)

    async def set(self, res: Resource[T], obj: T, type_: str, status: Status, reason: str, message: str) -> T | None:
        """The object as written, or None where nothing had to be, or it is not there any more."""
        meta = obj.metadata
        old = next((each for each in obj.status.conditions if each.type == type_), None)
        new = Condition(
            type=type_,
            status=status,
            reason=reason,
            message=message[:MESSAGE_LIMIT],
            last_transition_time=old.last_transition_time
            if old and old.status == status
            else timestamp(self._api.clock.now()),
            observed_generation=meta.generation,
        )
        if old is not None and (old.status, old.reason, old.message) == (status, reason, new.message):
            return None
        reference = ObjectReference(api_version=res.api_version, kind=res.kind, name=meta.name, uid=meta.uid)
        if old is not None or status != "True":
            self._events.event(reference, "Normal" if status == "True" else "Warning", reason, message)
        patch = {
            "metadata": {"name": meta.name, "uid": meta.uid},
            "status": {"conditions": [msgspec.to_builtins(new)]},
        }
        if self._on_write is not None:
            self._on_write(res.kind)
        try:
            return await self._api.patch(
                res, meta.name, patch, subresource="status", kind="apply", field_manager=self._field_manager
            )
        except (Conflict, NotFound):
            return None  # it was deleted, or re-created: its next reconcile says what holds then


def said(problem: Problem, about: str) -> str:
    """A problem as a sentence in a condition of the object `about`; one of another object names that."""
    where = "" if problem.object == about else f"{problem.object}: "
    field = " ".join(filter(None, (problem.field, problem.value)))
    return f"{where}{field}{': ' if field else ''}{problem.text}".rstrip()
