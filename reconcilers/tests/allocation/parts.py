"""One part of an allocation at a time, on an API server that answers at once; and can be told to fail."""

from collections.abc import Callable
from typing import Any

import msgspec

from netloom.api.core import NODES
from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS
from netloom.cidr import Cidr
from netloom.ipam.allocator import Allocator
from netloom.ipam.ledger import decode
from netloom.ipam.pool import Pool
from netloom.runtime.errors import ApiError
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.allocation.incarnation import Event, Incarnation, Stores
from netloom_reconcilers.cluster.allocation.ledger_reader import LedgerReader
from netloom_reconcilers.cluster.allocation.ledger_writer import LedgerWriter
from netloom_reconcilers.cluster.allocation.lock import ModeLock
from netloom_reconcilers.conditions import Conditions
from tests.allocation.server import Json, ModelServer, Request
from tests.allocation.world import ModelApi, Said

LEDGER = "v4-10.0.0.0-16"


class DirectApi(ModelApi):
    """`faults`: what the next requests that begin so are answered. `before` is called before each is executed."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.faults: dict[str, ApiError] = {}
        self.before: Callable[[Request], None] = lambda request: None

    async def _ask(self, request: Request) -> Any:
        self.before(request)
        for beginning in self.faults:
            if str(request).startswith(beginning):
                raise self.faults.pop(beginning)
        return self.server.execute(request)


class Parts:
    """Everything below the reconcilers, by name; `events` is what was published, and `told` is called with."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.server = ModelServer()
        self.api = DirectApi(self.server)
        self.networks, self.netloom_nodes = Store(NETWORKS), Store(NETLOOM_NODES)
        self.events: list[Event] = []
        self.told: Callable[[Event], None] = lambda event: None
        self.allocator = Allocator("me")
        stores = Stores(self.networks, Store(NODES), self.netloom_nodes, Store(POOLS))
        conditions = Conditions(self.api, Said())
        self.shared = Incarnation(self.api, stores, self.allocator, conditions, self._publish, lambda: self.now)
        self.lock = ModeLock(self.shared)
        self.reader = LedgerReader(self.shared, self.lock)
        self.writer = LedgerWriter(self.shared, self.lock)

    def _publish(self, event: Event) -> None:
        self.events.append(event)
        self.told(event)

    def apply_network(self, *cidrs: str) -> None:
        """A network of blocks of 256 addresses, and the allocator by it."""
        spec = {"ipam": {"mode": "cluster-pool", "clusterPool": {"ipv4PodCIDRList": list(cidrs), "ipv4MaskSize": 24}}}
        body = {"metadata": {"name": "default"}, "spec": spec}
        self.server.execute(Request("create", "netloomnetworks", "default", body))
        self.networks.put(msgspec.convert(self.network, NETWORKS.type))
        self.allocator.blocks.configure("cluster-pool", [Pool(4, [Cidr.parse(cidr) for cidr in cidrs], 24)])

    @property
    def network(self) -> Json:
        return self.server.all("netloomnetworks")["default"]

    def entries(self) -> dict[str, str]:
        """The node of each block in the ledgers of the server, with an asterisk for each mark."""
        found = {}
        for obj in self.server.all("netloomledgers").values():
            for cidr, entry in decode(msgspec.convert(obj, LEDGERS.type)).entries.items():
                found[str(cidr)] = entry.node + "*" * len(entry.marks)
        return found

    def edit_ledger(self, text: str, used: int, mode: str = "cluster-pool") -> None:
        """Somebody else writes the ledger; creates it where there is none."""
        spec = {"mode": mode, "range": "10.0.0.0/16", "used": used, "entries": text}
        if LEDGER in self.server.all("netloomledgers"):
            self.server.execute(Request("patch", "netloomledgers", LEDGER, {"spec": spec}, kind="merge"))
        else:
            body = {"metadata": {"name": LEDGER}, "spec": spec}
            self.server.execute(Request("create", "netloomledgers", LEDGER, body))

    def requests(self, since: int = 0) -> list[str]:
        """What was asked of the server, in order, since so many requests."""
        return [str(each) for each in self.server.executed[since:]]
