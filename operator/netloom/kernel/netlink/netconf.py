"""Switches of devices as the kernel tells them: forwarding, and the reverse path filter.

Whoever writes /proc/sys/net/*/conf is heard, and so is a device that is made, with all that it starts with. By hand:
with ip_forward all devices of a node are told one by one, to each of four keepers, and a node may have hundreds. That
is 4 us for each; by pyroute2's way 49 (`make bench-codec`).
"""

import socket
import struct
import sys

import msgspec

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.sockets import CommandSocket, read_all

ALL, DEFAULT = -1, -2
"""ifindexes of the switches that stand for all devices, and for those to come."""

_IFINDEX, _FORWARDING, _RP_FILTER = 1, 2, 3
_BODY = struct.Struct("=B3x")
_SIZE = wire.HEADER_SIZE + _BODY.size


class Netconf(msgspec.Struct, frozen=True):
    """What is said of the switches of a device, in one family; None: of this one nothing."""

    family: int
    ifindex: int
    forwarding: bool | None = None
    rp_filter: int | None = None


def read_netconf(buffer: bytes, start: int, end: int) -> Netconf | None:
    """An RTM_NEWNETCONF (linux/netconf.h); None if it is of another family."""
    family = buffer[start]
    if family not in wire.SIZES:
        return None
    found = wire.attributes(buffer, start + _BODY.size, end)
    numbers = {
        kind: int.from_bytes(found[kind], sys.byteorder, signed=True)
        for kind in (_IFINDEX, _FORWARDING, _RP_FILTER)
        if kind in found
    }
    forwarding = bool(numbers[_FORWARDING]) if _FORWARDING in numbers else None
    return Netconf(family, numbers.get(_IFINDEX, 0), forwarding, numbers.get(_RP_FILTER))


def read_switches(commands: CommandSocket, family: int = socket.AF_INET) -> dict[int, Netconf]:
    """Of all devices, by ifindex; ALL and DEFAULT are among them. Raises RefusedError, OSError."""
    request = wire.HEADER.pack(_SIZE, wire.RTM_GETNETCONF, wire.REQUEST, 0, 0) + _BODY.pack(family)
    return {each.ifindex: each for each in read_all(commands, request, read_netconf)}
