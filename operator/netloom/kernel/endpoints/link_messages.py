"""Messages of a pod's pair of devices, encoded and taken apart by hand: an ADD is waited for, and whatever happens to a
pod's device is told as a link.

By pyroute2's classes a link takes 13 times as long to decode, and a pair, 0.3 ms, 19 times as long to encode (`make
bench-codec`).
"""

import socket
import sys
from collections.abc import Mapping

import msgspec

from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.mac import Mac
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import GENERATE_NO_ADDRESS, IFF_NOARP, IFF_UP, SKIP_STATISTICS
from netloom.kernel.netlink.wire import attribute, attributes, number, text

_NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
_IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 26, 27, 28, 29
_IFLA_OPERSTATE, _OPERATIONAL = 16, 6
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_INET_CONF, _INET6_CONF, _INET6_ADDR_GEN_MODE = 1, 2, 8

# enum of linux/ip.h, IPV4_DEVCONF_*, and of linux/ipv6.h, DEVCONF_*.
_FORWARDING, _ACCEPT_REDIRECTS, _SEND_REDIRECTS, _RP_FILTER = 1, 4, 6, 8
_ACCEPT_RA, _DISABLE_IPV6 = 3, 26

SWITCHES: Mapping[int, tuple[str, int]] = {
    _FORWARDING: ("forwarding", 1),
    _ACCEPT_REDIRECTS: ("accept_redirects", 0),
    _SEND_REDIRECTS: ("send_redirects", 0),
    _RP_FILTER: ("rp_filter", 1),
}
"""IPv4 switches of a host end, by their numbers: name below net/ipv4/conf/DEVICE, value.

forwarding: what the pod sends goes further. rp_filter: strict, as a pod has its own address and no other (it is loose
all the same where `conf.all.rp_filter` is 2, as the kernel takes the higher of both; IPv6 has none). redirects: nobody
but the node says where a pod's packets go, and one that reaches itself by its Service comes back by the device that it
left by; that the node sends none takes a `conf.all.send_redirects` of 0, too, as the kernel takes either.
"""


class End(msgspec.Struct, frozen=True):
    """One end of a pair, as the kernel shows it.

    switches: of SWITCHES, the values. generates_addresses: the kernel makes IPv6 link-local addresses by itself.
    accept_ra, disable_ipv6: IPv6's switches; None where the device has no IPv6 at all.
    """

    name: str
    ifindex: int
    kind: str = ""
    up: bool = False
    mtu: int = 0
    mac: Mac = b""
    alias: str = ""
    master: int = 0
    no_arp: bool = False
    generates_addresses: bool = False
    switches: tuple[int, ...] = ()
    accept_ra: int | None = None
    disable_ipv6: int | None = None


# -------------------------------------------------------------------------------------------- from the kernel


def read_end(buffer: bytes, start: int, end: int) -> End | None:
    """An RTM_NEWLINK or RTM_DELLINK, or None if it is a bridge port's."""
    family, _type, ifindex, flags, _change = wire.LINK.unpack_from(buffer, start)
    if family != socket.AF_UNSPEC:
        return None
    found = attributes(buffer, start + wire.LINK.size, end)
    info = found.get(_IFLA_LINKINFO, b"")
    families = _within(found.get(_IFLA_AF_SPEC, b""))
    four = _within(families.get(socket.AF_INET, b"")).get(_INET_CONF, b"")
    six = _within(families.get(socket.AF_INET6, b""))
    switches6 = six.get(_INET6_CONF, b"")
    mode = six.get(_INET6_ADDR_GEN_MODE)
    return End(
        name=text(found.get(_IFLA_IFNAME, b"")),
        ifindex=ifindex,
        kind=text(_within(info).get(_INFO_KIND, b"")),
        up=bool(flags & IFF_UP),
        mtu=number(found.get(_IFLA_MTU, b"")),
        mac=found.get(_IFLA_ADDRESS, b""),
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        master=number(found.get(_IFLA_MASTER, b"")),
        no_arp=bool(flags & IFF_NOARP),
        generates_addresses=mode is not None and mode[0] != GENERATE_NO_ADDRESS,
        switches=tuple(number(four[4 * (kind - 1) : 4 * kind]) for kind in SWITCHES),
        accept_ra=number(switches6[4 * _ACCEPT_RA : 4 * _ACCEPT_RA + 4]) if switches6 else None,
        disable_ipv6=number(switches6[4 * _DISABLE_IPV6 : 4 * _DISABLE_IPV6 + 4]) if switches6 else None,
    )


def read_operational(buffer: bytes, start: int, end: int) -> bool:
    """Whether a link can send: the kernel has given it its queue, which it does some time after there is a carrier."""
    state = attributes(buffer, start + wire.LINK.size, end, _IFLA_OPERSTATE).get(_IFLA_OPERSTATE, b"\0")
    return state[0] == _OPERATIONAL


