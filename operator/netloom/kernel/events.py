"""What an event of the kernel means for what is known.

Several losses come without an event of their own, so the cause is followed: a deleted nexthop takes its routes with
it, and only the nexthop is announced; a device that goes down or away takes nexthops, routes and neighbours, and only
link and neighbour events are sent; one that loses its carrier takes its nexthops.
"""

from collections.abc import Hashable
from fnmatch import fnmatchcase

from netloom.kernel.desired import Node
from netloom.kernel.links import Link, read_address, read_link, read_netconf
from netloom.kernel.mesh import Mesh
from netloom.kernel.netlink import walk
from netloom.kernel.owned import DEVICE_PREFIX
from netloom.kernel.row_readers import read_destination, read_neighbour, read_nexthop, read_route
from netloom.kernel.wire import (
    REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNETCONF,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)

_ALL_DEVICES = -1


class EventReader:
    """Feeds events to a mesh, and notes what has to be looked at by whoever owns the devices.

    `touched` collects the (kind, key) of each entry of the tables that an event may have changed.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.touched: list[tuple[str, Hashable]] = []
        self.node: Node | None = None
        self.underlay: tuple[Link, ...] = ()
        self.device_due = False
        self.compare_due = False
        self._lost_nexthops: set[int] = set()

    def feed(self, buffer: bytes) -> None:
        """Take in one datagram."""
        for kind, flags, _sequence, start, end in walk(buffer):
            if kind == RTM_DELNEXTHOP:
                seen = read_nexthop(buffer, start, end)
                self._lost_nexthops.add(seen.id)
                self.touched.append(("nexthop", seen.id))
                continue
            self.flush()
            if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                self._route(kind, flags, buffer, start, end)
            elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                self._neighbour(kind, buffer, start, end)
            elif kind == RTM_NEWNEXTHOP:
                seen = read_nexthop(buffer, start, end)
                if self._mesh.saw_nexthop(seen):
                    self.touched.append(("nexthop", seen.id))
            elif kind in (RTM_NEWLINK, RTM_DELLINK):
                self._link(kind, buffer, start, end)
            elif kind == RTM_NEWNETCONF:
                self._switch(buffer, start, end)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                self._address(buffer, start, end)
            elif kind in (RTM_NEWRULE, RTM_DELRULE):
                self._mesh.reach.rules_changed()

    def flush(self) -> None:
        """Take in deleted nexthops: they come in thousands, and each time all that is pending has to be walked."""
        if self._lost_nexthops:
            self._mesh.lost_nexthops(self._lost_nexthops)
            self._lost_nexthops = set()

    def _route(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        destination = read_destination(buffer, start, end)
        if destination is not None:
            self._mesh.reach.route_changed(*destination)
        seen = read_route(buffer, start, end)
        if seen is None:
            return
        if kind == RTM_DELROUTE:
            concerns = self._mesh.lost_route(seen)
        else:
            concerns = self._mesh.saw_route(seen, replaced=bool(flags & REPLACE))
        if concerns:
            self.touched.append(("route", seen.key))

    def _neighbour(self, kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = read_neighbour(buffer, start, end)
        if seen is None:
            return
        if seen.ifindex not in self._mesh.carriers.tunnels.values():
            failed = kind == RTM_NEWNEIGH and seen.failed
            self._mesh.reach.neighbour_changed(seen.ifindex, seen.address, failed=failed)
            return
        key = (seen.ifindex, seen.address)
        concerns = self._mesh.lost_neighbour(key) if kind == RTM_DELNEIGH else self._mesh.saw_neighbour(key, seen.mac)
        if concerns:
            self.touched.append(("neighbour", key))

    def _link(self, kind: int, buffer: bytes, start: int, end: int) -> None:
        link = read_link(buffer, start, end)
        if link is None:
            return
        if link.name.startswith(DEVICE_PREFIX) or self._is_tunnel(link.ifindex):
            self.device_due = True
            if self._is_tunnel(link.ifindex) and (kind == RTM_DELLINK or not link.up):
                self.compare_due = True
            return
        running = kind == RTM_NEWLINK and link.running
        changed = self._mesh.reach.link_changed(link.ifindex, running=running)
        if changed and not running and self._mesh.stands_on(link.ifindex):
            self.compare_due = True
        known = next((each for each in self.underlay if each.ifindex == link.ifindex), None)
        resized = known is not None and (link.mtu != known.mtu or link.name != known.name)
        told = self.node is not None and any(fnmatchcase(link.name, pattern) for pattern in self.node.devices)
        if resized or (told and (known is None or kind == RTM_DELLINK)):
            self.device_due = True

    def _switch(self, buffer: bytes, start: int, end: int) -> None:
        """Somebody changed a switch as forwarding or rp_filter, of all devices or of one."""
        ifindex = read_netconf(buffer, start, end)
        if ifindex == _ALL_DEVICES or self._is_tunnel(ifindex) or self._is_underlay(ifindex):
            self.device_due = True

    def _address(self, buffer: bytes, start: int, end: int) -> None:
        seen = read_address(buffer, start, end)
        if seen is None:
            return
        if self._is_tunnel(seen.ifindex) or (self.node is not None and seen.prefix.address == self.node.local):
            self.device_due = True
        else:
            self._mesh.reach.device_changed(seen.ifindex)

    def _is_tunnel(self, ifindex: int) -> bool:
        return ifindex in self._mesh.carriers.tunnels.values()

    def _is_underlay(self, ifindex: int) -> bool:
        return any(link.ifindex == ifindex for link in self.underlay)
