"""Writes ledgers by compare-and-swap, behind the lock: opens it before, and clears it after the last."""

import asyncio

import structlog

from netloom.api.v1alpha1 import LEDGERS, ClusterPool
from netloom.cidr import Cidr
from netloom.ipam.ledger import Ledger, encode
from netloom.ipam.marks import REQUEST_SECONDS
from netloom.ipam.plan import BatchPlan
from netloom.runtime.errors import ApiError, Conflict
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.lock import LockError, ModeLock
from netloom_reconcilers.cluster.allocation.metrics import COMMITS, WRITES

log = structlog.get_logger(__name__)

CommitFailure = LockError | ApiError | TimeoutError


class LedgerWriter(Member):
    """The only writer of ledgers in a process, and one commit at a time. What fails is known as stale from then on."""

    def __init__(self, incarnation: Incarnation, lock: ModeLock) -> None:
        super().__init__(incarnation)
        self._lock = lock

    async def commit(self, plan: BatchPlan, pool: ClusterPool | None = None) -> tuple[set[str], CommitFailure | None]:
        """The ledgers that were written, by name, and why others were not. `pool`: where blocks were chosen from."""
        try:
            epoch = await self._open(plan, pool)
        except (LockError, ApiError) as error:
            log.warning("ledgers cannot be opened", error=str(error))
            for name in plan.edits:
                self._allocator.ledgers[name].stale = True
            return set(), error
        async with asyncio.TaskGroup() as group:
            writes = {name: group.create_task(self._write(plan, name, epoch)) for name in plan.edits}
        results = {name: write.result() for name, write in writes.items()}
        failure = next((result for result in results.values() if result is not None), None)
        return {name for name, result in results.items() if result is None}, failure

    async def clear_lock(self) -> None:
        """Closes all ledgers and clears the lock, as nothing is in use."""
        network = self._lock.network
        if network is None or not network.status.ipam.mode:
            return
        try:
            await self._lock.clear(self._close)
        except (ApiError, LockError) as error:
            log.info("mode lock not cleared", error=str(error))

    async def _open(self, plan: BatchPlan, pool: ClusterPool | None) -> int:
        """Announces the ledgers that have to be opened, after their version was read and before it is written."""
        closed = sorted(name for name in plan.opens if not self._allocator.ledgers[name].mode)
        if not closed:
            return 0
        return await self._lock.open(self._allocator.blocks.mode, closed, pool)

    async def _write(self, plan: BatchPlan, name: str, epoch: int) -> ApiError | TimeoutError | None:
        known = self._allocator.ledgers[name]
        content = self._allocator.edited(plan, name, epoch)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                version = await self._store(content, known.version)
        except (ApiError, TimeoutError) as error:
            COMMITS.labels("conflict" if isinstance(error, Conflict) else "failed").inc()
            log.info("ledger not written, reading it again", ledger=name, error=str(error) or "no answer")
            known.stale = True
            return error
        except BaseException:
            known.stale = True
            raise
        COMMITS.labels("ok").inc()
        self._allocator.committed(plan, name, content, version)
        return None

    async def _close(self, ledger_range: Cidr, epoch: int) -> bool:
        """Closes a ledger by a write that really changes it, or creates it closed. False if it holds anything."""
        known = self._allocator.ledgers.of(ledger_range)
        if known.entries or known.problem or known.stale:
            return False
        content = Ledger(ledger_range, epoch=epoch)
        try:
            version = await self._store(content, known.version)
        except BaseException:
            known.stale = True
            raise
        self._allocator.load(ledger_range, content, version, self._clock())
        return True

    async def _store(self, content: Ledger, version: str) -> str:
        """The compare-and-swap: the version that it was stored as."""
        WRITES.labels("NetloomLedger", "update" if version else "create").inc()
        obj = encode(content, version)
        stored = await (self._api.replace(LEDGERS, obj) if version else self._api.create(LEDGERS, obj))
        return stored.metadata.resource_version
