"""A keeper of what lies in nftables."""

from abc import ABC
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack

from netloom.kernel.errors import KernelUnsupported, NotPermitted
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.part import Part
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.keeper.transaction import explained
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError

D = TypeVar("D")
R = TypeVar("R", bound=KeeperReport)


class NftablesKeeper(Keeper[D, R], ABC):
    """See the module."""

    names = nftables.NAMES

    def __init__(self, parts: tuple[Part[Any], ...], **options: Unpack[KeeperOptions]) -> None:
        options.setdefault("commands", NftablesSocket)
        super().__init__(parts, **options)

    async def open(self) -> None:
        """Opens the sockets. Raises NotPermitted: nftables is not even read without NET_ADMIN."""
        try:
            await super().open()
        except PermissionError as error:
            await self.close()
            why = "the kernel shows nftables to nobody without the capability NET_ADMIN: run it as root to see all"
            raise NotPermitted(why) from error

    async def _planned(self, plan: Callable[[CommandSocket], list[PlannedChange]], loss: str) -> list[PlannedChange]:
        """What `plan` finds. `loss`: what cannot be done without nftables. Raises KernelUnsupported."""
        async with self._lock:
            try:
                return await self._connect().call(plan)
            except RefusedError as error:
                raise KernelUnsupported(explained(error, loss)) from error


def unheard_by_each_other(keepers: Iterable[Keeper[Any, Any]]) -> None:
    """Of these keepers, open and in one network namespace, those of nftables hear nothing of each other: each has its
    own tables, and at 5,000 peers' start each would read the 15,000 events of another."""
    ports = {keeper: keeper.port for keeper in keepers if isinstance(keeper, NftablesKeeper) and keeper.port}
    for keeper, own in ports.items():
        keeper.deafen(port for port in ports.values() if port != own)
