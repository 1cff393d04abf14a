"""The tunnels' outer packets: who may send them, and that they are not tracked; an nftables table under a keeper of its
own."""

from typing import Unpack

from netloom.kernel.errors import KernelUnsupported, NotPermitted
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.keeper.transaction import explained
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import RefusedError
from netloom.kernel.senders.senders import Senders, TunnelPort
from netloom.kernel.senders.table_part import COUNT_SECONDS, LOSS, Refusals, SendersTable


class SendersReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the table. ports: whose packets are looked at. checked: whether it matters who sends them."""

    ports: tuple[TunnelPort, ...] = ()
    checked: bool = True
    refusals: Refusals = Refusals()


class SendersKeeper(Keeper[Senders, SendersReport]):
    """See the module."""

    names = nftables.NAMES
    nothing = Senders

    def __init__(
        self, *, retain_unknown: bool = False, count_seconds: float = COUNT_SECONDS, **options: Unpack[KeeperOptions]
    ) -> None:
        """`retain_unknown`: what an earlier life left in the sets and no node explains stays until `prune`."""
        options.setdefault("commands", NftablesSocket)
        self._table = SendersTable(retain_unknown=retain_unknown, count_seconds=count_seconds)
        super().__init__((self._table,), **options)

    async def open(self) -> None:
        """Opens the sockets. Raises NotPermitted: nftables is not even read without NET_ADMIN."""
        try:
            await super().open()
        except PermissionError as error:
            await self.close()
            why = "the kernel shows nftables to nobody without the capability NET_ADMIN: run it as root to see all"
            raise NotPermitted(why) from error

    async def plan(self, desired: Senders) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported."""
        async with self._lock:
            try:
                return await self._connect().call(lambda commands: SendersTable().plan(commands, desired))
            except RefusedError as error:
                raise KernelUnsupported(explained(error, LOSS)) from error

    @property
    def report(self) -> SendersReport:
        """The state of things now."""
        layout = self._table.layout
        return SendersReport(
            **self._basics(), ports=layout.ports, checked=layout.checked, refusals=self._table.refusals
        )
