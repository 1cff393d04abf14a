"""What is not as it should be: entries the kernel refused, and entries somebody else keeps changing.

The only place that decides when an entry is tried again, and what is logged about it.
"""

import time
from collections.abc import Hashable, Iterable

import structlog

from netloom.cidr import format_address
from netloom.kernel.keeper.backoff import Backoff
from netloom.kernel.keeper.report import Failure

log = structlog.get_logger(__name__)

Item = tuple[str, Hashable]
"""(kind, key): kind is link, address, sysctl, nexthop, neighbour, route or dump."""

NAMED_IN_LOG = 5
"""Repairs that are logged one by one; 10,000 deleted routes become one line."""


def item_text(item: Item) -> str:
    """The entry as `ip` would name it, without its kind."""
    _kind, key = item
    return format_address(key) if isinstance(key, bytes) else str(key)


class Retries:
    """Failures and drift by entry, with their delays.

    The clock is read once for all passes that follow each other, by `begin`: what is held then is held in all of them,
    and `next` says when the first of that comes, which may be over by the time somebody asks.
    """

    def __init__(self) -> None:
        self.repaired = 0
        self._backoff = Backoff()
        self._moment = 0.0
        self._failures: dict[Item, Failure] = {}
        self._drifted: set[Item] = set()

    def begin(self) -> None:
        """Passes begin."""
        self._moment = time.monotonic()
        self._backoff.expire(self._moment)

    def next(self) -> float | None:
        """When (monotonic) the first of the entries that were held may be tried, or a fight is over; None: never."""
        return self._backoff.next(self._moment)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What fails now."""
        return tuple(self._failures.values())

    @property
    def failing(self) -> set[Item]:
        """The entries that fail now."""
        return set(self._failures)

    @property
    def contended(self) -> tuple[str, ...]:
        """Entries that somebody changes again and again."""
        contended = self._backoff.contended(time.monotonic())
        return tuple(f"{item[0]} {item_text(item)}" for item in contended if isinstance(item, tuple))

    def held(self) -> set[Hashable]:
        """Entries that have to wait."""
        return self._backoff.held(self._moment)

    def refused(self, item: Item, error: str, peer: str, code: int = 0) -> None:
        """The kernel refused the entry."""
        before = self._failures.get(item)
        attempts = before.attempts + 1 if before else 1
        delay = self._backoff.failed(item, time.monotonic())
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
                self._backoff.repaired(item, time.monotonic())

    def written(self, kind: str, keys: Iterable[Hashable]) -> None:
        """The entries are as they should be."""
        if not self._failures and not self._drifted:
            return
        repaired = []
        for key in keys:
            item = (kind, key)
            if self._failures.pop(item, None) is not None:
                log.info("done after a failure", kind=item[0], key=item_text(item))
            if item in self._drifted:
                self._drifted.discard(item)
                repaired.append(item)
            self._backoff.written(item)
        self.repaired += len(repaired)
        for item in repaired[:NAMED_IN_LOG]:
            log.info("repaired", kind=item[0], key=item_text(item))
        if len(repaired) > NAMED_IN_LOG:
            log.info("repaired more", count=len(repaired) - NAMED_IN_LOG)

    def keep(self, pending: Iterable[Item]) -> None:
        """All that is not `pending` is as it should be, or not wanted any more."""
        if not self._failures and not self._drifted:
            return
        wanted = set(pending)
        for item in [item for item in self._failures if item not in wanted]:
            del self._failures[item]
            log.info("failure is over", kind=item[0], key=item_text(item))
        self._drifted &= wanted

    def forget(self, items: Iterable[Item]) -> None:
        """What is wanted of these entries has changed: try them at once, as if for the first time."""
        if len(self._backoff) or self._failures:
            for item in items:
                self._failures.pop(item, None)
                self._backoff.forget([item])

    def clear(self) -> None:
        """Everything that is wanted has changed."""
        self._failures.clear()
        self._drifted.clear()
        self._backoff.clear()
