"""Commits what many nodes ask for together: one compare-and-swap of a ledger for up to 256 of them.

One task plans and commits, batch after batch. The next is begun while the nodes of the last are still being written,
early enough that the writers never wait and late enough that many requests have gathered. A lone node's goes at once,
few that follow one another closely share one.
Freed blocks, and marks that are not needed any more, travel with the next commit, or by themselves after a while.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from netloom.cidr import Cidr
from netloom.ipam.plan import BatchPlan, BlockRequest, Decision, Deferred, Grant, Release
from netloom.runtime.backoff import Backoff
from netloom.runtime.errors import ApiError, Conflict
from netloom.runtime.queue import TICK_SECONDS
from netloom.runtime.waking import wait
from netloom_reconcilers.cluster.allocation.incarnation import BlocksFreed, Changed, Incarnation, Member
from netloom_reconcilers.cluster.allocation.ledger_reader import LedgerReader
from netloom_reconcilers.cluster.allocation.ledger_writer import CommitFailure, LedgerWriter
from netloom_reconcilers.cluster.allocation.lock import LockError, ModeLock
from netloom_reconcilers.cluster.allocation.metrics import ENTRIES
from netloom_reconcilers.cluster.allocation.refused_writes import LEDGERS, RefusedWrites

log = structlog.get_logger(__name__)

T = TypeVar("T")
_NEVER = float("inf")
_GRANTED, _REFUSED, _ADOPTED = (ENTRIES.labels(what) for what in ("granted", "refused", "adopted"))


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Sizes and delays (seconds) of commits, and how much is done at a time."""

    workers: int = 400
    """Nodes: more than a batch, the low water and the writers together, or batches stay small."""
    writers: int = 32
    """Nodes that are given their blocks."""

    batch: int = 256
    """Requests in one commit: a ledger of so many entries takes the API server 3 ms, of 4,000 entries 14 ms."""
    low_water: int = 96
    """Granted nodes that are not written yet, at which the next batch begins: three per writer."""
    pace: float = 0.1
    """Between the commits of nodes that come one by one: more than ten a second share them."""
    free_after: float = 1.0
    """How long freed blocks wait for company."""
    tidy_after: float = 5.0
    """How long finished marks wait for company."""
    flush: float = 2.0
    """For the last commit of a process that ends."""
    retry: tuple[float, float] = (0.1, 10.0)
    """Back-off while the API server cannot be read: first delay, longest delay."""
    contended: float = 1.0
    """The longest where somebody else's commit came first: there is one for each that fails so."""


