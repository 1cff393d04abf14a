"""What `netloom cleanup` takes away of pods' interfaces: files on the host, the configuration first, and what is in the
kernel.
"""

from collections.abc import Sequence
from pathlib import Path

from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom_reconcilers.node.endpoints import deletions as written_down
from netloom_reconcilers.node.endpoints.install import binary_of, conflist_of, installed
from netloom_reconcilers.node.endpoints.options import CniOptions, Places


class Removal:
    """Of one node. state_file: of the networks of attachments."""

    def __init__(self, keeper: EndpointsKeeper, options: CniOptions, state_file: Path) -> None:
        self._keeper = keeper
        self._options = options
        self._state_file = state_file

    async def plan(self) -> list[PlannedChange]:
        """What would go, in its order."""
        changes = [PlannedChange(f"rm {path}", "of the CNI plugin") for path in self._files()]
        return [*changes, *await self._keeper.plan_cleanup()]

    async def do(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """As planned."""
        planned, failed = await self.plan(), []
        for path in self._files():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                failed.append(Failure(kind="file", key=str(path), error=error.strerror or str(error)))
        return planned, (*failed, *(await self._keeper.cleanup()).failures)

    def _files(self) -> list[Path]:
        options = self._options
        places = options.install or Places()
        mine = [options.socket, self._state_file, *written_down.files(options.deletions)]
        return [*installed((conflist_of(places), binary_of(places))), *(each for each in mine if each.exists())]
