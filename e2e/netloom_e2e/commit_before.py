"""What a release was made of before the last change: the tree of a commit, with its chart and the sources of its image.

An upgrade from a copy of this tree's own chart would show nothing of what its templates and the programs in its pods
were until then: a selector that cannot be changed, an option that is gone, words between old agents and new ones.

A checkout without its history (a shallow clone, an archive) has no such commit. Upgrades are tested from this tree's
chart and image then, and it is said.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from netloom_e2e import netloom_image
from netloom_e2e.build_cache import BinariesError, made
from netloom_e2e.images import Image

_ROOT = netloom_image.ROOT
_PARTS = (
    "chart",
    "cni",
    "bpf",
    "operator/netloom",
    "reconcilers/netloom_reconcilers",
    "pyproject.toml",
    "requirements.lock",
)
"""What chart and image are made of."""
_KEPT_SECONDS = 24 * 3600.0


def chart() -> Path:
    """Its chart. Raises BinariesError."""
    return (_tree() or _ROOT) / "chart" / "netloom"


def image() -> Image:
    """Its image, built where it is not in the cache. Raises BinariesError."""
    return netloom_image.netloom(_tree() or _ROOT)


def _tree() -> Path | None:
    """The last commit whose chart or image were others than those of this tree; None: there is no history."""
    commit = _commit()
    if commit is None:
        return None

    def make(folder: Path, log: Path) -> None:
        archive = folder / "tree.tar"
        _git("archive", f"--output={archive}", commit, "--", *_PARTS)
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True, timeout=60)
        archive.unlink()
        log.write_text(f"{commit}\n")

    return made(f"before-{commit[:16]}", make, kept=_KEPT_SECONDS)


@cache
def _commit() -> str | None:
    try:
        if _git("status", "--porcelain", "--", *_PARTS):
            return _git("rev-parse", "HEAD")
        return _git("rev-parse", "--verify", f"{_git('rev-list', '--max-count=1', 'HEAD', '--', *_PARTS)}^")
    except BinariesError as error:
        print(f"upgrades are tested from this tree's own chart: {error}", file=sys.stderr)
        return None


def _git(*words: str) -> str:
    command = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BinariesError(f"{done.stderr.strip()} (of a shallow clone: git fetch --unshallow)")
    return done.stdout.strip()
