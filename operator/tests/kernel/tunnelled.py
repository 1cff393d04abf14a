"""Senders in tests: desired states, and packets of tunnels made by hand, as anybody on the LAN could."""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from netloom.cidr import Cidr, parse_address
from netloom.kernel.senders.keeper import SendersKeeper
from netloom.kernel.senders.senders import Senders, TunnelPort
from tests.kernel.netns import Lab, Namespace

VXLAN, GENEVE = TunnelPort("vxlan", 8472), TunnelPort("geneve", 6081)
MAC = bytes.fromhex("02000000aa01")
INNER_PORT = 7777
QUIET_SECONDS = 0.2
"""After which a packet that was sent over a veth pair has not arrived."""


def senders(
    *numbers: int, ports: tuple[TunnelPort, ...] = (VXLAN,), checked: bool = True, linger: float = 0
) -> Senders:
    """Node 1's, among nodes N that send from 192.168.7.N for 10.N.0.0/24 and fd00:N::/64."""
    desired = Senders(linger=linger)
    desired.ports, desired.checked = ports, checked
    desired.set_nodes([("node-1", (), (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64")))], 0)
    for number in numbers or (2, 3):
        add(desired, number)
    return desired


def add(desired: Senders, number: int, *cidrs: str, addresses: tuple[str, ...] = ()) -> None:
    pods = cidrs or (f"10.{number}.0.0/24", f"fd00:{number:x}::/64")
    froms = tuple(map(parse_address, addresses or (f"192.168.7.{number}",)))
    desired.set_nodes([(f"node-{number}", froms, tuple(map(Cidr.parse, pods)))], 0)


class Keepers:
    """Opens them, and closes them at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def open(self, **options: object) -> SendersKeeper:
        """Without resyncs: what is repaired is repaired by events."""
        made = SendersKeeper(**{"resync_seconds": None, "count_seconds": 0.02, **options})  # type: ignore[arg-type]
        await made.open()
        self._stack.push_async_callback(made.close)
        return made


@pytest.fixture
async def keepers() -> AsyncIterator[Keepers]:
    async with AsyncExitStack() as stack:
        yield Keepers(stack)


def ours(node: Namespace) -> str:
    """The table, with spaces for tabs; empty if there is none."""
    return node.exec("nft list table inet netloom-tunnels", check=False).replace("\t", "    ")


def header(port: TunnelPort, *, vni: int = 1, options: bytes = b"") -> bytes:
    """Of the tunnel."""
    if port.protocol == "vxlan":
        return struct.pack("!II", 0x0800_0000, vni << 8)
    return struct.pack("!BBHI", len(options) // 4, 0, 0x6558, vni << 8) + options


def inner(source: str, target: str, payload: bytes, mac: bytes = MAC) -> bytes:
    """An Ethernet frame with a UDP packet, without its checksum where there can be none."""
    one, other = parse_address(source), parse_address(target)
    udp = struct.pack("!HHHH", 4242, INNER_PORT, 8 + len(payload), 0) + payload
    if len(one) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + one + other
        head = head[:10] + _checksum(head) + head[12:]
        return mac + bytes(6) + b"\x08\x00" + head + udp
    pseudo = one + other + struct.pack("!II", len(udp), 17)
    udp = udp[:6] + _checksum(pseudo + udp) + udp[8:]
    return mac + bytes(6) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + one + other + udp


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF or 0xFFFF)


class Underlay:
    """Node 1 with tunnel devices, and a LAN on which others send from any address of it."""

    def __init__(self, lab: Lab, *ports: TunnelPort) -> None:
        self.node, self.lan = lab.namespace("node"), lab.namespace("lan")
        lab.wire(self.node, "eth0", self.lan, "lan")
        self.node.ip("address add 192.168.7.1/24 dev eth0")
        self.node.ip("address add fd99::1/64 dev eth0 nodad")
        for number in (2, 3, 66):
            self.lan.ip(f"address add 192.168.7.{number}/24 dev lan")
            self.lan.ip(f"address add fd99::{number}/64 dev lan nodad")
        mac = ":".join(f"{byte:02x}" for byte in MAC)
        for port in ports:
            name = f"netloom_{port.protocol}"
            self.node.ip(f"link add {name} address {mac} type {port.protocol} external dstport {port.number}")
            self.node.ip(f"link set {name} up")
        self.node.ip("address add 10.1.0.0/32 dev lo")
        self.node.ip("address add fd00:1::/128 dev lo nodad")
        self.node.takes("fd00:1::", "fd99::1")

    def delivered(
        self,
        port: TunnelPort,
        source: str,
        pod: str,
        *,
        count: int = 6,
        to: str = "",
        inside: Namespace | None = None,
        **more: object,
    ) -> int:
        """Of so many packets from an address, with a pod as inner source, those that came out of the tunnel."""
        six = ":" in pod
        own = "fd00:1::" if six else "10.1.0.0"
        with self._listening(own) as inbox:
            outer = socket.AF_INET6 if ":" in source else socket.AF_INET
            with (inside or self.lan).entered(), socket.socket(outer, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.bind((source, 0))
                for number in range(count):
                    packet = header(port, vni=1 + number, **more) + inner(pod, own, b"%d" % number)  # type: ignore[arg-type]
                    sock.sendto(packet, (to or ("fd99::1" if ":" in source else "192.168.7.1"), port.number))
            arrived = 0
            with contextlib.suppress(TimeoutError):
                while arrived < count:
                    inbox.recv(100)
                    arrived += 1
            return arrived

    @contextlib.contextmanager
    def _listening(self, own: str) -> Iterator[socket.socket]:
        with self.node.entered():
            inbox = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET, socket.SOCK_DGRAM)
        with inbox:
            inbox.bind((own, INNER_PORT))
            inbox.settimeout(QUIET_SECONDS)
            yield inbox
