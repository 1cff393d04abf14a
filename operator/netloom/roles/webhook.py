"""Role `webhook`: the guard. It refuses writes that would take the network from pods, and writes the record.

It decides from caches alone, so every replica serves, and no lease is needed. `netloom operator` runs the same guard
beside the allocation, with the caches that it has anyway.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from netloom import __version__
from netloom.api.admission import AdmissionRequest
from netloom.api.cidrs import parse_address
from netloom.api.cilium import CILIUM_NODES, CILIUM_POOLS, CONFIG_NAME, CiliumNode
from netloom.api.core import CONFIG_MAPS, NODES, ConfigMap, Node
from netloom.api.meta import Object, Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS, NetloomNode
from netloom.guard.decide import decide
from netloom.guard.live import (
    CILIUM_IN_USE,
    CILIUM_MODE,
    NETLOOM_IN_USE,
    NETLOOM_MODE,
    RECORD_NAME,
    Live,
    Users,
    trim_cilium_node,
    trim_netloom_node,
    trim_node,
)
from netloom.guard.verdict import Verdict
from netloom.runtime import health
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, ConfigError
from netloom.runtime.events import EventRecorder
from netloom.runtime.manager import Manager, Run
from netloom.runtime.optional import OptionalWatch
from netloom.runtime.startup import follow_api_server
from netloom.runtime.store import Store, Subscriber
from netloom.runtime.watch import ListWatch
from netloom.webhook import names, server
from netloom.webhook.authority import Authority
from netloom.webhook.configuration import Configuration
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

    hosts: names and addresses that API servers call it by; the Service's where there are none.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """The options of `netloom webhook`."""

    kubeconfig: str | None = None
    context: str | None = None
    identity: str = ""
    http_address: str = "127.0.0.1:9965"
    guard: GuardOptions = field(default_factory=GuardOptions)


async def run_webhook(options: WebhookOptions) -> None:
    """Runs until SIGTERM or SIGINT. Raises UserError (a kubeconfig that is wrong, credentials refused for good)."""
    host, port = health.parse_address(options.http_address)
    user_agent = f"netloom-webhook/{__version__}"
    async with await Api.connect(
        options.kubeconfig, options.context, connections=CONNECTIONS, user_agent=user_agent, patient=True
    ) as api:
        log.info("guard starts", version=__version__, api_server=api.host, pid=os.getpid())
        manager = Manager(drain=DRAIN_SECONDS)
        follow_api_server(api, manager)
        events = EventRecorder(api, "netloom-guard", host=options.identity)
        manager.add("events", events.run, restart=True)
        guard = Guard(api, options.guard, manager, events)
        async with health.serve(manager.health, host, port), guard.serve():
            await manager.run()


@dataclass(frozen=True, slots=True)
class Cache(Generic[T]):
    """A store, and why it may not be what the API server holds now; "" if it is."""

    store: Store[T]
    unseen: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Caches:
    """What a role keeps already, for a guard that is part of it."""

    nodes: Cache[Node]
    netloom_nodes: Cache[NetloomNode]
    networks: Cache[Any]


class Guard:
    """The parts of a guard, added to a manager; `serve` answers API servers.

    caches: of the role that it is part of, if it is; all others are its own.
    """

    def __init__(
        self,
        api: Api,
        options: GuardOptions,
        manager: Manager,
        events: EventRecorder,
        caches: Caches | None = None,
    ) -> None:
        self._api = api
        self._options = options
        self._manager = manager
        scope = options.scope
        self._address = health.parse_address(options.address, options.address_option)
        users = Users(frozenset(scope.operator_users), frozenset(scope.agent_users))
        self.live = Live(users, scope.cilium_namespace)
        self.live.unseen = self._unseen
        self._seen: dict[str, Callable[[], str]] = {}
        """By kind, as `Live.unseen` asks."""
        self._files: CertificateFiles | None = None
        self._tls = self._certificates()
        self._stores: dict[str, Store[Any]] = {}
        record = self._config_map("record", scope.namespace, RECORD_NAME, self.live.record)
        config = None
        self._take(NODES, caches.nodes if caches else self._nodes(), self.live.node)
        if scope.netloom:
            self._netloom(caches)
        if scope.cilium:
            self._own(CILIUM_NODES, self.live.cilium_node, changed=_held_changed, trim=trim_cilium_node)
            self._own(CILIUM_POOLS, self.live.cilium_pool)
            config = self._config_map("cilium-config", scope.cilium_namespace, CONFIG_NAME, self.live.cilium_config)
            self._seen[CONFIG_NAME] = config.unseen
        self._record(events, record, config)

    def decide(self, request: AdmissionRequest) -> Verdict:
        """The verdict on one request, from the caches as they are."""
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
        check = self._seen.get(kind)
        return check() if check else ""

    def _nodes(self) -> Cache[Node]:
        store = Store(NODES)
        watch = ListWatch(self._api, store, changed=_addresses_changed, trim=trim_node)
        return Cache(store, self._run(NODES.kind, watch.run, lambda: watch.trouble))

    def _netloom(self, caches: Caches | None) -> None:
        live = self.live
        self._own(POOLS, live.pool)
        if caches is None:
            self._own(NETLOOM_NODES, live.netloom_node, changed=_held_changed, trim=trim_netloom_node)
            self._own(NETWORKS, live.network)
        else:
            self._take(NETLOOM_NODES, caches.netloom_nodes, live.netloom_node)
            self._take(NETWORKS, caches.networks, live.network)

    def _own(
        self,
        res: Resource[T],
        tell: Subscriber[T],
        *,
        changed: Callable[[T, T], bool] | None = None,
        trim: Callable[[T], T] | None = None,
    ) -> None:
        """A cache of a custom kind, which the cluster may not have."""
        store = Store(res)
        watch = OptionalWatch(self._api, store, changed=changed, trim=trim)
        self._take(res, Cache(store, self._run(res.kind, watch.run, lambda: watch.trouble)), tell)

    def _config_map(self, what: str, namespace: str, name: str, tell: Subscriber[ConfigMap]) -> Cache[ConfigMap]:
        store = Store(CONFIG_MAPS)
        watch = ListWatch(self._api, store, namespace=namespace, field_selector=f"metadata.name={name}")
        store.subscribe(tell)
        return Cache(store, self._run(what, watch.run, lambda: watch.trouble))

    def _take(self, res: Resource[T], cache: Cache[T], tell: Subscriber[T]) -> None:
        cache.store.subscribe(tell)
        self._seen[res.kind] = cache.unseen
        self._stores[res.kind] = cache.store

    def _run(self, what: str, run: Run, unseen: Callable[[], str]) -> Callable[[], str]:
        """Runs a watch; gives back why its cache cannot be relied on, which is also why the guard is not ready."""
        self._manager.add(f"guard's watch of {what}", run, restart=True)
        self._manager.health.ready(f"guard's watch of {what}", unseen)
        return unseen

    def _record(self, events: EventRecorder, record: Cache[ConfigMap], config: Cache[ConfigMap] | None) -> None:
        """The reconciler of the record, which looks again when anything changed that it is made from."""
        scope = self._options.scope
        self._seen[CONFIG_MAPS.kind] = record.unseen
        keys: list[str] = []
        checks = [record.unseen]
        stores: list[Store[Any]] = [record.store]
        if scope.netloom:
            keys += [NETLOOM_MODE, NETLOOM_IN_USE]
            kinds = [NETWORKS.kind, NETLOOM_NODES.kind]
            checks += [self._seen[kind] for kind in kinds]
            stores += [self._stores[kind] for kind in kinds]
        if config is not None:
            keys += [CILIUM_MODE, CILIUM_IN_USE]
            checks += [self._seen[CILIUM_NODES.kind], config.unseen]
            stores += [self._stores[CILIUM_NODES.kind], config.store]
        reconciler = GuardRecord(
            self._api,
            events,
            self.live,
            record.store,
            config.store if config else None,
            namespace=scope.namespace,
            name=RECORD_NAME,
            keys=keys,
            field_manager=f"netloom-guard-{scope.guarded}",
            unseen=lambda: next(filter(None, (check() for check in checks)), ""),
        )
        for store in stores:
            store.subscribe(reconciler.changed)
        # No check of readiness: a guard that cannot write can still decide.
        self._manager.add("guard record", reconciler.controller.run, restart=True)

    def _certificates(self) -> ssl.SSLContext:
        """The context to serve with; whatever keeps its certificate runs under the manager."""
        options = self._options
        self._manager.add("API server's clock", self._follow_clock, restart=True)
        files = (options.tls_cert_file, options.tls_key_file)
        if files == (None, None):
            authority = Authority(
                self._api,
                namespace=options.scope.namespace,
                names=[host for host in self._hosts() if not parse_address(host)],
                addresses=[host for host in self._hosts() if parse_address(host)],
                secret=options.secret,
                configuration=options.configuration,
            )
            self._manager.add("certificates", authority.run, restart=True)
            self._manager.health.ready("certificates", lambda: authority.trouble)
            return authority.tls
        if options.tls_cert_file is None or options.tls_key_file is None:
            raise ConfigError("a certificate needs its key: give both --tls-cert-file and --tls-key-file, or neither")
        configuration = Configuration(self._api, options.configuration) if options.tls_ca_file else None
        given = self._files = CertificateFiles(
            options.tls_cert_file,
            options.tls_key_file,
            ca=options.tls_ca_file,
            configuration=configuration,
            now=self._api.clock.now,
        )
        self._manager.add("certificates", given.run, restart=True)
        self._manager.health.ready("certificates", lambda: given.trouble)
        return given.tls

    async def _follow_clock(self) -> None:
        while True:
            with suppress(ApiError):
                await self._api.request("GET", "/version")
            await asyncio.sleep(ASK_SECONDS)

    def _hosts(self) -> tuple[str, ...]:
        service = f"{names.NAME}.{self._options.scope.namespace}"
        return self._options.hosts or (f"{service}.svc", f"{service}.svc.cluster.local", service)


def _held_changed(old: CiliumNode | NetloomNode, new: CiliumNode | NetloomNode) -> bool:
    """Not at a status, nor at what was trimmed away: agents write those all the time, and none of it is held."""
    return old.spec != new.spec


def _addresses_changed(old: Node, new: Node) -> bool:
    """Not at heartbeats."""
    return old.status.addresses != new.status.addresses
