"""A state machine on the real kernel: whatever happened before, a node ends as one that has just been started.

Two nodes of the same addresses and MACs. What the world does (routes, MTU, the cable) is done to both. Peers change,
hands edit and agents restart on the first one only, whose data path runs all the time; on the twin, a data path is
started for every comparison and everything it made is removed again. Both are compared whole, as `ip` prints them.
"""

import asyncio
import contextlib
import itertools
import re
from pathlib import Path

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import Desired, MeshNode, Peer
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN, Encapsulation
from netloom.kernel.mesh.keeper import MeshKeeper
from tests.kernel.meshes import becomes, here
from tests.kernel.netns import Lab, Namespace

OTHER = Encapsulation("vxlan", 8473)
NEAR = [f"192.168.7.{n}" for n in range(2, 6)]
FAR = ["192.168.9.2", "192.168.9.3"]
CIDRS = ["10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/16", "10.5.0.0/24", "fd00:2::/64", "fd00:3::/64"]
NAMES = ["a", "b", "c", "d", "e"]

encapsulations = st.lists(st.sampled_from([VXLAN, OTHER, NO_ENCAPSULATION]), unique=True, max_size=3).map(tuple)
peers = st.builds(
    Peer,
    name=st.sampled_from(NAMES),
    underlay=st.sampled_from(NEAR + FAR).map(parse_address),
    mac=st.sampled_from(NAMES).map(mac_of),
    cidrs=st.lists(st.sampled_from(CIDRS), unique=True, max_size=4).map(lambda some: tuple(map(Cidr.parse, some))),
    since=st.sampled_from(["", "2026-01", "2026-02"]),
    encapsulations=encapsulations,
    underlay6=st.sampled_from([b"", *(parse_address(f"fd07::{n}") for n in range(2, 6))]),
)
nodes = st.builds(
    lambda encapsulations, mtu, six: here(
        "node-1", "192.168.7.1", "10.1.0.0", *(["fd00:1::"] if six else []), encapsulations=encapsulations, mtu=mtu
    ),
    encapsulations,
    st.sampled_from([0, 0, 1400]),
    st.booleans(),
)

# No edit makes something of ours foreign: what is no longer wanted when that is noticed would rightly stay.
EDITS = [
    "route flush proto 158",
    "route delete {route}",
    "route replace {route} via 192.168.7.99 proto 158",
    "route add 10.99.0.0/24 dev eth0 proto 158",
    "nexthop delete id {nexthop}",
    "nexthop flush proto 158",
    "nexthop replace id {nexthop} via 192.168.7.77 dev eth0 onlink proto 158",
    "nexthop replace id {nexthop} blackhole proto 158",
    "neighbour flush dev {device} nud permanent",
    "neighbour add 192.168.7.88 lladdr 02:00:00:00:00:88 dev {device} nud permanent",
    "route replace {route} src 192.168.7.1 nhid {nexthop} proto 158",
    "address add 10.1.0.0 peer 10.3.0.0/24 dev {device}",
    "address flush dev {device}",
    "link set {device} arp off",
    "link set {device} down",
    "link set {device} mtu 1300",
    "link set {device} address 02:00:00:00:00:99",
    "link delete {device}",
    "link add netloom_v1 type bridge",
]
HAND_MADE = [
    "link add other type veth peer name far-other",
    "link set other address 02:00:00:00:00:77",
    "link set far-other address 02:00:00:00:00:78",
    "link set other up",
    "link set far-other up",
    "nexthop add id 77 dev other",
    "route add 10.78.0.0/24 nhid 77 proto 42",
]
"""On a device of their own: from one that loses its carrier the kernel itself removes nexthops."""


def state_of(node: Namespace) -> str:
    """All of it, but for the anycast addresses of a router (IPv6 forwarding stays on until `cleanup`) and the ids of
    nexthops: a peer takes over one that is in the kernel as it needs it, were it another's before."""
    lines = [line for line in node.state().splitlines() if " anycast " not in line]
    text = "\n".join(lines)
    for identity, content in re.findall(r"^id (\d+) (.*)$", text, re.MULTILINE):
        text = re.sub(rf"\b{identity}\b", f"<{content}>", text)
    return "\n".join(sorted(text.splitlines()))


class World:
    """The two nodes, and what is done to both."""

    def __init__(self, lab: Lab, run_directory: Path) -> None:
        self.run_directory = run_directory
        self.node, self.twin = (self._make(lab, name) for name in ("node", "twin"))

    def _make(self, lab: Lab, name: str) -> tuple[Namespace, Namespace]:
        node, wire = lab.namespace(name), lab.namespace(f"{name}-wire")
        lab.wire(node, "eth0", wire, "far")
        for line in (
            "link set eth0 down",
            "link set eth0 address 02:00:00:00:07:01",
            "link set eth0 up",
            "address add 192.168.7.1/24 dev eth0",
            "address add fd07::1/64 dev eth0",
            "route add default via 192.168.7.254",
            *HAND_MADE,
        ):
            node.ip(line)
        return node, wire

    def both(self, command: str) -> None:
        for node, _ in (self.node, self.twin):
            node.ip(command)

    def cable(self, state: str) -> None:
        for _, wire in (self.node, self.twin):
            wire.ip(f"link set far {state}")


class KernelMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.node, self.twin = world.node[0], world.twin[0]
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.node.entered())
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.desired = Desired(here())
        self.detours: set[str] = set()
        self.count = itertools.count()

    @initialize(node=nodes, some=st.lists(peers, unique_by=lambda one: one.name))
    def start(self, node: MeshNode, some: list[Peer]) -> None:
        self.desired = Desired(node, some)
        self.runner.run(self._open())
        self.apply()

    async def _open(self) -> None:
        self.plane = MeshKeeper(run_directory=self.world.run_directory / "node", resync_seconds=None)
        await self.plane.open()
        self.task = asyncio.create_task(self.plane.run())

    async def _close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.plane.close()

    @rule(one=peers)
    def set_peer(self, one: Peer) -> None:
        self.desired.set_peer(one)

    @rule(name=st.sampled_from(NAMES))
    def remove_peer(self, name: str) -> None:
        self.desired.remove_peer(name)

    @rule(node=nodes)
    def switch(self, node: MeshNode) -> None:
        self.desired.node = node
        self.apply()

    @rule(encapsulations=encapsulations)
    def switch_all(self, encapsulations: tuple[Encapsulation, ...]) -> None:
        """All peers go another way, as when the network's routing mode is edited."""
        self.desired.node = msgspec.structs.replace(self.desired.node, encapsulations=encapsulations)
        for peer in list(self.desired.peers.values()):
            self.desired.set_peer(msgspec.structs.replace(peer, encapsulations=encapsulations))
        self.apply()

    @rule()
    def apply(self) -> None:
        self.runner.run(self.plane.apply(self.desired))

    @rule()
    def restart(self) -> None:
        self.runner.run(self._close())
        self.desired = Desired(self.desired.node, self.desired.peers.values())
        self.runner.run(self._open())
        self.apply()

    @rule(edit=st.sampled_from(EDITS), pick=st.integers(0, 9))
    def somebody_edits(self, edit: str, pick: int) -> None:
        """What is edited is looked up when it is done; if there is nothing of the kind, nothing is."""
        found = {
            "route": [line.split()[0] for line in self.node.ip("route show proto 158").splitlines()],
            "nexthop": [line.split()[1] for line in self.node.ip("nexthop").splitlines() if "proto 158" in line],
            "device": [link["ifname"] for link in self.node.ip_json("link") if link["ifname"].startswith("netloom_")],
        }
        words = {kind: some[pick % len(some)] for kind, some in found.items() if some}
        if all(f"{{{kind}}}" not in edit or kind in words for kind in found):
            self.node.exec(f"ip {edit.format(**words)}", check=False)

    @rule(address=st.sampled_from(NEAR))
    def a_detour_comes_or_goes(self, address: str) -> None:
        """A peer is no longer on the node's own network, or is again."""
        verb = "delete" if address in self.detours else "add"
        self.detours ^= {address}
        self.world.both(f"route {verb} {address} via 192.168.7.254")

    @rule(mtu=st.sampled_from([1500, 1400, 9000]))
    def the_underlay_is_resized(self, mtu: int) -> None:
        self.world.both(f"link set eth0 mtu {mtu}")

    @rule()
    def the_cable_is_pulled_and_put_back(self) -> None:
        self.world.cable("down")
        self.world.cable("up")

    @precondition(lambda self: hasattr(self, "plane"))
    @rule()
    def compare(self) -> None:
        """The data path has applied all, and has heard all there was to hear."""
        self.apply()
        self.runner.run(becomes(lambda: state_of(self.node), self.runner.run(self._fresh())))

    async def _fresh(self) -> str:
        with self.twin.entered():
            directory = self.world.run_directory / f"twin-{next(self.count)}"
            plane = MeshKeeper(run_directory=directory, resync_seconds=None)
            await plane.open()
        await plane.apply(Desired(self.desired.node, self.desired.peers.values()))
        state = state_of(self.twin)
        await plane.cleanup()
        await plane.close()
        return state

    def teardown(self) -> None:
        try:
            if hasattr(self, "plane"):
                self.compare()
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        try:
            if hasattr(self, "plane"):
                self.runner.run(self.plane.cleanup())
                self.runner.run(self._close())
                for address in list(self.detours):
                    self.a_detour_comes_or_goes(address)
                self.world.both("link set eth0 mtu 1500")
                for node in (self.node, self.twin):
                    assert node.owned() == ""
                    assert "10.78.0.0/24 nhid 77 dev other" in node.state(), "nothing foreign was touched"
        finally:
            self.stack.close()
