"""Commands of a page of the documentation, to be typed as they stand there: a part of it between two marks."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from netloom_e2e import binaries
from netloom_e2e.bench import Wrong
from netloom_e2e.cluster import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "docs" / "install.md"
IMAGE = "registry.example.com/netloom:0.1.0"
"""As the page names it."""
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SECONDS = 400.0


class Command(NamedTuple):
    """A line of a page. everywhere: on each node."""

    everywhere: bool
    text: str


def commands(part: str, page: Path = INSTALL) -> Iterator[Command]:
    """Those between the marks of a part. Raises Wrong where there are none."""
    found = re.search(rf"<!-- {part}:.*?-->(.*?)<!-- end of {part} -->", page.read_text(), re.DOTALL)
    if not found:
        raise Wrong(f"{page} has no part `{part}`")
    for block in _BLOCK.findall(found[1]):
        for line in block.replace("\\\n", " ").splitlines():
            if line[:2] in ("$ ", "# "):
                yield Command(line.startswith("#"), " ".join(line[2:].split()))


def typed(plane: ControlPlane, text: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A line as who administers the cluster types it, in a checkout. Raises Wrong where it fails and `check` is set."""
    path = f"{binaries.find('kubectl').parent}:{binaries.helm().parent}:{os.environ['PATH']}"
    homes = {f"HELM_{kind}_HOME": str(plane.state / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    environment = os.environ | homes | {"KUBECONFIG": str(plane.kubeconfig()), "PATH": path}
    done = subprocess.run(
        ["bash", "-ec", text],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if check and done.returncode:
        raise Wrong(f"`{text}` failed:\n{done.stdout}{done.stderr}")
    return done
