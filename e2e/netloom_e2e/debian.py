"""Debian's root file systems, made by mmdebstrap where there is no registry to take them from.

They are in the cache by how they are made. What Debian's archive holds decides, too: one of last month is made anew.
"""

from __future__ import annotations

import hashlib
import platform
import time
from pathlib import Path

from netloom_e2e.build_cache import made
from netloom_e2e.images import EPOCH, run_logged

SUITE = "bookworm"
# As Debian's slim image has it.
_WITHOUT = tuple(
    f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "info", "locale", "man", "lintian")
)


def minimal() -> Path:
    """A tar of what debian:bookworm-slim is: a minimal system without documentation. Raises BinariesError."""
    return _made("--variant=minbase", "--include=usr-is-merged")


def programs(*packages: str) -> Path:
    """A tar of these packages and what they need, unpacked and no more: no package manager, no scripts were run."""
    merged = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    return _made("--variant=extract", merged, f"--include={','.join(packages)}")


def _made(*options: str) -> Path:
    command = ("mmdebstrap", "--quiet", *options, *_WITHOUT, SUITE)
    month = time.strftime("%Y-%m", time.gmtime())
    digest = hashlib.sha256(f"{command} {EPOCH} {month} {platform.machine()}".encode()).hexdigest()[:16]

    def make(folder: Path, log: Path) -> None:
        made_at = ["env", f"SOURCE_DATE_EPOCH={EPOCH}", *command, str(folder / "root.tar")]
        run_logged(made_at, f"Making a Debian {SUITE}, once a month (about 30 s)", folder, log)

    return made(f"debian-{digest}", make) / "root.tar"
