"""More peers than the kernel takes neighbours: a limit that is set in a machine's first network namespace only."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import Desired, Peer
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.surroundings.keeper import SurroundingsKeeper
from netloom.kernel.surroundings.part import Surroundings
from netloom_e2e.namespaces import run
from netloom_e2e.virtual_machine import IS_GUEST
from netloom_reconcilers.node import surroundings_findings as findings
from tests.kernel.meshes import here
from tests.kernel.netns import Lab, Namespace

PEERS = 200
LIMITS = {"gc_thresh1": 32, "gc_thresh2": 64, "gc_thresh3": 128}
SWITCH = "net.ipv4.neigh.default"
QUIET_SECONDS = 5.0
IP_PKTINFO = 8
"""linux/in.h: with each packet comes where it was sent to. Python does not name it."""

pytestmark = pytest.mark.skipif(IS_GUEST not in os.environ, reason="it sets limits of the whole machine")


def limits() -> dict[str, int]:
    return {name: int(run("sysctl", "-n", f"{SWITCH}.{name}")) for name in LIMITS}


@pytest.fixture
def far() -> Iterator[Namespace]:
    """All the peers and all their pods, on the other end of a device of the machine itself."""
    before, lab = limits(), Lab()
    try:
        run("sysctl", "-qw", *(f"{SWITCH}.{name}={value}" for name, value in LIMITS.items()))
        far = lab.namespace("far")
        run(*f"ip link add nbr0 type veth peer name eth0 netns {far.name}".split())
        run("ip", "address", "add", "172.29.1.1/16", "dev", "nbr0")
        run("ip", "link", "set", "nbr0", "up")
        far.ip("address add 172.29.1.254/16 dev eth0")
        far.ip("link set eth0 up")
        for everything in ("172.29.0.0/24", "10.64.0.0/16"):
            far.ip(f"route add local {everything} dev lo")
        yield far
    finally:
        lab.close()
        run("sysctl", "-qw", *(f"{SWITCH}.{name}={value}" for name, value in before.items()))


def reached(far: Namespace) -> int:
    """To how many pods, one of each peer, a packet comes."""
    with far.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        receiver.settimeout(QUIET_SECONDS)
        receiver.bind(("0.0.0.0", 9))
        for number in range(1, PEERS + 1):
            sender.sendto(b"", (f"10.64.{number}.1", 9))
            time.sleep(0.005)
        seen = set()
        try:
            while len(seen) < PEERS:
                _, ((_, _, to), *_), *_ = receiver.recvmsg(1, 64)
                seen.add(struct.unpack("=I4s4s", to)[2])
        except TimeoutError:
            pass
        return len(seen)


async def test_200_native_peers_and_128_neighbours(far: Namespace, tmp_path: Path) -> None:
    native = (NO_ENCAPSULATION,)
    peers = [
        Peer(name, parse_address(f"172.29.0.{number}"), mac_of(name), (Cidr.parse(f"10.64.{number}.0/24"),), "", native)
        for number in range(1, PEERS + 1)
        for name in [f"peer-{number}"]
    ]
    plane = MeshKeeper(run_directory=tmp_path, resync_seconds=None)
    keeper = SurroundingsKeeper(run_directory=tmp_path, resync_seconds=None)
    around = {"own": (Cidr.parse("10.1.0.0/24"),), "peers": PEERS, "native": True}
    await plane.open()
    await keeper.open()
    try:
        await plane.apply(Desired(here("node-1", "172.29.1.1", "10.1.0.0", encapsulations=native), peers))
        before = (await keeper.apply(Surroundings(**around))).found  # type: ignore[arg-type]
        (error,) = findings.errors(before, 1 << 30)
        assert (
            f"{SWITCH}.gc_thresh3 is 128, and this node's peers without a tunnel and its pods are 200 neighbours"
            in error
        )
        assert reached(far) < PEERS
        keeper._doubt()
        assert (await keeper.apply(Surroundings(**around))).found.refused["ipv4"] > 0  # type: ignore[arg-type]

        after = (await keeper.apply(Surroundings(**around, raise_limits=True))).found  # type: ignore[arg-type]
        assert limits() == {"gc_thresh1": 128, "gc_thresh2": 512, "gc_thresh3": 1024}
        assert reached(far) == PEERS
        assert after.tables.neighbours[0].needed < after.tables.neighbours[0].thresholds[1]
        await keeper.cleanup()
        assert limits() == LIMITS, "put back as it was found"
    finally:
        await plane.cleanup()
        await plane.close()
        await keeper.close()
