"""The unreachable routes as a part: the last below all that leads somewhere, and the last to go.

They are read with the mesh's routes, in one dump, and written after them: where a peer loses its way, what ends packets
to it is there before the way is removed, and where it gets one, until that is there.
"""

from collections.abc import Iterable

from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.holes import Hole, hole_of
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.row_messages import encode_holes, read_own_route
from netloom.kernel.mesh.rows_part import MESH_STATE
from netloom.kernel.mesh.writer import TableWriter
from netloom.kernel.netlink.wire import RTM_DELROUTE, RTM_NEWROUTE
from netloom.kernel.ownership import HOLES


class MeshHoles(Part[Desired]):
    """See the module. `mesh.holes` is the table; the mesh's rows are told what is wanted before, and read for both."""

    owns = HOLES
    state = MESH_STATE
    groups = ("ipv4-route", "ipv6-route")
    kinds = frozenset((RTM_NEWROUTE, RTM_DELROUTE))
    due = False

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._holes = mesh.holes
        self._touched: set[Hole] = set()
        self._writer = TableWriter({"route": mesh.holes.table}, {"route": encode_holes})

    def want(self, desired: Desired, retries: Retries) -> None:
        """The mesh has taken it over."""

    def pending(self) -> Iterable[Item]:
        """All that differs from the kernel."""
        return [("route", hole) for hole in self._holes.table.pending]

    def count_pending(self) -> int:
        """Without a walk over them."""
        return len(self._holes.table.pending)

    def doubt(self) -> None:
        """The mesh's rows are told the same, and read these along with their own."""

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Write what is missing or different."""
        mesh = self._mesh
        self._holes.leave_to_network(bool(mesh.unreachable) and not mesh.device_state.strict)
        self._holes.bring_up_to_date()
        return await self._writer.update(worker, attempt)

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Delete what is not wanted."""
        return await self._writer.remove(worker, attempt)

    def later(self) -> float:
        """When CIDRs that peers gave up are to be forgotten."""
        return self._holes.later()

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event about a route."""
        seen = read_own_route(buffer, start, end)
        hole = hole_of(seen) if seen is not None else None
        if seen is None or hole is None:
            return
        if kind == RTM_DELROUTE:
            self._holes.table.gone(hole)
        else:
            self._holes.table.saw(hole, seen.content)
        self._touched.add(hole)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Those that somebody changed."""
        touched, self._touched = self._touched & self._holes.table.pending, set()
        found, self._holes.found = self._holes.found & self._holes.table.pending, set()
        for hole in touched:
            yield ("route", hole), True
        for hole in found - touched:
            yield ("route", hole), False
