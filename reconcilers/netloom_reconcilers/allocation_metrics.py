"""What the allocation counts. The same facts are in conditions and Events; see docs/allocation.md."""

from prometheus_client import Counter, Gauge

from netloom.runtime.metrics import REGISTRY

BLOCKS = Gauge(
    "netloom_ipam_blocks",
    "Blocks of a cluster CIDR, by state: allocated or free.",
    ["cidr", "mask", "state"],
    registry=REGISTRY,
)
WAITING = Gauge(
    "netloom_nodes_waiting", "Nodes that cannot be given a pod CIDR, by reason.", ["reason"], registry=REGISTRY
)
PROBLEMS = Gauge(
    "netloom_network_problems", "What is wrong with the NetloomNetwork, by reason.", ["reason"], registry=REGISTRY
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
