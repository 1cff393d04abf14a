"""Commits the wants of many nodes together: one compare-and-swap of a ledger for up to 256 of them.

One task plans and commits, batch after batch. The next batch is begun while the nodes of the last one are still
being written, early enough that the writers never wait for it and late enough that many wants have gathered. A lone
node's commit goes at once. What is not urgent (freed blocks, marks that are not needed any more) travels with the
next commit, or by itself after a while.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, ClusterPool, LedgerSpec, NetloomLedger, NetloomNode
from netloom.ipam import ledger
from netloom.ipam.book import REQUEST_SECONDS, Blocked, Book, Free, Grant, Plan, Refusal, Want
from netloom.ipam.cidr import Cidr, CidrError, region_from_name
from netloom.runtime.backoff import Backoff
from netloom.runtime.errors import ApiError, Conflict, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.allocation_metrics import COMMITS, ENTRIES, WRITES
from netloom_reconcilers.lock import LockError, ModeLock, decode
from netloom_reconcilers.writes import Requests

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Sizes and delays (seconds) of commits."""

    batch: int = 256
    """Wants in one commit: a ledger of so many entries takes the API server 3 ms, of 4,000 entries 14 ms."""
    low_water: int = 96
    """Granted nodes that are not written yet, at which the next batch begins: three per writer."""
    free_after: float = 1.0
    """How long freed blocks wait for company."""
    tidy_after: float = 5.0
    """How long finished marks wait for company."""
    flush: float = 2.0
    """For the last commit of a process that ends."""
    reread: float = 5.0
    """How often a ledger that is unreadable is read again: whoever repairs it should not have to restart us."""
    retry: tuple[float, float] = (0.1, 10.0)
    """Back-off while the API server cannot be read: first delay, longest delay."""


Decision = Grant | Refusal | None
"""None: adopted."""


