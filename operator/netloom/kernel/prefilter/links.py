"""Devices and the XDP programs on them, as netlink shows and changes them. By hand: every change of any device is told.

Source: linux/if_link.h. What is attached by a bpf_link (as Cilium does) is shown as well, and cannot be replaced.
"""

import struct
import sys

import msgspec

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import LinkMessage, encode

_LINK = struct.Struct("=BxHiII")  # family, type, ifindex, flags, change
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_EVENT = 3, 4, 5, 10, 37, 43, 44
_FD, _FLAGS, _EXPECTED_FD = 1, 3, 8
_ATTACHED, _PROGRAM, _NESTED = 2, 4, 0x8000
_PROGRAMS = {"native": 5, "generic": 6, "offloaded": 7}
"""Attributes with the program's id, by mode."""
_MODE_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
_REPLACE = 1 << 4
"""XDP_FLAGS_REPLACE: only if what is attached is what is expected to be."""
FEATURES, BONDING = 2, 6
"""IFLA_EVENT_FEATURES, IFLA_EVENT_BONDING_OPTIONS: why an event is sent."""
_ETHERNET_TYPES = (1, 772)
"""ARPHRD_ETHER, ARPHRD_LOOPBACK: on others (tun, wireguard, ipip) frames begin with the IP header."""


class XdpLink(msgspec.Struct, frozen=True):
    """A device. programs: ids of the XDP programs on it, by mode. ethernet: its frames begin with Ethernet's header.
    below: ifindex of the device that it stands on, as a VLAN does; master: of the bridge or bond that it is a port of;
    0: none. event: why it is told of (FEATURES, BONDING); 0: of other reasons, or it was asked for."""

    ifindex: int
    name: str
    mtu: int
    ethernet: bool
    programs: tuple[tuple[str, int], ...] = ()
    below: int = 0
    master: int = 0
    event: int = 0


def read_xdp_link(buffer: bytes, start: int, end: int) -> XdpLink | None:
    """An RTM_NEWLINK or RTM_DELLINK; None if it is a bridge port's, or says nothing of XDP."""
    family, kind, ifindex, _flags, _change = _LINK.unpack_from(buffer, start)
    found = wire.attributes(buffer, start + _LINK.size, end)
    if family or _IFLA_XDP not in found:
        return None
    xdp = wire.attributes(found[_IFLA_XDP], 0, len(found[_IFLA_XDP]))
    programs = [(mode, _number(xdp[number])) for mode, number in _PROGRAMS.items() if number in xdp]
    return XdpLink(
        ifindex,
        found[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
        _number(found.get(_IFLA_MTU, b"")),
        kind in _ETHERNET_TYPES,
        tuple(programs),
        0 if _IFLA_LINK_NETNSID in found else _number(found.get(_IFLA_LINK, b"")),
        _number(found.get(_IFLA_MASTER, b"")),
        _number(found.get(_IFLA_EVENT, b"")),
    )


def dump_links() -> bytes:
    """The request for all of them."""
    return encode(LinkMessage, wire.RTM_GETLINK, 0, {})


def attach(ifindex: int, mode: str, program: int, expected: int | None = -1, *, sequence: int = 0) -> bytes:
    """Compare and swap: the program (descriptor; -1: none) in the place of the one that is expected (descriptor; -1:
    that there is none). The kernel refuses if another is there (EEXIST), or what was attached by other means (EBUSY).
    expected None: whatever is there, where it was seen and cannot be opened.
    """
    flags = _MODE_FLAGS[mode] | (_REPLACE if expected is not None else 0)
    fields = [(_FD, "=i", program), (_FLAGS, "=I", flags)]
    fields += [(_EXPECTED_FD, "=i", expected)] if expected is not None else []
    nest = b"".join(wire.attribute(kind, struct.pack(layout, value)) for kind, layout, value in fields)
    body = _LINK.pack(0, 0, ifindex, 0, 0) + wire.attribute(_IFLA_XDP | _NESTED, nest)
    return wire.HEADER.pack(wire.HEADER_SIZE + len(body), wire.RTM_NEWLINK, wire.REQUEST, sequence, 0) + body


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
