"""Two nodes on a wire, for packets between them; what is done is done to the first."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from netloom.cidr import Cidr
from netloom.kernel.mesh.desired import Desired, Peer
from netloom.kernel.mesh.keeper import MeshKeeper
from tests.kernel.meshes import here, peer
from tests.kernel.netns import Lab

NODES = (1, 2)


def view_of(number: int, *more: Peer, **about: object) -> Desired:
    """The mesh of two, and of `more`, as node `number` sees it."""
    own = here(
        f"node-{number}",
        f"192.168.7.{number}",
        f"10.{number}.0.0",
        f"fd00:{number}::",
        cidrs=(Cidr.parse(f"10.{number}.0.0/24"), Cidr.parse(f"fd00:{number}::/64")),
        **about,  # type: ignore[arg-type]
    )
    return Desired(own, [*(peer(other) for other in NODES if other != number), *more])


class Two:
    """Two nodes on a wire, and a place elsewhere; the first one's data path is opened by the test."""

    def __init__(self, lab: Lab, run_directory: Path) -> None:
        self.here, self.there = (lab.namespace(f"node{number}") for number in NODES)
        self.elsewhere = lab.namespace("elsewhere")
        self._run_directory = run_directory
        lab.wire(self.here, "eth0", self.there, "eth0", "address add 192.168.7.1/24 dev eth0")
        self.there.ip("address add 192.168.7.2/24 dev eth0")

    @contextlib.asynccontextmanager
    async def opened(self, number: int = 1, **options: object) -> AsyncIterator[MeshKeeper]:
        """The node's data path. It is inside while it is opened."""
        with (self.here if number == 1 else self.there).entered():
            plane = MeshKeeper(run_directory=self._run_directory / str(number), resync_seconds=None, **options)  # type: ignore[arg-type]
            await plane.open()
        try:
            yield plane
        finally:
            await plane.close()

    def passes(self, seconds: float = 2) -> bool:
        """Both families, the node's own packets through the tunnel, answered within that time."""
        ping = f"ping -n -c 1 -W {seconds:g}"
        return all(" 0% packet loss" in self.here.exec(f"{ping} {to}", check=False) for to in ("10.2.0.0", "fd00:2::"))
