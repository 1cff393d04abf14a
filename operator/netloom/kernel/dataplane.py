"""The data path: keeps the kernel at the desired state that was last handed over.

`apply` hands over a whole desired state; `run` then keeps it true: kernel events are followed within milliseconds,
what failed is tried again with back-off, and a full comparison now and then is the belt. All of them end in the same
pass: look at the devices, then at the tables, and write what differs. A pass that finds no difference writes nothing,
so a restart writes nothing.
"""

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from netloom.kernel import device, reader, rows
from netloom.kernel.backoff import TICK_SECONDS
from netloom.kernel.capability import require_net_admin
from netloom.kernel.desired import Desired
from netloom.kernel.device import Mtu
from netloom.kernel.device_keeper import DeviceKeeper, DeviceOutcome
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.events import EventReader
from netloom.kernel.links import Link
from netloom.kernel.mesh import Carriers, Mesh
from netloom.kernel.netlink import (
    BATCH,
    BUFFER,
    AnswerLost,
    Commands,
    CommandSocket,
    EventSocket,
    Overflow,
    RefusedError,
)
from netloom.kernel.plan import planned_changes
from netloom.kernel.report import PlannedChange, Report
from netloom.kernel.rows import RouteKey
from netloom.kernel.sysctl import SysctlRecord
from netloom.kernel.trouble import Item, Troubles
from netloom.kernel.way import Way
from netloom.kernel.wire import NAMES
from netloom.kernel.writer import Outcome, Writer

log = structlog.get_logger(__name__)

RUN_DIRECTORY = Path("/run/netloom")

COMPARE_SECONDS = 120.0
"""Between full comparisons. At 10,000 peers one costs 0.1 s of CPU time: 0.1 %."""

PROBE_SECONDS = 3.0
"""Between questions to peers that do not answer on their network: as often as the kernel asks when it sends to them.
It does not send, their routes lead elsewhere, and two nodes that a switch kept apart would never meet again."""

ROUNDS = 4
"""Passes in a row: a refusal can show that more was lost than was known. What is left then waits for its back-off."""

EVENTS_AT_ONCE = 4096
"""Datagrams read before others get a turn on the event loop."""

_DEVICE_KINDS = ("link", "address", "sysctl")
_STATE: Item = ("dump", "state of the kernel")
_STATE_DONE = ("dump", ["state of the kernel"])

T = TypeVar("T")


