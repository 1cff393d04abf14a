"""Nexthops, neighbours and routes: their values.

Per peer and family there is one nexthop object and one route per pod CIDR that says no more than "nexthop N". Through
a tunnel, the nexthop says which device, VNI, outer destination and inner gateway, and a permanent neighbour gives that
gateway's MAC. A native nexthop is the peer's own address on a device of the node, whose MAC the kernel asks for.

Routes of one device with 10,000 different gateways cost O(N^2) in the kernel's hash table (3.7 s by `ip -batch`); with
nexthop objects they are linear, and a replaced nexthop moves all its routes at once, without a gap.
"""

from collections.abc import Mapping

import msgspec

from netloom.cidr import Address, Cidr, format_address
from netloom.kernel.mac import Mac
from netloom.kernel.mesh.encapsulation import TUNNEL_TTL, Encapsulation
from netloom.kernel.netlink.links import device_name
from netloom.kernel.netlink.neighbours import NeighbourKey
from netloom.kernel.netlink.wire import RTA_GATEWAY, RTA_NH_ID, RTA_OIF, RTA_PREFSRC, RTA_VIA, attributes, number
from netloom.kernel.ownership import MESH, ROUTE_PROTOCOL

_KINDS = {
    2: "local ",
    3: "broadcast ",
    5: "multicast ",
    6: "blackhole ",
    7: "unreachable ",
    8: "prohibit ",
    9: "throw ",
}

DEFAULT_METRIC: dict[int, int] = {4: 0, 6: 1024}
"""What the kernel makes of a route's metric of 0, by IP version."""


class RouteContent(msgspec.Struct, frozen=True, gc=False):
    """A route's content: the id of its nexthop object, and its MTU in bytes where that is not its device's (0)."""

    nexthop: int
    mtu: int = 0


EDITED = RouteContent(0)
"""Value of a route whose content is not one of ours, so that it is repaired."""

BEHIND = RouteContent(-2)
"""In the place of what the kernel holds: ours, with another's in front of it, which a replacement would hit."""

UNREACHABLE = RouteContent(-1)
"""Value of an unreachable route."""


def hops_text(prefix: Cidr, body: bytes) -> str:
    """Destination and first hop, as `ip` takes them. Of several ways at once none is named."""
    found = attributes(body, 1, len(body))
    words = [f"{_KINDS.get(body[0], '')}{prefix}"]
    if RTA_NH_ID in found:
        words.append(f"nhid {number(found[RTA_NH_ID])}")
    if RTA_GATEWAY in found:
        words.append(f"via {format_address(found[RTA_GATEWAY])}")
    elif RTA_VIA in found:
        words.append(f"via inet6 {format_address(found[RTA_VIA][2:])}")
    if RTA_OIF in found and body[0] not in _KINDS:
        words.append(f"dev {device_name(number(found[RTA_OIF]))}")
    if RTA_PREFSRC in found:
        words.append(f"src {format_address(found[RTA_PREFSRC])}")
    return " ".join(words)


class OddRoute(msgspec.Struct, frozen=True, gc=False):
    """The key of a route with our protocol that we never write: somebody's work, or an older version's. It is ours, and
    is removed. It has another metric or TOS, or is one more under a key that we have; then `beside` tells it apart:
    its type and ways, as the kernel says them."""

    prefix: Cidr
    metric: int
    tos: int
    beside: bytes = b""

    @property
    def vague(self) -> bool:
        """Whether the kernel may delete another of its key for it: of IPv6 it takes any that has a nexthop object."""
        return bool(self.beside) and (
            self.prefix.version == 6 or RTA_NH_ID in attributes(self.beside, 1, len(self.beside))
        )

    def __str__(self) -> str:
        where = hops_text(self.prefix, self.beside) if self.beside else str(self.prefix)
        return f"{where} metric {self.metric} tos {self.tos}"


RouteKey = Cidr | OddRoute
"""What makes two routes of the main table the same to the kernel. Ours have the default metric and no TOS."""


class Nexthop(msgspec.Struct, frozen=True, gc=False):
    """A nexthop object's content. `remote` is the outer destination, empty in a native one, whose `vni` and `ttl` are
    0; `extra` is what we never write: an edit."""

    ifindex: int
    gateway: Address
    remote: Address
    vni: int
    ttl: int = TUNNEL_TTL
    extra: bytes = b""

    @classmethod
    def native(cls, ifindex: int, gateway: Address) -> "Nexthop":
        """Without encapsulation."""
        return cls(ifindex, gateway, b"", 0, 0)


class SeenRoute(msgspec.Struct, frozen=True, gc=False):
    """A route of the main table, whoever owns it. `content` is EDITED unless it is a plain `nhid` route. `body`: what
    tells it apart from another of its key; not read where there is no other."""

    key: RouteKey
    content: RouteContent
    protocol: int
    body: bytes = b""

    @property
    def owned(self) -> bool:
        """The mesh's by protocol and metric; one that is not odd has the metric of all that the mesh writes."""
        if isinstance(self.key, OddRoute):
            return MESH.route(self.protocol, self.key.metric)
        return self.protocol == ROUTE_PROTOCOL


class SeenNexthop(msgspec.Struct, frozen=True, gc=False):
    """A nexthop object, whoever owns it."""

    id: int
    value: Nexthop
    protocol: int

    @property
    def owned(self) -> bool:
        """The mesh's by id and protocol."""
        return MESH.nexthop(self.protocol, self.id)


class DirectRoute(msgspec.Struct, frozen=True):
    """Somebody's route by a device (its ifindex) and no gateway."""

    destination: Cidr
    ifindex: int


class DeviceState(msgspec.Struct, frozen=True):
    """What rows stand on. `tunnels`: the ifindexes of the tunnel devices that are up. `narrow`: those tunnels that are
    too small for IPv6.

    ipv6: whether this node has an IPv6 pod CIDR itself; a node without one has no source for such traffic, and often
    no IPv6 at all. native_mtu: bytes, of native routes, where that is less than the device's; else 0. strict: nothing
    else leads to a peer that accepts no encapsulation, so its route stays while it does not answer.
    """

    tunnels: Mapping[Encapsulation, int] = {}
    vni: int = 1
    ipv6: bool = False
    native_mtu: int = 0
    strict: bool = False
    narrow: frozenset[Encapsulation] = frozenset()


class FamilyRows(msgspec.Struct, frozen=True, gc=False):
    """What one peer needs in the kernel for one address family: a nexthop object, in a tunnel the neighbour that is
    its gateway (else `mac` is empty), and a route for each prefix."""

    content: RouteContent
    nexthop: Nexthop
    mac: Mac
    prefixes: tuple[Cidr, ...]

    @property
    def neighbour(self) -> NeighbourKey | None:
        """The key of its neighbour."""
        return (self.nexthop.ifindex, self.nexthop.gateway) if self.mac else None


PeerRows = tuple[FamilyRows, ...]
