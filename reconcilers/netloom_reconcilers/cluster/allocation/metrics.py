"""What the allocation counts. The same facts are in conditions and Events; see docs/allocation.md."""

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from netloom.ipam.pool import Usage
from netloom.runtime.metrics import REGISTRY


class Blocks(Collector):
    """Blocks of each cluster CIDR, counted when somebody asks: counting 5,000 takes 10 ms, too long for every batch."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterable[Usage]] = lambda: ()

    def collect(self) -> Iterable[Metric]:
        """One sample per cluster CIDR and state."""
        family = GaugeMetricFamily(
            "netloom_ipam_blocks",
            "Blocks of a cluster CIDR, by state: allocated, free, or reserved for Services, nodes or their networks.",
            labels=["cidr", "mask", "state"],
        )
        for usage in self.source():
            labels = [str(usage.cidr), str(usage.mask)]
            family.add_metric([*labels, "allocated"], usage.used)
            family.add_metric([*labels, "reserved"], usage.reserved)
            family.add_metric([*labels, "free"], usage.total - usage.used - usage.reserved)
        yield family


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