class Dataplane:
    """See the module. Only one in a network namespace: two would remove what the other adds."""

    def __init__(
        self,
        *,
        run_directory: Path = RUN_DIRECTORY,
        compare_seconds: float | None = COMPARE_SECONDS,
        commands: Callable[[], Commands] = CommandSocket,
        event_buffer: int = BUFFER,
        on_report: Callable[[Report], None] | None = None,
        spare_unknown: bool = False,
    ) -> None:
        """`compare_seconds` None: no full comparison but where something demands it. `event_buffer`, in bytes, is for
        tests. `on_report` is called after every pass that wrote or failed; it may not block. `spare_unknown`: the
        first state that is applied may lack peers that live; what an earlier life left in the kernel and no peer
        explains stays until `prune`."""
        self._event_buffer = event_buffer
        self._make_commands = commands
        self._compare_seconds = compare_seconds
        self._on_report = on_report
        self._sparing = spare_unknown
        self._record = SysctlRecord(run_directory / "sysctl.json")
        self._mesh = Mesh()
        self._events = EventReader(self._mesh)
        self._troubles = Troubles()
        self._desired = Desired()
        self._node = self._desired.node
        self._mtu = Mtu()
        self._compared_at = 0.0
        self._probed_at = 0.0
        self._comparisons = 0
        self._reading_seconds = 0.0
        self._device_expected = False
        self._device_waiting: set[Item] = set()
        self._applied = False
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Open the sockets and read what is owned in the kernel. Writes nothing, needs no capability.

        Raises KernelUnsupported.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="netloom-netlink")
        self._commands = self._make_commands()
        self._writer = Writer(self._mesh, self._commands, self._executor)
        self._settling = False
        self._keeper = DeviceKeeper(self._commands, self._record)
        self._listener = self._new_listener()
        self._listen()
        try:
            around = await self._in_thread(lambda: reader.surroundings(self._commands))
            found = [(way, link.ifindex) for link in around.own_links() if (way := _way_of(link))]
            self._mesh.set_carriers(Carriers(dict(found)))
            await self._compare()
        except RefusedError as error:
            await self.close()
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                why = f"this kernel has no nexthop objects (Linux 5.3 or newer is needed): {error.refusal}"
                raise KernelUnsupported(why) from error
            raise

    async def close(self) -> None:
        """Close the sockets. The kernel keeps all that was made."""
        self._ignore()
        self._listener.close()
        self._executor.shutdown()
        self._commands.close()

    async def apply(self, desired: Desired) -> Report:
        """Bring the kernel to this state, which stays in force until the next call.

        The same object again costs what was changed through its methods; another object costs one look-up per peer.
        Entries that fail are named in the report and tried again by `run`. Raises NotPermitted.
        """
        require_net_admin()
        async with self._lock:
            self._take(desired)
            report = await self._settle()
        if self._troubles.next() is not None:
            self._wake.set()  # `run` sleeps, and knows of nothing that it would have to try again
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
                self._events.compare_due = self._events.device_due = True
            async with self._lock:
                await self._settle()
                if self._probe_due() <= time.monotonic():
                    await self._probe()

    async def plan(self, desired: Desired) -> list[PlannedChange]:
        """What `apply` would change, in its order. Writes nothing, needs no capability."""
        async with self._lock:
            return await self._in_thread(lambda: planned_changes(self._commands, desired))

    async def cleanup(self) -> Report:
        """Remove all that is owned, and put the switches back."""
        report = await self.apply(Desired())
        for sysctl in await self._in_thread(self._record.restore):
            log.info("switch restored", sysctl=sysctl.name, value=sysctl.value)
        return report

    @property
    def unknown(self) -> int:
        """Routes from an earlier life that no peer explains, and that are spared."""
        return len(self._mesh.routes.spared)

    async def prune(self) -> None:
        """All peers are known: what none of them explains goes."""
        async with self._lock:
            self._sparing = False
            self._mesh.spare_nothing()
            await self._settle()

    @property
    def tunnels(self) -> tuple[Way, ...]:
        """Those that are ready to receive."""
        return tuple(sorted(self._mesh.carriers.tunnels))

    async def received(self, way: Way) -> int:
        """Packets that the tunnel's device has received since it was made."""
        ifindex = self._mesh.carriers.tunnels.get(way, 0)
        return await self._in_thread(lambda: reader.received(self._commands, ifindex)) if ifindex else 0

    @property
    def report(self) -> Report:
        """The state of things now."""
        return Report(
            peers=len(self._mesh.peers),
            mtu=self._mtu.bytes,
            mtu_source=self._mtu.why,
            underlay=tuple(link.name for link in self._events.underlay),
            tunnels=self.tunnels,
            stranded=tuple(sorted(self._mesh.stranded)) if self._node is None or self._node.strict else (),
            failures=self._troubles.failures,
            conflicts=tuple(self._mesh.conflicts()),
            pending=len(self._mesh.pending()),
            settling=self._settling,
            fought=self._troubles.fought,
            written=self.stats,
            compared=self._comparisons,
            reading_seconds=self._reading_seconds,
            repaired=self._troubles.repaired,
        )

    @property
    def stats(self) -> dict[str, int]:
        """Requests written since `open`, by message type."""
        return {NAMES.get(kind, str(kind)): count for kind, count in sorted(self._commands.written.items())}

    # ------------------------------------------------------------------------------------------------- one pass

    def _take(self, desired: Desired) -> None:
        """Make this the desired state."""
        touched = desired.take_touched()
        if desired.node is not None:
            known = self._mesh.carriers
            node = desired.node
            self._mesh.set_carriers(msgspec.structs.replace(known, vni=node.vni, ipv6=node.ipv6, strict=node.strict))
        if desired is not self._desired or not self._applied:
            self._desired, self._applied = desired, True
            self._mesh.replace_peers(desired)
            if self._sparing:
                self._spare(self._mesh.routes.kernel)
            self._troubles.clear()
            self._events.device_due = self._device_expected = True
            touched.clear()
        for name in touched:
            self._troubles.forget(self._mesh.items_of(name))
            peer = desired.peers.get(name)
            if peer is None:
                self._mesh.remove_peer(name)
            else:
                self._mesh.set_peer(peer)
            self._troubles.forget(self._mesh.items_of(name))
        if desired.node != self._node:
            self._node = self._events.node = desired.node
            self._events.device_due = self._device_expected = True
            self._troubles.clear()

    def _spare(self, among: Collection[RouteKey]) -> None:
        self._mesh.spare_unknown(among, self._desired.node.addresses if self._desired.node else ())

    async def _settle(self) -> Report:
        """Passes until nothing is left that can be done now."""
        written, failures = sum(self._commands.written.values()), self._troubles.failures
        self._settling = True
        try:
            await self._passes()
        finally:
            self._settling = False
        self._troubles.keep([*self._mesh.pending(), _STATE], _DEVICE_KINDS)
        report = self.report
        changed = written != sum(self._commands.written.values()) or failures != report.failures
        if changed and self._on_report is not None:
            self._on_report(report)
        return report

    async def _passes(self) -> None:
        self._troubles.begin()
        if self._device_waiting - self._troubles.held() or self._troubles.due(_DEVICE_KINDS):
            self._events.device_due = True
        if self._troubles.due([_STATE[0]]):
            self._events.compare_due = self._events.device_due = True
        for _ in range(ROUNDS):
            self._drain()
            try:
                await self._pass()
                self._troubles.written(*_STATE_DONE)
            except (AnswerLost, OSError) as error:
                # What the kernel holds is unknown until it has been read.
                self._troubles.refused(_STATE, str(error), "")
                self._events.compare_due = self._events.device_due = True
                break
            if not self._due():
                self._sparing = self._sparing and bool(self.unknown)
                break

    def _due(self) -> bool:
        reach = self._mesh.reach
        return bool(self._events.compare_due or self._events.device_due or reach.due or reach.changed)

    async def _pass(self) -> None:
        """The devices, then the rows on them, then what is no longer needed below them."""
        events, held, prepared = self._events, self._troubles.held(), None
        if events.device_due:
            events.device_due = False
            outgoing = self._mesh.reach.outgoing
            prepared = await self._in_thread(lambda: self._keeper.prepare(self._node, outgoing, held))
            self._note_prepared(prepared)
        if self._mesh.natives:
            await self._look_up()
        self._mesh.reached(self._mesh.reach.take_changed())
        if events.compare_due:
            events.compare_due = False
            await self._compare()
        if self._sparing:
            self._spare(self._mesh.routes.spared)
        self._note_rows(await self._writer.write(held))
        # Where all go through tunnels, the way to a peer decides nothing but the MTU, and rows need not wait for it.
        await self._look_up()
        if prepared is not None:
            outcomes = [prepared]
            if prepared.teardown_due:
                outcomes.append(await self._in_thread(lambda: self._keeper.tear_down(self._node, held)))
                self._note_device(outcomes[-1])
            self._device_waiting = {item for outcome in outcomes for item in outcome.waiting}
            refused = {item for outcome in outcomes for item, _, _ in outcome.refused}
            self._troubles.settled(_DEVICE_KINDS, self._device_waiting | refused)

    async def _look_up(self) -> None:
        """Ask the kernel which way packets go to the peers about which that is not known (any more)."""
        reach = self._mesh.reach
        if not reach.due:
            return
        addresses = list(reach.due)
        reach.answered_all(await self._in_thread(lambda: reader.hops(self._commands, addresses)))
        if reach.outgoing != {link.ifindex for link in self._events.underlay}:
            self._events.device_due = self._device_expected = True

    async def _probe(self) -> None:
        """Ask again for peers that did not answer; if one does now, an event says so."""
        self._probed_at = time.monotonic()
        silent = self._mesh.reach.silent
        for at in range(0, len(silent), BATCH):
            part = [rows.probe_neighbour(number, *each) for number, each in enumerate(silent[at : at + BATCH])]
            with contextlib.suppress(AnswerLost):
                await self._in_thread(lambda part=part: self._commands.execute(part))  # type: ignore[misc]

    def _probe_due(self) -> float:
        """When (monotonic)."""
        return self._probed_at + PROBE_SECONDS if self._mesh.natives and self._mesh.reach.silent else float("inf")

    async def _compare(self) -> None:
        """Read all that is owned in the kernel. Events wait meanwhile: an event must not be overwritten by a reading
        that is older."""
        self._ignore()
        try:
            ifindexes, began = list(self._mesh.carriers.tunnels.values()), time.monotonic()
            nexthops = await self._in_thread(lambda: reader.nexthops(self._commands))
            neighbours = await self._in_thread(lambda: reader.neighbours(self._commands, ifindexes))
            routes = await self._in_thread(lambda: reader.routes(self._commands))
            self._reading_seconds += time.monotonic() - began
            known = set(self._mesh.pending())
            self._mesh.load(nexthops, neighbours, routes)
            for item in self._mesh.pending():
                if self._applied and item not in known:
                    self._troubles.drifted(item, alone=False)
            self._compared_at = time.monotonic()
            self._comparisons += 1
        finally:
            self._listen()

    def _note_rows(self, outcome: Outcome) -> None:
        for kind, keys in outcome.written:
            self._troubles.written(kind, keys)
        for refused in outcome.refused:
            peer = self._mesh.peer_of(refused.kind, refused.key)
            item = (refused.kind, refused.key)
            if self._troubles.refused(item, str(refused.refusal), peer, refused.refusal.errno):
                self._events.compare_due = True  # what is known of the kernel may be wrong

    def _note_prepared(self, outcome: DeviceOutcome) -> None:
        drift = not self._device_expected
        self._device_expected = False
        self._note_device(outcome, drift=drift)
        self._mtu, self._events.underlay = outcome.mtu, outcome.underlay
        if outcome.flushed or outcome.carriers.tunnels != self._mesh.carriers.tunnels:
            self._events.compare_due = True
        self._mesh.reach.stopped_are(outcome.stopped)
        self._mesh.set_carriers(outcome.carriers)

    def _note_device(self, outcome: DeviceOutcome, *, drift: bool = False) -> None:
        for kind, key in dict.fromkeys(outcome.done):
            if drift:
                self._troubles.drifted((kind, key))
            self._troubles.written(kind, [key])
        for item, refusal, explanation in outcome.refused:
            self._troubles.refused(item, explanation, "", refusal.errno)

    # --------------------------------------------------------------------------------------------------- events

    def _new_listener(self) -> EventSocket:
        return EventSocket(deaf_to=self._commands.port, buffer=self._event_buffer)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_readable)

    def _ignore(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _on_readable(self) -> None:
        self._drain()
        self._wake.set()

    def _drain(self) -> None:
        """Take in the events that have arrived."""
        events = self._events
        try:
            for _ in range(EVENTS_AT_ONCE):
                buffer = self._listener.receive()
                if buffer is None:
                    break
                events.feed(buffer)
        except Overflow:
            log.warning("the kernel dropped events: comparing everything")
            self._ignore()
            self._listener.close()
            self._listener = self._new_listener()
            self._listen()
            events.compare_due = events.device_due = True
        events.flush()
        touched, events.touched = events.touched, []
        for item in touched:
            if self._mesh.is_pending(*item):
                self._troubles.drifted(item, alone=not events.compare_due)

    def _idle_seconds(self) -> float | None:
        """Until something has to be done without an event."""
        now = time.monotonic()
        due = [self._compared_at + self._compare_seconds] if self._compare_seconds is not None else []
        due.append(self._probe_due())
        retry = self._troubles.next()
        if retry is not None:
            due.append(retry)
        first = min(due)
        return max(TICK_SECONDS, first - now) if first != float("inf") else None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The kernel takes a lock that others may hold for seconds; the event loop must not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _way_of(link: Link) -> Way | None:
    """The tunnel that this device of our name can serve as it is; None if none."""
    if link.kind not in ("vxlan", "geneve") or not link.up:
        return None
    way = Way("vxlan" if link.kind == "vxlan" else "geneve", link.port)
    return way if link.name == way.device and not device.unfit(link, way) else None
