"""Links and addresses as the kernel shows them, and the requests that make and change them.

Few of them, and rarely, so the messages are built plainly. pyroute2 knows them all, but its import costs an agent
11 MiB and 0.18 s of CPU time for what is a page of code here.
"""

import socket
import struct
import sys

import msgspec

from netloom.cidr import Address, format_address
from netloom.kernel.mac import Mac
from netloom.kernel.wire import (
    CREATE,
    EXCL,
    REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    attribute,
    attributes,
    be16,
    message,
    nested,
    u8,
    u32,
)

IFF_UP, IFF_LOWER_UP = 1, 1 << 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_STATS64, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 18, 23, 26, 29
_SKIP_STATISTICS = 8
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_COLLECT_METADATA = 7, 15, 25
_GENEVE_PORT, _GENEVE_COLLECT_METADATA, _GENEVE_INNER_PROTO_INHERIT = 5, 6, 14
_INET6_ADDR_GEN_MODE, _NONE = 8, b"\x01"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 2
_SCOPE_LINK = 253

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, ifindex


class Link(msgspec.Struct, frozen=True):
    """A link. `port` and `external` are a tunnel device's; `master` is the ifindex of its bridge or VRF.

    `running`: up, and with a carrier; without one the kernel drops nexthops on it, and says nothing.
    `odd`: what a tunnel device has been told that we never tell it, as `ip` would name it.
    `generates_addresses`: the kernel makes IPv6 link-local addresses by itself (addrgenmode is not none).
    """

    name: str
    ifindex: int
    kind: str = ""
    up: bool = False
    running: bool = False
    mtu: int = 0
    mac: Mac = b""
    master: int = 0
    port: int = 0
    external: bool = False
    odd: str = ""
    generates_addresses: bool = False


class LocalAddress(msgspec.Struct, frozen=True):
    """A node's own address, with the prefix length of the network that it says to be on. No CIDR: host bits count."""

    address: Address
    length: int

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"


class InterfaceAddress(msgspec.Struct, frozen=True):
    """An address on a device."""

    ifindex: int
    local: LocalAddress


def read_link(buffer: bytes, start: int, end: int) -> Link | None:
    """An RTM_NEWLINK or RTM_DELLINK, or None if it is a bridge port's."""
    family, _type, ifindex, flags, _change = _LINK.unpack_from(buffer, start)
    if family != socket.AF_UNSPEC:
        return None
    found = attributes(buffer, start + _LINK.size, end)
    info = found.get(_IFLA_LINKINFO, b"")
    about = attributes(info, 0, len(info))
    kind = about.get(_INFO_KIND, b"").rstrip(b"\0").decode()
    port, external, odd = _tunnel(kind, about.get(_INFO_DATA, b""))
    families = attributes(found.get(_IFLA_AF_SPEC, b""), 0, len(found.get(_IFLA_AF_SPEC, b"")))
    ipv6 = families.get(socket.AF_INET6, b"")
    return Link(
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode(),
        ifindex=ifindex,
        kind=kind,
        up=bool(flags & IFF_UP),
        running=flags & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP,
        mtu=_number(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b""),
        master=_number(found.get(_IFLA_MASTER)),
        port=port,
        external=external,
        odd=odd,
        generates_addresses=attributes(ipv6, 0, len(ipv6)).get(_INET6_ADDR_GEN_MODE, _NONE) != _NONE,
    )


def _tunnel(kind: str, data: bytes) -> tuple[int, bool, str]:
    """Of a tunnel device's own attributes: UDP port, whether it is external, what is odd about it."""
    found = attributes(data, 0, len(data))
    if kind == "vxlan":
        port, external = found.get(_VXLAN_PORT, b""), bool(_number(found.get(_VXLAN_COLLECT_METADATA)))
        return int.from_bytes(port, "big"), external, "learning" if _number(found.get(_VXLAN_LEARNING)) else ""
    if kind == "geneve":
        inherits = "innerprotoinherit" if _GENEVE_INNER_PROTO_INHERIT in found else ""
        return int.from_bytes(found.get(_GENEVE_PORT, b""), "big"), _GENEVE_COLLECT_METADATA in found, inherits
    return 0, False, ""


