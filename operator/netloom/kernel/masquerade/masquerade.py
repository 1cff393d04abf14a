"""Masquerading: our nftables table under a keeper of its own."""

from typing import Unpack

from netloom.kernel.errors import KernelUnsupported, NotPermitted
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.keeper.transaction import explained
from netloom.kernel.masquerade.sets import Masquerading
from netloom.kernel.masquerade.table_part import LOSS, MasqueradeTable
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import RefusedError


class MasqueradeReport(KeeperReport, frozen=True, kw_only=True):
    """The state of our nftables table.

    families: "4" and "6", where packets are masqueraded. elements: desired, in all sets; a CIDR takes two.
    """

    families: tuple[str, ...] = ()
    elements: int = 0


class MasqueradeKeeper(Keeper[Masquerading, MasqueradeReport]):
    """See the module."""

    names = nftables.NAMES
    nothing = Masquerading

    def __init__(self, *, retain_unknown: bool = False, **options: Unpack[KeeperOptions]) -> None:
        """`retain_unknown`: known CIDRs that an earlier life left in the kernel and that no node explains stay until
        `prune`."""
        options.setdefault("commands", NftablesSocket)
        self._table = MasqueradeTable(retain_unknown=retain_unknown)
        super().__init__((self._table,), **options)

    async def open(self) -> None:
        """Opens the sockets. Raises NotPermitted: nftables is not even read without NET_ADMIN."""
        try:
            await super().open()
        except PermissionError as error:
            await self.close()
            why = "the kernel shows nftables to nobody without the capability NET_ADMIN: run it as root to see all"
            raise NotPermitted(why) from error

    async def plan(self, desired: Masquerading) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported."""
        async with self._lock:
            try:
                return await self._connect().call(lambda commands: MasqueradeTable().plan(commands, desired))
            except RefusedError as error:
                raise KernelUnsupported(explained(error, LOSS)) from error

    @property
    def report(self) -> MasqueradeReport:
        """The state of things now."""
        sets = self._table.sets
        return MasqueradeReport(
            **self._basics(),
            families=self._table.families,
            elements=sum(len(sets.tables[name].desired) for name in sets.names),
        )
