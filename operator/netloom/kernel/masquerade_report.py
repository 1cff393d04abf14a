"""What masquerading says about itself after it has tried to bring the kernel to the desired state."""

from collections.abc import Mapping

import msgspec

from netloom.kernel.report import Failure


class MasqueradeReport(msgspec.Struct, frozen=True):
    """The state of our nftables table.

    families: "4" and "6", where packets are masqueraded. elements: desired, in all sets; a CIDR takes two.
    pending, fought, written, compared, repaired: as in report.Report.
    """

    families: tuple[str, ...] = ()
    elements: int = 0
    failures: tuple[Failure, ...] = ()
    fought: tuple[str, ...] = ()
    pending: int = 0
    written: Mapping[str, int] = {}
    compared: int = 0
    repaired: int = 0

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds all that is desired."""
        return not self.failures and not self.pending
