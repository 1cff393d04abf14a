"""Writes the pending rows of a mesh to the kernel, in batches, in the order that keeps traffic whole.

First what routes stand on (neighbours, nexthops), then routes; then what is no longer wanted, the other way round.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from netloom.kernel.keeper.part import Attempt, Outcome, Worker
from netloom.kernel.keeper.table_writer import Batch, TableWriter, Write
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.row_messages import encode_nexthops, encode_routes
from netloom.kernel.mesh.rows import BEHIND, RouteKey
from netloom.kernel.netlink.neighbours import encode_neighbours
from netloom.kernel.netlink.sockets import BATCH

_ENCODERS: dict[str, Callable[[Sequence[Write]], list[bytes]]] = {
    "neighbour": encode_neighbours,
    "nexthop": encode_nexthops,
    "route": encode_routes,
}


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
            self._correct(Batch("route", part, asyncio.Future()), answer, Outcome())

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Send all that is missing or different and not delayed. Raises AnswerLost."""
        mesh, batches = self._mesh, list[Batch]()
        await self._send(worker, attempt, "neighbour", mesh.neighbours.updates(), batches)
        await self._send(worker, attempt, "nexthop", mesh.nexthops.updates(), batches)
        # A route cannot stand on a nexthop that has to wait.
        routes = [write for write in mesh.routes.updates() if write[1].nexthop in mesh.nexthops.kernel]
        behind = {key for key, _, before in routes if before is not None and mesh.rivals.in_front(key)}
        self.appended = bool(behind)
        if behind:
            routes = [(key, value, BEHIND if key in behind else before) for key, value, before in routes]
        await self._send(worker, attempt, "route", routes, batches)
        return await self._outcome(batches)

    def _waits(self, kind: str, value: Any) -> bool:
        return kind == "route" and value is not None and value.nexthop not in self._mesh.nexthops.kernel

    def _peer_of(self, kind: str, key: Any) -> str:
        return self._mesh.peer_of(kind, key)
