"""A page of docs with what commands print, kept true: `python -m netloom_e2e.console docs/cli.md` runs it anew.

Each line of `$ ` in its `console` blocks is run in a shell, in an empty network namespace, beside a folder `manifests`
with the page's `yaml` blocks; what it prints is written below it.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from netloom_e2e.lab import environment

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MANIFESTS = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def rendered(page: str) -> str:
    """The page with what its commands print now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "manifests").mkdir()
        (folder / "manifests" / "all.yaml").write_text("---\n".join(_MANIFESTS.findall(page)))

        def block(found: re.Match[str]) -> str:
            lines = [line for line in found[1].splitlines() if line.startswith("$ ")]
            return "```console\n" + "".join(f"{line}\n{_printed(line[2:], folder)}" for line in lines) + "```"

        return _BLOCK.sub(block, page)


def _printed(line: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    given = {name: value for name, value in environment().items() if name not in ("KUBECONFIG", "NODE_NAME")}
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**given, "PATH": path, "HOME": os.fspath(folder)},
        timeout=60,
        check=False,
    )
    return done.stdout


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:]):
        each.write_text(rendered(each.read_text()))
