"""The metrics of a node's allocator."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from netloom_reconcilers.node.addresses.checkpoint import Cause
from netloom_reconcilers.node.addresses.service import AddressService


def metrics_of(service: AddressService, withdrawn: int | None, found: Cause | None) -> Iterator[Metric]:
    """withdrawn: single addresses that are used and taken out; None where there is none to take any out. found: how the
    checkpoint was; None: it is not read yet."""
    allocator = service.allocator
    gauge = GaugeMetricFamily(
        "netloom_node_addresses",
        "Addresses of this node by pool, family and state: used, free (can be given at once), resting; and owners "
        "that wait for one.",
        labels=["pool", "family", "state"],
    )
    now = service.clock()
    for pool in allocator.pools():
        for version, count in allocator.need(pool, now).items():
            for state, value in count._asdict().items():
                gauge.add_metric([pool, f"ipv{version}", state], value)
    yield gauge
    yield GaugeMetricFamily(
        "netloom_node_addresses_orphaned",
        "Addresses that are in use, and that this node's NetloomNode does not hold any more.",
        value=len(allocator.orphans()),
    )
    if withdrawn is not None:
        yield GaugeMetricFamily(
            "netloom_addresses_withdrawn",
            "Single addresses that pods use, and that were taken out of spec.ipam.pool of their NetloomNode.",
            value=withdrawn,
        )
    counted = CounterMetricFamily(
        "netloom_address_changes", "Owners that were given addresses, and that released some.", labels=["change"]
    )
    for change in ("given", "released"):
        counted.add_metric([change], service.counts[change])
    yield counted
    failures = CounterMetricFamily(
        "netloom_address_failures", "Requests that ended without an address.", labels=["reason"]
    )
    for reason, often in service.failures.items():
        failures.add_metric([reason], often)
    yield failures
    lost = GaugeMetricFamily(
        "netloom_address_checkpoint",
        "1 for how the checkpoint was found when the agent began: whole, none, boot (another one), node (another "
        "one's), damage.",
        labels=["found"],
    )
    if found is not None:
        lost.add_metric([found], 1)
    yield lost
