"""Masquerading: our nftables table under a keeper of its own."""

from typing import Unpack

from netloom.kernel.keeper.keeper import KeeperOptions
from netloom.kernel.keeper.nftables_keeper import NftablesKeeper
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.masquerade.part import LOSS, MasqueradeTable
from netloom.kernel.masquerade.sets import Masquerading


class MasqueradeReport(KeeperReport, frozen=True, kw_only=True):
    """The state of our nftables table.

    families: "4" and "6", where packets are masqueraded. elements: desired, in all sets; a CIDR takes two.
    """

    families: tuple[str, ...] = ()
    elements: int = 0


class MasqueradeKeeper(NftablesKeeper[Masquerading, MasqueradeReport]):
    """See the module."""

    nothing = Masquerading

    def __init__(self, *, retain_unknown: bool = False, **options: Unpack[KeeperOptions]) -> None:
        """`retain_unknown`: known CIDRs that an earlier life left in the kernel and that no node explains stay until
        `prune`."""
        self._table = MasqueradeTable(retain_unknown=retain_unknown)
        super().__init__((self._table,), **options)

    async def plan(self, desired: Masquerading) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported."""
        return await self._planned(lambda commands: MasqueradeTable().plan(commands, desired), LOSS)

    @property
    def report(self) -> MasqueradeReport:
        """The state of things now."""
        sets = self._table.sets
        return MasqueradeReport(
            **self._basics(),
            families=self._table.families,
            elements=sum(len(sets.tables[name].desired) for name in sets.names),
        )
