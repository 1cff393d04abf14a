"""The data path's figures as metrics, read off its report when somebody asks: it is the data path that counts."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from netloom.kernel.dataplane import Dataplane
from netloom.runtime import metrics
from netloom_reconcilers.peers import Peers
from netloom_reconcilers.tunnels import TunnelsReconciler


class _DataplaneCollector(Collector):
    def __init__(self, dataplane: Dataplane, tunnels: TunnelsReconciler, peers: Peers) -> None:
        self._dataplane = dataplane
        self._tunnels = tunnels
        self._peers = peers

    def collect(self) -> Iterator[Metric]:
        report = self._dataplane.report
        written = CounterMetricFamily("netloom_netlink_writes", "Requests written to the kernel.", labels=["message"])
        for message, count in report.written.items():
            written.add_metric([message], count)
        yield written
        yield CounterMetricFamily(
            "netloom_drift_repaired", "Entries that somebody had changed and that were put back.", value=report.repaired
        )
        yield GaugeMetricFamily("netloom_peers", "Remote nodes in the mesh.", value=report.peers)
        yield GaugeMetricFamily(
            "netloom_peers_held",
            "Peers that stay although their NetloomNode vanished, or lacks what it had: their Nodes may live.",
            value=len(self._peers.held) + len(self._peers.completed),
        )
        yield GaugeMetricFamily(
            "netloom_unknown_ways",
            "Routes of an earlier run that no known peer explains.",
            value=self._dataplane.unknown,
        )
        yield GaugeMetricFamily("netloom_tunnel_mtu_bytes", "MTU inside the tunnels.", value=report.mtu)
        yield GaugeMetricFamily(
            "netloom_dataplane_errors",
            "What keeps the node's data path from being as desired; the agent's /status names each.",
            value=len(self._tunnels.errors(report)) + len(self._tunnels.own.errors()),
        )
        yield GaugeMetricFamily(
            "netloom_pod_cidrs_kept",
            "Pod CIDRs that this node's NetloomNode does not hold any more, and that are kept.",
            value=len(self._tunnels.own.kept),
        )


def register(
    dataplane: Dataplane,
    tunnels: TunnelsReconciler,
    peers: Peers,
    registry: CollectorRegistry = metrics.REGISTRY,
) -> None:
    """Show the figures of this data path in the registry."""
    registry.register(_DataplaneCollector(dataplane, tunnels, peers))
