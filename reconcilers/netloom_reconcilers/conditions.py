"""Conditions and the Events that go with them, written only when something changed."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeVar

import msgspec

from netloom.api.cluster_facts import SUMMARY
from netloom.api.events import ObjectReference
from netloom.api.meta import Condition, Object, Resource, condition_of
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.clock import timestamp
from netloom.runtime.errors import Conflict, NotFound
from netloom.runtime.events import EventRecorder

OPERATOR, AGENT = "netloom-operator", "netloom-agent"
ADDRESSES = "netloom-operator-addresses"
HEALTH = "netloom-operator-health"
"""Field managers: who owns which condition in managedFields. One each: what it applied and does not list again goes.
A feature of the agent that has a condition applies it as `manager_of`."""
MESSAGE_LIMIT = 32768

_TRUE_IS_BAD = frozenset({SUMMARY})
"""Types of conditions that hold where something is wrong."""

T = TypeVar("T", NetloomNetwork, NetloomNode, NetloomIPPool, NetloomPrefilter)
K = TypeVar("K", bound=Object)


def manager_of(feature: str) -> str:
    """The field manager of a feature of the agent."""
    return f"{AGENT}-{feature}"


class Readiness(NamedTuple):
    """What a condition says, but for the time. ready: whether all is well; None where it is not known. warns: unless it
    is not well, there is something to be done all the same."""

    ready: bool | None
    reason: str
    message: str
    warns: bool = False


class Conditions:
    """Each write is a server-side apply of one condition, so that other writers' conditions stay. A change is told as
    an Event, too; that all is well from the beginning is no news."""

    def __init__(
        self,
        api: Api,
        events: EventRecorder,
        field_manager: str = OPERATOR,
        on_write: Callable[[str], object] = lambda kind: None,
        *,
        fenced: bool = False,
    ) -> None:
        """`on_write` is called with the kind of the object before each write: who writes counts. fenced: a write is of
        the version that was judged alone. Of a patch of the status the API server compares nothing else, not the uid:
        one that is late would be told of a successor, or against what was told since, and who looks only when
        something else than the status changed would never see that."""
        self._api = api
        self._events = events
        self._field_manager = field_manager
        self._on_write = on_write
        self._fenced = fenced

    async def set(
        self,
        res: Resource[T],
        obj: T,
        type_: str,
        readiness: Readiness,
        *,
        observes: bool = False,
        **beside: msgspec.Struct | tuple[msgspec.Struct | str, ...] | str | int | None,
    ) -> T | None:
        """The object as written, or None where nothing had to be, or it is not there any more. observes: that it holds
        of a newer spec, too, is worth a write. beside: further fields of the status, which this field manager owns as
        well. Raises Conflict where it is fenced and somebody wrote in between."""
        meta, (good, reason, message, warns) = obj.metadata, readiness
        message = message[:MESSAGE_LIMIT]
        holds = None if good is None else good != (type_ in _TRUE_IS_BAD)
        status: Literal["True", "False", "Unknown"] = "Unknown" if holds is None else "True" if holds else "False"
        old = condition_of(obj.status.conditions, type_)
        same = all(getattr(obj.status, name) == value for name, value in beside.items())
        same &= not observes or (old is not None and old.observed_generation == meta.generation)
        if same and old is not None and (old.status, old.reason, old.message) == (status, reason, message):
            return None
        recounted = (bool(beside) or observes) and old is not None and (old.status, old.reason) == (status, reason)
        if (old is not None or not good or warns) and not recounted:
            reference = ObjectReference.of(res, obj)
            self._events.event(reference, "Normal" if good is not False and not warns else "Warning", reason, message)
        since = old.last_transition_time if old and old.status == status else timestamp(self._api.clock.now())
        new = Condition(type_, status, reason, message, since, meta.generation)
        wire = {each.name: each.encode_name for each in msgspec.structs.fields(obj.status)}
        more = {wire[name]: msgspec.to_builtins(value) for name, value in beside.items() if value not in (None, "")}
        told = {"conditions": [msgspec.to_builtins(new)], **more}
        self._on_write(res.kind)
        try:
            return await _applied(self._api, res, obj, self._field_manager, self._fenced, {"status": told})
        except Conflict:
            if self._fenced:
                raise
            return None
        except NotFound:
            return None  # it was deleted: the next reconcile of one that is made anew says what holds then


async def apply(
    api: Api, res: Resource[K], obj: K, field_manager: str, *, fenced: bool = False, **parts: object
) -> K | None:
    """What this manager says in these parts of the object (`spec`, or the subresource `status`), and no more: what it
    said before and does not list goes. fenced: only of the very version that is known. The object as written, or None
    where it is not there any more, or is another one or version: the watch brings that."""
    try:
        return await _applied(api, res, obj, field_manager, fenced, parts)
    except (Conflict, NotFound):
        return None


async def withdraw(api: Api, res: Resource[K], obj: K, field_manager: str) -> K | None:
    """Takes all out of the status that this manager wrote there. Returns as `apply`.

    The patch has no `status`: with an empty one the manager would go on owning that, and the API server refuses the
    patch (`status` is null) where nobody else has said anything.
    """
    return await apply(api, res, obj, field_manager)


async def _applied(
    api: Api, res: Resource[K], obj: K, field_manager: str, fenced: bool, parts: Mapping[str, object]
) -> K:
    meta = obj.metadata
    fence = {"resourceVersion": meta.resource_version} if fenced else {}
    patch = {"metadata": {"name": meta.name, "uid": meta.uid, **fence}, **parts}
    subresource = "" if "spec" in parts else "status"
    return await api.patch(res, meta.name, patch, subresource=subresource, kind="apply", field_manager=field_manager)


def said(problem: Problem, about: str) -> str:
    """A problem as a sentence in a condition of the object `about`; one of another object names that."""
    where = "" if problem.object == about else f"{problem.object}: "
    field = " ".join(filter(None, (problem.field, problem.value)))
    return f"{where}{field}{': ' if field else ''}{problem.text}".rstrip()
