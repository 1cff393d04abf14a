"""Prints the part of requirements.lock that Netloom needs to run: what `dependencies` of pyproject.toml lead to.

The lock file is of `uv pip compile`, which says below each package what asks for it.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def packages(lock: str) -> dict[str, tuple[str, frozenset[str]]]:
    """By name: a package's lines of the lock file, and the names of those that ask for it."""
    found = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]:
        comments = re.findall(rf"^ +# +(?:via +)?({_NAME})", block, re.MULTILINE)
        lines = "".join(line for line in block.splitlines(keepends=True) if not line.lstrip().startswith("#"))
        found[_normal(block.partition("==")[0])] = (lines, frozenset(_normal(name) for name in comments))
    return found


def runtime(lock: str, wanted: Iterable[str]) -> str:
    """The lines of what is wanted and all that it leads to."""
    known = packages(lock)
    needed = {_normal(name) for name in wanted}
    while more := {name for name, (_, askers) in known.items() if askers & needed} - needed:
        needed |= more
    return "".join(known[name][0] for name in sorted(needed))


def _normal(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct(pyproject: str) -> list[str]:
    """The names of `dependencies`."""
    found = [re.match(_NAME, line) for line in tomllib.loads(pyproject)["project"]["dependencies"]]
    return [match[0] for match in found if match]


if __name__ == "__main__":
    folder = Path(__file__).parent
    folder = folder if (folder / "requirements.lock").exists() else folder.parents[1]
    sys.stdout.write(
        runtime((folder / "requirements.lock").read_text(), direct((folder / "pyproject.toml").read_text()))
    )
