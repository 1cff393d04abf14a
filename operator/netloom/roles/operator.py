"""Role `operator`: what has to be done once per cluster. Replicas keep warm caches; the one with the lease writes.

Losing the lease ends a term, not the process: the caches stay, and the next term begins with empty memory.
"""

import os
from dataclasses import dataclass

import structlog

from netloom import __version__
from netloom.api.core import NODES
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS
from netloom.runtime import health
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.leader import LeaderElector
from netloom.runtime.manager import Manager
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch
from netloom_reconcilers.allocation import Allocation, Stores, netloom_node_changed, node_changed

log = structlog.get_logger(__name__)

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


async def run_operator(options: OperatorOptions) -> None:
    """Runs until SIGTERM or SIGINT. Raises UserError (a kubeconfig that is wrong, an API server that is not there)."""
    host, port = health.parse_address(options.http_address)
    user_agent = f"netloom-operator/{__version__}"
    async with await Api.connect(
        options.kubeconfig, options.context, connections=CONNECTIONS, user_agent=user_agent
    ) as api:
        version = await api.check()
        log.info("operator starts", version=__version__, api_server=version, pid=os.getpid())
        operator = _Operator(api, options)
        async with health.serve(operator.manager.health, host, port):
            await operator.manager.run()


class _Operator:
    """The components of the role."""

    def __init__(self, api: Api, options: OperatorOptions) -> None:
        self.manager = Manager()
        self._api = api
        self._stores = Stores(Store(NETWORKS), Store(NODES), Store(NETLOOM_NODES))
        self._events = EventRecorder(api, "netloom-operator", host=options.identity)
        self._term: Allocation | None = None
        self._add_watches()
        self.manager.add("events", self._events.run, restart=True)
        if options.leader_elect:
            identity = options.identity or os.uname().nodename
            elector = LeaderElector(api, LEASE, options.lease_namespace, identity)
            self.manager.add("allocation", lambda: elector.run(self._allocate), restart=True)
        else:
            self.manager.add("allocation", self._allocate, restart=True)
        self.manager.health.ready("allocation", self._trouble)

    def _add_watches(self) -> None:
        stores = self._stores
        networks = ListWatch(self._api, stores.networks)
        nodes = ListWatch(self._api, stores.nodes, changed=node_changed)
        netloom_nodes = ListWatch(self._api, stores.netloom_nodes, changed=netloom_node_changed)
        self.manager.add("watch NetloomNetwork", networks.run, restart=True)
        self.manager.add("watch Node", nodes.run, restart=True)
        self.manager.add("watch NetloomNode", netloom_nodes.run, restart=True)
        self.manager.health.ready("watch NetloomNetwork", lambda: networks.trouble)
        self.manager.health.ready("watch Node", lambda: nodes.trouble)
        self.manager.health.ready("watch NetloomNode", lambda: netloom_nodes.trouble)

    async def _allocate(self) -> None:
        self._term = Allocation(self._api, self._stores, self._events)
        try:
            await self._term.run()
        finally:
            self._term = None

    def _trouble(self) -> str:
        return self._term.trouble if self._term else ""
