"""coordination.k8s.io/v1 Lease: who leads, and since when."""

import msgspec

from netloom.api.meta import ObjectMeta, Resource, Struct


class LeaseSpec(Struct, frozen=True):
    """Lease.spec, every field: a replacement must not lose one. Times are RFC 3339 with microseconds, UTC."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0
    preferred_holder: str | None = None
    strategy: str | None = None


class Lease(Struct, frozen=True):
    """coordination.k8s.io/v1 Lease."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)


LEASES = Resource("coordination.k8s.io", "v1", "leases", Lease)
