"""Links and addresses as the kernel shows them, and the requests that make and change them.

By pyroute2's classes, but for pods' devices: there are few others. The most that this costs is 0.4 s of CPU time for
10,000 addresses that come at once, and 20 ms to read a node with 100 links; by hand it was a tenth of that.
"""

import socket
from typing import Any

import msgspec

from netloom.cidr import LINK_LOCAL, Address, format_address, version_of
from netloom.kernel.mac import Mac
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import AddressMessage, LinkMessage, decode, encode, nested
from netloom.kernel.ownership import ENDPOINTS

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
IFF_UP, IFF_NOARP, IFF_LOWER_UP = 1, 1 << 7, 1 << 16
_IFF_NARROW = 0x10 | IFF_NOARP
"""IFF_POINTOPOINT, IFF_NOARP."""
_DEPRECATED, _PERMANENT = 0x20, 0x80
GENERATE_NO_ADDRESS = 1
SKIP_STATISTICS = 8
NO_DUPLICATE_DETECTION = 2
_ODD = {"vxlan": ("LEARNING", "learning"), "geneve": ("INNER_PROTO_INHERIT", "innerprotoinherit")}
"""What is never set on a tunnel device: the attribute, and its name for `ip`."""
_ALL_REASONS = (1 << 32) - 1


def device_name(ifindex: int) -> str:
    """For people."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"#{ifindex}"  # it is gone


class Link(msgspec.Struct, frozen=True):
    """A link. `port` and `external` are a tunnel device's; `master` is the ifindex of its bridge or VRF.

    `running`: up, and with a carrier; without one the kernel drops nexthops on it, and says nothing.
    `odd`: what a tunnel device has been told that we never tell it, as `ip` would name it.
    `generates_addresses`: the kernel makes IPv6 link-local addresses by itself (addrgenmode is not none).
    `narrow`: point-to-point, or without ARP.
    `no_arp`: it asks nobody for MACs (`arp off`). `protodown`: told to be without a carrier.
    `made_in`: id of the network namespace in which it was made, if that is another one, else -1: a tunnel device has
    its UDP port there.
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
    narrow: bool = False
    no_arp: bool = False
    protodown: bool = False
    made_in: int = -1


class LocalAddress(msgspec.Struct, frozen=True):
    """A node's own address, with the prefix length of the network that it says to be on. No CIDR: host bits count.

    `peer`: the other end's, of a point-to-point address, of whose network the length is then. `expires`: it has a
    lifetime, or is no longer to be used.
    """

    address: Address
    length: int
    peer: Address = b""
    expires: bool = False

    @property
    def is_link_local(self) -> bool:
        """Of no network of its own."""
        return LINK_LOCAL[version_of(self.address)].holds(self.address)

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return wire.FAMILIES[len(self.address)]

    def __str__(self) -> str:
        other = f" peer {format_address(self.peer)}" if self.peer else ""
        return f"{format_address(self.address)}{other}/{self.length}"


class InterfaceAddress(msgspec.Struct, frozen=True):
    """An address on a device."""

    ifindex: int
    local: LocalAddress


# -------------------------------------------------------------------------------------------- from the kernel


def read_name(buffer: bytes, start: int, end: int) -> tuple[int, str]:
    """ifindex and name of an RTM_NEWLINK or RTM_DELLINK, by hand: 2 us, where all of it takes 200."""
    name = wire.attributes(buffer, start + wire.LINK.size, end, _IFLA_IFNAME).get(_IFLA_IFNAME, b"")
    return int(wire.LINK.unpack_from(buffer, start)[2]), wire.text(name)


def is_endpoint(buffer: bytes, start: int, end: int) -> bool:
    """Whether a link is a local pod's: of each that comes and goes the kernel tells ten times, to every part."""
    return ENDPOINTS.link(read_name(buffer, start, end)[1])


