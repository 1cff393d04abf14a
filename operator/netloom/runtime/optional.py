"""A cache of a kind that the cluster may not have: its CustomResourceDefinition comes and goes while we run.

A plain `ListWatch` of such a kind would ask for it in vain for ever, and could not tell "there is no such kind", which
is an answer, from "I cannot see it", which is none.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from netloom.api.extensions import DEFINITIONS, CustomResourceDefinition
from netloom.api.meta import Object, ObjectMeta
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, Timing

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)


class OptionalWatch(Generic[T]):
    """Keeps `store` equal to the server's objects of a custom kind; empty while there is no such kind.

    A component of a role: `run` it; `trouble` says what is wrong. `changed`, `trim`, `timing` are as with `ListWatch`.
    """

    def __init__(
        self,
        api: Api,
        store: Store[T],
        *,
        changed: Callable[[T, T], bool] | None = None,
        trim: Callable[[T], T] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._api = api
        self._store = store
        self._changed = changed
        self._trim = trim
        self._timing = timing
        self.definition = f"{store.resource.plural}.{store.resource.group}"
        """Name of the CustomResourceDefinition."""
        self._definitions = Store(DEFINITIONS)
        self._definition_watch = ListWatch(
            api,
            self._definitions,
            field_selector=f"metadata.name={self.definition}",
            trim=_trimmed,
            timing=timing,
        )
        self._watch: ListWatch[T] | None = None
        self._news = asyncio.Event()
        self._definitions.subscribe(lambda key, old, new: self._news.set())

    @property
    def served(self) -> bool:
        """Whether the cluster has the kind, as far as we know."""
        definition = self._definitions.get(self.definition)
        return definition is not None and definition.established

    @property
    def _uid(self) -> str:
        definition = self._definitions.get(self.definition)
        return definition.metadata.uid if definition else ""

    @property
    def trouble(self) -> str:
        """Why the cache may not be what the server holds; "" if it is, be it because there is no such kind."""
        if not self._definitions.synced.is_set():
            return self._unknown
        if self._watch is not None:
            return self._watch.trouble
        return "not listed yet" if self.served else self._unknown

    @property
    def _unknown(self) -> str:
        """What is wrong with the watch of the definition."""
        wrong = self._definition_watch.trouble
        return wrong and f"whether there is a {self.definition} is not known: {wrong}"

    async def run(self) -> None:
        """Follows the definition, and its objects while there is one; cancellation is the way to stop it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._definition_watch.run(), name=f"watch {self.definition}")
            await self._definitions.wait_synced()
            while True:
                self._news.clear()
                if self.served:
                    await self._follow()
                await self._news.wait()

    async def _follow(self) -> None:
        """The objects, as long as they are served, and by the same definition."""
        self._watch = ListWatch(self._api, self._store, changed=self._changed, trim=self._trim, timing=self._timing)
        watch = asyncio.create_task(self._watch.run(), name=f"watch {self._store.resource.kind}")
        gone = asyncio.create_task(self._gone(self._uid), name=f"watch for the end of {self.definition}")
        try:
            await asyncio.wait([watch, gone], return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # a watch ends only by crashing
        finally:
            for task in (watch, gone):
                task.cancel()
            await asyncio.wait([watch, gone])
            self._watch = None
        log.info("kind is not served any more", kind=self._store.resource.kind)
        self._store.replace({})

    async def _gone(self, uid: str) -> None:
        while self.served and self._uid == uid:
            self._news.clear()
            await self._news.wait()
        self._news.set()  # whatever is there now is to be looked at


def _trimmed(definition: CustomResourceDefinition) -> CustomResourceDefinition:
    meta = definition.metadata
    kept = ObjectMeta(name=meta.name, uid=meta.uid, resource_version=meta.resource_version)
    return CustomResourceDefinition(metadata=kept, status=definition.status)
