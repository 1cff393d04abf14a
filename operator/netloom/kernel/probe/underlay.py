"""The network between the nodes itself, without tunnel and without pods: does the peer's address answer, and what does
its kernel say of a UDP port? It takes no capability where the kernel lets everybody ping (net.ipv4.ping_group_range).
"""

import asyncio
import contextlib
import socket
import struct

from netloom.cidr import Address, format_address
from netloom.kernel.netlink.wire import FAMILIES
from netloom.kernel.probe.packets import checksum

_ATTEMPTS = 2


async def answers_ping(address: Address, seconds: float) -> bool | None:
    """Whether the (IPv4) address answers an echo request; None where this process may send none."""
    try:
        sock, raw = _ping_socket()
    except OSError:
        return None
    with sock:
        for number in range(_ATTEMPTS):
            request = _echo(number)
            with contextlib.suppress(OSError):
                sock.sendto(request, (format_address(address), 0))
                async with asyncio.timeout(seconds):
                    if await _replied(sock, address, raw=raw):
                        return True
    return False


async def refuses(address: Address, port: int, seconds: float) -> bool:
    """Whether the peer says that nobody may send to, or listens on, this UDP port. Silence is no refusal."""
    loop = asyncio.get_running_loop()
    with socket.socket(FAMILIES[len(address)], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect((format_address(address), port))
            sock.send(b"\0")  # no tunnel takes it for a packet of its own
            async with asyncio.timeout(seconds):
                await loop.sock_recv(sock, 1)
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


def _ping_socket() -> tuple[socket.socket, bool]:
    """And whether it is a raw one, which is given everybody's packets, with their IP headers."""
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | flags, socket.IPPROTO_ICMP), False
    except OSError:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW | flags, socket.IPPROTO_ICMP), True


def _echo(number: int) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 0x6E6C, number) + bytes(24)
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


async def _replied(sock: socket.socket, address: Address, *, raw: bool) -> bool:
    loop = asyncio.get_running_loop()
    while True:
        packet = await loop.sock_recv(sock, 2048)
        if raw and (packet[12:16] != address or packet[20:21] != b"\0"):
            continue
        return packet[20 if raw else 0] == 0
