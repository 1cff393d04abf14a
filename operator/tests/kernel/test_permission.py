"""What a process without NET_ADMIN is told, and what it may do all the same."""

import subprocess
import sys
from pathlib import Path

from tests.kernel.netns import Namespace

PROGRAM = """
import asyncio, sys
from pathlib import Path
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.errors import DataplaneError
from tests.kernel.meshes import mesh

async def main():
    plane = MeshKeeper(run_directory=Path(sys.argv[2]))
    await plane.open()
    try:
        if sys.argv[1] == "plan":
            print("\\n".join(change.text for change in await plane.plan(mesh(2))))
        else:
            await plane.apply(mesh(2))
    finally:
        await plane.close()

try:
    asyncio.run(main())
except DataplaneError as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
"""


def unprivileged(node: Namespace, verb: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run PROGRAM in the node's namespace as root without a single capability."""
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    command = ["ip", "netns", "exec", node.name, *drop, sys.executable, "-c", PROGRAM, verb, str(folder)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_apply_says_in_one_sentence_what_is_missing(node: Namespace, tmp_path: Path) -> None:
    before = node.state()
    done = unprivileged(node, "apply", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "NotPermitted: changing routes and devices takes the capability NET_ADMIN, which this process does not have: "
        "run it as root, or add NET_ADMIN to the container's securityContext.capabilities\n"
    )
    assert node.state() == before


def test_a_plan_needs_no_capability(node: Namespace, tmp_path: Path) -> None:
    done = unprivileged(node, "plan", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ip route add 10.2.0.0/24 proto 158 nhid 1852444659" in done.stdout
