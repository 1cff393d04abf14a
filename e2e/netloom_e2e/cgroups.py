"""Control groups for a node: one of its name in each hierarchy, as a machine of its own would have.

A kubelet makes the groups of its pods below the one it is given, so nodes of one machine need one each. Version 1 has a
hierarchy per controller, version 2 a single one.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_GONE_SECONDS = 20.0
_INHERITED = ("cpuset.cpus", "cpuset.mems")
"""Of version 1: empty in a new group, which then may hold no process."""


def hierarchies() -> list[Path]:
    """Where control groups are mounted. Version 2 counts only where it has controllers."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, kind = Path(line.split()[4]), line.partition(" - ")[2].split()[0]
        if kind == "cgroup" or (kind == "cgroup2" and (place / "cgroup.controllers").read_text().strip()):
            found.append(place)
    return found


def make(name: str) -> None:
    """A group of this name in each hierarchy, without what an earlier one of the name has left."""
    remove(name)
    for hierarchy in hierarchies():
        controllers = hierarchy / "cgroup.controllers"
        if controllers.exists():  # version 2: groups below have the controllers that are passed on to them
            passed_on = " ".join(f"+{each}" for each in controllers.read_text().split())
            (hierarchy / "cgroup.subtree_control").write_text(passed_on)
        (hierarchy / name).mkdir()
        for file in _INHERITED:
            if (hierarchy / file).exists():
                (hierarchy / name / file).write_text((hierarchy / file).read_text())


def remove(name: str) -> None:
    """The groups of this name with all below them, whose processes are ending. Raises TimeoutError if they do not."""
    deadline = time.monotonic() + _GONE_SECONDS
    for hierarchy in hierarchies():
        while (hierarchy / name).is_dir():
            for folder, _, _ in os.walk(hierarchy / name, topdown=False):
                with suppress(OSError):  # busy as long as a process is in it
                    Path(folder).rmdir()
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {hierarchy / name} do not end")
            time.sleep(0.01)
