"""Role `webhook`: the guard. It refuses writes that would take the network from pods, and writes the record.

It decides from caches alone, so every replica serves, and no lease is needed. `netloom operator` runs the same guard
beside the allocation, with the caches that it has anyway.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from netloom import __version__
from netloom.api.admission import AdmissionRequest
from netloom.api.cilium import (
    AGENTS_NAME,
    CILIUM_NODES,
    CILIUM_POOLS,
    CONFIG_NAME,
    DAEMON_SETS,
    DEPLOYMENTS,
    OPERATOR_NAME,
    CiliumNode,
    Workload,
)
from netloom.api.core import CONFIG_MAPS, NODES, Node
from netloom.api.holdings import is_in_use
from netloom.api.meta import Object, Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS, NetloomNode
from netloom.guard.cluster_state import (
    CILIUM_IN_USE,
    CILIUM_MODE,
    NETLOOM_IN_USE,
    NETLOOM_MODE,
    RECORD_MANAGER,
    RECORD_NAME,
    ClusterState,
    Users,
    trim_cilium_node,
    trim_netloom_node,
    trim_node,
    trim_workload,
)
from netloom.guard.decide import decide
from netloom.guard.verdict import Ruling
from netloom.runtime import health
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, ConfigError
from netloom.runtime.events import EventRecorder
from netloom.runtime.manager import Manager
from netloom.runtime.optional import OptionalWatch
from netloom.runtime.startup import follow_api_server
from netloom.runtime.store import Store, Subscriber
from netloom.runtime.watch import ListWatch
from netloom.webhook import names, server
from netloom.webhook.authority import Authority
from netloom.webhook.configuration import WebhookConfiguration
from netloom.webhook.files import CertificateFiles
from netloom.webhook.names import Scope
from netloom_reconcilers.guard_record import GuardRecord

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

CONNECTIONS = 4
"""For the record, the CA and Events; watches have their own."""
ASK_SECONDS = 5.0
"""Between two questions for the API server's time. A guard asks hardly anything else, and its certificates go by it."""
DRAIN_SECONDS = 5.0
"""Between the request to stop and the end: a Service learns of a replica that goes only after the replica itself, and
its proxies later still. A write that is sent to nobody is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What a guard guards, where it is reached, and with which certificate.

    hosts: names and addresses that its certificate is for, besides those by which the webhooks are called.
    tls_cert_file, tls_key_file: instead of certificates of its own making; with tls_ca_file it keeps caBundle as well.
    """

    scope: Scope = field(default_factory=Scope)
    address: str = f":{names.PORT}"
    address_option: str = "--address"
    hosts: tuple[str, ...] = ()
    secret: str = names.CA_SECRET
    configuration: str = names.NAME
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_ca_file: Path | None = None


async def run_webhook(
    options: GuardOptions, kubeconfig: str | None, context: str | None, *, identity: str, http_address: str
) -> None:
    """Runs until SIGTERM or SIGINT. Raises UserError (a kubeconfig that is wrong, credentials refused for good)."""
    host, port = health.parse_address(http_address)
    user_agent = f"netloom-webhook/{__version__}"
    async with await Api.connect(
        kubeconfig, context, connections=CONNECTIONS, user_agent=user_agent, patient=True
    ) as api:
        log.info("guard starts", version=__version__, api_server=api.host, pid=os.getpid())
        manager = Manager(drain=DRAIN_SECONDS)
        follow_api_server(api, manager)
        events = EventRecorder(api, "netloom-guard", host=identity)
        manager.add("events", events.run, restart=True)
        guard = Guard(api, options, manager, events)
        async with health.serve(manager.health, host, port), guard.serve():
            await manager.run()


@dataclass(frozen=True, slots=True)
class WatchedStore(Generic[T]):
    """A store, and why it may not be what the API server holds now; "" if it is."""

    store: Store[T]
    unseen: Callable[[], str]


