"""What was seen of each peer, and what of it counts: what fails twice is told, until it passes once."""

from collections.abc import Callable, Iterable

import structlog

from netloom_reconcilers.node.probing.findings import Finding

log = structlog.get_logger(__name__)

STRIKES = 2
"""Examinations in a row that fail before it is told; each of them is several questions."""
ANSWERED_KEPT = 256
"""Peers that are known to have answered, the newest."""

Key = tuple[str, int]
"""Peer and IP version; with the node's own name, its own forwarding."""


class Verdicts:
    """See the module. `changed` is called when what fails is different.

    failing:  what was told to fail. unknown, passing: of the last round.
    strikes:  how often in a row it failed; those that have any are looked at again soon.
    since:    when the first of the questions began that were not answered (monotonic seconds).
    doubtful: peers of which it is not known whether they are gone since: their agents' Leases have yet to be renewed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.failing: dict[Key, Finding] = {}
        self.unknown: dict[Key, Finding] = {}
        self.passing: dict[Key, Finding] = {}
        self.strikes: dict[Key, int] = {}
        self.since: dict[Key, float] = {}
        self.doubtful: set[Key] = set()
        self._answered: dict[Key, None] = {}
        self._changed = changed

    def take(self, found: Finding) -> None:
        """A finding counts."""
        key = (found.peer, found.family)
        if found.passes:
            self.unknown.pop(key, None)
            self.passing[key] = found
            self._clear(key, "packets of pods pass again")
            return
        self.passing.pop(key, None)
        if found.passes is None:
            if key in self.failing and found.reason not in ("AgentSilent", "NeverAnswered"):
                return  # so little is known that what was told stands
            self.unknown[key] = found
            if found.reason == "NoAnswerAtAll":
                self.strikes.setdefault(key, 0)  # it is looked at again soon
            else:
                self._clear(key, "it is not known any more whether packets pass")
            return
        self.unknown.pop(key, None)
        self.strikes[key] = self.strikes.get(key, 0) + (key not in self.doubtful)
        if self.strikes[key] >= STRIKES and self.failing.get(key) != found:
            log.warning("packets of pods do not pass", peer=found.peer, family=found.family, why=found.text)
            self.failing[key] = found
            self._changed()

    def _clear(self, key: Key, what: str) -> None:
        """It does not fail, or not any more."""
        self.strikes.pop(key, None)
        self.since.pop(key, None)
        if self.failing.pop(key, None) is not None:
            log.info(what, peer=key[0], family=key[1])
            self._changed()

    def forget(self, keys: Iterable[Key]) -> None:
        """These are not looked at any more, so nothing is told of them."""
        for key in keys:
            for kept in (self.unknown, self.passing, self.strikes, self.since, self._answered):
                kept.pop(key, None)
            self.doubtful.discard(key)
            if self.failing.pop(key, None) is not None:
                self._changed()

    def answered(self, key: Key) -> None:
        """It did, whatever came of the rest."""
        self._answered.pop(key, None)
        self._answered[key] = None
        if len(self._answered) > ANSWERED_KEPT:
            del self._answered[next(iter(self._answered))]

    def has_answered(self, key: Key) -> bool:
        """Whether it is known to have."""
        return key in self._answered
