"""The metrics that every part of the runtime counts, in a registry of our own; and those of who counts when somebody
asks.

The default registry of prometheus_client is global to the process and filled by whoever is imported.

prometheus_client imports servers and clients of its own, which nobody uses here: they are imported when they are asked
for. A role therefore imports this module before any other that has metrics.
"""

from collections.abc import Mapping
from typing import Any

from netloom.shells import imported_later

_LATER = {
    "http.server": ("BaseHTTPRequestHandler",),
    "socketserver": ("ThreadingMixIn",),
    "urllib.request": (
        "BaseHandler",
        "build_opener",
        "HTTPHandler",
        "HTTPRedirectHandler",
        "HTTPSHandler",
        "Request",
    ),
    "wsgiref.simple_server": ("make_server", "WSGIRequestHandler", "WSGIServer"),
}

with imported_later(_LATER):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Numbers = float | Mapping[Any, float]
"""One, or one for each value of a label, or for each tuple of values of several."""


def counter(name: str, text: str, numbers: Numbers, *labels: str) -> Metric:
    """As it is now, for a collector."""
    return _collected(CounterMetricFamily, name, text, numbers, labels)


def gauge(name: str, text: str, numbers: Numbers, *labels: str) -> Metric:
    """As it is now, for a collector."""
    return _collected(GaugeMetricFamily, name, text, numbers, labels)


def _collected(
    kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, text: str, numbers: Numbers, labels: tuple[str, ...]
) -> Metric:
    if not isinstance(numbers, Mapping):
        return kind(name, text, value=numbers)
    family = kind(name, text, labels=labels)
    for values, number in numbers.items():
        family.add_metric([values] if isinstance(values, str) else values, number)
    return family


REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

RECONCILES = Counter("netloom_reconciles", "Runs of a reconciler.", ["controller", "result"], registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "netloom_reconcile_seconds",
    "Duration of a reconciler's run.",
    ["controller"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("netloom_queue_depth", "Keys that are due and not running.", ["controller"], registry=REGISTRY)
FAILING_KEYS = Gauge("netloom_failing_keys", "Keys whose last run failed.", ["controller"], registry=REGISTRY)

WATCH_LISTS = Counter("netloom_watch_lists", "Complete lists that were asked for.", ["kind"], registry=REGISTRY)
WATCH_STARTS = Counter("netloom_watch_starts", "Watches that were begun.", ["kind"], registry=REGISTRY)
WATCH_PROOFS = Counter(
    "netloom_watch_proofs", "Small requests that ask how far the server's history reaches.", ["kind"], registry=REGISTRY
)
WATCH_ERRORS = Counter(
    "netloom_watch_errors", "Lists and watches that failed, by reason.", ["kind", "reason"], registry=REGISTRY
)
WATCH_EVENTS = Counter("netloom_watch_events", "Events that changed the cache.", ["kind"], registry=REGISTRY)
UNREADABLE = Counter("netloom_unreadable_objects", "Objects that could not be decoded.", ["kind"], registry=REGISTRY)
CACHED = Gauge("netloom_cached_objects", "Objects in the cache.", ["kind"], registry=REGISTRY)

LEADING = Gauge("netloom_leading", "1 while this process holds the lease.", ["lease"], registry=REGISTRY)
EVENTS_DROPPED = Counter(
    "netloom_events_dropped", "Kubernetes Events that were not written.", ["cause"], registry=REGISTRY
)
COMPONENT_RESTARTS = Counter(
    "netloom_component_restarts", "Components that crashed and were started again.", ["component"], registry=REGISTRY
)
MANIFEST_PROBLEMS = Gauge("netloom_manifest_problems", "Mistakes in manifest files.", registry=REGISTRY)
