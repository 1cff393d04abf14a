"""The cache of one kind: what reconcilers read instead of asking the API server.

Subscribers are called synchronously after the cache changed, so one that only queues a key can never see the cache lag
behind the key. Versions are compared as numbers, which Kubernetes guarantees since 1.35 (KEP-5504) and etcd always did;
where one is no number, order of arrival counts. A list (`replace`) is the truth as a whole and is not compared.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import structlog

from netloom.api.meta import Object, Resource

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)
Subscriber = Callable[[str, T | None, T | None], None]
Unsubscribe = Callable[[], None]

TOMBSTONES = 4096
"""Deletions that are remembered. A late event for an object deleted longer ago than this would bring it back."""


def key_of(obj: Object) -> str:
    """`name`, or `namespace/name`."""
    meta = obj.metadata
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name


def version_of(text: str) -> int:
    """A resource version as a number that can be compared; 0 where it is none."""
    return int(text) if text.isdecimal() else 0


class Store(Generic[T]):
    """Objects of one resource by key. To be used from one event loop."""

    def __init__(self, resource: Resource[T]) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self._objects: dict[str, T] = {}
        self._deleted: dict[str, int] = {}
        self._subscribers: list[Subscriber[T]] = []
        self._relisted: list[Callable[[], None]] = []
        self.on_answer: Callable[[int, int], None] = lambda known, version: None
        """Told of each answer that a writer puts: the version that was known of the object, and the answer's."""

    def get(self, key: str) -> T | None:
        """The object, or None."""
        return self._objects.get(key)

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: object) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def values(self) -> list[T]:
        """All objects, as a list of their own: the cache may change while it is worked through."""
        return list(self._objects.values())

    def items(self) -> list[tuple[str, T]]:
        """All keys and objects, as a list of their own."""
        return list(self._objects.items())

    async def wait_synced(self, timeout: float | None = None) -> None:
        """Returns once the first complete list is in the cache. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await self.synced.wait()

    def subscribe(self, fn: Subscriber[T]) -> Unsubscribe:
        """Until what it returns is called: `fn(key, old, new)` after every change, now for every object there is."""
        self._subscribers.append(fn)
        for key, obj in self.items():
            self._tell(fn, key, None, obj)
        return lambda: self._subscribers.remove(fn)

    def on_replace(self, fn: Callable[[], None]) -> Unsubscribe:
        """Until what it returns is called: `fn()` after the cache was made equal to a list, and all else may be old."""
        self._relisted.append(fn)
        return lambda: self._relisted.remove(fn)

    def put(self, obj: T) -> bool:
        """Takes in what a writer was answered; False if the cache already had it, or a newer one."""
        key, version = key_of(obj), version_of(obj.metadata.resource_version)
        known = self._known(key)
        if version:
            self.on_answer(known, version)
        return self._take(key, obj, version, known, None)

    def take(self, obj: T, relevant: Callable[[T, T], bool] | None = None) -> bool:
        """Takes in a newer version of an object; False if the cache already had it, or a newer one.

        `relevant(old, new)` False: the cache changes (its version is what the next write must name), nobody is told.
        """
        key = key_of(obj)
        return self._take(key, obj, version_of(obj.metadata.resource_version), self._known(key), relevant)

    def _take(self, key: str, obj: T, version: int, known: int, relevant: Callable[[T, T], bool] | None) -> bool:
        if version and version <= known:
            return False
        old = self._objects.get(key)
        if old is None:
            self._deleted.pop(key, None)
        self._objects[key] = obj
        if old is None or relevant is None or relevant(old, obj):
            self._notify(key, old, obj)
        return True

    def remove(self, key: str, resource_version: str = "") -> bool:
        """Takes an object out, which was deleted at `resource_version`; False if a newer one (or none) is there."""
        old = self._objects.get(key)
        version = version_of(resource_version)
        if version:
            if old is not None and version < version_of(old.metadata.resource_version):
                return False
            self._bury(key, version)
        if old is None:
            return False
        del self._objects[key]
        self._notify(key, old, None)
        return True

    def replace(
        self,
        objects: Mapping[str, T],
        relevant: Callable[[T, T], bool] | None = None,
        keep: frozenset[str] = frozenset(),
    ) -> None:
        """Makes the cache equal to a complete list; what is missing from it is gone, except the keys in `keep`."""
        self._deleted.clear()
        for key in [key for key in self._objects if key not in objects and key not in keep]:
            self._notify(key, self._objects.pop(key), None)
        for key, obj in objects.items():
            old = self._objects.get(key)
            self._objects[key] = obj
            if old is None:
                self._notify(key, None, obj)
            elif old != obj and (relevant is None or relevant(old, obj)):
                self._notify(key, old, obj)
        self.synced.set()
        for fn in list(self._relisted):
            fn()

    def _known(self, key: str) -> int:
        """The version of the object, or of its deletion; 0 where neither is known."""
        held = self._objects.get(key)
        return version_of(held.metadata.resource_version) if held else self._deleted.get(key, 0)

    def _bury(self, key: str, version: int) -> None:
        self._deleted.pop(key, None)
        self._deleted[key] = version
        if len(self._deleted) > TOMBSTONES:
            del self._deleted[next(iter(self._deleted))]

    def _notify(self, key: str, old: T | None, new: T | None) -> None:
        for fn in self._subscribers:
            self._tell(fn, key, old, new)

    def _tell(self, fn: Subscriber[T], key: str, old: T | None, new: T | None) -> None:
        try:
            fn(key, old, new)
        except Exception:
            # One subscriber's fault must neither stop the cache nor hide the change from the others.
            log.exception("subscriber failed", kind=self.resource.kind, object=key)
