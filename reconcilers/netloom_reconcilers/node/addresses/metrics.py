"""The metrics of a node's allocator."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.node.addresses.checkpoint import Cause
from netloom_reconcilers.node.addresses.service import AddressService


def metrics_of(service: AddressService, withdrawn: int | None, found: Cause | None) -> Iterator[Metric]:
    """withdrawn: single addresses that are used and taken out; None where there is none to take any out. found: how the
    checkpoint was; None: it is not read yet."""
    allocator = service.allocator
    now = service.clock()
    yield gauge(
        "netloom_node_addresses",
        "Addresses of this node by pool, family and state: used, free (can be given at once), resting; and owners "
        "that wait for one.",
        {
            (pool, f"ipv{version}", state): number
            for pool in allocator.pools()
            for version, count in allocator.need(pool, now).items()
            for state, number in count._asdict().items()
        },
        *("pool", "family", "state"),
    )
    yield gauge(
        "netloom_node_addresses_orphaned",
        "Addresses that are in use, and that this node's NetloomNode does not hold any more.",
        len(allocator.orphans()),
    )
    if withdrawn is not None:
        yield gauge(
            "netloom_addresses_withdrawn",
            "Single addresses that pods use, and that were taken out of spec.ipam.pool of their NetloomNode.",
            withdrawn,
        )
    changes = {change: service.counts[change] for change in ("given", "released")}
    text = "Owners that were given addresses, and that released some."
    yield counter("netloom_address_changes", text, changes, "change")
    text = "Requests that ended without an address."
    yield counter("netloom_address_failures", text, service.failures, "reason")
    yield gauge(
        "netloom_address_checkpoint",
        "1 for how the checkpoint was found when the agent began: whole, none, boot (another one), node (another "
        "one's), damage.",
        {found: 1} if found is not None else {},
        "found",
    )