def read_link(buffer: bytes, start: int, end: int) -> Link | None:
    """An RTM_NEWLINK or RTM_DELLINK, or None if it is a bridge port's."""
    if buffer[start] != socket.AF_UNSPEC:
        return None
    if is_endpoint(buffer, start, end):
        return _read_endpoint(buffer, start, end)
    seen = decode(LinkMessage, buffer, start)
    kind = seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
    port, external, odd = _tunnel(kind, seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA"))
    mode = seen.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
    return Link(
        name=seen.get_attr("IFLA_IFNAME"),
        ifindex=seen["index"],
        kind=kind,
        up=bool(seen["flags"] & IFF_UP),
        running=seen["flags"] & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP,
        mtu=seen.get_attr("IFLA_MTU", 0),
        mac=seen.get_attr("IFLA_ADDRESS", b""),
        master=seen.get_attr("IFLA_MASTER", 0),
        port=port,
        external=external,
        odd=odd,
        generates_addresses=mode not in (None, GENERATE_NO_ADDRESS),
        narrow=bool(seen["flags"] & _IFF_NARROW),
        no_arp=bool(seen["flags"] & IFF_NOARP),
        protodown=bool(seen.get_attr("IFLA_PROTO_DOWN", 0)),
        made_in=seen.get_attr("IFLA_LINK_NETNSID", -1),
    )


def _read_endpoint(buffer: bytes, start: int, end: int) -> Link:
    """By hand, as there are hundreds: what others than the endpoints' part may want to know of one."""
    _family, _type, ifindex, flags, _change = wire.LINK.unpack_from(buffer, start)
    found = wire.attributes(buffer, start + wire.LINK.size, end)
    return Link(
        name=wire.text(found[_IFLA_IFNAME]),
        ifindex=ifindex,
        kind="veth",
        up=bool(flags & IFF_UP),
        running=flags & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP,
        mtu=wire.number(found.get(_IFLA_MTU, b"")),
        mac=found.get(_IFLA_ADDRESS, b""),
    )


def _tunnel(kind: str, data: Any) -> tuple[int, bool, str]:
    """Of a tunnel device's own attributes: UDP port, whether it is external, what is odd about it."""
    if data is None or kind not in _ODD:
        return 0, False, ""
    odd, text = _ODD[kind]
    prefix = f"IFLA_{kind.upper()}_"
    external = bool(data.get_attr(prefix + "COLLECT_METADATA"))
    return data.get_attr(prefix + "PORT", 0), external, text if data.get_attr(prefix + odd) else ""


def read_received(buffer: bytes, start: int, end: int) -> int:
    """Packets that a link has received, from an RTM_NEWLINK that was asked for with its counters."""
    counters = decode(LinkMessage, buffer, start).get_attr("IFLA_STATS64")
    return int(counters["rx_packets"]) if counters else 0


def read_address(buffer: bytes, start: int, end: int) -> InterfaceAddress | None:
    """An RTM_NEWADDR or RTM_DELADDR, or None if it is of another family."""
    if buffer[start] not in wire.SIZES:
        return None
    seen = decode(AddressMessage, buffer, start)
    # On a point-to-point device IFA_ADDRESS is the other end's.
    other = seen.get_attr("IFA_ADDRESS", b"")
    address = seen.get_attr("IFA_LOCAL") or other
    expires = seen["flags"] & (_DEPRECATED | _PERMANENT) != _PERMANENT
    local = LocalAddress(address, seen["prefixlen"], other if other != address else b"", expires)
    return InterfaceAddress(seen["index"], local)


# ---------------------------------------------------------------------------------------------- to the kernel


def dump_links(**where: int) -> bytes:
    """All links, without statistics; `if_netnsid`: of the network namespace of that id."""
    return encode(LinkMessage, wire.RTM_GETLINK, 0, {}, ext_mask=SKIP_STATISTICS, **where)


def create_tunnel(name: str, kind: str, *, mac: Mac, mtu: int, port: int) -> bytes:
    """A collect-metadata VXLAN or Geneve device: VNI and destination come with each packet, from its route."""
    if kind == "vxlan":
        settings = nested(IFLA_VXLAN_COLLECT_METADATA=1, IFLA_VXLAN_PORT=port, IFLA_VXLAN_LEARNING=0)
    else:
        settings = nested(IFLA_GENEVE_COLLECT_METADATA=True, IFLA_GENEVE_PORT=port)
    info = nested(IFLA_INFO_KIND=kind, IFLA_INFO_DATA=settings)
    flags = wire.CREATE | wire.EXCL
    return encode(LinkMessage, wire.RTM_NEWLINK, flags, {}, ifname=name, address=mac, mtu=mtu, linkinfo=info)


def set_up(ifindex: int) -> bytes:
    """`ip link set up`."""
    return encode(LinkMessage, wire.RTM_NEWLINK, 0, {"index": ifindex, "flags": IFF_UP, "change": IFF_UP})


def set_down(ifindex: int) -> bytes:
    """`ip link set down`."""
    return encode(LinkMessage, wire.RTM_NEWLINK, 0, {"index": ifindex, "change": IFF_UP})


def set_arp(ifindex: int) -> bytes:
    """`ip link set arp on`."""
    return encode(LinkMessage, wire.RTM_NEWLINK, 0, {"index": ifindex, "change": IFF_NOARP})


def set_no_protodown(ifindex: int) -> bytes:
    """`ip link set protodown off`, and every reason for it: while there is one, the kernel refuses."""
    reasons = nested(IFLA_PROTO_DOWN_REASON_MASK=_ALL_REASONS, IFLA_PROTO_DOWN_REASON_VALUE=0)
    return change(ifindex, proto_down=0, proto_down_reason=reasons)


def change(ifindex: int, /, **attributes: Any) -> bytes:
    """`ip link set` of a name (`ifname`), MAC (`address`), `mtu`, `master` (0: none), or what else goes by its name."""
    return encode(LinkMessage, wire.RTM_NEWLINK, 0, {"index": ifindex}, **attributes)


def set_no_generated_addresses(ifindex: int) -> bytes:
    """`ip link set addrgenmode none`: the link-local address is given, not made by the kernel after a second of DAD."""
    return change(ifindex, af_spec=nested(AF_INET6=nested(IFLA_INET6_ADDR_GEN_MODE=GENERATE_NO_ADDRESS)))


def delete_link(ifindex: int, *, netns: int = -1) -> bytes:
    """`ip link delete`; `netns`: in the network namespace of that id."""
    elsewhere = {"if_netnsid": netns} if netns >= 0 else {}
    return encode(LinkMessage, wire.RTM_DELLINK, 0, {"index": ifindex}, **elsewhere)


def put_address(ifindex: int, local: LocalAddress) -> bytes:
    """`ip address replace`. IPv6: without duplicate address detection, which a tunnel cannot do, and waits for."""
    fields = {"family": local.family, "prefixlen": local.length, "index": ifindex}
    attributes: dict[str, Any] = {"local": local.address, "address": local.address}
    if local.family == socket.AF_INET6:
        fields["scope"] = wire.RT_SCOPE_LINK if local.is_link_local else wire.RT_SCOPE_UNIVERSE
        attributes["flags"] = NO_DUPLICATE_DETECTION
    return encode(AddressMessage, wire.RTM_NEWADDR, wire.CREATE | wire.REPLACE, fields, **attributes)


def delete_address(ifindex: int, local: LocalAddress) -> bytes:
    """`ip address delete`."""
    fields = {"family": local.family, "prefixlen": local.length, "index": ifindex}
    # With one end alone the kernel takes the first address that has it.
    both = {"local": local.address, "address": local.peer or local.address}
    return encode(AddressMessage, wire.RTM_DELADDR, 0, fields, **both)
