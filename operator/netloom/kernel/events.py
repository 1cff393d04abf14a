"""What an event of the kernel means for what is known.

Several losses come without an event of their own, so the cause is followed: a deleted nexthop takes its routes with
it, and only the nexthop is announced; a device that goes down or away takes nexthops, routes and neighbours, and only
link and neighbour events are sent.
"""

import sys
from collections.abc import Hashable

from netloom.kernel.address import Address
from netloom.kernel.links import Link, read_address, read_link
from netloom.kernel.mesh import Mesh
from netloom.kernel.netlink import walk
from netloom.kernel.owned import DEVICE_PREFIX
from netloom.kernel.rows import read_neighbour, read_nexthop, read_route
from netloom.kernel.wire import (
    REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNETCONF,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    attributes,
)

_NETCONFA_IFINDEX, _ALL_DEVICES = 1, -1


class EventReader:
    """Feeds events to a mesh, and notes what has to be looked at by whoever owns the device.

    `touched` collects the (kind, key) of each entry of the tables that an event may have changed.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.touched: list[tuple[str, Hashable]] = []
        self.local: Address = b""
        self.underlay: Link | None = None
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

    def flush(self) -> None:
        """Take in deleted nexthops: they come in thousands, and each time all that is pending has to be walked."""
        if self._lost_nexthops:
            self._mesh.lost_nexthops(self._lost_nexthops)
            self._lost_nexthops = set()

    def _route(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
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
        if seen is None or seen.ifindex != self._mesh.carrier.ifindex:
            return
        if kind == RTM_DELNEIGH:
            concerns = self._mesh.lost_neighbour(seen.address)
        else:
            concerns = self._mesh.saw_neighbour(seen.address, seen.mac)
        if concerns:
            self.touched.append(("neighbour", seen.address))

    def _link(self, kind: int, buffer: bytes, start: int, end: int) -> None:
        link = read_link(buffer, start, end)
        if link is None:
            return
        ours = link.ifindex == self._mesh.carrier.ifindex
        if ours and (kind == RTM_DELLINK or not link.up):
            self.compare_due = True
        underlay = self.underlay
        resized = underlay is not None and link.ifindex == underlay.ifindex and link.mtu != underlay.mtu
        if ours or resized or link.name.startswith(DEVICE_PREFIX):
            self.device_due = True

    def _switch(self, buffer: bytes, start: int, end: int) -> None:
        """Somebody changed a switch as forwarding or rp_filter, of all devices or of one."""
        ifindex = attributes(buffer, start + 4, end).get(_NETCONFA_IFINDEX, b"")
        if int.from_bytes(ifindex, sys.byteorder, signed=True) in (_ALL_DEVICES, self._mesh.carrier.ifindex):
            self.device_due = True

    def _address(self, buffer: bytes, start: int, end: int) -> None:
        seen = read_address(buffer, start, end)
        if seen is not None and (seen.ifindex == self._mesh.carrier.ifindex or seen.prefix.address == self.local):
            self.device_due = True
