"""Few batches are under way at once, and what has not been sent is still pending."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from netloom.kernel.keeper.part import Attempt
from netloom.kernel.keeper.table import Table
from netloom.kernel.keeper.table_writer import AHEAD, TableWriter, Write
from netloom.kernel.netlink.sockets import BATCH, KernelRefusal


class SlowWorker:
    """A kernel that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[dict[int, KernelRefusal]]] = []

    def submit(self, _messages: Sequence[bytes]) -> asyncio.Future[dict[int, KernelRefusal]]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


def encode(writes: Sequence[Write]) -> list[bytes]:
    return [b"" for _ in writes]


async def until_asked(worker: SlowWorker, times: int) -> None:
    async with asyncio.timeout(10):
        while len(worker.asked) < times:
            await asyncio.sleep(0)
    for _ in range(10):  # it would ask for more now, if it did
        await asyncio.sleep(0)
    assert len(worker.asked) == times


async def test_a_batch_is_made_when_the_kernel_has_done_an_earlier_one() -> None:
    table, worker = Table[int, int](), SlowWorker()
    count = (AHEAD + 2) * BATCH
    table.want_all(dict.fromkeys(range(count), 1))
    writer = TableWriter({"row": table}, {"row": encode})
    update = asyncio.create_task(writer.update(worker, Attempt()))  # type: ignore[arg-type]
    await until_asked(worker, AHEAD)
    assert (writer.unanswered, len(table.pending)) == (AHEAD * BATCH, 2 * BATCH)
    worker.asked[0].set_result({})
    await until_asked(worker, AHEAD + 1)
    assert (writer.unanswered, len(table.pending)) == (AHEAD * BATCH, BATCH)
    worker.asked[1].set_result({7: KernelRefusal(1)})
    await until_asked(worker, AHEAD + 2)
    for answer in worker.asked[2:]:
        answer.set_result({})
    outcome = await update
    refused = BATCH + 7
    assert [each.item for each in outcome.refused] == [("row", refused)]
    assert table.pending == {refused}
    assert writer.unanswered == 0
    written = [key for _, keys in outcome.written for key in keys]
    assert written == [key for key in range(count) if key != refused]


async def test_what_is_not_sent_any_more_is_still_pending() -> None:
    table, worker = Table[int, int](), SlowWorker()
    table.want_all(dict.fromkeys(range((AHEAD + 1) * BATCH), 1))
    update = asyncio.create_task(TableWriter({"row": table}, {"row": encode}).update(worker, Attempt()))  # type: ignore[arg-type]
    await until_asked(worker, AHEAD)
    update.cancel()
    with suppress(asyncio.CancelledError):
        await update
    assert table.pending == set(range(AHEAD * BATCH, (AHEAD + 1) * BATCH))
