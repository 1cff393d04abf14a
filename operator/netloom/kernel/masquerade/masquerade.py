"""Masquerading: our nftables table as a part, under a keeper of its own.

What a pass writes is one transaction, so packets see the table before it or after it, and never without its rules.
A refused element is left out of the next attempt, and does not stop the others.
"""

import errno
from collections.abc import Callable, Iterable

import structlog

from netloom.kernel.capability import require_net_admin
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.keeper import RESYNC_SECONDS, Keeper
from netloom.kernel.keeper.part import Attempt, Outcome, Part, Refused, Worker
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.masquerade.ruleset import TABLE, TABLE_KEY
from netloom.kernel.masquerade.sets import Masquerading
from netloom.kernel.masquerade.state import ELEMENT, STRUCTURE, State, planned_changes, read_state
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import BUFFER, CommandSocket, RefusedError
from netloom.kernel.ownership import MASQUERADE

log = structlog.get_logger(__name__)

_KINDS = frozenset(range(nftables.SUBSYSTEM, nftables.SUBSYSTEM + 256))


class MasqueradeTable(Part[Masquerading]):
    """See the module."""

    owns = MASQUERADE
    state = ("dump", f"table {TABLE_KEY}")
    groups = ("nftables",)
    kinds = _KINDS

    def __init__(self, *, retain_unknown: bool) -> None:
        self.table = State()
        self.sets = self.table.sets
        self._retaining = retain_unknown
        self._desired = Masquerading()
        self._applied = False
        self._table_due = self._resync_due = True
        self._touched: set[tuple[str, bytes]] = set()
        self._found: list[tuple[Item, bool]] = []

    def want(self, desired: Masquerading, retries: Retries) -> None:
        """Take over the rules, and the CIDRs: of the same object as before, those that its journal names."""
        touched, sets = desired.take_touched(), self.sets
        if desired is not self._desired or not self._applied:
            self._desired, self._applied = desired, True
            sets.replace(desired)
            retries.clear()
            return
        changed = [element for name in touched for element in sets.set_known(name, desired.known.get(name, ()))]
        if desired.rules != sets.rules:
            changed += sets.set_rules(desired.rules)
            retries.forget(STRUCTURE)
        retries.forget((ELEMENT, element) for element in changed)

    def pending(self) -> Iterable[Item]:
        """All that is not as it should be."""
        return self.table.unsettled()

    @property
    def unknown(self) -> int:  # type: ignore[override]
        """Known CIDRs from an earlier life that no node explains, and that are retained."""
        return self.sets.unknown

    def release_retained(self) -> None:
        """All nodes are known: what none of them explains goes."""
        self.sets.prune()

    @property
    def due(self) -> bool:  # type: ignore[override]
        """The table is to be read."""
        return self._resync_due or self._table_due

    def doubt(self) -> None:
        """All of the table is to be read again."""
        self._resync_due = True

    async def read(self, worker: Worker) -> bool:
        """Read the table, and its elements where these are due; note what is not as it was left."""
        if not self.due:
            return False
        whole, self._resync_due, self._table_due = self._resync_due, False, False
        seen, elements = await worker.call(lambda commands: read_state(commands, whole=whole))
        self._found += self.table.load(seen, elements)
        if whole and self._retaining:
            self._retaining = False
            self.sets.retain_unknown()
        return whole

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Write what is due. Refused on the strength of old knowledge, it is tried again on that of new."""
        outcome, due = Outcome(), self.table.due(attempt.held)
        while due.writes:
            refusals = await worker.submit([write.message for write in due.writes])
            if not refusals:
                outcome.written += self.table.wrote(due)
                self._table_due = self._table_due or due.anew or due.rules
                break
            refused = due.refused(refusals)
            if not attempt.fresh and refused.keys().isdisjoint(attempt.failing):
                log.info("the kernel refused: comparing", error=next(iter(refused.values()))[0])
                self._resync_due = True
                break
            outcome.refused += [Refused(item, error, code) for item, (error, code) in refused.items()]
            if not due.drop(refused.keys()):
                break
        return outcome

    def explain(self, error: Exception) -> str:
        """With the cause that is behind an errno that says little; empty where no table is wanted."""
        return "" if _without_nftables(error) and not self.sets.wanted.families else _explained(error)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """What is not as it should be, though nobody here changed it."""
        touched, self._touched = self._touched, set()
        found, self._found = self._found, []
        return [*((item, not self._resync_due) for item in self.table.strange(touched)), *found]

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event."""
        if not nftables.belongs_to(TABLE, buffer, start, end):
            return
        what = kind & 0xFF
        if what in (nftables.NEWSETELEM, nftables.DELSETELEM):
            name, elements = nftables.read_elements(buffer, start, end)
            self._touched.update(self.table.hear(name, elements, added=what == nftables.NEWSETELEM))
        elif what in (nftables.NEWTABLE, nftables.DELTABLE, nftables.NEWSET, nftables.DELSET):
            # A set that is deleted takes its elements along in silence.
            self._resync_due = True
        else:
            self._table_due = True


class MasqueradeReport(KeeperReport, frozen=True, kw_only=True):
    """The state of our nftables table.

    families: "4" and "6", where packets are masqueraded. elements: desired, in all sets; a CIDR takes two.
    """

    families: tuple[str, ...] = ()
    elements: int = 0


class MasqueradeKeeper(Keeper[Masquerading, MasqueradeReport]):
    """See the module."""

    names = nftables.NAMES

    def __init__(
        self,
        *,
        resync_seconds: float | None = RESYNC_SECONDS,
        commands: Callable[[], CommandSocket] = NftablesSocket,
        event_buffer: int = BUFFER,
        on_report: Callable[[MasqueradeReport], None] | None = None,
        retain_unknown: bool = False,
    ) -> None:
        """`retain_unknown`: known CIDRs that an earlier life left in the kernel and that no node explains stay until
        `prune`. The others as with Keeper."""
        self._table = MasqueradeTable(retain_unknown=retain_unknown)
        super().__init__(
            (self._table,),
            commands=commands,
            resync_seconds=resync_seconds,
            event_buffer=event_buffer,
            on_report=on_report,
        )

    async def plan(self, desired: Masquerading) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises NotPermitted (nftables is not even read without
        NET_ADMIN), KernelUnsupported."""
        require_net_admin()
        async with self._lock:
            try:
                return await self._connect().call(lambda commands: planned_changes(commands, desired))
            except RefusedError as error:
                raise KernelUnsupported(_explained(error)) from error

    async def cleanup(self) -> MasqueradeReport:
        """Remove our table."""
        return await self.apply(Masquerading())

    @property
    def report(self) -> MasqueradeReport:
        """The state of things now."""
        sets = self._table.sets
        return MasqueradeReport(
            **self._basics(),
            families=sets.wanted.families,
            elements=sum(len(sets.tables[name].desired) for name in sets.wanted.sets),
        )


def _without_nftables(error: Exception) -> bool:
    """What a socket, or nfnetlink, says where there is none."""
    refused = isinstance(error, RefusedError) and error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
    return refused or isinstance(error, KernelUnsupported)


def _explained(error: Exception) -> str:
    """With the cause that is behind an errno that says little."""
    if isinstance(error, RefusedError):
        if _without_nftables(error):
            return f"this kernel has no nftables (nf_tables), so nothing can be masqueraded: {error.refusal}"
        return f"nftables cannot be read: {error.refusal}"
    return str(error)
