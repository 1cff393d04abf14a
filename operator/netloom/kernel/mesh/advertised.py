"""What a node has by router advertisements: on which devices the kernel has learned routes or addresses by them.

With forwarding on, the kernel takes none on a device whose accept_ra is 1 (see `sysctl.of_node`).
"""

import socket

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import Link
from netloom.kernel.netlink.messages import AddressMessage, RouteMessage, decode, encode
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.ownership import DEVICE_PREFIX

_PROTOCOL = 9
"""RTPROT_RA."""
_MADE_FROM_PREFIX = 0x100
"""IFA_F_MANAGETEMPADDR: the kernel sets it on every address that it makes from an advertised prefix."""
_TO_NETWORKS = frozenset(("", "vlan", "bond", "team", "macvlan", "ipoib"))
"""Kinds of devices by which machines are on a network; a device of no kind is hardware."""


def learned_on(commands: CommandSocket) -> frozenset[int]:
    """ifindexes of the devices of which the kernel has routes or addresses by router advertisement, now."""
    fields = {"family": socket.AF_INET6, "proto": _PROTOCOL}
    found = read_all(commands, encode(RouteMessage, wire.RTM_GETROUTE, 0, fields), _read_route)
    addresses = encode(AddressMessage, wire.RTM_GETADDR, 0, {"family": socket.AF_INET6})
    return frozenset((*found, *read_all(commands, addresses, _read_address)))


def _read_route(buffer: bytes, start: int, _end: int) -> int | None:
    seen = decode(RouteMessage, buffer, start)
    return seen.get_attr("RTA_OIF") if seen["proto"] == _PROTOCOL else None


def _read_address(buffer: bytes, start: int, _end: int) -> int | None:
    seen = decode(AddressMessage, buffer, start)
    made = seen["family"] == socket.AF_INET6 and seen.get_attr("IFA_FLAGS", 0) & _MADE_FROM_PREFIX
    return seen["index"] if made else None


def leads_outside(link: Link) -> bool:
    """Whether a router may advertise itself on this device, some day: it is none that pods, containers, virtual
    machines or tunnels have. From those nobody shall be able to configure this node."""
    return link.kind in _TO_NETWORKS and link.name != "lo" and not link.name.startswith(DEVICE_PREFIX)