def read_address(buffer: bytes, start: int, end: int) -> InterfaceAddress | None:
    """An RTM_NEWADDR or RTM_DELADDR, or None if it is of another family."""
    family, length, _flags, _scope, ifindex = _ADDRESS.unpack_from(buffer, start)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(buffer, start + _ADDRESS.size, end)
    # On a point-to-point device IFA_ADDRESS is the other end's.
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return InterfaceAddress(ifindex, LocalAddress(address, length))


def dump_links() -> bytes:
    """Request: all links, without their counters."""
    return message(RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0), attribute(_IFLA_EXT_MASK, u32(_SKIP_STATISTICS)))


def get_link(ifindex: int) -> bytes:
    """Request: one link, with its counters."""
    return message(RTM_GETLINK, 0, _LINK.pack(0, 0, ifindex, 0, 0))


def read_received(buffer: bytes, start: int, end: int) -> int:
    """Packets that a link has received, from an RTM_NEWLINK that was asked for with its counters."""
    counters = attributes(buffer, start + _LINK.size, end).get(_IFLA_STATS64, bytes(8))
    return int.from_bytes(counters[:8], sys.byteorder)


def dump_addresses(family: int, ifindex: int = 0) -> bytes:
    """Request: all addresses of a family, or those of one device."""
    return message(RTM_GETADDR, 0, _ADDRESS.pack(family, 0, 0, 0, ifindex))


def create_tunnel(name: str, kind: str, *, mac: Mac, mtu: int, port: int) -> bytes:
    """A collect-metadata VXLAN or Geneve device: VNI and destination come with each packet, from its route."""
    if kind == "vxlan":
        settings = [
            attribute(_VXLAN_COLLECT_METADATA, u8(1)),
            attribute(_VXLAN_PORT, be16(port)),
            attribute(_VXLAN_LEARNING, u8(0)),
        ]
    else:
        settings = [attribute(_GENEVE_COLLECT_METADATA, b""), attribute(_GENEVE_PORT, be16(port))]
    return message(
        RTM_NEWLINK,
        CREATE | EXCL,
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0),
        attribute(_IFLA_IFNAME, name.encode() + b"\0"),
        attribute(_IFLA_ADDRESS, mac),
        attribute(_IFLA_MTU, u32(mtu)),
        nested(_IFLA_LINKINFO, attribute(_INFO_KIND, kind.encode()), nested(_INFO_DATA, *settings)),
    )


def set_up(ifindex: int) -> bytes:
    """`ip link set up`."""
    return message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, IFF_UP, IFF_UP))


def set_mac(ifindex: int, mac: Mac) -> bytes:
    """`ip link set address`."""
    return message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0), attribute(_IFLA_ADDRESS, mac))


def set_mtu(ifindex: int, mtu: int) -> bytes:
    """`ip link set mtu`."""
    return message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0), attribute(_IFLA_MTU, u32(mtu)))


def set_no_master(ifindex: int) -> bytes:
    """`ip link set nomaster`."""
    return message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0), attribute(_IFLA_MASTER, u32(0)))


def set_no_generated_addresses(ifindex: int) -> bytes:
    """`ip link set addrgenmode none`: the link-local address is given, not made by the kernel after a second of DAD."""
    mode = nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, _NONE)))
    return message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0), mode)


def delete_link(ifindex: int) -> bytes:
    """`ip link delete`."""
    return message(RTM_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0))


def put_address(ifindex: int, local: LocalAddress) -> bytes:
    """`ip address replace`. IPv6: without duplicate address detection, which a tunnel cannot do, and waits for."""
    body = _ADDRESS.pack(_family(local.address), local.length, 0, _scope(local.address), ifindex)
    parts = [attribute(_IFA_LOCAL, local.address), attribute(_IFA_ADDRESS, local.address)]
    if len(local.address) == 16:
        parts.append(attribute(_IFA_FLAGS, u32(_IFA_F_NODAD)))
    return message(RTM_NEWADDR, CREATE | REPLACE, body, *parts)


def delete_address(ifindex: int, local: LocalAddress) -> bytes:
    """`ip address delete`."""
    body = _ADDRESS.pack(_family(local.address), local.length, 0, 0, ifindex)
    return message(RTM_DELADDR, 0, body, attribute(_IFA_LOCAL, local.address))


def is_link_local(address: Address) -> bool:
    """fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _family(address: Address) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _scope(address: Address) -> int:
    return _SCOPE_LINK if is_link_local(address) else 0


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", sys.byteorder)
