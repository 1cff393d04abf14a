"""Keeps `status.ipam.inUse` of the NetloomNetwork: who holds addresses, in words that refusals can repeat: the API
server's rules see one object at a time.

Nothing is decided by it and nobody waits for it. So it is written by compare-and-swap when a burst of nodes has got
its CIDRs, lest it be written beside a lock that opened meanwhile, and gives up after a moment, lest a condition or the
lock wait behind it.
"""

import asyncio
import heapq

from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.api.words import SHOWN, in_use
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.lock import ModeLock

KEY = f"{NETWORK_NAME}/inUse"
"""In the queue of the network's controller: its one worker does this or the condition, never both."""
QUIET_SECONDS = 0.5
"""A burst is over when ledgers were not written, and no node was being given addresses, for so long."""
PATIENCE_SECONDS = 30.0
"""How long the end of a burst is waited for: where nodes come and go without a pause, it is told in between."""
RETELL_SECONDS = 5.0
"""How soon other words are told. Every agent watches the network: 5,000 of them are sent each of these writes."""
DEADLINE_SECONDS = 2.0
"""For the write. One that arrives later fails by its version, or is right."""


class InUseReconciler(Member):
    """Its one key is `KEY`, to be looked at after `QUIET_SECONDS` whenever the network or the ledgers changed."""

    def __init__(self, incarnation: Incarnation, lock: ModeLock, commits: CommitQueue) -> None:
        super().__init__(incarnation)
        self._lock = lock
        self._commits = commits
        self._changed_at = float("-inf")
        self._untold_since: float | None = None
        self._told_at = float("-inf")

    def ledgers_changed(self) -> None:
        """Ledgers were written or read: the burst of nodes goes on."""
        self._changed_at = self._clock()

    async def reconcile(self) -> float | None:
        """Tells who holds addresses, if that is not what the network says, and if now is the time."""
        network = self._lock.network
        if network is None or not self._commits.loaded.is_set():
            return None  # both are told when they come
        now = self._clock()
        self._untold_since = now if self._untold_since is None else self._untold_since
        if now < self._untold_since + PATIENCE_SECONDS:
            if self._commits.busy:
                return QUIET_SECONDS
            if now < self._changed_at + QUIET_SECONDS:
                return self._changed_at + QUIET_SECONDS - now
        words = self._words() if network.status.ipam.mode else ""
        if words != network.status.ipam.in_use:
            if now < self._told_at + RETELL_SECONDS:
                return self._told_at + RETELL_SECONDS - now
            self._told_at = now
            if not await self._tell(words):
                return RETELL_SECONDS
        self._untold_since = None
        return None

    async def _tell(self, words: str) -> bool:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._lock.tell(words)
        except TimeoutError:
            return False

    def _words(self) -> str:
        holders = self._allocator.assignments.holders()
        return in_use(len(holders), heapq.nsmallest(SHOWN, holders)) if holders else ""
