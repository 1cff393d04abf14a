"""Writes the pending rows of a mesh to the kernel, in batches, in the order that keeps traffic whole.

First what routes stand on (neighbours, nexthops), then routes; then what is no longer wanted, the other way round.
All batches are encoded one after the other while a thread hands them to the kernel, which keeps their order: the
kernel works on one while the next is made.

A table is brought up to date *before* its batch is sent, and put back for what the kernel refuses: an event that is
read while the batch is under way is then never overwritten by older knowledge.
"""

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from netloom.kernel.keeper.part import Attempt, Outcome, Refused, Worker
from netloom.kernel.keeper.table import Table
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.row_messages import encode_neighbours, encode_nexthops, encode_routes
from netloom.kernel.mesh.rows import BEHIND, RouteKey
from netloom.kernel.netlink.sockets import BATCH, Refusal

ALREADY_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}
"""What the kernel says to the deletion of something that is not there."""

Write = tuple[Any, Any, Any]
"""(key, value, what the kernel held before); a value of None deletes."""


class _Batch(msgspec.Struct):
    kind: str
    writes: Sequence[Write]
    answer: asyncio.Future[dict[int, Refusal]]


_ENCODERS: dict[str, Callable[[Sequence[Write]], list[bytes]]] = {
    "neighbour": encode_neighbours,
    "nexthop": encode_nexthops,
    "route": encode_routes,
}


class TableWriter:
    """Sends what is pending in tables that stand on nothing."""

    def __init__(
        self, tables: Mapping[str, Table[Any, Any]], encoders: Mapping[str, Callable[[Sequence[Write]], list[bytes]]]
    ) -> None:
        """Both by kind; deletions are sent in the reverse order of kinds."""
        self._tables = tables
        self._encoders = encoders

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send all that is missing or different and not held back. Raises AnswerLost."""
        batches = list[_Batch]()
        for kind, table in self._tables.items():
            if table.pending:
                self._send(worker, attempt, kind, table.updates(), batches)
        return await self._outcome(batches)

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send the deletion of all that is not wanted and not held back. Raises AnswerLost."""
        batches: list[_Batch] = []
        for kind in reversed(tuple(self._tables)):
            if self._tables[kind].pending:
                self._send(worker, attempt, kind, self._tables[kind].deletions(), batches)
        return await self._outcome(batches)

    def _send(
        self, worker: Worker, attempt: Attempt, kind: str, writes: Sequence[Write], batches: list[_Batch]
    ) -> None:
        if attempt.held:
            writes = [write for write in writes if (kind, write[0]) not in attempt.held]
        self._tables[kind].assume(writes)
        for at in range(0, len(writes), BATCH):
            part = writes[at : at + BATCH]
            batches.append(_Batch(kind, part, worker.submit(self._encoders[kind](part))))

    async def _outcome(self, batches: Sequence[_Batch]) -> Outcome:
        """Wait for all answers, and correct the tables by what was refused."""
        outcome = Outcome()
        if not batches:
            return outcome  # `gather` of nothing waits for a turn of the event loop
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
        table = self._tables[batch.kind]
        for sequence, (key, value, before) in enumerate(batch.writes):
            refusal = refusals.get(sequence)
            if refusal is None or (value is None and refusal.errno in ALREADY_GONE):
                written.append(key)
                continue
            if before is None:
                table.gone(key)
            else:
                table.saw(key, before)
            if not self._waits(batch.kind, value):
                peer = self._peer_of(batch.kind, key)
                outcome.refused.append(Refused((batch.kind, key), str(refusal), refusal.errno, peer))
        outcome.written.append((batch.kind, written))

    def _waits(self, kind: str, value: Any) -> bool:
        """Whether what was refused stands on something that was refused in the same go: no failure of its own."""
        return False

    def _peer_of(self, kind: str, key: Any) -> str:
        return ""


class Writer(TableWriter):
    """Sends what is pending in the tables of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__({kind: mesh.tables[kind] for kind in ("neighbour", "nexthop", "route")}, _ENCODERS)
        self._mesh = mesh
        self.appended = False
        """In the last update a route came behind somebody else's and ours that was there, which is still to go."""

    async def delete_routes(self, worker: Worker, keys: Sequence[RouteKey]) -> None:
        """Send the deletion of these, whether wanted or not. Raises AnswerLost."""
        routes = self._mesh.routes
        writes: list[Write] = [(key, None, routes.kernel[key]) for key in keys]
        routes.assume(writes)
        for at in range(0, len(writes), BATCH):
            part = writes[at : at + BATCH]
            answer = await worker.submit(encode_routes(part))
            self._correct(_Batch("route", part, asyncio.Future()), answer, Outcome())

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send all that is missing or different and not held back. Raises AnswerLost."""
        mesh, batches = self._mesh, list[_Batch]()
        self._send(worker, attempt, "neighbour", mesh.neighbours.updates(), batches)
        self._send(worker, attempt, "nexthop", mesh.nexthops.updates(), batches)
        # A route cannot stand on a nexthop that has to wait.
        routes = [write for write in mesh.routes.updates() if write[1].nexthop in mesh.nexthops.kernel]
        behind = {key for key, _, before in routes if before is not None and mesh.rivals.in_front(key)}
        self.appended = bool(behind)
        if behind:
            routes = [(key, value, BEHIND if key in behind else before) for key, value, before in routes]
        self._send(worker, attempt, "route", routes, batches)
        return await self._outcome(batches)

    def _waits(self, kind: str, value: Any) -> bool:
        return kind == "route" and value is not None and value.nexthop not in self._mesh.nexthops.kernel

    def _peer_of(self, kind: str, key: Any) -> str:
        return self._mesh.peer_of(kind, key)
