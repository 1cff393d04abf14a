"""Devices and the XDP programs on them, as netlink shows and changes them. By hand is what is read: every
change of any device is told, and by pyroute2's class a link takes 200 us (`make bench-codec`).

Source: linux/if_link.h. What is attached by a bpf_link (as Cilium does) is shown as well, and cannot be replaced.
"""

import msgspec

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import change
from netloom.kernel.netlink.messages import LinkMessage, encode, nested

_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_EVENT = 3, 4, 5, 10, 37, 43, 44
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
    family, kind, ifindex, _flags, _change = wire.LINK.unpack_from(buffer, start)
    found = wire.attributes(buffer, start + wire.LINK.size, end)
    if family or _IFLA_XDP not in found:
        return None
    xdp = wire.attributes(found[_IFLA_XDP], 0, len(found[_IFLA_XDP]))
    programs = [(mode, wire.number(xdp[number])) for mode, number in _PROGRAMS.items() if number in xdp]
    return XdpLink(
        ifindex,
        wire.text(found[_IFLA_IFNAME]),
        wire.number(found.get(_IFLA_MTU, b"")),
        kind in _ETHERNET_TYPES,
        tuple(programs),
        0 if _IFLA_LINK_NETNSID in found else wire.number(found.get(_IFLA_LINK, b"")),
        wire.number(found.get(_IFLA_MASTER, b"")),
        wire.number(found.get(_IFLA_EVENT, b"")),
    )


def dump_links() -> bytes:
    """The request for all of them."""
    return encode(LinkMessage, wire.RTM_GETLINK, 0, {})


def attach(ifindex: int, mode: str, program: int, expected: int | None = -1) -> bytes:
    """Compare and swap: the program (descriptor; -1: none) in the place of the one that is expected (descriptor; -1:
    that there is none). The kernel refuses if another is there (EEXIST), or what was attached by other means (EBUSY).
    expected None: whatever is there, where it was seen and cannot be opened.
    """
    flags = _MODE_FLAGS[mode] | (_REPLACE if expected is not None else 0)
    expectation = {"IFLA_XDP_EXPECTED_FD": expected} if expected is not None else {}
    return change(ifindex, xdp=nested(IFLA_XDP_FD=program, IFLA_XDP_FLAGS=flags, **expectation))
