"""Where the pods of this node are, as whoever wired them has left it in the node's own tables."""

from collections.abc import Collection, Mapping

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.mesh import reader
from netloom.kernel.netlink.links import Link
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import DEVICE_PREFIX
from netloom.kernel.surroundings.detours import Pod


class LocalPods(msgspec.Struct, frozen=True):
    """places: routes to pods, or to their bridge. names: of all devices, by ifindex. counts: pods, by family."""

    places: tuple[Pod, ...] = ()
    names: Mapping[int, str] = {}
    counts: Mapping[str, int] = {}

    @property
    def devices(self) -> dict[int, str]:
        """Names of the devices that lead to pods, by ifindex."""
        return {place.ifindex: place.device for place in self.places}


def read_local_pods(commands: CommandSocket, own: Collection[Cidr]) -> LocalPods:
    """Of the pods inside these CIDRs. Raises OSError."""
    links = {link.ifindex: link for link in reader.read_interfaces(commands).links}
    places = []
    for route in reader.direct_routes(commands):
        link = links.get(route.ifindex)
        if link is None or not link.running or link.name.startswith(DEVICE_PREFIX):
            continue
        if any(cidr.contains(route.destination) for cidr in own):
            places.append(Pod(route.destination, link.ifindex, link.name, link.kind == "bridge"))
    counts = {"ipv4": 0, "ipv6": 0}
    for place in places:
        number = _ports(links.values(), place.ifindex) if place.bridge else 1
        counts["ipv4" if place.destination.version == 4 else "ipv6"] += number
    return LocalPods(tuple(places), {ifindex: link.name for ifindex, link in links.items()}, counts)


def _ports(links: Collection[Link], bridge: int) -> int:
    return sum(1 for link in links if link.master == bridge)
