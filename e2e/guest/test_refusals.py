"""What stands in a tunnel's way: said in words, tried ever less often, and over once it is out of the way."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.conftest import Joined
from guest.server import routing_of
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import GENEVE, VXLAN, Encapsulation
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.ownership import ENDPOINTS
from netloom_e2e.lab import Lab
from tests.kernel.meshes import eventually, here, peer, running
from tests.kernel.netns import Namespace

NO_MODULE = Path("/etc/modprobe.d/no-geneve.conf")


@pytest.fixture
def node(lab: Lab) -> Iterator[Namespace]:
    """A node without an agent; the test runs inside."""
    node = Namespace(lab.nodes["n1"].name)
    with node.entered():
        yield node
    for link in node.ip_json("link"):
        if link["ifname"].startswith(("netloom_", "other")) and not ENDPOINTS.link(link["ifname"]):
            node.ip(f"link delete {link['ifname']}")


@contextlib.asynccontextmanager
async def opened(folder: Path):  # type: ignore[no-untyped-def]
    plane = MeshKeeper(run_directory=folder, resync_seconds=None)
    await plane.open()
    try:
        yield plane
    finally:
        await plane.close()


def mesh(encapsulation: Encapsulation) -> Desired:
    return Desired(
        here("node-1", "172.31.1.1", encapsulations=(encapsulation,)), [peer(2, encapsulations=(encapsulation,))]
    )


def taken(node: Namespace, encapsulation: Encapsulation, taker: str) -> contextlib.AbstractContextManager[object]:
    """The way's port is in use until the context ends."""
    made = contextlib.ExitStack()
    if taker == "program":
        program = made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        program.bind(("", encapsulation.port))
        return made
    protocol = (
        {"vxlan": "geneve", "geneve": "vxlan"}[encapsulation.protocol]
        if taker == "other protocol"
        else encapsulation.protocol
    )
    settings = "id 5 remote 172.31.1.9" if taker == "fixed VNI" else "external"
    node.ip(f"link add other type {protocol} {settings} dstport {encapsulation.port}")
    node.ip("link set other up")
    made.callback(node.ip, "link delete other")
    return made


TAKEN = [
    (VXLAN, "external device", "EEXIST: "),
    (VXLAN, "other protocol", "EADDRINUSE: "),
    (VXLAN, "program", "EADDRINUSE: "),
    (GENEVE, "external device", "EBUSY: "),
    (GENEVE, "fixed VNI", "EPERM: There can be only one externally controlled device on a destination port"),
    (GENEVE, "other protocol", "EADDRINUSE: "),
    (GENEVE, "program", "EADDRINUSE: "),
]


@pytest.mark.parametrize(
    ("encapsulation", "taker", "words"), TAKEN, ids=[f"{encapsulation}, {taker}" for encapsulation, taker, _ in TAKEN]
)
async def test_a_port_that_is_taken(
    node: Namespace, tmp_path: Path, encapsulation: Encapsulation, taker: str, words: str
) -> None:
    async with opened(tmp_path) as plane:
        with taken(node, encapsulation, taker):
            await plane.apply(mesh(encapsulation))
            async with running(plane):
                first = sum(plane.stats.values())
                await eventually(lambda: any(f.attempts >= 4 for f in plane.report.failures), lambda: str(plane.report))
                (failure,) = (f for f in plane.report.failures if f.kind == "link")
                tried = sum(plane.stats.values()) - first
        assert (failure.key, plane.tunnels) == (encapsulation.device, ())
        assert failure.error.startswith(f"UDP port {encapsulation.port} is in use by the ")
        assert f" ({words}" in failure.error
        assert tried <= failure.attempts, "a request per attempt, and nothing is made and unmade"
        async with running(plane):
            await eventually(
                lambda: plane.report.in_sync and plane.tunnels == (encapsulation,), lambda: str(plane.report)
            )


FOREIGN = {
    "a fixed VNI": "link add netloom_geneve type geneve id 5 remote 172.31.1.9",
    "another port": "link add netloom_geneve type geneve external dstport 6090",
    "no inner Ethernet": "link add netloom_geneve type geneve external innerprotoinherit",
    "a dummy": "link add netloom_geneve type dummy",
}


async def test_a_device_of_our_name_that_cannot_serve_is_made_anew(node: Namespace, tmp_path: Path) -> None:
    wanted = ""
    for what, command in {"none": "", **FOREIGN}.items():
        if command:
            node.ip("link delete netloom_geneve")
            node.ip(command)
            node.ip("link set netloom_geneve up")
        async with opened(tmp_path) as plane:
            assert (await plane.apply(mesh(GENEVE))).in_sync, what
        owned = node.owned()
        wanted = wanted or owned
        assert "link netloom_geneve up mtu 1450" in wanted
        assert owned == wanted, what


def is_again(node: Namespace, owned: str) -> bool:
    with contextlib.suppress(RuntimeError):  # a device has another name by the time that it is asked about
        return node.owned() == owned
    return False


async def test_a_device_that_was_renamed_or_moved_is_ours_again(node: Namespace, lab: Lab, tmp_path: Path) -> None:
    """This kernel renames no device that is up, and does not say where a Geneve device was made."""
    elsewhere = Namespace(lab.nodes["n2"].name)
    for encapsulation, commands in {
        VXLAN: ["link set {} down", "link set {} name other9", "link set other9 up"],
        GENEVE: [f"link set {{}} netns {elsewhere.name}"],
    }.items():
        async with opened(tmp_path) as plane:
            await plane.apply(mesh(encapsulation))
            owned = node.owned()
            for command in commands:
                node.ip(command.format(encapsulation.device))
            async with running(plane):
                await eventually(lambda owned=owned: is_again(node, owned))
                await eventually(lambda plane=plane: plane.report.in_sync, lambda plane=plane: str(plane.report))
    assert "geneve" not in elsewhere.ip("link")


async def test_a_kernel_without_the_module_goes_on_with_the_old_tunnel(joined: Joined, lab: Lab) -> None:
    """And changes as soon as the module is there."""
    pods = [lab.nodes[name].pods["a"] for name in ("n1", "n2")]
    async with joined(VXLAN) as server:
        await server.settled(VXLAN)
        subprocess.run(["rmmod", "geneve"], check=False, capture_output=True)
        assert not Path("/sys/module/geneve").exists()
        NO_MODULE.write_text("install geneve /bin/false\n")
        try:
            server.edit(**routing_of(GENEVE))
            agent = server.agents["n1"]
            await eventually(
                lambda: any(f.attempts >= 4 for f in agent.plane.report.failures), lambda: str(agent.errors)
            )
            written = sum(agent.plane.stats.values())
            attempts = agent.plane.report.failures[0].attempts
            assert agent.errors == [
                "link netloom_geneve: this kernel cannot make geneve devices: CONFIG_GENEVE is missing "
                "(ENOTSUP: Unknown device type)"
            ]
            assert agent.device_state() == {"netloom_vxlan"}
            assert pods[0].ping(pods[1].of(4), wait=5).received == 1
            assert [(t.protocol, t.sending) for t in server.objects["n1"].spec.encapsulations] == [("vxlan", True)]
            await eventually(lambda: agent.plane.report.failures[0].attempts > attempts, lambda: str(agent.errors))
            grown = sum(agent.plane.stats.values()) - written
            assert grown <= agent.plane.report.failures[0].attempts - attempts
        finally:
            NO_MODULE.unlink()
        await server.settled(GENEVE)
        for agent in server.agents.values():
            assert agent.device_state() == {"netloom_geneve"}
