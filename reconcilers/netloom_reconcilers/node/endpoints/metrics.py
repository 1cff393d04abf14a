"""What the feature counts, for Prometheus. docs/pods.md lists it."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from netloom.kernel.endpoints.keeper import EndpointsReport
from netloom_reconcilers.features.node import written_metric
from netloom_reconcilers.node.endpoints.deletions import Deletions
from netloom_reconcilers.node.endpoints.install import Installer


def metrics_of(
    interfaces: int, report: EndpointsReport, deletions: Deletions, installer: Installer | None
) -> Iterator[Metric]:
    """What there is, and what had to be done about it. interfaces: how many pods have."""
    yield GaugeMetricFamily("netloom_endpoints", "Interfaces of this node's pods.", value=interfaces)
    yield written_metric("netloom_endpoint_writes", "Requests written for pods' interfaces.", report)
    yield CounterMetricFamily(
        "netloom_endpoint_drift_repaired",
        "Times that somebody had changed the host's side of a pod's interface, and it was put back.",
        value=report.repaired,
    )
    made = CounterMetricFamily(
        "netloom_cni_deletions",
        "Deletions of pods that were written down while nobody could make them: made up for, or not readable.",
        labels=["result"],
    )
    made.add_metric(["done"], deletions.done)
    made.add_metric(["refused"], deletions.refused)
    yield made
    if installer is not None:
        repairs = CounterMetricFamily(
            "netloom_cni_file_repairs", "Times that a file of ours on the host was put back.", labels=["file"]
        )
        for name, often in installer.repairs.items():
            repairs.add_metric([name], often)
        yield repairs
