"""The unreachable routes as a part: the last below all that leads somewhere, and the last to go.

They are read, and heard of, with the mesh's routes (one dump serves both), and written after them: where a peer loses
its way, what ends packets to it is there before the way is removed, and where it gets one, until that is there.
"""

from collections.abc import Iterable

from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.keeper.table_writer import TableWriter
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.row_messages import encode_holes
from netloom.kernel.mesh.rows_part import MESH_STATE
from netloom.kernel.ownership import HOLES


class MeshHoles(Part[Desired]):
    """See the module. `mesh.holes` is the table; the mesh's rows are told what is wanted before, and read for both."""

    owns = HOLES
    state = MESH_STATE
    groups = ()
    kinds = frozenset()
    due = False

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._holes = mesh.holes
        self._writer = TableWriter({"route": mesh.holes.table}, {"route": encode_holes})

    def want(self, desired: Desired, retries: Retries) -> None:
        """The mesh has taken it over."""

    def pending(self) -> Iterable[Item]:
        """All that differs from the kernel."""
        return [("route", hole) for hole in self._holes.table.pending]

    def count_pending(self) -> int:
        """Without a walk over them."""
        return self._writer.unanswered + len(self._holes.table.pending)

    def doubt(self) -> None:
        """The mesh's rows are told the same, and read these along with their own."""

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Write what is missing or different."""
        mesh = self._mesh
        self._holes.leave_to_network(bool(mesh.unreachable) and not mesh.device_state.strict)
        self._holes.bring_up_to_date()
        return await self._writer.update(worker, attempt) if self._holes.table.pending else Outcome()

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Delete what is not wanted."""
        return await self._writer.remove(worker, attempt) if self._holes.table.pending else Outcome()

    def later(self) -> float:
        """When CIDRs that peers gave up are to be forgotten."""
        return self._holes.later()

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """The mesh's rows hear of routes, and tell the table."""

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Those that somebody changed."""
        holes = self._holes
        if holes.touched or holes.found:
            touched, found = holes.touched & holes.table.pending, holes.found & holes.table.pending
            holes.touched, holes.found = set(), set()
            yield from ((("route", hole), True) for hole in touched)
            yield from ((("route", hole), False) for hole in found - touched)
