"""Signs of life, for one who asks once and cannot listen for a while.

When a Lease was renewed is told by the API server's own clock: it dates each write in `metadata.managedFields`, and its
answers say what time it is. What the holder wrote into the Lease is by the holder's clock, which may be wrong; it is
believed only where the API server keeps no such record.
"""

import datetime as dt

from netloom.api.cluster_facts import Sign
from netloom.api.coordination import LEASES, LeaseSpec
from netloom.api.core import ManagedMeta
from netloom.api.meta import Struct
from netloom.runtime.clock import timestamp


class DatedLease(Struct, frozen=True):
    """coordination.k8s.io/v1 Lease, with the API server's word on when it was written."""

    metadata: ManagedMeta = ManagedMeta()
    spec: LeaseSpec = LeaseSpec()


DATED_LEASES = LEASES.read_as(DatedLease)


def sign_of(lease: DatedLease, now: dt.datetime) -> Sign:
    """What a Lease says of its holder. `now` by the API server's clock."""
    spec = lease.spec
    renewals = [
        each.time for each in lease.metadata.managed_fields if "f:renewTime" in each.fields_v1.get("f:spec", {})
    ]
    heard = max(filter(None, map(_moment, renewals or [spec.renew_time or ""])), default=None)
    return Sign(
        holder=spec.holder_identity,
        since=_text(_moment(spec.acquire_time or "")),
        heard=_text(heard),
        seconds=spec.lease_duration_seconds,
        alive=heard is not None and now <= heard + dt.timedelta(seconds=spec.lease_duration_seconds),
    )


def _text(moment: dt.datetime | None) -> str:
    return "" if moment is None else timestamp(moment)


def _moment(text: str) -> dt.datetime | None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
