"""What is counted of probes, as metrics."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import Metric

from netloom.runtime.metrics import counter, gauge


def metrics_of(counts: Mapping[tuple[str, int], Sequence[float]], failing: int) -> Iterable[Metric]:
    """Peers asked and answers: by way and family sent, answered, seconds of the last round trip. failing: peers."""
    by_way = {(way, f"IPv{family}"): numbers for (way, family), numbers in counts.items()}
    asked, passed, trips = ({of: numbers[place] for of, numbers in by_way.items()} for place in range(3))
    labels = "way", "family"
    yield counter("netloom_probes_sent", "Times that a peer was probed.", asked, *labels)
    yield counter("netloom_probes_answered", "Of these, those that passed in full.", passed, *labels)
    yield gauge("netloom_probe_round_trip_seconds", "Of the last that passed.", trips, *labels)
    yield gauge(
        "netloom_probe_failing",
        "Peers (by family; this node's own forwarding is one) to which packets of pods do not pass; the agent's "
        "/status names each.",
        failing,
    )
