"""What the guard counts: its answers, how long a decision takes, what went wrong; and the end of its certificates."""

from prometheus_client import Counter, Gauge, Histogram

from netloom.runtime.metrics import REGISTRY

REVIEWS = Counter(
    "netloom_guard_reviews",
    "Admission reviews that were answered, by verdict: allowed, refused, not-ready, error.",
    ["resource", "operation", "verdict"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "netloom_guard_seconds",
    "Duration of a decision, without HTTP and TLS.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1),
    registry=REGISTRY,
)
ERRORS = Counter(
    "netloom_guard_errors",
    "What should not happen, by cause: decision (a bug in the guard), request (not an AdmissionReview v1), "
    "deadline (a client too slow), crowd (too many connections or large bodies), answer (a bug in the server), "
    "certificates (an attempt to keep them failed).",
    ["cause"],
    registry=REGISTRY,
)
CONNECTIONS = Gauge("netloom_guard_connections", "Open connections, those in their handshake included.",
                    registry=REGISTRY)  # fmt: skip
HANDSHAKES = Counter(
    "netloom_guard_handshakes",
    "TLS handshakes that succeeded: an API server keeps 25 connections, and opens one for each call beyond those.",
    registry=REGISTRY,
)
IRREGULAR = Counter(
    "netloom_guard_irregular_requests",
    "Requests that had not the form in which API servers ask, or came while the guard was about to end.",
    registry=REGISTRY,
)
CERTIFICATE_EXPIRY = Gauge(
    "netloom_guard_certificate_expiry_seconds",
    "End of the serving certificate, in seconds since 1970.",
    registry=REGISTRY,
)
CA_EXPIRY = Gauge(
    "netloom_guard_ca_expiry_seconds",
    "End of the CA that signed the serving certificate, in seconds since 1970; 0: not known.",
    registry=REGISTRY,
)
CA_BUNDLE_WRITES = Counter(
    "netloom_guard_ca_bundle_writes", "Times the caBundle of the webhooks was written.", registry=REGISTRY
)
