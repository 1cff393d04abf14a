"""Masquerading: keeps our nftables table at the desired state that was last handed over.

It is the data path's sister, and works as that one does: `apply` hands over a whole desired state, `run` keeps it
true; kernel events are followed within milliseconds, what failed is tried again with back-off, and a full comparison
now and then is the belt. A pass that finds no difference writes nothing, so a restart writes nothing.

What a pass writes is one transaction, so packets see the table before it or after it, and never without its rules.
A refused element is left out of the next attempt, and does not stop the others.
"""

import asyncio
import contextlib
import errno
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from netloom.kernel import nftables
from netloom.kernel.backoff import TICK_SECONDS
from netloom.kernel.capability import require_net_admin
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.masquerade_report import MasqueradeReport
from netloom.kernel.masquerade_sets import Masquerading
from netloom.kernel.masquerade_state import ELEMENT, STRUCTURE, State, planned_changes, read_state
from netloom.kernel.netlink import BUFFER, AnswerLost, Commands, EventSocket, Overflow, RefusedError, walk
from netloom.kernel.nftables_socket import NftablesSocket
from netloom.kernel.report import PlannedChange
from netloom.kernel.ruleset import TABLE, TABLE_KEY
from netloom.kernel.trouble import Item, Troubles

log = structlog.get_logger(__name__)

COMPARE_SECONDS = 120.0
"""Between full comparisons. At 10,000 CIDRs one costs 25 ms."""

ROUNDS = 4
EVENTS_AT_ONCE = 4096

T = TypeVar("T")

_STATE: Item = ("dump", f"table {TABLE_KEY}")


