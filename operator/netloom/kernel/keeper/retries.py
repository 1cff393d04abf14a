"""What is not as it should be: entries the kernel refused, and entries somebody else keeps changing.

The only place that decides when an entry is tried again, and what is logged about it. The first repairs are immediate:
drift is repaired in milliseconds. An entry that fails, or drifts again and again because another program fights for it,
waits longer each time, so that neither the kernel nor the log is flooded.
"""

import time
from collections.abc import Callable, Hashable, Iterable

import msgspec
import structlog

from netloom.cidr import format_address
from netloom.kernel.keeper.report import Failure
from netloom.kernel.netlink.links import device_name

log = structlog.get_logger(__name__)

Item = tuple[str, Hashable]
"""(kind, key): kind is link, address, sysctl, nexthop, neighbour, route or dump."""

FIRST_SECONDS, LONGEST_SECONDS = 0.1, 30.0
FREE_REPAIRS = 10
"""Repairs of one entry that are not delayed."""
QUIET_SECONDS = 20.0
"""After that long without a failure or repair, what was before is forgotten."""
TICK_SECONDS = 0.001
"""The shortest sleep that is worth it: an event loop's timers end up to a millisecond early."""
NAMED_IN_LOG = 5
"""Repairs that are logged one by one; 10,000 deleted routes become one line."""


def item_text(item: Item) -> str:
    """The entry as `ip` would name it, without its kind."""
    _kind, key = item
    if isinstance(key, tuple):
        ifindex, address = key
        return f"{format_address(address)} dev {device_name(ifindex)}"
    return format_address(key) if isinstance(key, bytes) else str(key)


class Delay(msgspec.Struct):
    """How often an entry has failed or been repaired in a row, and when (monotonic seconds) it may be tried again."""

    last: float
    strikes: int = 0
    failures: int = 0
    until: float = 0.0

    @property
    def contended(self) -> bool:
        """Whether somebody changes it again and again."""
        return self.strikes > FREE_REPAIRS

    @property
    def forgiven(self) -> float:
        """When, if nothing happens until then, all this is forgotten (monotonic seconds)."""
        return max(self.last, self.until) + QUIET_SECONDS


