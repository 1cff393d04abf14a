"""The forward hook: pods' packets pass the filters of iptables, and what drops them elsewhere is known."""

import asyncio
from typing import Any, Unpack

from netloom.kernel.errors import DataplaneError
from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.legacy_part import LegacyForward
from netloom.kernel.forwarding.nft_part import NftForward
from netloom.kernel.forwarding.opening import ForwardingState
from netloom.kernel.forwarding.part import ForwardPart
from netloom.kernel.keeper.keeper import RESYNC_SECONDS, Keeper, KeeperOptions
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


class LegacyForwardKeeper(Keeper[ForwardingState, ForwardReport]):
    """The filters of iptables-legacy. Its programs may wait for a lock for seconds, and hang."""

    nothing = ForwardingState

    def __init__(self, **options: Unpack[KeeperOptions]) -> None:
        self._filter = LegacyForward()
        super().__init__((self._filter,), **options)

    @property
    def report(self) -> ForwardReport:
        """The state of things now."""
        return _report_of(self._filter, self._basics())


class ForwardKeeper(NftablesKeeper[ForwardingState, ForwardReport]):
    """See the module. Those of iptables-legacy have a keeper of their own, for which nothing else has to wait."""

    nothing = ForwardingState

    def __init__(self, **options: Unpack[KeeperOptions]) -> None:
        self._filter = NftForward()
        more = KeeperOptions(resync_seconds=options.get("resync_seconds", RESYNC_SECONDS))
        if (on_report := options.get("on_report")) is not None:
            more["on_report"] = lambda _report: on_report(self.report)
        self._legacy = LegacyForwardKeeper(**more)
        self._desired = ForwardingState()
        self._handed_over = asyncio.Event()
        super().__init__((self._filter,), **options)

    async def open(self) -> None:
        """Of both."""
        await self._legacy.open()
        await super().open()

    async def close(self) -> None:
        """Of both."""
        await super().close()
        await self._legacy.close()

    async def apply(self, desired: ForwardingState) -> ForwardReport:
        """By both, at once."""
        await asyncio.gather(super().apply(desired), self._legacy.apply(desired))
        return self.report

    async def hand_over(self, desired: ForwardingState) -> ForwardReport:
        """As `apply`, but `run` sees to iptables-legacy, whose programs may hang: nobody waits for them."""
        self._desired = desired
        self._handed_over.set()
        await super().apply(desired)
        return self.report

    async def run(self) -> None:
        """Both, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run())
            group.create_task(self._legacy.run())
            group.create_task(self._hand_on())

    async def _hand_on(self) -> None:
        while True:
            await self._handed_over.wait()
            self._handed_over.clear()
            await self._legacy.apply(self._desired)

    @property
    def busy_seconds(self) -> float:
        """Of the one that has been for longer."""
        return max(super().busy_seconds, self._legacy.busy_seconds)

    def _on_readable(self) -> None:
        """Only what concerns a filter leads to a pass: masquerading writes for each node that comes, kube-proxy for
        each Service, and all of that is told here."""
        if not self._lock.locked():
            self._drain()
            if not self._filter.due:
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
        """The state of things now, of both."""
        own, legacy = _report_of(self._filter, self._basics()), self._legacy.report
        return ForwardReport(
            failures=own.failures + legacy.failures,
            pending=own.pending + legacy.pending,
            converging=own.converging or legacy.converging,
            contended=own.contended + legacy.contended,
            written=own.written,
            compared=own.compared + legacy.compared,
            repaired=own.repaired + legacy.repaired,
            open=own.open + legacy.open,
            blocked=own.blocked + legacy.blocked,
            unread=own.unread + legacy.unread,
        )


def _report_of(part: ForwardPart, basics: dict[str, Any]) -> ForwardReport:
    return ForwardReport(**basics, open=part.open, blocked=part.reading.blocked, unread=part.reading.unread)
