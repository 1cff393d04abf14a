"""Where a role's objects come from: the caches that its features ask for, and what keeps them filled."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from netloom.api.meta import Object, Resource
from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS, PREFILTERS
from netloom.api.validation import validate
from netloom.runtime.client import Api
from netloom.runtime.directory import DirectorySource
from netloom.runtime.errors import ApiError, ConfigError, unreadable
from netloom.runtime.manager import Manager, Run
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming

T = TypeVar("T", bound=Object)

KINDS: tuple[Resource[Any], ...] = (NETWORKS, NETLOOM_NODES, POOLS, PREFILTERS, LEDGERS)
"""Ours. A directory may hold manifests of all of them, whether a feature reads them or not."""


class Sources:
    """Each kind is cached once, whoever asks for it; from a cluster, or from a directory of manifests."""

    def __init__(
        self,
        api: Api | None,
        directory: Path | None = None,
        *,
        trims: Mapping[str, Callable[[Any], Any]] | None = None,
        timing: WatchTiming | None = None,
    ) -> None:
        """`trims`: by kind, what is kept of an object. `timing`: of the watches."""
        self._api = api
        self._directory = directory
        self._trims = trims or {}
        self._timing = timing
        self._stores: dict[str, Store[Any]] = {}
        self._matters: dict[str, list[Callable[[Any, Any], bool]]] = {}
        self._watches: dict[str, ListWatch[Any]] = {}
        self._optional: set[str] = set()

    def store(
        self,
        resource: Resource[T],
        changed: Callable[[T, T], bool] | None = None,
        *,
        namespace: str = "",
        label_selector: str = "",
        optional: bool = False,
    ) -> Store[T]:
        """See `netloom_reconcilers.features.Caches`. To be asked before anything runs."""
        kind = resource.kind
        matters = self._matters.setdefault(kind, [])
        matters.append(changed or (lambda old, new: True))
        if kind not in self._stores:
            store = self._stores[kind] = Store(resource)
            if self._api is not None:
                self._watches[kind] = ListWatch(
                    self._api,
                    store,
                    changed=lambda old, new: any(each(old, new) for each in matters),
                    trim=self._trims.get(kind),
                    timing=self._timing,
                    namespace=namespace,
                    label_selector=label_selector,
                )
            if optional:
                self._optional.add(f"watch of {kind}")
        return self._stores[kind]

    def watch(self, resource: Resource[T]) -> ListWatch[T] | None:
        """What fills the store of a kind; None where that is a directory."""
        return self._watches.get(resource.kind)

    def fault(self, resource: Resource[Any]) -> str:
        """Why the store of this kind may not be what the API server holds now; "" if it is."""
        watch = self._watches.get(resource.kind)
        return watch.fault if watch else ""

    def add_to(self, manager: Manager) -> None:
        """Run under this manager; say in its health what is wrong."""
        for name, (run, fault) in self._components().items():
            manager.add(name, run, restart=True)
            if name not in self._optional:
                manager.health.ready(name, fault)

    async def fill(self) -> None:
        """Read everything once. Raises ConfigError, which says what was in the way."""
        if self._directory is not None:
            self._source(self._directory).load()
        try:
            async with asyncio.TaskGroup() as group:
                for watch in self._watches.values():
                    group.create_task(watch.load())
        except* ApiError as refusals:
            found = refusals.exceptions[0]
            assert isinstance(found, ApiError)
            raise ConfigError(unreadable(found)) from found

    def _components(self) -> dict[str, tuple[Run, Callable[[], str]]]:
        found: dict[str, tuple[Run, Callable[[], str]]] = {}
        for kind, watch in self._watches.items():
            found[f"watch of {kind}"] = watch.run, lambda watch=watch: watch.fault  # type: ignore[misc]
        if self._directory is not None:
            source = self._source(self._directory)
            found["manifests"] = source.run, source.fault
        return found

    def _source(self, directory: Path) -> DirectorySource:
        unread = [kind for kind in KINDS if kind.kind not in self._stores]
        return DirectorySource(directory, self._stores.values(), ignored=unread, validate=validate)
