"""Writes what is pending in tables to the kernel, in batches.

Batches are encoded one after the other while a thread hands them to the kernel, which keeps their order: the kernel
works on one while the next is made.

A table is brought up to date *before* its batch is sent, and put back for what the kernel refuses: an event that is
read while the batch is under way is then never overwritten by older knowledge.
"""

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from netloom.kernel.keeper.part import Attempt, Outcome, RefusedEntry, Worker
from netloom.kernel.keeper.table import Table
from netloom.kernel.netlink.sockets import BATCH, KernelRefusal

ALREADY_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}
"""What the kernel says to the deletion of something that is not there."""

AHEAD = 2
"""Batches that may be under way at once: all of them, of 5,000 peers, would be 1 MiB, which a process keeps."""

Write = tuple[Any, Any, Any]
"""(key, value, what the kernel held before); a value of None deletes."""


class Batch(msgspec.Struct):
    """Writes of one kind that are under way. Once all of them are known to be done, their keys are all that is kept."""

    kind: str
    writes: Sequence[Write]
    answer: asyncio.Future[dict[int, KernelRefusal]]
    done: list[Any] | None = None

    def settle(self) -> None:
        """It has been answered."""
        if self.done is None and self.answer.exception() is None and not self.answer.result():
            self.done, self.writes = [key for key, _, _ in self.writes], ()


class TableWriter:
    """Sends what is pending in tables that stand on nothing."""

    def __init__(
        self, tables: Mapping[str, Table[Any, Any]], encoders: Mapping[str, Callable[[Sequence[Write]], list[bytes]]]
    ) -> None:
        """Both by kind; deletions are sent in the reverse order of kinds."""
        self._tables = tables
        self._encoders = encoders
        self._under_way: list[Batch] = []

    @property
    def unanswered(self) -> int:
        """Entries that were sent, which the tables take for done: the kernel has not answered yet."""
        return sum(len(batch.writes) for batch in self._under_way if not batch.answer.done())

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send all that is missing or different and not delayed. Raises AnswerLost."""
        batches = list[Batch]()
        for kind, table in self._tables.items():
            if table.pending:
                await self._send(worker, attempt, kind, table.updates(), batches)
        return await self._outcome(batches)

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send the deletion of all that is not wanted and not delayed. Raises AnswerLost."""
        batches: list[Batch] = []
        for kind in reversed(tuple(self._tables)):
            if self._tables[kind].pending:
                await self._send(worker, attempt, kind, self._tables[kind].deletions(), batches)
        return await self._outcome(batches)

    async def _send(
        self, worker: Worker, attempt: Attempt, kind: str, writes: Sequence[Write], batches: list[Batch]
    ) -> None:
        if attempt.delayed:
            writes = [write for write in writes if (kind, write[0]) not in attempt.delayed]
        for at in range(0, len(writes), BATCH):
            part = writes[at : at + BATCH]
            if len(batches) >= AHEAD:
                if not batches[-AHEAD].answer.done():
                    await asyncio.wait([batches[-AHEAD].answer])
                batches[-AHEAD].settle()
            self._tables[kind].assume(part)
            batches.append(Batch(kind, part, worker.submit(self._encoders[kind](part))))
            self._under_way = batches

    async def _outcome(self, batches: Sequence[Batch]) -> Outcome:
        """Wait for all answers, and correct the tables by what was refused."""
        outcome = Outcome()
        if not batches:
            return outcome  # `gather` of nothing waits for a turn of the event loop
        answers = await asyncio.gather(*[batch.answer for batch in batches], return_exceptions=True)
        self._under_way, lost = [], None
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, BaseException):
                lost = answer
                continue
            batch.settle()
            if batch.done is None:
                self._correct(batch, answer, outcome)
            else:
                outcome.written.append((batch.kind, batch.done))
        if lost is not None:
            raise lost
        return outcome

    def _correct(self, batch: Batch, refusals: dict[int, KernelRefusal], outcome: Outcome) -> None:
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
                outcome.refused.append(RefusedEntry((batch.kind, key), str(refusal), refusal.errno, peer))
        outcome.written.append((batch.kind, written))

    def _waits(self, kind: str, value: Any) -> bool:
        """Whether what was refused stands on something that was refused in the same go: no failure of its own."""
        return False

    def _peer_of(self, kind: str, key: Any) -> str:
        return ""
