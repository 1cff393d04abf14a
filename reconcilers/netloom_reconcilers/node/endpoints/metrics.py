"""What the feature counts, for Prometheus. docs/pods.md lists it."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from netloom.kernel.endpoints.keeper import EndpointsReport
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.node import written_metric
from netloom_reconcilers.node.endpoints.deletions import Deletions
from netloom_reconcilers.node.endpoints.install import Installer


def metrics_of(
    interfaces: int, report: EndpointsReport, deletions: Deletions, installer: Installer | None
) -> Iterator[Metric]:
    """What there is, and what had to be done about it. interfaces: how many pods have."""
    yield gauge("netloom_endpoints", "Interfaces of this node's pods.", interfaces)
    yield written_metric("netloom_endpoint_writes", "Requests written for pods' interfaces.", report)
    yield counter(
        "netloom_endpoint_drift_repaired",
        "Times that somebody had changed the host's side of a pod's interface, and it was put back.",
        report.repaired,
    )
    yield counter(
        "netloom_cni_deletions",
        "Deletions of pods that were written down while nobody could make them: made up for, or not readable.",
        {"done": deletions.done, "refused": deletions.refused},
        "result",
    )
    if installer is not None:
        text = "Times that a file of ours on the host was put back."
        yield counter("netloom_cni_file_repairs", text, installer.repairs, "file")
