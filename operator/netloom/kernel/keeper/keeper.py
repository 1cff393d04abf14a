"""The loop that keeps the kernel at the desired state that was last handed over. There is one, for all parts.

`apply` hands over a whole desired state; `run` then keeps it true: kernel events are followed within milliseconds, what
failed is tried again with back-off, and a resync (all that is owned is read and compared) now and then finds what no
event told. All of them end in the same pass: take in the events, then ask each part to read what is in doubt and to
write what differs. A pass that finds no difference writes nothing, so a restart writes nothing.

The parts of one keeper stand on each other, in their order (routes on devices): they are updated from the first to the
last, and what is no longer wanted is removed from the last to the first. Parts that have nothing to do with each other
have a keeper each, with sockets, thread and lock of its own, so that none waits for another.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypedDict, TypeVar

import structlog

from netloom.kernel.capability import require_net_admin
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.report import KeeperReport, PlannedChange, entry
from netloom.kernel.keeper.retries import FIRST_SECONDS, TICK_SECONDS, Item, Retries, item_text
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import BUFFER, AnswerLost, CommandSocket, EventSocket, Overflow, walk
from netloom.kernel.ownership import ROUTE_PROTOCOL

log = structlog.get_logger(__name__)

RESYNC_SECONDS = 120.0
"""Between resyncs. At 10,000 peers one costs 0.1 s of CPU time, at 10,000 masqueraded CIDRs 25 ms: 0.1 %."""

ROUNDS = 4
"""Passes in a row: a refusal can show that more was lost than was known. What is left then waits for a moment."""

EVENTS_AT_ONCE = 4096
"""Datagrams read before others get a turn on the event loop."""

D = TypeVar("D")
R = TypeVar("R", bound=KeeperReport)


class KeeperOptions(TypedDict, total=False):
    """What every keeper can be told.

    resync_seconds: between resyncs; None: only those that something asks for. commands: makes the asking socket.
    event_buffer:   bytes, of the listening one. on_report: is called with each report that says something new.
    """

    resync_seconds: float | None
    commands: Callable[[], CommandSocket]
    event_buffer: int
    on_report: Callable[[Any], None] | None


class Keeper(Generic[D, R]):
    """See the module. Only one for the same parts in a network namespace: two would remove what the other adds."""

    names: ClassVar[Mapping[int, str]] = {}
    """Of the message types, for people."""
    nothing: Callable[[], D]
    """The desired state in which nothing is kept."""

    def __init__(
        self,
        parts: Sequence[Part[D]],
        *,
        resync_seconds: float | None = RESYNC_SECONDS,
        commands: Callable[[], CommandSocket] = CommandSocket,
        event_buffer: int = BUFFER,
        on_report: Callable[[R], None] | None = None,
    ) -> None:
        self._parts = parts
        self._make_commands = commands
        self._resync_seconds = resync_seconds
        self._event_buffer = event_buffer
        self._on_report = on_report
        self._retries = Retries(self._whose)
        self._hearers = {kind: [p for p in parts if kind in p.kinds] for part in parts for kind in part.kinds}
        self._worker: Worker | None = None
        self._listener: EventSocket | None = None
        self._unheard: frozenset[int] = frozenset()
        self._begun = asyncio.Event()
        """Something was applied, and the attempt has ended."""
        self._converging = False
        self._sleeps_until = float("-inf")
        """When `run` will wake up by itself; before all time: it is not asleep."""
        self._busy_since: float | None = None
        self._ended_at = 0.0
        self._failed: set[Item] = set()
        """States of the parts that the last pass could not read."""
        self._resynced_at = 0.0
        self._resyncs = 0
        self._told: object = ({}, (), ())
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Open the sockets and begin the thread. Where the kernel lacks what they need, `apply` reports it."""
        self._thread = KernelThread("netloom-kernel")
        with contextlib.suppress(KernelUnsupported):
            self._connect()

    async def close(self) -> None:
        """Close the sockets, when the thread has ended. The kernel keeps all that was made."""
        self._ignore()
        await self._thread.close()
        if self._listener is not None:
            self._listener.close()
        if self._worker is not None:
            self._worker.commands.close()
        self._listener = None

    @property
    def port(self) -> int:
        """Of the asking socket, by which the kernel's events name who caused them; 0 where it is not open."""
        return self._worker.commands.port if self._worker is not None else 0

    def deafen(self, ports: Iterable[int]) -> None:
        """What these ports cause is no business of the parts: they are told nothing of it, as of what they cause."""
        self._unheard = frozenset(ports)
        if self._listener is not None:
            self._listener.deafen({self.port, *self._unheard})

    async def apply(self, desired: D) -> R:
        """Bring the kernel to this state, which stays in force until the next call.

        The same object again costs what was changed through its methods; another object costs one look-up per entry.
        Entries that fail are named in the report and tried again by `run`. Raises NotPermitted.
        """
        require_net_admin()
        async with self._lock:
            for part in self._parts:
                part.want(desired, self._retries)
            try:
                return await self._converge_now()
            finally:
                self._begun.set()

    async def run(self) -> None:
        """Keep the kernel at the applied state, until cancelled."""
        await self._begun.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds()):
                    await self._wake.wait()
            self._wake.clear()
            self._sleeps_until = float("-inf")
            if time.monotonic() >= self._resync_at():
                self._doubt()
            async with self._lock:
                await self._converge()

    async def plan(self, desired: D) -> list[PlannedChange]:
        """What `apply` would change, in its order. Writes nothing."""
        raise NotImplementedError

    async def plan_cleanup(self) -> list[PlannedChange]:
        """What `cleanup` would do. Writes nothing."""
        return await self.plan(self.nothing())

    async def cleanup(self) -> R:
        """Remove all that is owned."""
        return await self.apply(self.nothing())

    async def left(self) -> list[str]:
        """What `cleanup` leaves though it was made or set here, and how to change that, as sentences."""
        return []

    @property
    def retained(self) -> int:
        """Entries that an earlier life left, that nothing desired explains, and that are retained."""
        return sum(part.retained for part in self._parts)

    async def prune(self) -> None:
        """All that is desired is known: what it does not explain goes."""
        async with self._lock:
            for part in self._parts:
                part.release_retained()
            await self._converge_now()

    @property
    def report(self) -> R:
        """The state of things now."""
        raise NotImplementedError

    @property
    def busy_seconds(self) -> float:
        """For how long the passes that are under way have been, or what the kernel is asked for beside them; 0 where
        nothing is."""
        passes = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
        return max(passes, self._worker.busy_seconds if self._worker is not None else 0.0)

    @property
    def stats(self) -> dict[str, int]:
        """Requests written since `open`, by message type."""
        written = self._worker.commands.written if self._worker is not None else {}
        return {self.names.get(kind, str(kind)): count for kind, count in sorted(written.items())}

    # ------------------------------------------------------------------------------------------------- one pass

    async def _converge(self) -> R:
        """Passes until nothing is left that can be done now; the report, told if it says something new."""
        self._converging = True
        self._busy_since = time.monotonic()
        try:
            await self._passes()
        except BaseException:
            self._doubt()  # what was under way may have been done, or not
            raise
        finally:
            self._converging = False
            self._busy_since = None
            self._listen()
        self._retries.keep(item for part in self._parts for item in (part.state, *part.pending()))
        report = self.report
        if report.news != self._told:
            self._told = report.news
            if self._on_report is not None:
                self._on_report(report)
        return report

    async def _converge_now(self) -> R:
        """On somebody's word, whatever has to wait; `run`, which sleeps meanwhile, may have to wake up earlier now."""
        for part in self._parts:
            self._retries.hasten(part.state)
        report = await self._converge()
        if self._next_at() < self._sleeps_until:
            self._wake.set()
        return report

    async def _passes(self) -> None:
        retries = self._retries
        retries.begin()
        for part in self._parts:
            if part.state in retries.failing and part.state not in retries.delayed():
                part.doubt()
        fresh: set[Part[D]] = set()
        for _ in range(ROUNDS):
            self._failed = await self._pass(fresh)
            self._ended_at = time.monotonic()
            if not any(part.due and part.state not in self._failed for part in self._parts):
                return

    async def _pass(self, fresh: set[Part[D]]) -> set[Item]:
        """Each part in turn; the states of those that could not be read, now or of late. Such a part waits, like an
        entry that fails, whatever events come, and does not stop the others; but nothing is removed then: something may
        stand on it."""
        held = self._retries.delayed()
        failed = {part.state for part in self._parts if part.state in held}
        for part in self._parts:
            if part.state in held:
                continue
            with self._guarded(part, failed):
                worker = self._connect()
                if part.kinds:  # else an earlier part would learn something behind its turn, and nobody would wake it
                    self._drain()
                if await self._read(part, worker):
                    fresh.add(part)
                    self._drain()
                self._note(await part.update(worker, self._attempt(part, fresh)))
        for part in reversed(self._parts if not failed else ()):
            with self._guarded(part, failed):
                self._note(await part.remove(self._connect(), self._attempt(part, fresh)))
        for part in self._parts:
            if part.state not in failed:
                self._is_readable(part)
        return failed

    async def _read(self, part: Part[D], worker: Worker) -> bool:
        whole = await part.read(worker)
        if whole:
            self._resynced_at = time.monotonic()
            self._resyncs += 1
        self._note_drift()
        return whole

    @contextlib.contextmanager
    def _guarded(self, part: Part[D], failed: set[Item]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._doubt()  # what the kernel holds is unknown until it has been read
            if isinstance(error, (AnswerLost, OSError, KernelUnsupported)):
                sentence = part.explain(error)
            else:
                log.exception("a part of the kernel side crashed", part=part.state[1])
                sentence = f"it crashed: {error!r}. It is tried again; the log has the details"
            if not sentence:
                self._is_readable(part)
            elif part.state not in failed:
                self._retries.refused(part.state, sentence, "", getattr(error, "errno", 0) or 0)
            failed.add(part.state)

    def _is_readable(self, part: Part[D]) -> None:
        self._retries.written(part.state[0], [part.state[1]])

    def _attempt(self, part: Part[D], fresh: set[Part[D]]) -> Attempt:
        """As things are now: what an event has shown in this pass has to wait in it already."""
        return Attempt(self._retries.delayed(), self._retries.failing, part in fresh)

    def _note(self, outcome: Outcome) -> None:
        for item in outcome.repaired:
            self._retries.drifted(item)
        for kind, keys in outcome.written:
            self._retries.written(kind, keys)
        for refused in outcome.refused:
            self._retries.refused(refused.item, refused.error, refused.peer, refused.errno)

    def _basics(self) -> dict[str, Any]:
        """The fields of a KeeperReport."""
        return {
            "failures": self._retries.failures,
            "pending": sum(part.count_pending() for part in self._parts),
            "converging": self._converging,
            "contended": tuple(entry(item[0], item_text(item), self._whose(item)) for item in self._retries.contended),
            "written": self.stats,
            "compared": self._resyncs,
            "repaired": self._retries.repaired,
        }

    def _whose(self, item: Item) -> str:
        return next(filter(None, (part.whose(item) for part in self._parts)), "")

    # --------------------------------------------------------------------------------------------------- events

    def _connect(self) -> Worker:
        """The asking socket, and the listening one: opened, if they could not be before. Raises KernelUnsupported."""
        if self._worker is None:
            self._worker = Worker(self._make_commands(), self._thread)
        if self._listener is None:
            groups = dict.fromkeys(group for part in self._parts for group in part.groups)
            deaf_to = (self._worker.commands.port, *self._unheard)
            without = None if any(part.hears_peers for part in self._parts) else ROUTE_PROTOCOL
            self._listener = EventSocket(groups, deaf_to=deaf_to, without_routes_of=without, buffer=self._event_buffer)
            self._doubt()
            self._listen()
        return self._worker

    def _doubt(self) -> None:
        """All is to be read by the next pass; what cannot be read then is tried again by its back-off."""
        self._resynced_at = time.monotonic()
        for part in self._parts:
            part.doubt()

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
        """Take in the events that have arrived; each is told to the parts that it may concern."""
        hearers = self._hearers
        try:
            for _ in range(EVENTS_AT_ONCE):
                buffer = self._listener.receive() if self._listener is not None else None
                if buffer is None:
                    break
                for kind, flags, _sequence, start, end in walk(buffer):
                    for part in hearers.get(kind, ()):
                        part.hear(kind, flags, buffer, start, end)
        except Overflow:
            log.warning("the kernel dropped events: reading everything")
            self._ignore()
            self._listener.close()  # type: ignore[union-attr]
            self._listener = None
            self._connect()
        self._note_drift()

    def _note_drift(self) -> None:
        for part in self._parts:
            for item, alone in part.drifted():
                self._retries.drifted(item, alone=alone)

    def _resync_at(self) -> float:
        return self._resynced_at + self._resync_seconds if self._resync_seconds is not None else float("inf")

    def _idle_seconds(self) -> float | None:
        """Until something has to be done without an event."""
        first = self._sleeps_until = self._next_at()
        return max(TICK_SECONDS, first - time.monotonic()) if first != float("inf") else None

    def _next_at(self) -> float:
        """When that is (monotonic seconds). A part that could not be read waits for its retry alone; of what is due in
        spite of all rounds no event may tell again."""
        retry, due_at = self._retries.next(), self._ended_at + FIRST_SECONDS
        asked = (part for part in self._parts if part.state not in self._failed)
        times = (due_at if part.due else part.later() for part in asked)
        return min(self._resync_at(), float("inf") if retry is None else retry, *times)
