"""The record: the ConfigMap in which the guard writes down which IPAM mode is in force, and on which nodes.

It is the parameter of the ValidatingAdmissionPolicies, and the only memory there is of the mode that Cilium's cluster
runs in. Every replica of the guard keeps it. What one writes names the version of the record that it saw: a replica
whose caches lag behind is told so by a conflict, and looks again.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog
from prometheus_client import Gauge

from netloom.api.cilium import CONFIG_NAME
from netloom.api.core import CONFIG_MAPS, ConfigMap
from netloom.api.events import ObjectReference
from netloom.guard.cluster_state import CILIUM_MODE, NETLOOM_MODE, ClusterState
from netloom.guard.record import bypassed, wanted
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.events import EventRecorder
from netloom.runtime.metrics import REGISTRY
from netloom.runtime.store import Store

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


@dataclass(kw_only=True, eq=False)
class GuardRecord:
    """Reconciles one ConfigMap with what is live.

    keys: those that are this guard's to write; another one may guard other objects and keep the rest.
    config: of cilium-config; None where this guard has nothing to do with Cilium.
    unseen: why a cache that the record is made from is not complete; "" if all are.
    """

    api: Api
    events: EventRecorder
    live: ClusterState
    record: Store[ConfigMap]
    config: Store[ConfigMap] | None
    namespace: str
    name: str
    keys: Collection[str]
    field_manager: str
    unseen: Callable[[], str]
    clock: Callable[[], float] = time.monotonic
    _earliest: float = field(default=0.0, init=False)
    _bypassed: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.controller = Controller("guard record", self._reconcile)
        self.controller.enqueue(_KEY)

    def changed(self, *_: object) -> None:
        """Something that the record is made from changed; fits `Store.subscribe`."""
        self.controller.enqueue(_KEY)

    async def _reconcile(self, _: str) -> float | None:
        if self.unseen():
            return UNSEEN_SECONDS
        if self.config is not None:
            self._judge(self.config)
        data = {key: value for key, value in wanted(self.live).items() if key in self.keys and value}
        key = f"{self.namespace}/{self.name}"
        seen = self.record.get(key)
        known = {key: value for key, value in (seen.data if seen else {}).items() if key in self.keys}
        if seen is not None and known == data:
            return None
        if _modes(known) == _modes(data) and (wait := self._earliest - self.clock()) > 0:
            return wait
        metadata = {"name": self.name, "namespace": self.namespace}
        if seen is not None:
            metadata["resourceVersion"] = seen.metadata.resource_version
        patch = {"metadata": metadata, "data": data}
        written = await self.api.patch(
            CONFIG_MAPS, self.name, patch, namespace=self.namespace, kind="apply", field_manager=self.field_manager
        )
        self._earliest = self.clock() + DISTANCE_SECONDS
        self.record.put(written)
        log.info("record written", record=key, **data)
        return None

    def _judge(self, configs: Store[ConfigMap]) -> None:
        """Says it where somebody got past the guard; once, not with every look."""
        problem = bypassed(self.live)
        BYPASSED.set(problem is not None)
        text = problem.text if problem else ""
        if text == self._bypassed:
            return
        self._bypassed = text
        if problem is None:
            log.info("cilium-config is as the record again")
            return
        log.error("the guard was bypassed", object=problem.object, field=problem.field, error=text)
        namespace = self.live.cilium_namespace
        config = configs.get(f"{namespace}/{CONFIG_NAME}")
        uid = config.metadata.uid if config else ""
        reference = ObjectReference(
            api_version=CONFIG_MAPS.api_version, kind=CONFIG_MAPS.kind, name=CONFIG_NAME, namespace=namespace, uid=uid
        )
        self.events.event(reference, "Warning", problem.reason, text)


def _modes(data: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(data.get(key, "") for key in (CILIUM_MODE, NETLOOM_MODE))