class Masquerade:
    """See the module. Only one in a network namespace."""

    def __init__(
        self,
        *,
        compare_seconds: float | None = COMPARE_SECONDS,
        commands: Callable[[], Commands] = NftablesSocket,
        event_buffer: int = BUFFER,
        on_report: Callable[[MasqueradeReport], None] | None = None,
        spare_unknown: bool = False,
    ) -> None:
        """`compare_seconds` None: no full comparison but where something demands it. `event_buffer`, in bytes, is for
        tests. `on_report` is called after every pass that wrote or failed; it may not block. `spare_unknown`: known
        CIDRs that an earlier life left in the kernel and that no node explains stay until `prune`."""
        self._make_commands = commands
        self._event_buffer = event_buffer
        self._compare_seconds = compare_seconds
        self._on_report = on_report
        self._spare_unknown = spare_unknown
        self._commands: Commands | None = None
        self._listener: EventSocket | None = None
        self._state = State()
        self._sets = self._state.sets
        self._troubles = Troubles()
        self._desired = Masquerading()
        self._applied = False
        self._table_due = self._compare_due = True
        self._compared_at = 0.0
        self._comparisons = 0
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Open the sockets, and neither read nor write. Where the kernel has no nftables, `apply` reports it."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="netloom-nftables")
        with contextlib.suppress(KernelUnsupported):
            self._connect()

    async def close(self) -> None:
        """Close the sockets. The kernel keeps all that was made."""
        self._ignore()
        self._executor.shutdown()
        if self._listener is not None:
            self._listener.close()
        if self._commands is not None:
            self._commands.close()

    async def apply(self, desired: Masquerading) -> MasqueradeReport:
        """Bring the kernel to this state, which stays in force until the next call.

        The same object again costs what was changed through its methods. What fails is named in the report, and tried
        again by `run`. Raises NotPermitted.
        """
        require_net_admin()
        async with self._lock:
            self._take(desired)
            report = await self._settle()
        if self._troubles.next() is not None:
            self._wake.set()  # `run` may sleep until a later moment, or for good
        return report

    async def run(self) -> None:
        """Keep the kernel at the applied state, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds()):
                    await self._wake.wait()
            self._wake.clear()
            if not self._applied:
                continue
            if self._compare_seconds is not None and time.monotonic() >= self._compared_at + self._compare_seconds:
                self._compare_due = True
            async with self._lock:
                await self._settle()

    async def plan(self, desired: Masquerading) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises NotPermitted (nftables is not even read without
        NET_ADMIN), KernelUnsupported."""
        require_net_admin()
        async with self._lock:
            commands = self._connect()
            try:
                return await self._in_thread(lambda: planned_changes(commands, desired))
            except RefusedError as error:
                raise KernelUnsupported(_explained(error)) from error

    async def cleanup(self) -> MasqueradeReport:
        """Remove our table."""
        return await self.apply(Masquerading())

    @property
    def unknown(self) -> int:
        """Known CIDRs from an earlier life that no node explains, and that are spared."""
        return self._sets.unknown

    async def prune(self) -> None:
        """All nodes are known: what none of them explains goes."""
        async with self._lock:
            self._sets.prune()
            await self._settle()

    @property
    def report(self) -> MasqueradeReport:
        """The state of things now."""
        sets = self._sets
        return MasqueradeReport(
            families=sets.wanted.families,
            elements=sum(len(sets.tables[name].desired) for name in sets.wanted.sets),
            failures=self._troubles.failures,
            fought=self._troubles.fought,
            pending=sets.pending + len(self._state.faults()),
            written=self.stats,
            compared=self._comparisons,
            repaired=self._troubles.repaired,
        )

    @property
    def stats(self) -> dict[str, int]:
        """Requests written since `open`, by message type."""
        written = self._commands.written if self._commands is not None else {}
        return {nftables.NAMES.get(kind, str(kind)): count for kind, count in sorted(written.items())}

    # ------------------------------------------------------------------------------------------------- one pass

    def _take(self, desired: Masquerading) -> None:
        touched = desired.take_touched()
        if desired is not self._desired or not self._applied:
            self._desired, self._applied = desired, True
            self._sets.replace(desired)
            self._troubles.clear()
            return
        changed = [element for name in touched for element in self._sets.set_known(name, desired.known.get(name, ()))]
        if desired.rules != self._sets.rules:
            changed += self._sets.set_rules(desired.rules)
            self._troubles.forget(STRUCTURE)
        self._troubles.forget((ELEMENT, element) for element in changed)

    async def _settle(self) -> MasqueradeReport:
        """Bring the kernel to the desired state, as far as that can be done now."""
        stats, failures = self.stats, self._troubles.failures
        try:
            await self._passes()
        except BaseException:
            self._compare_due = True  # what was under way may have been done, or not
            raise
        finally:
            self._listen()
        self._troubles.keep(itertools.chain([_STATE], self._state.unsettled()), ())
        report = self.report
        if (stats != report.written or failures != report.failures) and self._on_report is not None:
            self._on_report(report)
        return report

    async def _passes(self) -> None:
        """Passes until nothing is left that can be done now."""
        fresh = False
        self._troubles.begin()
        if self._troubles.due([_STATE[0]]):
            self._compare_due = True
        for _ in range(ROUNDS):
            self._drain()
            try:
                commands = self._connect()
                if self._compare_due or self._table_due:
                    fresh = fresh or self._compare_due
                    await self._read(commands)
                self._troubles.written(_STATE[0], [_STATE[1]])
                await self._write(commands, fresh=fresh)
            except (AnswerLost, OSError, KernelUnsupported) as error:
                # What the kernel holds is unknown until it has been read.
                self._compare_due = True
                if _without_nftables(error) and not self._sets.wanted.families:
                    self._troubles.written(_STATE[0], [_STATE[1]])
                else:
                    self._troubles.refused(_STATE, _explained(error), "", getattr(error, "errno", 0) or 0)
                break
            if not self._compare_due and not self._table_due:
                break

    async def _read(self, commands: Commands) -> None:
        """Read the table, and its elements where these are due; note what is not as it was left."""
        whole, self._compare_due, self._table_due = self._compare_due, False, False
        seen, elements = await self._in_thread(lambda: read_state(commands, whole=whole))
        if whole:
            self._compared_at = time.monotonic()
            self._comparisons += 1
        drifted = self._state.load(seen, elements)
        if whole and self._spare_unknown:
            self._spare_unknown = False
            self._sets.spare_unknown()
        for item, alone in drifted:
            self._troubles.drifted(item, alone=alone)

    async def _write(self, commands: Commands, *, fresh: bool) -> None:
        """Write what is due. Refused on the strength of old knowledge, it is tried again on that of new."""
        due = self._state.due(self._troubles.held())
        while due.writes:
            messages = [write.message for write in due.writes]
            refusals = await self._in_thread(lambda: commands.execute(messages))  # noqa: B023
            if not refusals:
                for kind, keys in self._state.wrote(due):
                    self._troubles.written(kind, keys)
                self._table_due = self._table_due or due.anew or due.rules
                return
            refused = due.refused(refusals)
            if not fresh and not self._troubles.failing & refused.keys():
                log.info("the kernel refused: comparing", error=next(iter(refused.values()))[0])
                self._compare_due = True
                return
            for item, (error, code) in refused.items():
                self._troubles.refused(item, error, "", code)
            if not due.drop(refused.keys()):
                return

    # --------------------------------------------------------------------------------------------------- events

    def _connect(self) -> Commands:
        """The asking socket, opened if it could not be before, and the listening one. Raises KernelUnsupported."""
        if self._commands is None:
            self._commands = self._make_commands()
        if self._listener is None:
            self._listener = EventSocket(["nftables"], deaf_to=self._commands.port, buffer=self._event_buffer)
            self._compare_due = True
            self._listen()
        return self._commands

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_readable)

    def _ignore(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _on_readable(self) -> None:
        """Events are taken in by the next pass: one that is under way must not be overtaken by them."""
        self._ignore()
        self._wake.set()

    def _drain(self) -> None:
        """Take in the events that have arrived."""
        touched: set[tuple[str, bytes]] = set()
        try:
            for _ in range(EVENTS_AT_ONCE):
                buffer = self._listener.receive() if self._listener is not None else None
                if buffer is None:
                    break
                self._feed(buffer, touched)
        except Overflow:
            log.warning("the kernel dropped events of nftables: comparing everything")
            self._ignore()
            assert self._listener is not None
            self._listener.close()
            self._listener = None
        for item in self._state.strange(touched):
            self._troubles.drifted(item, alone=not self._compare_due)

    def _feed(self, buffer: bytes, touched: set[tuple[str, bytes]]) -> None:
        for kind, _flags, _sequence, start, end in walk(buffer):
            if kind & 0xFF00 != nftables.SUBSYSTEM or not nftables.belongs_to(TABLE, buffer, start, end):
                continue
            what = kind & 0xFF
            if what in (nftables.NEWSETELEM, nftables.DELSETELEM):
                name, elements = nftables.read_elements(buffer, start, end)
                touched.update(self._state.hear(name, elements, added=what == nftables.NEWSETELEM))
            elif what in (nftables.NEWTABLE, nftables.DELTABLE, nftables.NEWSET, nftables.DELSET):
                # A set that is deleted takes its elements along in silence.
                self._compare_due = True
            else:
                self._table_due = True

    def _idle_seconds(self) -> float | None:
        """Until something has to be done without an event."""
        now = time.monotonic()
        due = [self._compared_at + self._compare_seconds] if self._compare_seconds is not None else []
        retry = self._troubles.next()
        if retry is not None:
            due.append(retry)
        return max(TICK_SECONDS, min(due) - now) if due else None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The kernel takes a lock that others may hold for seconds; the event loop must not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


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
