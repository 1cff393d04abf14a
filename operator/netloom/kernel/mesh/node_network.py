"""The node's own devices, routes and addresses, followed by event: what lifelines are made of.

What an event says is taken over. Where it does not say enough (a route that took the place of one that is followed, a
deletion of what is not known), all is read again: these are few. Not followed are the routes of routing daemons, which
may be a million: a network that the node is connected to has a route of the kernel's own, or of whoever configures its
devices. Nor is anything inside the node's own pod CIDRs, where pods come and go, and no peer's route leads.
"""

import sys
from collections.abc import Collection, Hashable, Iterable, Mapping

from netloom.cidr import Address, Cidr
from netloom.kernel.mesh.fib import Narrow
from netloom.kernel.mesh.lifelines import Device, NodeNetwork, NodeRoute, is_link_local
from netloom.kernel.mesh.row_readers import read_hops
from netloom.kernel.mesh.rows import DEFAULT_METRIC
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import InterfaceAddress, Link
from netloom.kernel.netlink.messages import RouteMessage, encode
from netloom.kernel.netlink.wire import ROUTE, RTA_DST, RTA_PRIORITY, RTN_UNICAST, SIZES, attributes
from netloom.kernel.ownership import DEVICE_PREFIX, ROUTE_TABLE

PROTOCOLS = {"kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
"""Who makes the routes that are followed (rtm_protocol, as iproute2 names them)."""

_FOLLOWED = frozenset(PROTOCOLS.values())
_CONNECTED = frozenset(PROTOCOLS[name] for name in ("kernel", "ra", "dhcp"))
"""An address of the node, a router, or a DHCP server says so; not whoever typed a route."""
_CHOOSY = {"wireguard", "tun"}
"""Kinds of devices behind which something decides by the destination whether a packet passes."""


def dump_node_routes(family: int, protocol: int) -> bytes:
    """Request: the routes of the main table that one protocol made; the kernel filters."""
    fields = {"family": family, "table": ROUTE_TABLE, "proto": protocol, "type": RTN_UNICAST}
    return encode(RouteMessage, wire.RTM_GETROUTE, 0, fields, table=ROUTE_TABLE)


def read_node_route(buffer: bytes, start: int, end: int) -> NodeRoute | None:
    """An RTM_NEWROUTE or RTM_DELROUTE; None if it is none that is followed."""
    family, length, _source, _tos, table, protocol, _scope, kind, _flags = ROUTE.unpack_from(buffer, start)
    if table != ROUTE_TABLE or protocol not in _FOLLOWED or kind != RTN_UNICAST or family not in SIZES:
        return None
    found = attributes(buffer, start + 12, end)
    destination = Cidr.of(found.get(RTA_DST) or bytes(SIZES[family]), length)
    if is_link_local(destination):  # each device has one, a pod's as well
        return None
    metric = int.from_bytes(found.get(RTA_PRIORITY, b""), sys.byteorder)
    return NodeRoute(destination, tuple(read_hops(found)), metric, protocol in _CONNECTED)


class SeenNodeNetwork:
    """See the module. `due`: it has to be read; `fresh`: it is another than when `current` was last asked for."""

    def __init__(self) -> None:
        self.due = True
        self.fresh = False
        self.cidrs: Collection[Cidr] = ()
        self.claimed: Collection[Address] = ()
        self.servers: Mapping[Address, str] = {}
        self._links: dict[int, Link] = {}
        self._routes: set[NodeRoute] = set()
        self._instead: dict[Cidr, NodeRoute] = {}
        """Of the routes, by destination, those that took the place of one that is not followed, as ours are not."""
        self._addresses: set[InterfaceAddress] = set()

    def load(
        self, links: Iterable[Link], addresses: Iterable[InterfaceAddress], routes: Iterable[NodeRoute | None]
    ) -> None:
        """All of it, as it was just read."""
        self._links = {link.ifindex: link for link in links}
        self._addresses = {each for each in addresses if self._matters(each)}
        self._routes = {each for each in routes if each is not None}
        self._instead = {}
        self.due, self.fresh = False, True

    def know(
        self, cidrs: Collection[Cidr], claimed: Collection[Address], servers: Mapping[Address, str] | None = None
    ) -> None:
        """The node's own pod CIDRs, the addresses that it is known by, and those that it cannot do without."""
        servers = self.servers if servers is None else servers
        if (cidrs, claimed, servers) != (self.cidrs, self.claimed, self.servers):
            self.cidrs, self.claimed, self.servers = cidrs, claimed, servers
            self.fresh = True

    def current(self) -> NodeNetwork:
        """As they are now."""
        self.fresh = False
        devices = {index: Device(link.name, link.name.startswith(DEVICE_PREFIX)) for index, link in self._links.items()}
        addresses = [(each.ifindex, each.local.address) for each in self._addresses]
        return NodeNetwork(devices, self._routes, addresses, self.cidrs, self.claimed, self.servers)

    @property
    def narrow(self) -> dict[int, Narrow]:
        """Of the devices, those that are."""
        return {index: Narrow(link.kind in _CHOOSY) for index, link in self._links.items() if link.narrow}

    # --------------------------------------------------------------------------------------------------- events

    def saw_link(self, link: Link, *, gone: bool) -> None:
        """A device came, changed or went. The kernel drops the routes of one that is down, and says nothing."""
        known = self._links.get(link.ifindex)
        if gone:
            self._links.pop(link.ifindex, None)
        else:
            self._links[link.ifindex] = link
        if gone or not link.up:
            self._drop({each for each in self._routes if any(index == link.ifindex for index, _ in each.hops)})
        elif known is not None and (known.name, known.narrow) != (link.name, link.narrow):
            self.fresh = True

    def saw_address(self, seen: InterfaceAddress, *, gone: bool) -> None:
        """An address came or went."""
        if not self._matters(seen) or gone != (seen in self._addresses):
            return
        self._addresses ^= {seen}
        self.fresh = True

    def saw_route(self, route: NodeRoute, *, gone: bool, replaced: bool) -> None:
        """A route came, or went. `replaced`: in the place of another of the same destination and metric."""
        if any(cidr.contains(route.destination) for cidr in self.cidrs):
            return
        if replaced:
            # Which one it replaced is not said. None that is followed, if none could be.
            key = route.destination, route.metric
            self.due = self.due or any((each.destination, each.metric) == key for each in self._routes)
            if route.metric == DEFAULT_METRIC[route.destination.version]:
                self._instead[route.destination] = route
        if gone and route not in self._routes:
            self.due = True
        elif gone:
            self._drop({route})
        elif route not in self._routes:
            self._routes.add(route)
            self.fresh = True

    def overwritten(self, keys: Iterable[Hashable]) -> None:
        """Our routes of these keys are written, in the place of what had taken it. (Of its own requests no keeper
        hears.)"""
        if self._instead:
            written = self._instead.keys() & keys
            self._drop({self._instead.pop(each) for each in written} & self._routes)

    def _drop(self, routes: set[NodeRoute]) -> None:
        if routes:
            self._routes -= routes
            self.fresh = True

    def _matters(self, seen: InterfaceAddress) -> bool:
        """Not those that each device makes for itself, a pod's as well."""
        return not is_link_local(Cidr.of(seen.local.address))