class Guard:
    """The parts of a guard, added to a manager; `serve` answers API servers.

    shared: caches of the role that it is part of, by kind; all others are its own.
    """

    def __init__(
        self,
        api: Api,
        options: GuardOptions,
        manager: Manager,
        events: EventRecorder,
        shared: Mapping[str, WatchedStore[Any]] | None = None,
    ) -> None:
        self._api = api
        self._options = options
        self._manager = manager
        scope = options.scope
        self._address = health.parse_address(options.address, options.address_option)
        users = Users(frozenset(scope.operator_users), frozenset(scope.agent_users))
        self.live = live = ClusterState(users, scope.cilium_namespace)
        live.unseen = self._unseen
        self._files: CertificateFiles | None = None
        self._tls = self._certificates()
        self._shared = shared or {}
        self._caches: dict[str, WatchedStore[Any]] = {}
        """As `ClusterState.unseen` asks: by kind, `ConfigMap` for the record, and cilium-config."""
        self._follow(NODES, live.node, ListWatch, changed=_addresses_changed, trim=trim_node)
        self._follow(CONFIG_MAPS, live.record, ListWatch, name="record", **_one(scope.namespace, RECORD_NAME))
        if scope.netloom:
            self._follow(POOLS, live.pool)
            self._follow(NETLOOM_NODES, live.netloom_node, changed=_holdings_changed, trim=trim_netloom_node)
            self._follow(NETWORKS, live.network)
        if scope.cilium:
            self._follow(CILIUM_NODES, live.cilium_node, changed=_spec_changed, trim=trim_cilium_node)
            self._follow(CILIUM_POOLS, live.cilium_pool)
            config = _one(scope.cilium_namespace, CONFIG_NAME)
            self._follow(CONFIG_MAPS, live.cilium_config, ListWatch, key=CONFIG_NAME, name=CONFIG_NAME, **config)
            agents, operator = (_one(scope.cilium_namespace, name) for name in (AGENTS_NAME, OPERATOR_NAME))
            told = live.cilium_workload
            self._follow(DAEMON_SETS, told, ListWatch, changed=_spec_changed, trim=trim_workload, **agents)
            self._follow(DEPLOYMENTS, told, ListWatch, changed=_spec_changed, trim=trim_workload, **operator)
        self._record(events)

    def decide(self, request: AdmissionRequest) -> Ruling:
        return decide(request, self.live)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Answers while the context lasts; gives the port. Raises ConfigError if a given certificate cannot be used."""
        if self._files:
            await self._files.load()
        host, port = self._address
        async with server.serve(self.decide, self._tls, host, port, leaving=lambda: self._manager.stopping) as port:
            log.info("guard answers", address=f"{host}:{port}", guards=self._options.scope.guarded)
            yield port

    def _unseen(self, kind: str) -> str:
        cache = self._caches.get(kind)
        return cache.unseen() if cache else ""

    def _follow(
        self,
        resource: Resource[T],
        tell: Subscriber[T],
        watch: type[ListWatch[T]] | type[OptionalWatch[T]] = OptionalWatch,
        *,
        key: str = "",
        name: str = "",
        **options: Any,
    ) -> None:
        """From the role's cache or one of its own; of a kind which the cluster may not have, by OptionalWatch.

        key, name: what `ClusterState.unseen` and health call it, if not as its kind.
        """
        cache = self._shared.get(resource.kind)
        if cache is None:
            store = Store(resource)
            own = watch(self._api, store, **options)
            cache = WatchedStore(store, lambda: own.fault)
            # Why the cache cannot be relied on is also why the guard is not ready.
            component = f"guard's watch of {name or resource.kind}"
            self._manager.add(component, own.run, restart=True)
            self._manager.health.ready(component, cache.unseen)
        cache.store.subscribe(tell)
        self._caches[key or resource.kind] = cache

    def _record(self, events: EventRecorder) -> None:
        """The reconciler of the record, which looks again when anything changed that it is made from."""
        scope = self._options.scope
        keys, kinds = [], [CONFIG_MAPS.kind]
        if scope.netloom:
            keys += [NETLOOM_MODE, NETLOOM_IN_USE]
            kinds += [NETWORKS.kind, NETLOOM_NODES.kind]
        if scope.cilium:
            keys += [CILIUM_MODE, CILIUM_IN_USE]
            kinds += [CILIUM_NODES.kind, CONFIG_NAME, NODES.kind, DAEMON_SETS.kind, DEPLOYMENTS.kind]
        reconciler = GuardRecord(
            api=self._api,
            events=events,
            live=self.live,
            record=self._caches[CONFIG_MAPS.kind].store,
            config=self._caches[CONFIG_NAME].store if scope.cilium else None,
            namespace=scope.namespace,
            name=RECORD_NAME,
            keys=keys,
            field_manager=f"{RECORD_MANAGER}{scope.guarded}",
            unseen=lambda: next(filter(None, map(self._unseen, kinds)), ""),
        )
        for kind in kinds:
            self._caches[kind].store.subscribe(reconciler.changed)
        # No check of readiness: a guard that cannot write can still decide.
        self._manager.add("guard record", reconciler.controller.run, restart=True)

    def _certificates(self) -> ssl.SSLContext:
        """The context to serve with; whatever keeps its certificate runs under the manager."""
        options = self._options
        self._manager.add("API server's clock", self._follow_clock, restart=True)
        keeper: Authority | CertificateFiles
        if options.tls_cert_file and options.tls_key_file:
            keeper = self._files = CertificateFiles(
                options.tls_cert_file,
                options.tls_key_file,
                ca=options.tls_ca_file,
                configuration=WebhookConfiguration(self._api, options.configuration),
                now=self._api.clock.now,
            )
        elif options.tls_cert_file or options.tls_key_file:
            raise ConfigError("a certificate needs its key: give both --tls-cert-file and --tls-key-file, or neither")
        else:
            service = f"{names.NAME}.{options.scope.namespace}"
            hosts = options.hosts or (f"{service}.svc", f"{service}.svc.cluster.local", service)
            keeper = Authority(
                self._api,
                namespace=options.scope.namespace,
                hosts=hosts,
                secret=options.secret,
                configuration=options.configuration,
            )
        self._manager.add("certificates", keeper.run, restart=True)
        self._manager.health.ready("certificates", lambda: keeper.fault)
        return keeper.tls

    async def _follow_clock(self) -> None:
        while True:
            with suppress(ApiError):
                await self._api.request("GET", "/version")
            await asyncio.sleep(ASK_SECONDS)


def _one(namespace: str, name: str) -> dict[str, str]:
    return {"namespace": namespace, "field_selector": f"metadata.name={name}"}


def _spec_changed(old: CiliumNode | Workload, new: CiliumNode | Workload) -> bool:
    """Not at a status, which changes with each pod, nor at what was trimmed away: none of it is held."""
    return old.spec != new.spec


def _holdings_changed(old: NetloomNode, new: NetloomNode) -> bool:
    """As `_spec_changed`; and at whether anything is used, held or not."""
    return old.spec != new.spec or is_in_use(old) != is_in_use(new)


def _addresses_changed(old: Node, new: Node) -> bool:
    """Not at heartbeats."""
    return old.status.addresses != new.status.addresses
