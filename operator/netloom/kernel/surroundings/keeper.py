"""What surrounds the data path on a node, under a keeper of its own: looked at, said, and where asked for, set."""

from pathlib import Path
from typing import Unpack

from netloom.kernel.forwarders import RestoringKeeper
from netloom.kernel.keeper.keeper import KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.wire import NAMES
from netloom.kernel.surroundings.part import (
    Overflows,
    PlannedSurroundingsWork,
    Surroundings,
    SurroundingsFound,
    SurroundingsPart,
)
from netloom.kernel.sysctl import SysctlRecord

RECORD = "surroundings.json"
"""Name of the record of limits in the run directory."""
LOOK_SECONDS = 60.0
"""Between looks for what nobody tells of. One takes 20 ms of CPU time on a node with 100 pods among 5,000 nodes, 0.15 s
where a rule makes it ask about each of them."""


class SurroundingsReport(KeeperReport, frozen=True, kw_only=True):
    """What was seen last."""

    found: SurroundingsFound = SurroundingsFound()

    @property
    def news(self) -> tuple[object, ...]:
        """The figures that always move are none."""
        found = self.found
        full = [(table.family, table.needed >= table.thresholds[1]) for table in found.tables.neighbours]
        nearly = found.tables.conntrack is not None and found.tables.conntrack.is_nearly_full
        seen = found.detours, found.unfiltered, dict(found.unset), dict(found.refused), full, nearly
        return (*super().news, seen)


class SurroundingsKeeper(RestoringKeeper[Surroundings, SurroundingsReport]):
    """See the module."""

    names = NAMES
    nothing = Surroundings

    def __init__(self, *, run_directory: Path, **options: Unpack[KeeperOptions]) -> None:
        options.setdefault("resync_seconds", LOOK_SECONDS)
        self._record = SysctlRecord(run_directory / RECORD)
        self._part = SurroundingsPart(self._record)
        super().__init__((self._part,), **options)

    async def open(self) -> None:
        """Open the sockets, and begin the thread: it reads switches of the network namespace in which it began."""
        await super().open()
        await self._connect().call(lambda _commands: None)

    async def plan(self, desired: Surroundings) -> list[PlannedChange]:
        """What `apply` would set. Writes nothing, needs no capability."""
        if not desired.own:
            return []
        work = PlannedSurroundingsWork(self._record, desired, Overflows())

        def look(commands: CommandSocket) -> None:
            work.look(commands, [], [])

        async with self._lock:
            await self._connect().call(look)
        return work.changes

    @property
    def report(self) -> SurroundingsReport:
        """The state of things now."""
        return SurroundingsReport(**self._basics(), found=self._part.found)
