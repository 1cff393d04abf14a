"""Reads what the kernel holds of the endpoints, all at once: a start, a resync, a plan."""

import sys
from collections.abc import Collection

import msgspec

from netloom.cidr import Address
from netloom.kernel.endpoints import link_messages, row_messages
from netloom.kernel.endpoints.alias import read_alias
from netloom.kernel.endpoints.endpoint import Endpoint, FoundEndpoint
from netloom.kernel.endpoints.link_messages import End, read_end
from netloom.kernel.endpoints.row_messages import SeenPodRoute
from netloom.kernel.mac import Mac
from netloom.kernel.netlink.links import InterfaceAddress, read_address
from netloom.kernel.netlink.neighbours import NeighbourKey, dump_neighbours, read_neighbour
from netloom.kernel.netlink.sockets import CommandSocket, read_all, unless_missing
from netloom.kernel.netlink.wire import SIZES
from netloom.kernel.ownership import ENDPOINTS


class EndpointsSeen(msgspec.Struct, frozen=True):
    """ends: with our names. routes: of our class, whatever device they are on. neighbours: permanent ones on the ends.
    addresses: on the ends, which should have none."""

    ends: tuple[End, ...] = ()
    routes: tuple[SeenPodRoute, ...] = ()
    neighbours: tuple[tuple[NeighbourKey, Mac], ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()


def read_everything(commands: CommandSocket) -> EndpointsSeen:
    """Costs 5 ms with 250 pods. Raises RefusedError, OSError."""
    ends = read_ends(commands)
    indices = {end.ifindex for end in ends}

    def of_end(buffer: bytes, start: int, end: int) -> InterfaceAddress | None:
        return read_address(buffer, start, end) if device_at(buffer, start) in indices else None

    def permanent(buffer: bytes, start: int, end: int) -> tuple[NeighbourKey, Mac] | None:
        seen = read_neighbour(buffer, start, end) if device_at(buffer, start) in indices else None
        return (seen.key, seen.mac) if seen is not None and seen.mac else None

    # One dump of all: the kernel walks over the whole table for each device that it is asked about.
    neighbours = read_all(commands, dump_neighbours(), permanent) if ends else []
    addresses = read_all(commands, row_messages.dump_addresses(), of_end) if ends else []
    return EndpointsSeen(tuple(ends), tuple(_routes(commands)), tuple(neighbours), tuple(addresses))


def of_ends(reading: EndpointsSeen, indices: Collection[int]) -> EndpointsSeen:
    """Without what is on other ends than these."""
    return msgspec.structs.replace(
        reading,
        neighbours=tuple((key, mac) for key, mac in reading.neighbours if key[0] in indices),
        addresses=tuple(each for each in reading.addresses if each.ifindex in indices),
    )


def read_ends(commands: CommandSocket) -> list[End]:
    """The links with our names, and those that had one: by MAC and alias. Raises RefusedError, OSError."""

    def ours(buffer: bytes, start: int, end: int) -> End | None:
        seen = read_end(buffer, start, end)
        return seen if seen is not None and home_of(seen) else None

    return read_all(commands, link_messages.dump_links(), ours)


def home_of(end: End) -> str:
    """The name that a host end has, or had before somebody gave it another; empty: it is none."""
    if ENDPOINTS.link(end.name):
        return end.name
    container, interface = read_alias(end.alias).identity if end.kind == "veth" and end.alias else ("", "")
    endpoint = Endpoint(container=container, interface=interface, addresses=())
    return endpoint.device if container and end.mac == endpoint.host_mac else ""


def device_at(buffer: bytes, start: int) -> int:
    """The ifindex that a message about an address or a neighbour is about: both have it at one place."""
    return int.from_bytes(buffer[start + 4 : start + 8], sys.byteorder)


def _routes(commands: CommandSocket) -> list[SeenPodRoute]:
    found: list[SeenPodRoute] = []
    for family in SIZES:

        def ours(buffer: bytes, start: int, end: int, family: int = family) -> SeenPodRoute | None:
            if buffer[start] != family:
                return None  # a kernel without IPv6 answers with the routes of all families that it has
            seen = row_messages.read_route(buffer, start, end)
            return seen if seen is not None and seen.owned else None

        with unless_missing():
            found += read_all(commands, row_messages.dump_routes(family), ours)
    return found


def found_endpoints(reading: EndpointsSeen) -> list[FoundEndpoint]:
    """What that shows of endpoints."""
    addresses: dict[int, list[Address]] = {}
    for seen in reading.routes:
        addresses.setdefault(seen.key.ifindex, []).append(seen.key.prefix.packed)
    found = []
    for end in sorted(reading.ends, key=home_of):
        said = read_alias(end.alias)
        held = tuple(sorted(addresses.get(end.ifindex, ()), key=lambda address: (len(address), address)))
        each = FoundEndpoint(device=home_of(end), container=said.container, interface=said.interface, netns=said.netns)
        found.append(msgspec.structs.replace(each, addresses=held, mtu=end.mtu, mac=said.mac))
    return found
