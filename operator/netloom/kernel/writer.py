"""Writes the pending rows of a mesh to the kernel, in batches, in the order that keeps traffic whole.

First what routes stand on (neighbours, nexthops), then routes; then what is no longer wanted, the other way round.
All batches are encoded one after the other while a thread hands them to the kernel, which keeps their order: the
kernel works on one while the next is made.

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
from netloom.kernel.row_requests import encode_neighbours, encode_nexthops, encode_routes
from netloom.kernel.table import Table

ALREADY_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}
"""What the kernel says to the deletion of something that is not there."""

Write = tuple[Any, Any, Any]
"""(key, value, what the kernel held before); a value of None deletes."""


class Refused(msgspec.Struct, frozen=True):
    """An entry that the kernel would not take."""

    kind: str
    key: Hashable
    refusal: Refusal


class Outcome(msgspec.Struct):
    """What was written, batch by batch, and what was refused."""

    written: list[tuple[str, Sequence[Hashable]]] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)


class _Batch(msgspec.Struct):
    kind: str
    table: Table[Any, Any]
    writes: Sequence[Write]
    answer: asyncio.Future[dict[int, Refusal]]


class Writer:
    """Sends what is pending. `executor` is one thread: the kernel's lock may be held by others for seconds."""

    def __init__(self, mesh: Mesh, commands: Commands, executor: Executor) -> None:
        self._mesh = mesh
        self._commands = commands
        self._executor = executor
        self._encoders: dict[str, Callable[[Sequence[Write]], list[bytes]]] = {
            "neighbour": encode_neighbours,
            "nexthop": encode_nexthops,
            "route": encode_routes,
        }

    async def write(self, held: set[Hashable]) -> Outcome:
        """Send all that is pending and not held back. Raises AnswerLost."""
        mesh = self._mesh
        batches: list[_Batch] = []
        for kind, table in (("neighbour", mesh.neighbours), ("nexthop", mesh.nexthops)):
            self._send(kind, table, _allowed(kind, table.updates(), held), batches)
        # A route cannot stand on a nexthop that has to wait.
        routes = [write for write in mesh.routes.updates() if write[1].nexthop in mesh.nexthops.kernel]
        self._send("route", mesh.routes, _allowed("route", routes, held), batches)
        self._send("route", mesh.routes, _allowed("route", mesh.routes.deletions(), held), batches)
        for kind, table in (("nexthop", mesh.nexthops), ("neighbour", mesh.neighbours)):
            self._send(kind, table, _allowed(kind, table.deletions(), held), batches)
        return await self._settle(batches)

    def _send(self, kind: str, table: Table[Any, Any], writes: Sequence[Write], batches: list[_Batch]) -> None:
        loop = asyncio.get_running_loop()
        table.assume(writes)
        for at in range(0, len(writes), BATCH):
            part = writes[at : at + BATCH]
            answer = loop.run_in_executor(self._executor, self._commands.execute, self._encoders[kind](part))
            batches.append(_Batch(kind, table, part, answer))

    async def _settle(self, batches: Sequence[_Batch]) -> Outcome:
        """Wait for all answers, and correct the tables by what was refused."""
        outcome = Outcome()
        answers = await asyncio.gather(*[batch.answer for batch in batches], return_exceptions=True)
        lost = None
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, BaseException):
                lost = answer
            elif answer:
                self._correct(batch, answer, outcome)
            else:
                outcome.written.append((batch.kind, [key for key, _, _ in batch.writes]))
        if lost is not None:
            raise lost
        return outcome

    def _correct(self, batch: _Batch, refusals: dict[int, Refusal], outcome: Outcome) -> None:
        written = []
        for sequence, (key, value, before) in enumerate(batch.writes):
            refusal = refusals.get(sequence)
            if refusal is None or (value is None and refusal.errno in ALREADY_GONE):
                written.append(key)
                continue
            if before is None:
                batch.table.gone(key)
            else:
                batch.table.saw(key, before)
            # A route whose nexthop was refused in the same go is not a failure of its own: it waits.
            if batch.kind != "route" or value is None or value.nexthop in self._mesh.nexthops.kernel:
                outcome.refused.append(Refused(batch.kind, key, refusal))
        outcome.written.append((batch.kind, written))


def _allowed(kind: str, writes: Sequence[Write], held: set[Hashable]) -> Sequence[Write]:
    return [write for write in writes if (kind, write[0]) not in held] if held else writes
