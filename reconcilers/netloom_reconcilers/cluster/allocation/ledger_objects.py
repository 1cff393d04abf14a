"""A ledger as a NetloomLedger object."""

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import LedgerSpec, NetloomLedger
from netloom.ipam import ledger
from netloom.ipam.ledger import Ledger


def decode(obj: NetloomLedger) -> Ledger:
    """The ledger that an object holds. Raises LedgerError."""
    spec = obj.spec
    return ledger.decode(obj.metadata.name, spec.region, spec.mode, spec.used, spec.entries)


def encode(content: Ledger, version: str) -> NetloomLedger:
    """The object that holds a ledger, to be written at `version` ("": to be created)."""
    return NetloomLedger(
        metadata=ObjectMeta(name=content.name, resource_version=version),
        spec=LedgerSpec(
            mode=content.mode,  # type: ignore[arg-type]
            region=str(content.range),
            used=len(content.entries),
            entries=ledger.encode(content),
        ),
    )
