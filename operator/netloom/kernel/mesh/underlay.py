"""Which devices carry the traffic between the nodes: the underlay. And which only seem to. Pure.

The kernel says by which device packets to each peer leave. That device is the underlay, unless the peer's address is
no node's at all: a pod's of this node, a container's. Two things follow from a mistake there. What is set on the
underlay (its reverse path filter, its router advertisements) is set on a pod's device. And the MTU falls: a pod's
device has its MTU from this node, which is the underlay's less the tunnel's overhead, so every pod that is made anew is
given less.

By its kind alone no device is refused: a node's own network is often virtual, a bond, a bridge with the machine's
address, the veth pair of a node in a container. An address of the node on it speaks for a device; against it, own pods.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal

import msgspec

from netloom.cidr import Address, Cidr, format_address
from netloom.kernel.mesh.desired import MeshNode
from netloom.kernel.mesh.fib import FibLookups
from netloom.kernel.mesh.rows import DirectRoute
from netloom.kernel.mesh.tunnel_device import Interfaces, Mtu, is_told
from netloom.kernel.netlink.links import Link, LocalAddress
from netloom.kernel.ownership import DEVICE_PREFIX, ENDPOINTS

WIRES = frozenset({"veth", "netkit", "tun"})
"""Kinds of devices that lead to one pod or machine, or, in a node that is itself a container, out of it."""

INDOORS = WIRES | {"bridge", "openvswitch", "dummy"}
"""Kinds of devices that may have nothing but this machine behind them."""

_STACKS = frozenset({"bond", "team", "bridge"})
_MERGING = frozenset({"", "veth"})

Why = Literal["pod", "tunnel", "indoors", "here"]


class Astray(msgspec.Struct, frozen=True, order=True):
    """A device that packets to peers leave by, and that is no underlay; with these peers' addresses.

    why: `pod`: it leads to this node's own pods; `tunnel`: it is the mesh's own, which leads to other nodes' pods;
    `indoors`: no address of the node is on it; `here`: the addresses are this machine's own, on that device.
    peers: the names of those that have the addresses, where they are known.
    """

    device: str
    why: Why
    addresses: tuple[Address, ...]
    peers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Of the device, as the end of a sentence that begins with the addresses."""
        if self.why == "here":
            return f"this machine has itself, on {self.device}"
        return f"leave by {self.device}, which {_WHAT[self.why]}"


_WHAT: dict[Why, str] = {
    "pod": "leads to this node's own pods",
    "tunnel": "leads to other nodes' pods",
    "indoors": "has no address that this node is known by",
}


class Underlay(msgspec.Struct, frozen=True):
    """The devices that carry traffic between the nodes. measured: those whose MTU counts. mtu: the least of these.
    refused: ifindexes of those that only seem to carry it, with how many peers' addresses are behind each."""

    links: tuple[Link, ...] = ()
    measured: tuple[Link, ...] = ()
    mtu: Mtu = Mtu()
    astray: tuple[Astray, ...] = ()
    refused: dict[int, int] = {}


def underlay_of(
    node: MeshNode, interfaces: Interfaces, fib: FibLookups, direct_routes: Callable[[], Sequence[DirectRoute]]
) -> Underlay:
    """Of the devices that the node was told to use, those that routes to peers name; where no route does, all of them;
    where it was told none, those that routes name, or the one that holds its address.

    `direct_routes` reads everybody's; it is asked only where a device is in doubt.
    """
    view = _View(node, interfaces, fib, direct_routes)
    used, astray, refused = [], [], {}
    for link in interfaces.links:
        if link.ifindex not in fib.outgoing:
            continue
        inside: Why = "pod" if ENDPOINTS.link(link.name) else "tunnel"
        why = view.why_not(link) if link in view.foreign else inside
        if why:
            behind = [address for address, _ in fib.behind(link.ifindex)]
            astray.append(Astray(link.name, why, tuple(sorted(behind))))
            refused[link.ifindex] = len(behind)
        else:
            used.append(link)
    links = tuple(view.chosen(used))
    measured = tuple(each for link in links for each in view.measured(link))
    return Underlay(links, measured, _mtu(node, links, measured), tuple(astray), refused)


def _mtu(node: MeshNode, links: Sequence[Link], measured: Sequence[Link]) -> Mtu:
    """Between the nodes: as configured, else the least of the devices that carry the traffic."""
    if node.mtu:
        return Mtu(node.mtu, "as configured")
    if measured:
        least = min(measured, key=lambda link: link.mtu)
        return Mtu(least.mtu, f"{least.name} has {least.mtu}")
    if links:
        return Mtu(0, f"{links[0].name} leads to this node's own pods, and has its MTU from them: set spec.mtu")
    named = f"matches {', '.join(node.devices)}" if node.devices else f"holds {format_address(node.local)}"
    return Mtu(0, f"no device {named}")


def own_addresses_of_peers(node: MeshNode, interfaces: Interfaces, fib: FibLookups) -> Iterator[Astray]:
    """Devices of this machine that hold an address which a peer is said to have: nothing ever leaves for that peer."""
    names = {link.ifindex: link.name for link in interfaces.links}
    found: dict[str, list[Address]] = defaultdict(list)
    for each in interfaces.addresses:
        address = each.local.address
        if address != node.local and fib.is_asked(address):
            found[names.get(each.ifindex, f"#{each.ifindex}")].append(address)
    for name in sorted(found):
        yield Astray(name, "here", tuple(sorted(found[name])))


