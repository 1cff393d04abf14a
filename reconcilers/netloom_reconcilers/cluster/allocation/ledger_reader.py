"""Reads the ledgers: all at the start, and each again that may be another than is known.

That is one whose write failed or was not answered, one that is unreadable until somebody repairs it, and all of them
where the API server may have been given back an older world.
"""

import structlog

from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NetloomLedger
from netloom.cidr import CidrError
from netloom.ipam.known_ledgers import KnownLedger
from netloom.ipam.ledger import Ledger, LedgerError, decode
from netloom.ipam.ledger_range import ledger_range_from_name
from netloom.runtime.errors import NotFound
from netloom_reconcilers.cluster.allocation.incarnation import BlocksFreed, Changed, Incarnation, Member, NodesAffected
from netloom_reconcilers.cluster.allocation.lock import LockError, ModeLock

log = structlog.get_logger(__name__)

REREAD_SECONDS = 5.0
"""How often a ledger that is unreadable is read again: whoever repairs it should not have to restart us."""


class LedgerReader(Member):
    """Everything it reads goes to the allocator. Each read raises ApiError."""

    def __init__(self, incarnation: Incarnation, lock: ModeLock) -> None:
        super().__init__(incarnation)
        self.reread_at = float("inf")
        """When an unreadable ledger is to be read again."""
        self._lock = lock

    async def read_all(self) -> None:
        """The first read."""
        now = self._clock()
        for each in (await self._api.list(LEDGERS)).objects:
            self._take(each, now)
        assignments = self._allocator.assignments
        self._publish(NodesAffected([*assignments.unrecorded, *assignments.nodes()]))

    def distrust_all(self) -> None:
        """The world may be another one than the ledgers were read in (a restored backup): all are read again, before
        anything is planned. A commit into an older world would fail by its version, unless it met that by chance."""
        for known in self._allocator.ledgers.values():
            known.stale = True

    async def recover(self) -> LockError | None:
        """Reads again what went wrong, and makes sure that the lock says what is in use. Why it cannot be made to."""
        ledgers = self._allocator.ledgers
        due = self.reread_at <= self._clock()
        for known in [known for known in ledgers.values() if known.stale or (known.problem and due)]:
            before = known.problem
            await self._reread(known)
            if known.problem != before:
                self._publish(Changed.LEDGERS)
                self._publish(BlocksFreed())
        unreadable = any(known.problem for known in ledgers.values())
        if due or not unreadable:
            self.reread_at = float("inf")
        if unreadable:
            # Not with every batch: reading one makes its nodes ask, and their asking makes the next batch.
            self.reread_at = min(self.reread_at, self._clock() + REREAD_SECONDS)
        network = self._lock.network
        status = network.status.ipam if network is not None else None
        if status is not None and (not status.mode or status.clearing) and self._allocator.in_use():
            try:
                await (self._lock.open(status.mode, ()) if status.mode else self._lock.rebuild())
            except LockError as error:
                log.warning("mode lock cannot be rebuilt", error=str(error))
                return error
        return None

    async def _reread(self, known: KnownLedger) -> None:
        try:
            found = await self._api.get(LEDGERS, known.name)
        except NotFound:
            if known.version:
                await self._reread_nodes(known.name)
            self._allocator.load(known.range, None, "", self._clock())
        else:
            self._take(found, self._clock())
        entered = (entry.node for entry in known.entries.values())
        unrecorded, dispossessed = self._allocator.assignments.unrecorded, self._allocator.former.nodes()
        self._publish(NodesAffected([*unrecorded, *dispossessed, *entered]))

    async def _reread_nodes(self, ledger: str) -> None:
        """A ledger vanished: what it held is asked of the nodes themselves, not of a cache that may lag."""
        log.error("ledger is gone, it is rebuilt from the NetloomNodes", ledger=ledger)
        for node in (await self._api.list(NETLOOM_NODES)).objects:
            self._netloom_nodes.put(node)

    def _take(self, obj: NetloomLedger, now: float) -> None:
        name = obj.metadata.name
        try:
            ledger_range = ledger_range_from_name(name)
        except CidrError as error:
            log.error("ledger of a name that means no range, ignored", ledger=name, error=str(error))
            return
        content: Ledger | LedgerError
        try:
            content = decode(obj)
        except LedgerError as error:
            log.error("ledger is unreadable, nothing is given out of it", ledger=name, error=error.problem)
            content = error
        self._allocator.load(ledger_range, content, obj.metadata.resource_version, now)
