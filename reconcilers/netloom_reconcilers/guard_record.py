"""The record: the ConfigMap in which the guard writes down which IPAM mode is in force, and on which nodes.

It is the parameter of the ValidatingAdmissionPolicies, so that the API server knows it when no guard runs, and the only
memory there is of the mode that a cluster of Cilium runs in. Every replica of the guard keeps it. What one writes names
the version of the record that it saw: a replica whose caches lag behind is told so by a conflict, and looks again.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from prometheus_client import Gauge

from netloom.api.cilium import CONFIG_NAME
from netloom.api.core import CONFIG_MAPS, ConfigMap
from netloom.api.events import ObjectReference
from netloom.guard.cluster_state import CILIUM_MODE, NETLOOM_MODE, ClusterState
from netloom.guard.record import bypassed, wanted
from netloom.runtime.controller import Controller
from netloom.runtime.metrics import REGISTRY
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Recorder
from netloom_reconcilers.writes import Patches

log = structlog.get_logger(__name__)

DISTANCE_SECONDS = 1.0
"""Of two writes that only tell of other nodes: while a cluster grows, they change with every one of them. A mode that
comes into force or goes is written at once: until then, the policies know nothing of it."""
UNSEEN_SECONDS = 1.0
"""Until the next look while a cache is not complete: what is missing from it must not pass for gone."""

BYPASSED = Gauge(
    "netloom_guard_bypassed",
    "1 while cilium-config asks for another IPAM mode than the one that nodes hold addresses of.",
    registry=REGISTRY,
)
_KEY = "record"


class GuardRecord:
    """Reconciles one ConfigMap with what is live.

    keys: those that are this guard's to write; another one may guard other objects and keep the rest.
    unseen: why a cache that the record is made from is not complete; "" if all are.
    """

    def __init__(
        self,
        api: Patches,
        events: Recorder,
        live: ClusterState,
        record: Store[ConfigMap],
        config: Store[ConfigMap] | None,
        *,
        namespace: str,
        name: str,
        keys: Iterable[str],
        field_manager: str,
        unseen: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._events = events
        self._live = live
        self._record = record
        self._config = config
        self._namespace = namespace
        self._name = name
        self._keys = frozenset(keys)
        self._field_manager = field_manager
        self._unseen = unseen
        self._clock = clock
        self._earliest = 0.0
        self._bypassed = ""
        self.controller = Controller("guard record", self._reconcile)
        self.controller.enqueue(_KEY)

    def changed(self, *_: object) -> None:
        """Something that the record is made from changed; fits `Store.subscribe`."""
        self.controller.enqueue(_KEY)

    async def _reconcile(self, _: str) -> float | None:
        if self._unseen():
            return UNSEEN_SECONDS
        self._judge()
        data = {key: value for key, value in wanted(self._live).items() if key in self._keys and value}
        seen = self._record.get(f"{self._namespace}/{self._name}")
        known = {key: value for key, value in (seen.data if seen else {}).items() if key in self._keys}
        if seen is not None and known == data:
            return None
        if _modes(known) == _modes(data) and (wait := self._earliest - self._clock()) > 0:
            return wait
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if seen is not None:
            metadata["resourceVersion"] = seen.metadata.resource_version
        written = await self._api.patch(
            CONFIG_MAPS,
            self._name,
            {"metadata": metadata, "data": data},
            namespace=self._namespace,
            kind="apply",
            field_manager=self._field_manager,
        )
        self._earliest = self._clock() + DISTANCE_SECONDS
        self._record.put(written)
        log.info("record written", record=f"{self._namespace}/{self._name}", **data)
        return None

    def _judge(self) -> None:
        """Says it where somebody got past the guard; once, not with every look."""
        problem = bypassed(self._live) if self._config is not None else None
        BYPASSED.set(problem is not None)
        text = problem.text if problem else ""
        if text == self._bypassed:
            return
        self._bypassed = text
        if problem is None:
            log.info("cilium-config is as the record again")
            return
        log.error("the guard was bypassed", object=problem.object, field=problem.field, error=text)
        key = f"{self._live.cilium_namespace}/{CONFIG_NAME}"
        config = self._config.get(key) if self._config is not None else None
        reference = ObjectReference(
            api_version=CONFIG_MAPS.api_version,
            kind=CONFIG_MAPS.kind,
            name=CONFIG_NAME,
            namespace=self._live.cilium_namespace,
            uid=config.metadata.uid if config else "",
        )
        self._events.event(reference, "Warning", problem.reason, text)


def _modes(data: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(data.get(key, "") for key in (CILIUM_MODE, NETLOOM_MODE))
