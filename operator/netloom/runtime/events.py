"""Kubernetes Events without spam.

Saying one takes no time (it is written in the background); the same (object, type, reason, message) is one Event whose
count is raised, at growing distances; an object that has too much to say is cut short, and so is the process as a
whole. What is not written is counted, never retried for long, and never the concern of a reconciler.

Events of cluster-scoped objects live in the namespace `default`, where the API server demands them and
`kubectl describe` looks for them.
"""

import asyncio
import contextlib
import math
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec
import structlog

from netloom.api.events import EVENTS, Event, EventSource, ObjectReference
from netloom.api.meta import ObjectMeta
from netloom.runtime import metrics
from netloom.runtime.allowance import Allowance, Pace
from netloom.runtime.cancellation import last_words
from netloom.runtime.client import Api
from netloom.runtime.clock import timestamp
from netloom.runtime.errors import AlreadyExists, ApiError, NotFound
from netloom.runtime.queue import WorkQueue

log = structlog.get_logger(__name__)

MESSAGE_LIMIT = 1024
"""Bytes of a message that events.k8s.io takes; core/v1 would take more, but both show the same objects. What follows in
a longer one makes no other Event of it, and is not kept: a condition's has up to 32 KiB, thousands are remembered."""


class EventLimits(msgspec.Struct, frozen=True):
    """How much may be said. Times in seconds.

    A repeated event's count is written after `repeat`, then after twice as long, and so on up to `repeat_cap`.
    """

    of_object: Pace = Pace(most=10, seconds=60.0)
    of_process: Pace = Pace(most=50, seconds=0.2)
    repeat: float = 5.0
    repeat_cap: float = 600.0
    remembered: int = 4096
    """Events and objects that are kept in mind."""
    forget: float = 3600.0
    """After which an event that was not said again is not: an API server has forgotten it as well."""
    drain: float = 2.0
    """For what is unwritten when the process ends."""


@dataclass(slots=True)
class _Series:
    """One event and how often it was said."""

    event: Event
    distance: float
    count: int = 0
    written: int = 0  # the count that the API server has
    next_write: float = 0.0
    said_at: float = 0.0


class EventRecorder:
    """Writes events in the background; `run` is the component that does it."""

    def __init__(
        self,
        api: Api,
        component: str,
        *,
        host: str = "",
        limits: EventLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._source = EventSource(component=component, host=host)
        self._instance = host or os.uname().nodename
        self._limits = limits or EventLimits()
        self._clock = clock
        self._said: OrderedDict[str, _Series] = OrderedDict()
        self._budget = Allowance(clock(), math.inf)
        self._budget_of = lru_cache(self._limits.remembered)(lambda about: Allowance(clock(), math.inf))
        self._queue = WorkQueue()

    def event(self, ref: ObjectReference, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Says something about an object. Returns at once; never raises for what the API server may think of it."""
        message = message.encode()[:MESSAGE_LIMIT].decode(errors="ignore")
        about = f"{ref.kind}\0{ref.namespace}\0{ref.name}\0{ref.uid}"
        key = f"{about}\0{type_}\0{reason}\0{message}"
        said = self._said.get(key)
        if said is None:
            if not self._may(about):
                return
            self._forget()
            said = self._said[key] = _Series(self._new(ref, type_, reason, message), self._limits.repeat)
        self._said.move_to_end(key)
        said.count += 1
        said.said_at = self._clock()
        self._queue.add_after(key, said.next_write - said.said_at)

    def _forget(self) -> None:
        """To make room for another. Of a text that is another each time nothing is said again."""
        oldest = self._clock() - self._limits.forget
        while self._said:
            key, said = next(iter(self._said.items()))
            if said.said_at > oldest and len(self._said) < self._limits.remembered:
                return
            del self._said[key]

    def _may(self, about: str) -> bool:
        """Whether something new may be said about this object now."""
        now = self._clock()
        if not self._budget_of(about).take_if_any(now, self._limits.of_object):
            metrics.EVENTS_DROPPED.labels("object").inc()
        elif not self._budget.take_if_any(now, self._limits.of_process):
            metrics.EVENTS_DROPPED.labels("process").inc()
        else:
            return True
        return False

    async def run(self) -> None:
        """Writes for ever. When cancelled, writes what is due, for a short while."""
        try:
            while True:
                await self._next()
        finally:
            self._queue.close()
            try:
                async with last_words(self._limits.drain):
                    while len(self._queue):
                        await self._next()
            except TimeoutError:
                metrics.EVENTS_DROPPED.labels("stopping").inc(len(self._queue))

    async def _next(self) -> None:
        key = await self._queue.get()
        try:
            said = self._said.get(key)
            if said is None or said.count == said.written:
                return
            if said.written and not self._budget.take_if_any(self._clock(), self._limits.of_process):
                self._queue.add_after(key, self._limits.repeat)  # a count can wait, nothing is lost
                return
            await self._write(said)
        except asyncio.CancelledError:
            self._queue.add(key)  # perhaps not written: once more before the end
            raise
        finally:
            self._queue.done(key)

    async def _write(self, said: _Series) -> None:
        said.next_write = self._clock() + said.distance
        said.distance = min(said.distance * 2, self._limits.repeat_cap)
        count, now, meta = said.count, self._now(), said.event.metadata
        try:
            if said.written:
                try:
                    change = {"count": count, "lastTimestamp": now}
                    await self._api.patch(EVENTS, meta.name, change, namespace=meta.namespace)
                except NotFound:  # the server keeps events for an hour
                    meta = _metadata(said.event.involved_object)
                    said.event = msgspec.structs.replace(said.event, metadata=meta)
                    said.written = 0
            if not said.written:
                event = msgspec.structs.replace(said.event, count=count, last_timestamp=now)
                with contextlib.suppress(AlreadyExists):  # an attempt whose answer was not waited for
                    await self._api.create(EVENTS, event)
            said.written = count
        except ApiError as error:
            metrics.EVENTS_DROPPED.labels("refused").inc()
            log.warning("event not written", reason=said.event.reason, error=str(error))

    def _new(self, ref: ObjectReference, type_: str, reason: str, message: str) -> Event:
        return Event(
            metadata=_metadata(ref),
            involved_object=ref,
            reason=reason,
            message=message,
            type=type_,
            first_timestamp=self._now(),
            source=self._source,
            reporting_component=self._source.component,
            reporting_instance=self._instance,
        )

    def _now(self) -> str:
        return timestamp(self._api.clock.now())


def _metadata(ref: ObjectReference) -> ObjectMeta:
    # 200 characters leave room for the suffix below the limit of 253.
    name = f"{ref.name[:200].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
    return ObjectMeta(name=name, namespace=ref.namespace or "default")
