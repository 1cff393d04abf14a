"""What the cluster gives Services their addresses of: no pod may have one of those.

ServiceCIDR objects say it where they exist (they may come and go). Where there are none, the Service `kubernetes`
tells one address: the first of a range whose length only the API server's command line knows.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from netloom.api.core import SERVICE_CIDRS, SERVICES, Service, ServiceCIDR
from netloom.api.meta import Resource
from netloom.cidr import WIDTH, Cidr, single
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, Forbidden, NotFound
from netloom.runtime.store import Store
from netloom.runtime.waking import wait
from netloom.runtime.watch import ListWatch

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 10.0
"""How long the first addresses wait for what is known of Services."""
ASK_AGAIN_SECONDS = 300.0
"""A kind that is not served, or may not be read, is asked for again: API servers are upgraded, and rights given."""
TRY_AGAIN_SECONDS = 2.0

NAMESPACE, NAME = "default", "kubernetes"


@dataclass(frozen=True, slots=True, order=True)
class ServiceRange:
    """Addresses of Services. `source`: the object that says so. A single one stands for a range that is not known."""

    cidr: Cidr
    source: str

    def __str__(self) -> str:
        if self.cidr.length < WIDTH[self.cidr.version]:
            return f"{self.cidr} ({self.source}), from which Services get their addresses"
        address = str(self.cidr).partition("/")[0]
        return f"{address}, the address of {self.source} (how large the range of Services is, nothing tells)"


class ServiceRanges:
    """`known` is what is known now; `on_change` is called when it changed."""

    def __init__(self, api: Api) -> None:
        self.known: tuple[ServiceRange, ...] = ()
        self.unreadable = ""
        """Why nothing is known, as a sentence; "" if something is, or it is not known yet."""
        self.on_change: Callable[[], None] = lambda: None
        self._api = api
        self._cidrs: Store[ServiceCIDR] = Store(SERVICE_CIDRS)
        self._services: Store[Service] = Store(SERVICES)
        self._refused: dict[str, str] = {}
        self._both = asyncio.Event()
        self._answered: set[str] = set()

    async def answered(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Returns once both were read or refused, or it took too long."""
        await wait(self._both, seconds)

    async def run(self) -> None:
        """Follows both for ever; cancellation is the way to stop it."""
        self._cidrs.subscribe(lambda key, old, new: self._look())
        self._services.subscribe(lambda key, old, new: self._look())
        self._cidrs.on_replace(lambda: self._answer(SERVICE_CIDRS))
        self._services.on_replace(lambda: self._answer(SERVICES))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._cidrs), name="watch ServiceCIDR")
            one = self._follow(self._services, NAMESPACE, f"metadata.name={NAME}")
            group.create_task(one, name="watch Service kubernetes")

    async def _follow(self, store: Store[Any], namespace: str = "", field_selector: str = "") -> None:
        while True:
            watch = ListWatch(self._api, store, namespace=namespace, field_selector=field_selector)
            try:
                await watch.load()
                await watch.run()
            except (NotFound, Forbidden) as error:
                refused = "" if isinstance(error, NotFound) else str(error)
                self._answer(store.resource, refused)
                await asyncio.sleep(ASK_AGAIN_SECONDS)
            except ApiError as error:
                log.warning("what Services get their addresses from cannot be read", error=str(error))
                await asyncio.sleep(max(TRY_AGAIN_SECONDS, error.retry_after or 0.0))

    def _answer(self, of: Resource[Any], refused: str = "") -> None:
        self._refused.pop(of.kind, None)
        if refused:
            self._refused[of.kind] = refused
        self._answered.add(of.kind)
        self._look()
        if len(self._answered) > 1:
            self._both.set()

    def _look(self) -> None:
        known = _of_cidrs(self._cidrs.values()) or _of_service(self._services.get(f"{NAMESPACE}/{NAME}"))
        unreadable = "" if known else "; ".join(self._refused.values())
        if (known, unreadable) != (self.known, self.unreadable):
            self.known, self.unreadable = known, unreadable
            self.on_change()


def _of_cidrs(objects: list[ServiceCIDR]) -> tuple[ServiceRange, ...]:
    found = (
        ServiceRange(cidr, f"ServiceCIDR {each.metadata.name}")
        for each in objects
        for text in each.spec.cidrs
        if (cidr := Cidr.masked(text)) is not None
    )
    return tuple(sorted(found))


def _of_service(service: Service | None) -> tuple[ServiceRange, ...]:
    if service is None:
        return ()
    texts = map(single, service.spec.cluster_ips)
    return tuple(
        ServiceRange(cidr, f"Service {NAMESPACE}/{NAME}") for text in texts if (cidr := Cidr.masked(text)) is not None
    )
