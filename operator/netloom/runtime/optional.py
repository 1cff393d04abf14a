"""A cache of a kind that the cluster may not have: its CustomResourceDefinition comes and goes while we run.

A plain `ListWatch` of such a kind would ask for it in vain for ever, and could not tell "there is no such kind", which
is an answer, from "I cannot see it", which is none.
"""

import asyncio
from typing import Any, Generic, TypeVar

import structlog

from netloom.api.extensions import DEFINITIONS, CustomResourceDefinition
from netloom.api.meta import Object, ObjectMeta
from netloom.runtime.cancellation import end, only_if_asked
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)


class OptionalWatch(Generic[T]):
    """Keeps `store` equal to the server's objects of a custom kind; empty while there is no such kind.

    A component of a role: `run` it; `fault` says what is wrong. `options` are those of `ListWatch`.
    """

    def __init__(self, api: Api, store: Store[T], *, timing: WatchTiming | None = None, **options: Any) -> None:
        self._api = api
        self._store = store
        self._options = {**options, "timing": timing}
        self._name = f"{store.resource.plural}.{store.resource.group}"
        self._definitions = Store(DEFINITIONS)
        self._definition_watch = ListWatch(
            api, self._definitions, field_selector=f"metadata.name={self._name}", trim=_trimmed, timing=timing
        )
        self._watch: ListWatch[T] | None = None
        self._news = asyncio.Event()
        self._definitions.subscribe(lambda key, old, new: self._news.set())

    @property
    def served(self) -> str:
        """UID of the definition by which the cluster serves the kind, as far as we know; "" if it does not."""
        definition = self._definitions.get(self._name)
        return definition.metadata.uid if definition is not None and definition.established else ""

    @property
    def fault(self) -> str:
        """Why the cache may not be what the server holds; "" if it is, be it because there is no such kind."""
        if self._definitions.synced.is_set():
            if self._watch is not None:
                return self._watch.fault
            if self.served:
                return "not listed yet"
        wrong = self._definition_watch.fault
        return wrong and f"whether there is a {self._name} is not known: {wrong}"

    async def run(self) -> None:
        """Follows the definition, and its objects while there is one; cancellation is the way to stop it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._definition_watch.run(), name=f"watch {self._name}")
            await self._definitions.wait_synced()
            while True:
                if served := self.served:
                    self._watch = ListWatch(self._api, self._store, **self._options)
                    following = only_if_asked(self._watch.run())
                    watch = group.create_task(following, name=f"watch {self._store.resource.kind}")
                    try:
                        await self._changed_from(served)
                        await end(watch)
                    finally:
                        self._watch = None
                    log.info("kind is not served any more", kind=self._store.resource.kind)
                    self._store.replace({})
                else:
                    await self._changed_from(served)

    async def _changed_from(self, served: str) -> None:
        while self.served == served:
            self._news.clear()
            await self._news.wait()


def _trimmed(definition: CustomResourceDefinition) -> CustomResourceDefinition:
    meta = definition.metadata
    kept = ObjectMeta(name=meta.name, uid=meta.uid, resource_version=meta.resource_version)
    return CustomResourceDefinition(metadata=kept, status=definition.status)