def merged_at(underlay: Iterable[Link], interfaces: Interfaces, merges: Callable[[str], bool]) -> tuple[str, ...]:
    """Names of the devices at which all that comes out of a tunnel has been put together before (GRO, which looks into
    tunnels); none if that is not sure. merges: whether a device is told to.

    Cards do it, if told; of a bond or a bridge those in it. A veth does it where it is told to, which it is by nobody
    but its administrator. The other kinds say so, as the kernel has it for every device, and are not believed.
    """
    found: list[Link] = []
    for link in underlay:
        ports = [each for each in interfaces.links if each.master == link.ifindex and each.kind not in WIRES]
        found += ports if link.kind in _STACKS else [link]
        if link.kind in _STACKS and not ports:
            return ()
    sure = all(link.kind in _MERGING and merges(link.name) for link in found)
    return tuple(sorted(link.name for link in found)) if sure else ()


def merged(devices: Iterable[str]) -> str:
    """Why a tunnel's device needs not look, for people."""
    return f"what comes out of the tunnel has been put together at {', '.join(devices)}"


class _View:
    """The devices of a node, and what speaks for and against each."""

    def __init__(
        self,
        node: MeshNode,
        interfaces: Interfaces,
        fib: FibLookups,
        direct_routes: Callable[[], Sequence[DirectRoute]],
    ) -> None:
        self.foreign = [link for link in interfaces.links if not link.name.startswith(DEVICE_PREFIX)]
        self._node = node
        self._fib = fib
        self._direct_routes = direct_routes
        self._mine = frozenset((node.local, *node.claimed))
        self._held: dict[int, list[LocalAddress]] = defaultdict(list)
        for each in interfaces.addresses:
            self._held[each.ifindex].append(each.local)
        self._local_is_here = any(each.local.address == node.local for each in interfaces.addresses)

    def why_not(self, link: Link) -> Why | None:
        """Why a device that routes to peers name is no underlay; None if it is."""
        if self._is_nodes(link):
            return None
        behind = self._fib.behind(link.ifindex)
        if self._holds_pods(link) or all(self._is_of_pods(Cidr.of(address)) for address, _ in behind):
            return "pod"
        if not self._is_indoors(link):
            return None
        if any(not result.direct for _, result in behind):
            return "pod" if self._is_routed_to_pods(link) else None
        return "indoors" if self._local_is_here else None

    def chosen(self, used: list[Link]) -> list[Link]:
        """See `underlay_of`."""
        if self._node.devices:
            told = [link for link in self.foreign if is_told(self._node, link)]
            fit = [link for link in told if self._is_nodes(link) or not self._is_indoors(link)]
            return [link for link in told if link in used] or fit
        return used or [link for link in self.foreign if self._holds(link, self._node.local)][:1]

    def measured(self, link: Link) -> list[Link]:
        """The devices whose MTU says how much fits. A bridge with pods in it has the least of theirs, so there the
        machine's own devices in it count; any other that leads to pods says nothing."""
        if link.kind not in INDOORS or not self._leads_to_pods(link):
            return [link]
        return [port for port in self.foreign if port.master == link.ifindex and port.kind not in WIRES]

    def _holds(self, link: Link, address: Address) -> bool:
        return any(local.address == address for local in self._held[link.ifindex])

    def _is_nodes(self, link: Link) -> bool:
        """Whether it has an address that the node is known by."""
        return any(local.address in self._mine for local in self._held[link.ifindex])

    def _is_indoors(self, link: Link) -> bool:
        """Whether by all that is seen of it only this machine's own pods, containers and guests are behind it."""
        if link.kind not in INDOORS or link.name in self._node.devices:
            return False
        return link.kind not in WIRES or not any(map(self._is_network, self._held[link.ifindex]))

    def _is_network(self, local: LocalAddress) -> bool:
        """Whether it has room for somebody else: the near end of a pod's device has no address, or one as a host."""
        cidr = Cidr.of(local.address, local.length)
        whole = local.length == len(local.address) * 8
        return not whole and not local.is_link_local and not self._is_of_pods(cidr)

    def _leads_to_pods(self, link: Link) -> bool:
        if self._holds_pods(link):
            return True
        has_pods = any(port.master == link.ifindex and port.kind in WIRES for port in self.foreign)
        return has_pods and self._is_routed_to_pods(link)

    def _holds_pods(self, link: Link) -> bool:
        return any(self._is_of_pods(Cidr.of(local.address)) for local in self._held[link.ifindex])

    def _is_routed_to_pods(self, link: Link) -> bool:
        return any(route.ifindex == link.ifindex and self._is_of_pods(route.destination) for route in self._routes)

    def _is_of_pods(self, place: Cidr) -> bool:
        return any(cidr.contains(place) for cidr in self._node.cidrs)

    @cached_property
    def _routes(self) -> Iterable[DirectRoute]:
        return self._direct_routes()
