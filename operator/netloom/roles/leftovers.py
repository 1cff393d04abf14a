"""What a cleanup keeps for the next: records of switches that it left to others, and what was set aside for people.

Where no next one comes, that goes, and so do the directories, as far as nothing of others is in them.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from netloom.kernel.mesh.keeper import RECORD as SWITCHES
from netloom.kernel.surroundings.keeper import RECORD as LIMITS
from netloom_reconcilers.node.endpoints.deletions import REFUSED


def forget(run_dir: Path, state_dir: Path | None, deletions: Path) -> None:
    """The records, what is in `deletions/refused`, and the directories that are empty then. Raises OSError."""
    for record in (run_dir / SWITCHES, run_dir / LIMITS):
        record.unlink(missing_ok=True)
    refused = deletions / REFUSED
    if refused.is_dir():
        for each in refused.iterdir():
            each.unlink()
    _remove_empty((refused, deletions, *([state_dir] if state_dir is not None else []), run_dir))


def _remove_empty(directories: Iterable[Path]) -> None:
    for each in directories:
        with suppress(OSError):  # it is not there, not empty, or what a container was given
            each.rmdir()
