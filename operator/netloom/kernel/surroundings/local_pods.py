"""Where the pods of this node are, as whoever wired them has left it in the node's own tables."""

import socket
import struct
import sys
from collections.abc import Collection, Mapping

import msgspec

from netloom.cidr import Cidr
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.kernel.mesh import reader
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import IFF_LOWER_UP, IFF_UP
from netloom.kernel.netlink.messages import LinkMessage, encode
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.netlink.wire import attributes
from netloom.kernel.ownership import DEVICE_PREFIX, ENDPOINTS
from netloom.kernel.surroundings.detours import PodRoute

_LINK = struct.Struct("=BxHiII")  # family, type, ifindex, flags, change
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 10, 18, 1
_EVERY_LINK = encode(LinkMessage, wire.RTM_GETLINK, 0, {}, ext_mask=8)
"""Without statistics."""


class LocalPods(msgspec.Struct, frozen=True):
    """places: routes to pods, or to their bridge. names: of all devices, by ifindex. counts: pods, by family, of which
    the kernel counts neighbours: those of our own endpoints are permanent."""

    places: tuple[PodRoute, ...] = ()
    names: Mapping[int, str] = {}
    counts: Mapping[str, int] = {}

    @property
    def devices(self) -> dict[int, str]:
        """Names of the devices that lead to pods, by ifindex."""
        return {place.ifindex: place.device for place in self.places}


def read_local_pods(commands: CommandSocket, own: Collection[Cidr]) -> LocalPods:
    """Of the pods inside these CIDRs. Raises OSError."""
    links = {link.ifindex: link for link in read_all(commands, _EVERY_LINK, _read_device)}
    places, within = [], FrozenIntervalSet(own)
    for route in reader.direct_routes(commands):
        link = links.get(route.ifindex)
        endpoint = link is not None and ENDPOINTS.link(link.name)
        if link is None or not link.running or (link.name.startswith(DEVICE_PREFIX) and not endpoint):
            continue
        if within.covers(route.destination):
            places.append(PodRoute(route.destination, link.ifindex, link.name, link.bridge))
    counts = {"ipv4": 0, "ipv6": 0}
    for place in places:
        if ENDPOINTS.link(place.device):
            continue
        number = _ports(links.values(), place.ifindex) if place.bridge else 1
        counts["ipv4" if place.destination.version == 4 else "ipv6"] += number
    return LocalPods(tuple(places), {ifindex: link.name for ifindex, link in links.items()}, counts)


class _Device(msgspec.Struct, frozen=True):
    """What of a link counts here. By hand: there may be hundreds, and they are read every minute."""

    ifindex: int
    name: str
    running: bool
    bridge: bool
    master: int


def _read_device(buffer: bytes, start: int, end: int) -> _Device | None:
    family, _kind, ifindex, flags, _change = _LINK.unpack_from(buffer, start)
    if family != socket.AF_UNSPEC:
        return None
    found = attributes(buffer, start + _LINK.size, end)
    about = found.get(_IFLA_LINKINFO, b"")
    kind = attributes(about, 0, len(about)).get(_IFLA_INFO_KIND, b"")
    running = flags & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP
    name = found[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
    master = int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder)
    return _Device(ifindex, name, running, kind == b"bridge\0", master)


def _ports(links: Collection[_Device], bridge: int) -> int:
    return sum(1 for link in links if link.master == bridge)
