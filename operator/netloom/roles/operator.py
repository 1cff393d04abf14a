"""Role `operator`: what has to be done once per cluster. Replicas keep warm caches; the one with the lease writes.

What it does is a list of features (`FEATURES`). Losing the lease ends a term, not the process: the caches stay, and the
next term begins with empty memory.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import structlog

from netloom import __version__
from netloom.api.cluster_facts import OPERATOR_LEASE
from netloom.api.core import NODES
from netloom.api.errors import in_words, sentences
from netloom.api.meta import Resource, T
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS
from netloom.roles import definitions
from netloom.roles.sources import Sources
from netloom.roles.webhook import DRAIN_SECONDS, Guard, GuardOptions, WatchedStore
from netloom.runtime import health, loop
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.leader import LeaderElector
from netloom.runtime.manager import Manager, crash_sentence
from netloom.runtime.startup import follow_api_server
from netloom.runtime.terms import Terms
from netloom_reconcilers.cluster import prefilters
from netloom_reconcilers.cluster.allocation.incarnation import netloom_node_changed, node_changed
from netloom_reconcilers.cluster.allocation.node_objects import trimmed
from netloom_reconcilers.cluster.allocation.term import AllocationFeature
from netloom_reconcilers.cluster.health import HealthFeature
from netloom_reconcilers.cluster.prefilters import PrefiltersFeature
from netloom_reconcilers.cluster.withdrawing import ClusterWithdrawing
from netloom_reconcilers.features import chosen
from netloom_reconcilers.features.cluster import ClusterContext, ClusterFeature, TermWork
from netloom_reconcilers.signs_of_life import GRACE_SECONDS

log = structlog.get_logger(__name__)

FEATURES: tuple[type[ClusterFeature], ...] = (AllocationFeature, HealthFeature, PrefiltersFeature)
"""What the leader of the operators can do."""

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
    features: str = "*"
    """As for `chosen`."""
    grace_period: float = GRACE_SECONDS
    """Seconds of silence that are allowed to agents that do not say it themselves; more in a large cluster."""
    guard: GuardOptions | None = None
    """Of the guard that every replica serves, leader or not; None: there is none."""


async def run_operator(options: OperatorOptions) -> None:
    """Runs until SIGTERM or SIGINT. Raises UserError (a kubeconfig that is wrong, credentials refused for good)."""
    host, port = health.parse_address(options.http_address)
    chosen(FEATURES, options.features)
    loop.keep_read_buffers()
    user_agent = f"netloom-operator/{__version__}"
    async with await Api.connect(
        options.kubeconfig, options.context, connections=CONNECTIONS, user_agent=user_agent, patient=True
    ) as api:
        log.info("operator starts", version=__version__, api_server=api.host, pid=os.getpid())
        operator = Operator(api, options)
        async with health.serve(operator.manager.health, host, port), operator.guarding():
            await operator.manager.run()


class Operator:
    """A running operator: its features, what they share, and the guard where it was asked for."""

    def __init__(self, api: Api, options: OperatorOptions, features: Sequence[type[ClusterFeature]] = FEATURES) -> None:
        self.manager = Manager(drain=DRAIN_SECONDS if options.guard else 0.0, on_crash=self._crashed)
        follow_api_server(api, self.manager)
        self.manager.add("definitions", lambda: definitions.tell(api), restart=True)
        self._events = EventRecorder(api, "netloom-operator", host=options.identity)
        self._sources = Sources(api, trims={NODES.kind: trimmed, NETLOOM_NODES.kind: prefilters.trimmed})
        self._working: dict[str, TermWork] = {}
        identity = options.identity or os.uname().nodename
        context = ClusterContext(
            api=api,
            events=self._events,
            caches=self._sources,
            crashes=lambda: self.manager.crashes,
            identity=identity,
            lease_namespace=options.lease_namespace,
            grace_period=options.grace_period,
        )
        on = chosen(features, options.features)
        made = [make(context) for make in on]
        self.manager.add("events", self._events.run, restart=True)
        self._guard: Guard | None = None
        if options.guard:
            self._guard = Guard(api, options.guard, self.manager, self._events, self._caches())
        self._sources.add_to(self.manager)
        elector = (
            LeaderElector(api, OPERATOR_LEASE, options.lease_namespace, identity) if options.leader_elect else None
        )
        terms = Terms(elector)
        self.manager.add("leadership", terms.run, restart=True)
        for feature in made:
            self.manager.add(feature.name, terms.component(lambda each=feature: self._work(each)), restart=True)  # type: ignore[misc]
            self.manager.health.ready(feature.name, lambda name=feature.name: self._fault(name))  # type: ignore[misc]
        if off := [each for each in features if each not in on]:
            taking_back = terms.beside(ClusterWithdrawing(api, off).run)
            self.manager.add("words of features that are off", taking_back, restart=True)

    def guarding(self) -> AbstractAsyncContextManager[object]:
        """Answers admission reviews while the context lasts, where that was asked for."""
        return self._guard.serve() if self._guard else nullcontext()

    def _caches(self) -> dict[str, WatchedStore[Any]]:
        return {
            NODES.kind: self._cache(NODES, node_changed),
            NETLOOM_NODES.kind: self._cache(NETLOOM_NODES, netloom_node_changed),
            NETWORKS.kind: self._cache(NETWORKS),
        }

    def _cache(self, kind: Resource[T], changed: Callable[[T, T], bool] | None = None) -> WatchedStore[T]:
        return WatchedStore(self._sources.store(kind, changed), lambda: self._sources.fault(kind))

    async def _work(self, feature: ClusterFeature) -> None:
        work = self._working[feature.name] = feature.begin()
        try:
            await work.run()
        except Exception as error:
            if not sentences(error):
                # Now, as the next try may be a minute away; there, `crashes` has it until it has proved itself.
                await work.tell_crash(crash_sentence(feature.name, in_words(error)))
            raise
        finally:
            del self._working[feature.name]

    def _crashed(self) -> None:
        for work in self._working.values():
            work.look()

    def _fault(self, name: str) -> str:
        work = self._working.get(name)
        return work.fault if work else ""
