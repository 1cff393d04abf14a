"""What is counted of probes, as metrics."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def metrics_of(counts: Mapping[tuple[str, int], Sequence[float]], failing: int) -> Iterable[Metric]:
    """Peers asked and answers: by way and family sent, answered, seconds of the last round trip. failing: peers."""
    labels = ["way", "family"]
    sent = CounterMetricFamily("netloom_probes_sent", "Times that a peer was probed.", labels=labels)
    answered = CounterMetricFamily("netloom_probes_answered", "Of these, those that passed in full.", labels=labels)
    seconds = GaugeMetricFamily("netloom_probe_round_trip_seconds", "Of the last that passed.", labels=labels)
    for (way, family), (asked, passed, trip) in counts.items():
        values = [way, f"IPv{family}"]
        sent.add_metric(values, asked)
        answered.add_metric(values, passed)
        seconds.add_metric(values, trip)
    yield from (sent, answered, seconds)
    yield GaugeMetricFamily(
        "netloom_probe_failing",
        "Peers (by family; this node's own forwarding is one) to which packets of pods do not pass; the agent's "
        "/status names each.",
        value=failing,
    )
