"""Writes the pending rows of a mesh to the kernel, in batches, in the order that keeps traffic whole.

First what routes stand on (neighbours, nexthops), then routes; then what is no longer wanted, the other way round.
A table is brought up to date *before* its batch is sent, and put back for what the kernel refuses: an event that is
read while the batch is under way is then never overwritten by older knowledge.
"""

import asyncio
import errno
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec

from netloom.kernel.mesh import Mesh
from netloom.kernel.netlink import BATCH, Commands, Refusal
from netloom.kernel.rows import NeighbourMessages, NexthopMessages, RouteMessages
from netloom.kernel.table import Table

ALREADY_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}
"""What the kernel says to the deletion of something that is not there."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One write. `value` None deletes; `before` is what the kernel held, None for nothing."""

    key: Hashable
    value: Any
    before: Any


class Refused(msgspec.Struct, frozen=True):
    """An entry that the kernel would not take."""

    kind: str
    key: Hashable
    refusal: Refusal


class Outcome(msgspec.Struct):
    """What was written and what was refused."""

    written: list[tuple[str, Hashable]] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)


Encode = Callable[[int, Entry], bytes]


class Writer:
    """Sends what is pending. `executor` is one thread: the kernel's lock may be held by others for seconds."""

    def __init__(self, mesh: Mesh, commands: Commands, executor: Executor) -> None:
        self._mesh = mesh
        self._commands = commands
        self._executor = executor
        self._routes = RouteMessages()
        self._nexthops = NexthopMessages()
        self._neighbours = NeighbourMessages()

    async def write(self, held: set[Hashable]) -> Outcome:
        """Send all that is pending and not held back. Raises AnswerLost."""
        mesh, outcome = self._mesh, Outcome()
        await self._send("neighbour", mesh.neighbours, _updates(mesh.neighbours, "neighbour", held), outcome)
        await self._send("nexthop", mesh.nexthops, _updates(mesh.nexthops, "nexthop", held), outcome)
        there = mesh.nexthops.kernel
        routes = [entry for entry in _updates(mesh.routes, "route", held) if entry.value in there]
        await self._send("route", mesh.routes, routes, outcome)
        await self._send("route", mesh.routes, _deletions(mesh.routes, "route", held), outcome)
        await self._send("nexthop", mesh.nexthops, _deletions(mesh.nexthops, "nexthop", held), outcome)
        await self._send("neighbour", mesh.neighbours, _deletions(mesh.neighbours, "neighbour", held), outcome)
        return outcome

    async def _send(self, kind: str, table: Table[Any, Any], entries: Sequence[Entry], outcome: Outcome) -> None:
        """Encode batch by batch; while the kernel works on one, the next is encoded."""
        loop = asyncio.get_running_loop()
        encode = self._encoder(kind)
        under_way: list[tuple[Sequence[Entry], asyncio.Future[dict[int, Refusal]]]] = []
        for at in range(0, len(entries), BATCH):
            batch = entries[at : at + BATCH]
            messages = [encode(sequence, entry) for sequence, entry in enumerate(batch)]
            for entry in batch:
                _assume(table, entry)
            under_way.append((batch, loop.run_in_executor(self._executor, self._commands.execute, messages)))
        results = await asyncio.gather(*(future for _, future in under_way), return_exceptions=True)
        lost: BaseException | None = None
        for (batch, _), refusals in zip(under_way, results, strict=True):
            if isinstance(refusals, BaseException):
                lost = refusals
                continue
            self._settle(kind, table, batch, refusals, outcome)
        if lost is not None:
            raise lost

    def _settle(
        self, kind: str, table: Table[Any, Any], batch: Sequence[Entry], refusals: dict[int, Refusal], outcome: Outcome
    ) -> None:
        if not refusals:
            outcome.written.extend([(kind, entry.key) for entry in batch])
            return
        for sequence, entry in enumerate(batch):
            refusal = refusals.get(sequence)
            if refusal is None or (entry.value is None and refusal.errno in ALREADY_GONE):
                outcome.written.append((kind, entry.key))
                continue
            if entry.before is None:
                table.gone(entry.key)
            else:
                table.saw(entry.key, entry.before)
            outcome.refused.append(Refused(kind, entry.key, refusal))

    def _encoder(self, kind: str) -> Encode:
        ifindex = self._mesh.carrier.ifindex
        if kind == "neighbour":
            neighbours = self._neighbours
            return lambda sequence, entry: (
                neighbours.delete(sequence, ifindex, entry.key)  # type: ignore[arg-type]
                if entry.value is None
                else neighbours.put(sequence, ifindex, entry.key, entry.value)  # type: ignore[arg-type]
            )
        messages: Any = self._routes if kind == "route" else self._nexthops
        return lambda sequence, entry: (
            messages.delete(sequence, entry.key)
            if entry.value is None
            else messages.put(sequence, entry.key, entry.value, replace=entry.before is not None)
        )


def _assume(table: Table[Any, Any], entry: Entry) -> None:
    if entry.value is None:
        table.gone(entry.key)
    else:
        table.saw(entry.key, entry.value)


def _updates(table: Table[Any, Any], kind: str, held: set[Hashable]) -> list[Entry]:
    entries = [Entry(key, value, before) for key, value, before in table.updates()]
    return [entry for entry in entries if (kind, entry.key) not in held] if held else entries


def _deletions(table: Table[Any, Any], kind: str, held: set[Hashable]) -> list[Entry]:
    entries = [Entry(key, None, value) for key, value in table.deletions()]
    return [entry for entry in entries if (kind, entry.key) not in held] if held else entries