class Retries:
    """Failures and drift by entry, with their delays.

    The clock is read once for all passes that follow each other, by `begin`: what is delayed then is so in all of
    them, and `next` says when the first of that comes, which may be over by the time somebody asks. Asked at two
    moments, an entry whose time came between them would neither be tried nor waited for.
    """

    def __init__(self, whose: Callable[[Item], str] = lambda item: "") -> None:
        """`whose` names the peer that an entry is for, for the log."""
        self.repaired = 0
        self._whose = whose
        self._moment = 0.0
        self._delays: dict[Item, Delay] = {}
        self._delayed: dict[Item, Delay] = {}
        """Of these, the few that have to wait, or had to: a pass must not walk over what was repaired at once."""
        self._forget_at = 0.0
        self._failures: dict[Item, Failure] = {}
        self._drifted: set[Item] = set()

    def begin(self) -> None:
        """Passes begin. Entries that have been quiet for long are forgotten."""
        self._moment = time.monotonic()
        entries = self._delayed
        if self._moment >= self._forget_at:
            self._forget_at = self._moment + QUIET_SECONDS
            entries = self._delays
        for item in [item for item, delay in entries.items() if delay.forgiven <= self._moment]:
            del self._delays[item]
            self._delayed.pop(item, None)

    def delayed(self) -> set[Item]:
        """Entries that have to wait."""
        return {item for item, delay in self._delayed.items() if delay.until > self._moment}

    def hasten(self, item: Item) -> None:
        """It is to be tried at once, this time."""
        if (delay := self._delayed.get(item)) is not None:
            delay.until = min(delay.until, time.monotonic())

    def next(self) -> float | None:
        """When (monotonic) the first of the entries that were delayed may be tried, or a fight is over; None: never."""
        tries = [delay.until for delay in self._delayed.values() if delay.until > self._moment]
        peace = [delay.forgiven for delay in self._delayed.values() if delay.contended]
        return min(tries + peace, default=None)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What fails now."""
        return tuple(self._failures.values())

    @property
    def failing(self) -> set[Item]:
        """The entries that fail now."""
        return set(self._failures)

    @property
    def contended(self) -> tuple[Item, ...]:
        """Entries that somebody changes again and again."""
        now = time.monotonic()
        return tuple(item for item, delay in self._delayed.items() if delay.contended and delay.forgiven > now)

    def refused(self, item: Item, error: str, peer: str, code: int = 0) -> None:
        """The kernel refused the entry."""
        before = self._failures.get(item)
        attempts = before.attempts + 1 if before else 1
        delay = self._delay(item)
        delay.failures += 1
        self._wait(item, delay, delay.failures)
        kind, text = item[0], item_text(item)
        self._failures[item] = Failure(kind, text, error, peer, attempts, code)
        if before is None or before.error != error:
            log.warning(
                "the kernel refused", kind=kind, key=text, peer=peer, error=error, retry_in=delay.until - delay.last
            )

    def drifted(self, item: Item, *, alone: bool = True) -> None:
        """Somebody changed the entry; `alone`: the entry itself, and not what it stands on, which flaps for all."""
        if item not in self._drifted:
            self._drifted.add(item)
            if alone:
                delay = self._delay(item)
                delay.strikes += 1
                delay.failures = 0
                self._wait(item, delay, delay.strikes - FREE_REPAIRS)

    def written(self, kind: str, keys: Iterable[Hashable]) -> None:
        """The entries are as they should be."""
        if not self._failures and not self._drifted:
            return
        repaired = []
        for key in keys:
            item = (kind, key)
            if (failure := self._failures.pop(item, None)) is not None:
                log.info("done after a failure", kind=kind, key=failure.key, peer=failure.peer)
            if item in self._drifted:
                self._drifted.discard(item)
                repaired.append(item)
            delay = self._delays.get(item)
            if delay is not None:
                delay.failures = 0
                if not delay.strikes:
                    del self._delays[item]
                    self._delayed.pop(item, None)
        self.repaired += len(repaired)
        for item in repaired[:NAMED_IN_LOG]:
            log.info("repaired", kind=kind, key=item_text(item), peer=self._whose(item))
        if len(repaired) > NAMED_IN_LOG:
            log.info("repaired more", count=len(repaired) - NAMED_IN_LOG)

    def keep(self, pending: Iterable[Item]) -> None:
        """All that is not `pending` is as it should be, or not wanted any more."""
        if not self._failures and not self._drifted:
            return
        wanted = set(pending)
        for item in [item for item in self._failures if item not in wanted]:
            failure = self._failures.pop(item)
            log.info("failure is over", kind=item[0], key=failure.key, peer=failure.peer)
        self._drifted &= wanted

    def forget(self, items: Iterable[Item]) -> None:
        """What is wanted of these entries has changed: try them at once, as if for the first time."""
        if self._delays or self._failures:
            for item in items:
                self._failures.pop(item, None)
                self._delays.pop(item, None)
                self._delayed.pop(item, None)

    def clear(self) -> None:
        """Everything that is wanted has changed."""
        for entries in (self._failures, self._drifted, self._delays, self._delayed):
            entries.clear()

    def _delay(self, item: Item) -> Delay:
        """Quiet is forgiven by the event that ends it, too: events come before anything expires."""
        now = time.monotonic()
        delay = self._delays.get(item)
        if delay is None or delay.forgiven <= now:
            delay = self._delays[item] = Delay(now)
            self._delayed.pop(item, None)
        delay.last = now
        return delay

    def _wait(self, item: Item, delay: Delay, times: int) -> None:
        """Twice as long as the time before; not at all if `times` is not above 0."""
        if times > 0:
            delay.until = delay.last + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (times - 1))
            self._delayed[item] = delay
        else:
            delay.until = 0.0
            self._delayed.pop(item, None)
