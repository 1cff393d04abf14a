"""Masquerading's figures as metrics, read off its report when somebody asks."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from netloom.kernel.masquerade import Masquerade
from netloom.runtime import metrics
from netloom_reconcilers.masquerade import MasqueradeReconciler


class _MasqueradeCollector(Collector):
    def __init__(self, masquerade: Masquerade, reconciler: MasqueradeReconciler) -> None:
        self._masquerade = masquerade
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        report = self._masquerade.report
        written = CounterMetricFamily("netloom_nftables_writes", "Requests written to nftables.", labels=["message"])
        for message, count in report.written.items():
            written.add_metric([message], count)
        yield written
        yield CounterMetricFamily(
            "netloom_nftables_drift_repaired",
            "Parts of the nftables table that somebody had changed and that were put back.",
            value=report.repaired,
        )
        yield GaugeMetricFamily(
            "netloom_nftables_elements", "Elements of the nftables sets, two for a CIDR.", value=report.elements
        )
        yield GaugeMetricFamily(
            "netloom_masquerade_errors",
            "What keeps masquerading from being as desired; the agent's /status names each.",
            value=len(self._reconciler.errors(report)),
        )


def register(
    masquerade: Masquerade, reconciler: MasqueradeReconciler, registry: CollectorRegistry = metrics.REGISTRY
) -> None:
    """Show the figures in the registry."""
    registry.register(_MasqueradeCollector(masquerade, reconciler))
