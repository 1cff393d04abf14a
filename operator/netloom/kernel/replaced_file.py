"""A file that is written as a whole: who reads it finds the old content or the new one, whenever an agent is killed."""

from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Makes its folder, too. Raises OSError, and leaves nothing of the new content then: a disk may be full."""
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
