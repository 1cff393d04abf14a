"""The forward hook: pods' packets pass the filters of iptables, and what drops them elsewhere is known."""

from typing import Unpack

from netloom.kernel.errors import DataplaneError
from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.legacy_part import LegacyForward
from netloom.kernel.forwarding.nft_part import NftForward
from netloom.kernel.forwarding.opening import ForwardingState
from netloom.kernel.keeper.keeper import KeeperOptions
from netloom.kernel.keeper.nftables_keeper import NftablesKeeper
from netloom.kernel.keeper.report import KeeperReport, PlannedChange


class ForwardReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the forward hook.

    open: the programs of iptables whose filters hold our chain. blocked: the filters that drop packets of pods, and
    that are not opened. unread: what could not be looked at, as sentences.
    """

    open: tuple[str, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def news(self) -> tuple[object, ...]:
        """What is worth telling when it changes."""
        return *super().news, self.open, self.blocked, self.unread


class ForwardKeeper(NftablesKeeper[ForwardingState, ForwardReport]):
    """See the module."""

    nothing = ForwardingState

    def __init__(self, **options: Unpack[KeeperOptions]) -> None:
        self._filters = (NftForward(), LegacyForward())
        super().__init__(self._filters, **options)

    def _on_readable(self) -> None:
        """Only what concerns a filter leads to a pass: masquerading writes for each node that comes, kube-proxy for
        each Service, and all of that is told here."""
        if not self._lock.locked():
            self._drain()
            if not any(part.due for part in self._filters):
                return
        super()._on_readable()

    async def plan(self, desired: ForwardingState) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported where there is no netfilter,
        DataplaneError where a filter cannot be read."""
        parts = (NftForward(), LegacyForward())
        async with self._lock:
            worker = self._connect()
            try:
                return await worker.call(
                    lambda commands: [change for part in parts for change in part.plan(commands, desired)]
                )
            except OSError as error:
                raise DataplaneError(f"the filters at the forward hook cannot be read: {error}") from error

    @property
    def report(self) -> ForwardReport:
        """The state of things now."""
        readings = [part.reading for part in self._filters]
        return ForwardReport(
            **self._basics(),
            open=tuple(program for part in self._filters for program in part.open),
            blocked=tuple(each for reading in readings for each in reading.blocked),
            unread=tuple(each for reading in readings for each in reading.unread),
        )
