"""Sends what is pending on the host ends. What stands on one that is down or gone waits for it."""

from collections.abc import Callable
from typing import Any

from netloom.kernel.endpoints import row_messages
from netloom.kernel.endpoints.rows import Rows, index_of
from netloom.kernel.keeper.part import Attempt, Worker
from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.table_writer import TableWriter
from netloom.kernel.netlink.neighbours import encode_neighbours


class RowWriter(TableWriter):
    """See the module. stands: whether there is a host end of that ifindex that is up. whose: the pod of a row."""

    def __init__(self, rows: Rows, stands: Callable[[int], bool], whose: Callable[[Item], str]) -> None:
        encoders = {
            "address": row_messages.encode_addresses,
            "neighbour": encode_neighbours,
            "route": row_messages.encode_routes,
        }
        super().__init__(rows.tables, encoders)
        self._stands = stands
        self._whose = whose

    async def _send(self, worker: Worker, attempt: Attempt, kind: str, writes: Any, batches: Any) -> None:
        ready = [write for write in writes if write[1] is None or self._stands(index_of(write[0]))]
        await super()._send(worker, attempt, kind, ready, batches)

    def _peer_of(self, kind: str, key: Any) -> str:
        return self._whose((kind, key))
