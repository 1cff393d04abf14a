"""The API server's audit log, read while it is written."""

from __future__ import annotations

from pathlib import Path


def lines(log: Path) -> list[bytes]:
    """Its events, each as JSON, without the one that is only half there; none where there is no log yet."""
    return log.read_bytes().rpartition(b"\n")[0].splitlines() if log.exists() else []
