"""Where the pods of this node are, as whoever wired them has left it in the node's own tables."""

from collections.abc import Collection, Mapping

import msgspec

from netloom.cidr import Cidr
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.kernel.mesh import reader
from netloom.kernel.netlink.links import dump_links, read_link
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.ownership import DEVICE_PREFIX, ENDPOINTS
from netloom.kernel.surroundings.detours import PodRoute


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
    links = {link.ifindex: link for link in read_all(commands, dump_links(), read_link)}
    places, within = [], FrozenIntervalSet(own)
    for route in reader.direct_routes(commands):
        link = links.get(route.ifindex)
        endpoint = link is not None and ENDPOINTS.link(link.name)
        if link is None or not link.running or (link.name.startswith(DEVICE_PREFIX) and not endpoint):
            continue
        if within.covers(route.destination):
            places.append(PodRoute(route.destination, link.ifindex, link.name, link.kind == "bridge"))
    counts = {"ipv4": 0, "ipv6": 0}
    for place in places:
        if ENDPOINTS.link(place.device):
            continue
        number = sum(link.master == place.ifindex for link in links.values()) if place.bridge else 1
        counts["ipv4" if place.destination.version == 4 else "ipv6"] += number
    return LocalPods(tuple(places), {ifindex: link.name for ifindex, link in links.items()}, counts)
