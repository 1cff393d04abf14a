"""Role `operator`: what has to be done once per cluster. Replicas keep warm caches; the one with the lease writes.

Losing the lease ends a term, not the process: the caches stay, and the next term begins with empty memory.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from netloom import __version__
from netloom.api.core import NODES
from netloom.api.errors import in_words, sentences
from netloom.api.meta import Object
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS
from netloom.roles.webhook import DRAIN_SECONDS, Cache, Guard, GuardOptions
from netloom.runtime import health
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.leader import LeaderElector
from netloom.runtime.manager import Manager, crash_sentence
from netloom.runtime.startup import follow_api_server
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch
from netloom_reconcilers.cluster.allocation.stores import Stores, netloom_node_changed, node_changed
from netloom_reconcilers.cluster.allocation.term import Allocation

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

ALLOCATION = "allocation"
LEASE = "netloom-operator"
CONNECTIONS = 36
"""32 writers of nodes, and some for ledgers, conditions and Events."""


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """The options of `netloom operator`."""

    kubeconfig: str | None = None
    context: str | None = None
    leader_elect: bool = True
    lease_namespace: str = "kube-system"
    identity: str = ""
    http_address: str = "127.0.0.1:9963"
    guard: GuardOptions | None = None
    """Of the guard that every replica serves, leader or not; None: there is none."""


async def run_operator(options: OperatorOptions) -> None:
    """Runs until SIGTERM or SIGINT. Raises UserError (a kubeconfig that is wrong, credentials refused for good)."""
    host, port = health.parse_address(options.http_address)
    user_agent = f"netloom-operator/{__version__}"
    async with await Api.connect(
        options.kubeconfig, options.context, connections=CONNECTIONS, user_agent=user_agent, patient=True
    ) as api:
        log.info("operator starts", version=__version__, api_server=api.host, pid=os.getpid())
        operator = _Operator(api, options)
        async with health.serve(operator.manager.health, host, port), operator.guarding():
            await operator.manager.run()


class _Operator:
    """The components of the role."""

    def __init__(self, api: Api, options: OperatorOptions) -> None:
        self.manager = Manager(drain=DRAIN_SECONDS if options.guard else 0.0, on_crash=self._crashed)
        follow_api_server(api, self.manager)
        self._api = api
        self._stores = Stores(Store(NETWORKS), Store(NODES), Store(NETLOOM_NODES))
        self._events = EventRecorder(api, "netloom-operator", host=options.identity)
        self._term: Allocation | None = None
        caches = self._add_watches()
        self.manager.add("events", self._events.run, restart=True)
        self._guard = Guard(api, options.guard, self.manager, self._events, caches) if options.guard else None
        if options.leader_elect:
            identity = options.identity or os.uname().nodename
            elector = LeaderElector(api, LEASE, options.lease_namespace, identity)
            self.manager.add(ALLOCATION, lambda: elector.compete(self._allocate), restart=True)
        else:
            self.manager.add(ALLOCATION, self._allocate, restart=True)
        self.manager.health.ready(ALLOCATION, self._trouble)

    @asynccontextmanager
    async def guarding(self) -> AsyncIterator[None]:
        """Answers admission reviews while the context lasts, where that was asked for."""
        if self._guard is None:
            yield
            return
        async with self._guard.serve():
            yield

    def _add_watches(self) -> dict[str, Cache[Any]]:
        """By kind."""
        stores = self._stores
        return {
            NODES.kind: self._watch(stores.nodes, node_changed),
            NETLOOM_NODES.kind: self._watch(stores.netloom_nodes, netloom_node_changed),
            NETWORKS.kind: self._watch(stores.networks),
        }

    def _watch(self, store: Store[T], changed: Callable[[T, T], bool] | None = None) -> Cache[T]:
        watch = ListWatch(self._api, store, changed=changed)
        name = f"watch {store.resource.kind}"
        self.manager.add(name, watch.run, restart=True)
        self.manager.health.ready(name, lambda: watch.trouble)
        return Cache(store, lambda: watch.trouble)

    async def _allocate(self) -> None:
        self._term = Allocation(self._api, self._stores, self._events, crashes=lambda: self.manager.crashes)
        try:
            await self._term.run()
        except Exception as error:
            if not sentences(error):
                # Now, as the next term may be a minute away; there, `crashes` has it until it has proved itself.
                await self._term.tell_crash(crash_sentence(ALLOCATION, in_words(error)))
            raise
        finally:
            self._term = None

    def _crashed(self) -> None:
        if self._term is not None:
            self._term.look()

    def _trouble(self) -> str:
        return self._term.trouble if self._term else ""