class Ledgers:
    """The only writer of ledgers in a process. `run` must run while the others are called."""

    def __init__(
        self,
        api: Requests,
        book: Book,
        lock: ModeLock,
        nodes: Store[NetloomNode],
        clock: Callable[[], float],
        *,
        pace: Pace | None = None,
        settle: Callable[[Iterable[str]], None] = lambda names: None,
        freed: Callable[[int | None], None] = lambda count: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`settle` is told nodes to compare with what the ledgers say of them, `freed` how many blocks came back
        (None: a whole ledger), `changed` that something is different that people are told."""
        self.book = book
        self.trouble: Exception | None = None
        """Why the last batch could not be committed."""
        self.loaded = asyncio.Event()
        """All ledgers were read, and the lock says what is in use."""
        self._api = api
        self._lock = lock
        self._nodes = nodes
        self._clock = clock
        self._pace = pace or Pace()
        self._settle_nodes = settle
        self._freed = freed
        self._changed = changed
        self._wants: dict[str, tuple[Want, asyncio.Future[Decision]]] = {}
        self._frees: dict[tuple[str, Cidr], tuple[Free, asyncio.Future[bool]]] = {}
        self._outstanding = 0
        self._wake = asyncio.Event()
        self._free_at = self._tidy_at = self._reread_at = float("inf")
        self._backoff = Backoff(*self._pace.retry)

    @property
    def busy(self) -> bool:
        """Whether nodes ask, or were granted something that is not written yet."""
        return bool(self._wants or self._outstanding)

    # For the nodes

    async def ask(self, want: Want) -> Decision:
        """A grant (to be handed to `settle`), None where the want is an adoption that succeeded, or why not."""
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._wants[want.node] = want, future
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(grant := future.result(), Grant):
                self.settle(grant, None)
            raise

    async def free(self, free: Free) -> bool:
        """Whether the block was freed. If not, look again: something changed."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._frees[free.node, free.cidr] = free, future
        self.look()
        return await future

    def settle(self, grant: Grant, sent: float | None) -> None:
        """See `Book.settle`."""
        self.book.settle(grant, sent)
        self._outstanding -= 1
        self._tidy_at = self._clock() + self._pace.tidy_after
        if self._outstanding <= self._pace.low_water:
            self._wake.set()

    def look(self) -> None:
        """There may be something to commit that no node asks for: an unused lock, say."""
        self._free_at = min(self._free_at, self._clock() + self._pace.free_after)
        self._wake.set()

    def doubt(self) -> None:
        """The world may be another one than the ledgers were read in (a restored backup): all are read again, before
        anything is planned. A commit into an older world would fail by its version, unless it met that by chance."""
        for name in self.book.shards:
            self.book.failed(name)
        self.look()

    # The one task

    async def run(self) -> None:
        """Reads all ledgers, mends the lock, then commits for ever."""
        await self._patiently(self._load_all)
        # The lock before the nodes: where it was lost, they would be judged by a mode that is not the one in force.
        await self._patiently(self._prepare)
        self.loaded.set()
        self._changed()
        self.look()
        try:
            while True:
                await self._gather()
                await self._patiently(self._prepare)
                await self._batch()
                if self.trouble is None:
                    self._backoff.reset()
                else:
                    await asyncio.sleep(self._backoff.next())
        finally:
            for _, asked in self._wants.values():
                asked.cancel()
            for _, freeing in self._frees.values():
                freeing.cancel()
            await self._flush()

    async def _gather(self) -> None:
        """Waits until there is something to commit."""
        while True:
            now = self._clock()
            if self._wants and self._outstanding <= self._pace.low_water:
                return
            due = min(self._free_at, self._tidy_at, self._reread_at)
            if due <= now or len(self._frees) >= self._pace.batch:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(None if due == float("inf") else due - now):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(*self._pace.retry)
        while True:
            try:
                await step()
                return
            except ApiError as error:
                log.warning("ledgers cannot be read", error=str(error))
                await asyncio.sleep(max(backoff.next(), error.retry_after or 0.0))

    async def _batch(self) -> None:
        wants = self._take_wants()
        frees, self._frees, self._free_at = self._frees, {}, float("inf")
        network = self._lock.network  # by which the book is configured, synchronously
        plan = self.book.plan([want for want, _ in wants], [free for free, _ in frees.values()], self._clock())
        if not wants:
            self._tidy_at = float("inf")
            plan.edits = {**self.book.tidy(self._clock()).edits, **plan.edits}
        done = await self._commit(plan, network.spec.ipam.cluster_pool if network else None)
        for want, future in wants:
            self._decide(plan, want, future, done)
        freed = {(free.node, free.cidr) for free in plan.freed if self.book.shard(free.cidr).name in done}
        for key, (_, future_of_free) in frees.items():
            if not future_of_free.done():
                future_of_free.set_result(key in freed)
        ENTRIES.labels("freed").inc(len(freed))
        if freed:
            self._freed(len(freed))
        if plan.edits:
            self._changed()
        self._schedule_tidy()
        if not wants and not self.book.in_use():
            await self._clear()

    def _take_wants(self) -> list[tuple[Want, "asyncio.Future[Decision]"]]:
        taken = []
        for node in list(self._wants)[: self._pace.batch]:
            want, future = self._wants.pop(node)
            if not future.cancelled():
                taken.append((want, future))
        return taken

    def _decide(self, plan: Plan, want: Want, future: "asyncio.Future[Decision]", done: set[str]) -> None:
        """Tells the node what came of its want; a want whose commit failed goes into the next batch."""
        refusal, grant = plan.refused.get(want.node), plan.grants.get(want.node)
        committed = plan.touched.get(want.node, set()) <= done
        if grant is not None:
            self._outstanding += 1
        if future.cancelled() or not committed:
            if grant is not None:
                self.settle(grant, None)
            if not future.cancelled():
                if isinstance(self.trouble, LockError):
                    future.set_result(Blocked(self.trouble.reason, self.trouble.message))
                else:
                    self._wants[want.node] = want, future
            return
        ENTRIES.labels("granted" if grant else "refused" if refusal else "adopted").inc()
        future.set_result(grant or refusal)

    def _schedule_tidy(self) -> None:
        if self._tidy_at <= self._clock() + self._pace.tidy_after:
            return  # it cannot be sooner, and the book would look at every mark to say when
        seconds = self.book.next_tidy(self._clock())
        if seconds is not None:
            self._tidy_at = min(self._tidy_at, self._clock() + max(seconds, self._pace.tidy_after))

    # Commits

    async def _commit(self, plan: Plan, pool: ClusterPool | None = None) -> set[str]:
        """The names of the ledgers that were written. `pool`: where new blocks were chosen from."""
        self.trouble = None
        if not plan.edits:
            return set()
        try:
            epoch = await self._open(plan, pool)
        except (LockError, ApiError) as error:
            log.warning("ledgers cannot be opened", error=str(error))
            self.trouble = error
            for name in plan.edits:
                self.book.failed(name)
            return set()
        async with asyncio.TaskGroup() as group:
            writes = {name: group.create_task(self._write(plan, name, epoch)) for name in plan.edits}
        return {name for name, write in writes.items() if write.result()}

    async def _open(self, plan: Plan, pool: ClusterPool | None) -> int:
        """Announces the ledgers that have to be opened, after their version was read and before it is written."""
        closed = sorted(name for name in plan.opens if not self.book.shards[name].mode)
        if not closed:
            return 0
        return await self._lock.open(self.book.mode, closed, pool)

    async def _write(self, plan: Plan, name: str, epoch: int) -> bool:
        shard = self.book.shards[name]
        content = self.book.edited(plan, name, epoch)
        obj = encode(content, shard.version)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if shard.version:
                    WRITES.labels("NetloomLedger", "update").inc()
                    stored = await self._api.replace(LEDGERS, obj)
                else:
                    WRITES.labels("NetloomLedger", "create").inc()
                    stored = await self._api.create(LEDGERS, obj)
        except (ApiError, TimeoutError) as error:
            COMMITS.labels("conflict" if isinstance(error, Conflict) else "failed").inc()
            log.info("ledger not written, reading it again", ledger=name, error=str(error) or "no answer")
            self.book.failed(name)
            self.trouble = error
            return False
        except BaseException:
            self.book.failed(name)
            raise
        COMMITS.labels("ok").inc()
        self.book.committed(plan, name, content, stored.metadata.resource_version)
        return True

    async def _clear(self) -> None:
        network = self._lock.network
        if network is None or not network.status.ipam.mode:
            return
        try:
            await self._lock.clear(self._close)
        except (ApiError, LockError) as error:
            log.info("mode lock not cleared", error=str(error))

    async def _close(self, name: str, epoch: int) -> bool:
        """Closes a ledger by a write that really changes it, or creates it closed. False if it holds anything."""
        try:
            region = region_from_name(name)
        except CidrError:
            log.error("the NetloomNetwork lists a ledger that cannot exist", ledger=name)
            return False
        shard = self.book.shard(region)
        if shard.entries or shard.problem or shard.stale:
            return False
        version, content = shard.version, ledger.closed(region, epoch)
        try:
            WRITES.labels("NetloomLedger", "update" if version else "create").inc()
            obj = encode(content, version)
            stored = await (self._api.replace(LEDGERS, obj) if version else self._api.create(LEDGERS, obj))
        except BaseException:
            self.book.failed(name)
            raise
        self.book.load(region, content, stored.metadata.resource_version, self._clock())
        return True

    async def _flush(self) -> None:
        """Removes the finished marks of a process that ends, so that its successor need not wait for them."""
        try:
            async with asyncio.timeout(self._pace.flush):
                await self._commit(self.book.tidy(self._clock()))
        except TimeoutError:
            log.info("marks left behind, a successor waits for them")

    # Reading

    async def _prepare(self) -> None:
        """Reads again what went wrong, and makes sure that the lock says what is in use."""
        reread = self._reread_at <= self._clock()
        for shard in [shard for shard in self.book.shards.values() if shard.stale or (shard.problem and reread)]:
            before = shard.problem
            await self._load(shard.name)
            if shard.problem != before:
                self._changed()
                self._freed(None)
        unreadable = any(shard.problem for shard in self.book.shards.values())
        if reread or not unreadable:
            self._reread_at = float("inf")
        if unreadable:
            # Not with every batch: reading one makes its nodes ask, and their asking makes the next batch.
            self._reread_at = min(self._reread_at, self._clock() + self._pace.reread)
        network = self._lock.network
        if network is not None and not network.status.ipam.mode and self.book.in_use():
            try:
                await self._lock.rebuild()
            except LockError as error:
                self.trouble = error
                log.warning("mode lock cannot be rebuilt", error=str(error))

    async def _load_all(self) -> None:
        now = self._clock()
        for each in (await self._api.list(LEDGERS)).objects:
            self._take(each, now)
        self._settle_nodes([*self.book.unsettled(), *self.book.nodes()])

    async def _load(self, name: str) -> None:
        shard = self.book.shards[name]
        try:
            found = await self._api.get(LEDGERS, name)
        except NotFound:
            if shard.version:
                await self._lost(name)
            self.book.load(shard.region, None, "", self._clock())
        else:
            self._take(found, self._clock())
        settled = (entry.node for entry in shard.entries.values())
        self._settle_nodes([*self.book.unsettled(), *self.book.dispossessed(), *settled])

    async def _lost(self, name: str) -> None:
        """A ledger vanished: what it held is asked of the nodes themselves, not of a cache that may lag."""
        log.error("ledger is gone, it is rebuilt from the NetloomNodes", ledger=name)
        for node in (await self._api.list(NETLOOM_NODES)).objects:
            self._nodes.put(node)

    def _take(self, obj: NetloomLedger, now: float) -> None:
        name = obj.metadata.name
        try:
            region = region_from_name(name)
        except CidrError as error:
            log.error("ledger of a name that means no region, ignored", ledger=name, error=str(error))
            return
        content: ledger.Ledger | str
        try:
            content = decode(obj)
        except ledger.LedgerError as error:
            log.error("ledger is unreadable, nothing is given out of it", ledger=name, error=error.problem)
            content = error.problem
        self.book.load(region, content, obj.metadata.resource_version, now)


def encode(content: ledger.Ledger, version: str) -> NetloomLedger:
    """The object that holds a ledger, to be written at `version` ("": to be created)."""
    return NetloomLedger(
        metadata=ObjectMeta(name=content.name, resource_version=version),
        spec=LedgerSpec(
            mode=content.mode,  # type: ignore[arg-type]
            region=str(content.region),
            used=len(content.entries),
            entries=ledger.encode(content),
        ),
    )
