"""The record: the ConfigMap in which the guard writes down which IPAM mode is in force, and on which nodes.

It is the parameter of the ValidatingAdmissionPolicies, and the only memory there is of the mode that Cilium's cluster
runs in. Every replica of the guard keeps it. What one writes names the version of the record that it saw: a replica
whose caches lag behind is told so by a conflict, and looks again.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import structlog
from msgspec.structs import replace
from prometheus_client import Gauge

from netloom.api.cilium import CONFIG_NAME
from netloom.api.core import CONFIG_MAPS, ConfigMap
from netloom.guard.cluster_state import CILIUM_MODE, NETLOOM_MODE, ClusterState
from netloom.guard.record import (
    MODE_BYPASSED,
    NODES_VANISHED,
    RECORD_TAMPERED,
    LiveProblem,
    bypasses,
    tampered,
    vanished,
    wanted,
)
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

VANISHED_SECONDS = 5.0
"""Until a CiliumNode is missed: of a Node that is removed, it may be seen to go first, and agents make theirs anew."""

BYPASSED = Gauge(
    "netloom_guard_bypassed",
    "1 while Cilium's configuration asks for another IPAM mode than the one that nodes hold addresses of, or is taken "
    "from where nobody guards it.",
    registry=REGISTRY,
)
VANISHED = Gauge(
    "netloom_guard_vanished_nodes",
    "Nodes that live and whose CiliumNode was deleted or emptied.",
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
    _told: frozenset[tuple[str, ...]] = field(default=frozenset(), init=False)
    _missed: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.controller = Controller("guard record", self._reconcile)
        self.controller.enqueue(_KEY)

    def changed(self, *_: object) -> None:
        """Something that the record is made from changed; fits `Store.subscribe`."""
        self.controller.enqueue(_KEY)

    async def _reconcile(self, _: str) -> float | None:
        if self.unseen():
            return UNSEEN_SECONDS
        again = self._judge()
        wait = await self._write()
        return min(filter(None, (again, wait)), default=None)

    async def _write(self) -> float | None:
        data = {key: value for key, value in wanted(self.live).items() if key in self.keys and value}
        key = f"{self.namespace}/{self.name}"
        seen = self.record.get(key)
        known = {key: value for key, value in (seen.data if seen else {}).items() if key in self.keys}
        if seen is not None and known == data:
            return None
        if _modes(known) == _modes(data) and (wait := self._earliest - self.clock()) > 0:
            return wait
        if CILIUM_MODE in data.keys() - known.keys() and not await self._config_is_heard():
            return UNSEEN_SECONDS
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

    async def _config_is_heard(self) -> bool:
        """Whether cilium-config is known as it is now, and so as it was when the first node got its addresses: of the
        two watches, that of the nodes may be ahead, and an old mode would come into force for good."""
        assert self.config is not None
        name, namespace = CONFIG_NAME, self.live.cilium_namespace
        now = await self.api.list(CONFIG_MAPS, namespace=namespace, field_selector=f"metadata.name={name}")
        heard = self.config.get(f"{namespace}/{name}")
        return _versions(now.objects) == _versions([heard] if heard else [])

    def _judge(self) -> float | None:
        """Says it where somebody got past the guard; once, not with every look. Gives the seconds to the next look."""
        live, again = self.live, None
        found = list(filter(None, [tampered(live, self.namespace)]))
        if self.config is not None:
            bypassed = bypasses(live, self.namespace)
            BYPASSED.set(bool(bypassed))
            gone = vanished(live, self.namespace)
            VANISHED.set(len(live.cilium_vanished))
            self._missed = 0.0 if gone is None else self._missed or self.clock() + VANISHED_SECONDS
            again = max(self._missed - self.clock(), 0.0) or None
            found += [*bypassed, *([gone] if gone and again is None else [])]
        # A further edit is told of, too, even if it is heard before what a guard wrote in between.
        edit = {RECORD_TAMPERED: live.tampered_version}
        told = {(each.object, each.reason, each.field, each.value, edit.get(each.reason, "")): each for each in found}
        for key in told.keys() - self._told:
            self._say(told[key])
        if self._told and not told:
            log.info("all is as the record again")
        self._told = frozenset(told)
        return again

    def _say(self, problem: LiveProblem) -> None:
        write = log.warning if problem.severity == "warning" else log.error
        write(
            _LOGGED[problem.reason], object=problem.object, field=problem.field, value=problem.value, error=problem.text
        )
        about = problem.about
        stores = filter(None, (self.config, self.record)) if about.kind == CONFIG_MAPS.kind else ()
        held = next(filter(None, (store.get(f"{about.namespace}/{about.name}") for store in stores)), None)
        reference = replace(about, uid=held.metadata.uid) if held is not None else about
        value = f" {problem.value!r}" if problem.value else ""
        self.events.event(reference, "Warning", problem.reason, f"{problem.field}{value}: {problem.text}")


_LOGGED = {
    MODE_BYPASSED: "the guard was bypassed",
    NODES_VANISHED: "CiliumNodes vanished",
    RECORD_TAMPERED: "the record was edited",
}


def _modes(data: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(data.get(key, "") for key in (CILIUM_MODE, NETLOOM_MODE))


def _versions(objects: Iterable[ConfigMap]) -> list[str]:
    return [each.metadata.resource_version for each in objects]
