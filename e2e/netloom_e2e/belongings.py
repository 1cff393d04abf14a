"""What belongs to a state folder and lies outside of it: network namespaces, control groups and mounts.

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


def add_mount(folder: Path, place: Path) -> None:
    _add(folder, f"mount {place}")


def forget_namespaces(folder: Path, prefix: str) -> None:
    """They are gone, or somebody else's by now."""
    _forget(folder, f"namespaces {prefix}")


def forget_mount(folder: Path, place: Path) -> None:
    _forget(folder, f"mount {place}")


def remove(folder: Path) -> None:
    """All that is written down there; the folder's own processes have ended."""
    for kind, name in (line.split(" ", 1) for line in _lines(folder)):
        if kind == "namespaces":
            namespaces.remove(namespaces.existing(f"{name}-*"))
        elif kind == "cgroup":
            cgroups.remove(name)
        else:
            namespaces.run("umount", "--lazy", name, check=False)


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / _FILE).read_text().splitlines()
    except FileNotFoundError:
        return []


def _add(folder: Path, line: str) -> None:
    with (folder / _FILE).open("a") as file:
        file.write(f"{line}\n")


def _forget(folder: Path, line: str) -> None:
    new = folder / f"{_FILE}.new"
    new.write_text("".join(f"{each}\n" for each in _lines(folder) if each != line))
    new.rename(folder / _FILE)  # whole at any moment: its keeper may read it in the next
