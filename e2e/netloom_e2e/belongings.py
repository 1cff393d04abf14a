"""What belongs to a state folder and lies outside of it: network namespaces and control groups.

It is written down in the folder before it is made, so that whoever removes the folder finds it: the owner, its keeper,
or the next start (see `netloom_e2e.processes`).
"""

from __future__ import annotations

from pathlib import Path

from netloom_e2e import cgroups, namespaces

_FILE = "belongings"


def add_namespaces(folder: Path, prefix: str) -> None:
    """All network namespaces whose names begin with `prefix-`."""
    _add(folder, f"namespaces {prefix}")


def add_cgroup(folder: Path, name: str) -> None:
    _add(folder, f"cgroup {name}")


def remove(folder: Path) -> None:
    """All that is written down there; the folder's own processes have ended."""
    try:
        lines = (folder / _FILE).read_text().splitlines()
    except FileNotFoundError:
        return
    for kind, name in (line.split() for line in lines):
        if kind == "namespaces":
            namespaces.remove(namespaces.existing(f"{name}-*"))
        else:
            cgroups.remove(name)


def _add(folder: Path, line: str) -> None:
    with (folder / _FILE).open("a") as file:
        file.write(f"{line}\n")
