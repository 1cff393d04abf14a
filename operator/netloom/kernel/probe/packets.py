"""Packets of the probe as bytes: UDP in IPv4 and IPv6, and the ICMP errors that tell what became of them. Pure.

RFC 791, 768, 792; RFC 8200, 4443. By hand, because a TUN device takes and gives whole packets.
"""

import struct
from typing import Literal

import msgspec

from netloom.cidr import Address

UDP_PORT = 9966
"""To which questions go, and from which answers come."""

HEADERS = {4: 28, 16: 48}
"""Bytes of IP and UDP headers, by the length of an address."""

_UDP, _ICMP, _ICMP6 = 17, 1, 58
_HOPS = 64
_DO_NOT_FRAGMENT = 0x4000


class Datagram(msgspec.Struct, frozen=True):
    """A UDP packet of the probe. size: bytes of the whole packet. port: from which it came."""

    source: Address
    destination: Address
    payload: bytes
    size: int
    port: int


class Rejection(msgspec.Struct, frozen=True):
    """An ICMP error about a packet of ours to `destination`. kind: `size` (it is larger than `mtu`), `filter` (a rule
    refuses it, says the kernel at `by`), `other` (no route, no neighbour, hops)."""

    by: Address
    destination: Address
    kind: Literal["size", "filter", "other"]
    mtu: int = 0
    code: tuple[int, int] = (0, 0)


def datagram(source: Address, destination: Address, payload: bytes, ports: tuple[int, int]) -> bytes:
    """A whole packet, which may not be fragmented. ports: from which, to which."""
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", *ports, length, 0) + payload
    sum16 = checksum(source + destination + struct.pack("!II", length, _UDP) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", sum16) + udp[8:]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, length, _UDP, _HOPS) + source + destination + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, _DO_NOT_FRAGMENT, _HOPS, _UDP, 0)
    sum16 = checksum(header + source + destination)
    return header[:10] + struct.pack("!H", sum16) + source + destination + udp


def parse(packet: bytes) -> Datagram | Rejection | None:
    """What came in; None where it is nothing of ours."""
    found = _ip(packet)
    if found is None:
        return None
    protocol, source, destination, body = found
    if protocol == _UDP and len(body) >= 8:
        port, to, length, _ = struct.unpack_from("!HHHH", body)
        if UDP_PORT in (port, to) and 8 <= length <= len(body):
            return Datagram(source, destination, body[8:length], len(packet), port)
    elif protocol in (_ICMP, _ICMP6) and len(body) >= 8:
        return _rejection(source, protocol, body)
    return None


def _ip(packet: bytes) -> tuple[int, Address, Address, bytes] | None:
    """Protocol, source, destination, and what the packet carries, as far as it is there."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return packet[9], packet[12:16], packet[16:20], packet[(packet[0] & 15) * 4 :]
    if version == 6 and len(packet) >= 40:
        return packet[6], packet[8:24], packet[24:40], packet[40:]
    return None


def _rejection(by: Address, protocol: int, body: bytes) -> Rejection | None:
    kind, code = body[0], body[1]
    about = _ip(body[8:])
    if about is None or about[0] != _UDP:
        return None
    if protocol == _ICMP:
        if (kind, code) == (3, 4):
            return Rejection(by, about[2], "size", struct.unpack_from("!H", body, 6)[0], (kind, code))
        if kind not in (3, 11):
            return None
        refused = kind == 3 and code in (2, 3, 9, 10, 13)
    else:
        if kind == 2:
            return Rejection(by, about[2], "size", struct.unpack_from("!I", body, 4)[0], (kind, code))
        if kind not in (1, 3):
            return None
        refused = kind == 1 and code in (1, 4, 5)
    return Rejection(by, about[2], "filter" if refused else "other", 0, (kind, code))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)