class CommitQueue(Member):
    """Takes requests of nodes for the one task `run`, which must run meanwhile."""

    def __init__(
        self,
        incarnation: Incarnation,
        lock: ModeLock,
        reader: LedgerReader,
        writer: LedgerWriter,
        refused: RefusedWrites,
        policy: BatchPolicy,
    ) -> None:
        super().__init__(incarnation)
        self.failure: CommitFailure | None = None
        """Why the last batch could not be committed."""
        self.loaded = asyncio.Event()
        """All ledgers were read, and the lock says what is in use."""
        self._lock = lock
        self._reader = reader
        self._writer = writer
        self._refused = refused
        self._policy = policy
        self._requests: dict[str, tuple[BlockRequest, asyncio.Future[Decision]]] = {}
        self._releases: dict[tuple[str, Cidr], tuple[Release, asyncio.Future[bool]]] = {}
        self._outstanding = 0
        self._wake = asyncio.Event()
        self._release_at = self._tidy_at = _NEVER
        self._paced_until = 0.0
        self._backoff = Backoff(*policy.retry)

    @property
    def busy(self) -> bool:
        """Whether nodes ask, or were granted something that is not written yet."""
        return bool(self._requests or self._outstanding)

    # For the nodes

    async def ask(self, request: BlockRequest) -> Decision:
        """A grant (to be handed to `finish`), None where an adoption succeeded, or why not. What the node was to give
        back meanwhile is not freed: it may get that."""
        for key in [key for key in self._releases if key[0] == request.node]:
            if not (dropped := self._releases.pop(key)[1]).done():
                dropped.set_result(False)
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._requests[request.node] = request, future
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(grant := future.result(), Grant):
                self.finish(grant, None)
            raise

    def release(self, release: Release) -> "asyncio.Future[bool]":
        """Whether the block was freed, for who waits for it. If not, look again: something changed."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._releases[release.node, release.cidr] = release, future
        self.wake()
        return future

    def finish(self, grant: Grant, sent: float | None) -> None:
        """See `Marks.finish`."""
        self._allocator.marks.finish(grant, sent)
        self._outstanding -= 1
        self._tidy_at = self._clock() + self._policy.tidy_after
        if self._outstanding <= self._policy.low_water:
            self._wake.set()

    def wake(self) -> None:
        """There may be something to commit that no node asks for: an unused lock, say."""
        self._release_at = min(self._release_at, self._clock() + self._policy.free_after)
        self._wake.set()

    # The one task

    async def run(self) -> None:
        """Reads all ledgers, mends the lock, then commits for ever."""
        await self._retried(self._reader.read_all)
        # The lock before the nodes: where it was lost, they would be judged by a mode that is not the one in force.
        await self._recover()
        self.loaded.set()
        self._publish(Changed.LEDGERS)
        self.wake()
        try:
            while True:
                await self._gather()
                await self._recover()
                await self._batch()
                if self.failure is None:
                    self._backoff.reset()
                else:
                    longest = self._policy.contended if isinstance(self.failure, Conflict) else _NEVER
                    await asyncio.sleep(min(self._backoff.next(), longest))
        finally:
            for _, asked in self._requests.values():
                asked.cancel()
            for _, freeing in self._releases.values():
                freeing.cancel()
            await self._flush()

    async def _gather(self) -> None:
        while True:
            now = self._clock()
            wanted = self._requests and self._outstanding <= self._policy.low_water
            few = len(self._requests) < self._policy.writers
            asked = (self._paced_until if few else now) if wanted else _NEVER
            due = min(asked, self._release_at, self._tidy_at, self._reader.reread_at)
            if due <= now or len(self._releases) >= self._policy.batch:
                return
            self._wake.clear()
            await wait(self._wake, None if due == _NEVER else max(due - now, TICK_SECONDS))

    async def _retried(self, step: Callable[[], Awaitable[T]]) -> T:
        backoff = Backoff(*self._policy.retry)
        while True:
            try:
                return await step()
            except ApiError as error:
                log.warning("ledgers cannot be read", error=str(error))
                await asyncio.sleep(max(backoff.next(), error.retry_after or 0.0))

    async def _recover(self) -> None:
        self.failure = await self._retried(self._reader.recover) or self.failure

    async def _batch(self) -> None:
        requests = self._take_requests()
        releases, self._releases, self._release_at = self._releases, {}, _NEVER
        network = self._lock.network  # by which the allocator is configured, synchronously
        now = self._clock()
        self._paced_until = now + self._policy.pace
        plan = self._allocator.plan([each for each, _ in requests], [each for each, _ in releases.values()], now)
        if not requests:
            self._tidy_at = _NEVER
            plan.edits = {**self._allocator.tidy(now).edits, **plan.edits}
        self.failure = None
        written, self.failure = await self._writer.commit(plan, network.spec.ipam.cluster_pool if network else None)
        self._refused.note(LEDGERS, self.failure)
        for request, answer in requests:
            self._answer(plan, request, answer, written)
        freed = {
            (each.node, each.cidr) for each in plan.released if self._allocator.ledgers.of(each.cidr).name in written
        }
        for key, (_, answer_of_release) in releases.items():
            if not answer_of_release.done():
                answer_of_release.set_result(key in freed)
        ENTRIES.labels("freed").inc(len(freed))
        if freed:
            self._publish(BlocksFreed(len(freed), tuple(cidr for _, cidr in freed)))
        if plan.edits:
            self._publish(Changed.LEDGERS)
        self._schedule_tidy()
        if not requests and not self._allocator.in_use():
            await self._writer.clear_lock()

    def _take_requests(self) -> list[tuple[BlockRequest, "asyncio.Future[Decision]"]]:
        names = list(self._requests)[: self._policy.batch]
        return [taken for taken in map(self._requests.pop, names) if not taken[1].cancelled()]

    def _answer(
        self, plan: BatchPlan, request: BlockRequest, answer: "asyncio.Future[Decision]", written: set[str]
    ) -> None:
        """Tells the node what came of its request; one whose commit failed goes into the next batch."""
        decision = plan.decisions[request.node]
        committed = plan.entered.get(request.node, set()) <= written
        if isinstance(decision, Grant):
            self._outstanding += 1
        if committed and not answer.cancelled():
            granted = _GRANTED if isinstance(decision, Grant) else _REFUSED
            (_ADOPTED if decision is None else granted).inc()
            answer.set_result(decision)
            return
        if isinstance(decision, Grant):
            self.finish(decision, None)
        if answer.cancelled():
            return
        if isinstance(self.failure, LockError):
            answer.set_result(Deferred(self.failure.reason, str(self.failure)))
        else:
            self._requests[request.node] = request, answer

    def _schedule_tidy(self) -> None:
        now = self._clock()
        soonest = now + self._policy.tidy_after
        if self._tidy_at > soonest:  # else the marks would all be looked at to say what is known
            at = self._allocator.marks.next_tidy(self._allocator.ledgers.values())
            self._tidy_at = min(self._tidy_at, max(at, soonest))

    async def _flush(self) -> None:
        """Removes the finished marks of a process that ends, so that its successor need not wait for them."""
        try:
            async with asyncio.timeout(self._policy.flush):
                await self._writer.commit(self._allocator.tidy(self._clock()))
        except TimeoutError:
            log.info("marks left behind, a successor waits for them")
