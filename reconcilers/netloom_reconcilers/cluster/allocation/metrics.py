"""What the allocation counts. The same facts are in conditions and Events; see docs/allocation.md."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from netloom.cidr import Version
from netloom.ipam.pool import Usage
from netloom.runtime.metrics import REGISTRY, gauge

_STATES = ("used", "free", "reserved", "orphaned")


class Blocks(Collector):
    """Blocks of each cluster CIDR, counted when somebody asks: counting 5,000 takes 10 ms, too long for every batch."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterable[Usage]] = lambda: ()

    def collect(self) -> Iterable[Metric]:
        """One sample per cluster CIDR and state."""
        states: dict[tuple[str, ...], float] = {}
        for usage in self.source():
            labels = str(usage.cidr), str(usage.mask)
            states[*labels, "allocated"] = usage.used
            states[*labels, "reserved"] = usage.reserved
            states[*labels, "free"] = usage.total - usage.used - usage.reserved
        text = "Blocks of a cluster CIDR, by state: allocated, free, or reserved for Services, nodes or their networks."
        yield gauge("netloom_ipam_blocks", text, states, "cidr", "mask", "state")


class PoolSample(NamedTuple):
    """Of one family of a NetloomIPPool: blocks, but for `addresses` (in the blocks that nodes hold) and `needed`
    (asked for). `seconds`: until it is full, None where that is not to be expected."""

    version: Version
    total: int
    used: int
    reserved: int
    orphaned: int
    addresses: int
    needed: int
    seconds: float | None

    @property
    def free(self) -> int:
        """Blocks that can be given."""
        return self.total - self.used - self.reserved


class PoolsCollector(Collector):
    """Of NetloomIPPools, as they were found last; nothing where this process does not lead."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, int, list[PoolSample]]] = {}

    def note(self, pool: str, nodes: int, waiting: int, samples: list[PoolSample]) -> None:
        """As it is now."""
        self._of[pool] = nodes, waiting, samples

    def forget(self, pool: str = "") -> None:
        """It is gone; "": all are."""
        if pool:
            self._of.pop(pool, None)
        else:
            self._of.clear()

    def collect(self) -> Iterable[Metric]:
        """When somebody asks."""
        nodes: dict[tuple[str, ...], float] = {}
        blocks, addresses, full = nodes.copy(), nodes.copy(), nodes.copy()
        for pool, (holding, waiting, samples) in sorted(self._of.items()):
            nodes |= {(pool, "holding"): holding, (pool, "waiting"): waiting}
            for each in samples:
                labels = pool, f"ipv{each.version}"
                blocks |= {(*labels, state): getattr(each, state) for state in _STATES}
                addresses |= {(*labels, "held"): each.addresses, (*labels, "needed"): each.needed}
                full |= {labels: each.seconds} if each.seconds is not None else {}
        text = "Nodes that hold blocks of a pool, or need more than it has."
        yield gauge("netloom_pool_nodes", text, nodes, "pool", "state")
        of = "pool", "family"
        text = "Blocks of a pool, by state: used, free, reserved, or orphaned (held outside its present CIDRs)."
        yield gauge("netloom_pool_blocks", text, blocks, *of, "state")
        text = "Addresses that nodes hold of a pool, or need."
        yield gauge("netloom_pool_addresses", text, addresses, *of, "state")
        text = "When a pool will be full, if nodes go on to take blocks as in the last hour; absent where they do not."
        yield gauge("netloom_pool_exhaustion_seconds", text, full, *of)


POOL_METRICS = PoolsCollector()
REGISTRY.register(POOL_METRICS)
BLOCKS = Blocks()
REGISTRY.register(BLOCKS)
WAITING = Gauge(
    "netloom_nodes_waiting", "Nodes that cannot be given a pod CIDR, by reason.", ["reason"], registry=REGISTRY
)
PROBLEMS = Gauge(
    "netloom_network_problems", "What is wrong with the NetloomNetwork, by reason.", ["reason"], registry=REGISTRY
)
ADDRESSES_KEPT = Gauge(
    "netloom_nodes_address_kept",
    "Nodes that report no InternalIP of a family that they had: the last known one is kept.",
    registry=REGISTRY,
)
ADDRESSES_CONTESTED = Gauge(
    "netloom_nodes_address_contested",
    "Nodes that report no address of a family but such as another Node reports as well, and has.",
    registry=REGISTRY,
)
WRITES = Counter(
    "netloom_allocation_writes", "Writes of the allocation, by kind and verb.", ["kind", "verb"], registry=REGISTRY
)
COMMITS = Counter(
    "netloom_ledger_commits",
    "Compare-and-swaps of a ledger, by result: ok, conflict or failed.",
    ["result"],
    registry=REGISTRY,
)
ENTRIES = Counter("netloom_ledger_entries", "Blocks granted, adopted and freed.", ["what"], registry=REGISTRY)
