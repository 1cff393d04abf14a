"""The tunnels' outer packets: who may send them, and that they are not tracked; an nftables table under a keeper of its
own."""

from typing import Unpack

from netloom.kernel.keeper.keeper import KeeperOptions
from netloom.kernel.keeper.nftables_keeper import NftablesKeeper
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.senders.part import COUNT_SECONDS, LOSS, Refusals, SendersTable
from netloom.kernel.senders.senders import Senders, TunnelPort


class SendersReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the table. ports: whose packets are looked at. checked: whether it matters who sends them."""

    ports: tuple[TunnelPort, ...] = ()
    checked: bool = True
    refusals: Refusals = Refusals()


class SendersKeeper(NftablesKeeper[Senders, SendersReport]):
    """See the module."""

    nothing = Senders

    def __init__(
        self, *, retain_unknown: bool = False, count_seconds: float = COUNT_SECONDS, **options: Unpack[KeeperOptions]
    ) -> None:
        """`retain_unknown`: what an earlier life left in the sets and no node explains stays until `prune`."""
        self._table = SendersTable(retain_unknown=retain_unknown, count_seconds=count_seconds)
        super().__init__((self._table,), **options)

    async def plan(self, desired: Senders) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported."""
        return await self._planned(lambda commands: SendersTable().plan(commands, desired), LOSS)

    @property
    def report(self) -> SendersReport:
        """The state of things now."""
        layout = self._table.layout
        return SendersReport(
            **self._basics(), ports=layout.ports, checked=layout.checked, refusals=self._table.refusals
        )