def _within(value: bytes) -> dict[int, bytes]:
    return attributes(value, 0, len(value))


# ---------------------------------------------------------------------------------------------- to the kernel


def create_pair(endpoint: Endpoint, netns: int) -> bytes:
    """Both ends, the pod's straight in its network namespace. Up they are later: an end would make itself a link-local
    address first, and the kernel opens none before both are there."""
    mtu = _u32(_IFLA_MTU, endpoint.mtu) if endpoint.mtu else b""
    peer = wire.LINK.pack(0, 0, 0, 0, 0) + b"".join(
        (
            attribute(_IFLA_IFNAME, endpoint.interface.encode() + b"\0"),
            attribute(_IFLA_ADDRESS, endpoint.pod_mac),
            mtu,
            _u32(_IFLA_NET_NS_FD, netns),
        )
    )
    data = attribute(_INFO_DATA | _NESTED, attribute(_VETH_INFO_PEER | _NESTED, peer))
    info = attribute(_IFLA_LINKINFO | _NESTED, attribute(_INFO_KIND, b"veth\0") + data)
    name = attribute(_IFLA_IFNAME, endpoint.device.encode() + b"\0")
    rest = name + attribute(_IFLA_ADDRESS, endpoint.host_mac) + mtu + info
    return _request(wire.RTM_NEWLINK, wire.CREATE | wire.EXCL, 0, rest)


def get_link(which: str | int) -> bytes:
    """The link of that name or ifindex."""
    if isinstance(which, int):
        return _request(wire.RTM_GETLINK, 0, which, _skipping(b""))
    return _request(wire.RTM_GETLINK, 0, 0, _skipping(attribute(_IFLA_IFNAME, which.encode() + b"\0")))


def dump_links() -> bytes:
    """All links."""
    return _request(wire.RTM_GETLINK, 0, 0, _skipping(b""))


def set_alias(ifindex: int, alias: str) -> bytes:
    """`ip link set alias`."""
    return _request(wire.RTM_NEWLINK, 0, ifindex, attribute(_IFLA_IFALIAS, alias.encode()))


def set_switches(ifindex: int, *, ipv6: bool) -> bytes:
    """IPv4's switches, and, where the device has IPv6, `addrgenmode none`."""
    return _request(wire.RTM_NEWLINK, 0, ifindex, _switches(ipv6=ipv6))


def prepare_host_end(ifindex: int, alias: str, *, ipv6: bool) -> bytes:
    """`set_alias` and `set_switches` at once."""
    return _request(wire.RTM_NEWLINK, 0, ifindex, attribute(_IFLA_IFALIAS, alias.encode()) + _switches(ipv6=ipv6))


def set_up(ifindex: int) -> bytes:
    """`ip link set up`."""
    return _request(wire.RTM_NEWLINK, 0, ifindex, b"", IFF_UP)


def generate_no_addresses(ifindex: int) -> bytes:
    """`ip link set addrgenmode none`."""
    return _request(wire.RTM_NEWLINK, 0, ifindex, attribute(_IFLA_AF_SPEC | _NESTED, _no_addresses()))


def join_group(name: str, group: int) -> bytes:
    """`ip link set dev NAME group`."""
    return _request(wire.RTM_NEWLINK, 0, 0, attribute(_IFLA_IFNAME, name.encode() + b"\0") + _u32(_IFLA_GROUP, group))


def delete_group(group: int) -> bytes:
    """`ip link delete group`: all of it at once."""
    return _request(wire.RTM_DELLINK, 0, 0, _u32(_IFLA_GROUP, group))


def delete_named(name: str) -> bytes:
    """`ip link delete`."""
    return _request(wire.RTM_DELLINK, 0, 0, attribute(_IFLA_IFNAME, name.encode() + b"\0"))


def _switches(*, ipv6: bool) -> bytes:
    four = b"".join(_u32(kind, value) for kind, (_name, value) in SWITCHES.items())
    spec = attribute(socket.AF_INET | _NESTED, attribute(_INET_CONF | _NESTED, four))
    return attribute(_IFLA_AF_SPEC | _NESTED, spec + (_no_addresses() if ipv6 else b""))


def _no_addresses() -> bytes:
    return attribute(socket.AF_INET6 | _NESTED, attribute(_INET6_ADDR_GEN_MODE, bytes([GENERATE_NO_ADDRESS])))


def _skipping(rest: bytes) -> bytes:
    return rest + _u32(_IFLA_EXT_MASK, SKIP_STATISTICS)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def _request(kind: int, flags: int, ifindex: int, rest: bytes, change: int = 0) -> bytes:
    body = wire.LINK.pack(0, 0, ifindex, change, change) + rest
    return wire.HEADER.pack(wire.HEADER_SIZE + len(body), kind, flags | wire.REQUEST, 0, 0) + body
