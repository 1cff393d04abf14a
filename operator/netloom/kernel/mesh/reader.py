"""The kernel's state, read whole: what a start, a resync and a plan begin with.

Needs no capability. 10,000 peers are read in about 0.1 s; while that happens the event loop goes on (the caller uses
a thread).
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import msgspec
from msgspec.structs import replace

from netloom.cidr import Address, Cidr
from netloom.kernel.mac import Mac
from netloom.kernel.mesh import row_messages, row_readers
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.lifelines import NodeRoute
from netloom.kernel.mesh.node_network import PROTOCOLS, SeenNodeNetwork, dump_node_routes, read_node_route
from netloom.kernel.mesh.rivals import MOST_AT_ONCE, ForeignRoute
from netloom.kernel.mesh.rows import DirectRoute, RouteKey, SeenNexthop, SeenRoute
from netloom.kernel.mesh.tunnel_device import Interfaces
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.fib_lookup import look_up
from netloom.kernel.netlink.links import dump_links, read_address, read_link, read_received
from netloom.kernel.netlink.messages import AddressMessage, LinkMessage, encode
from netloom.kernel.netlink.neighbours import NeighbourKey, dump_neighbours
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all, read_one, unless_missing


def read_interfaces(commands: CommandSocket) -> Interfaces:
    """All links and addresses."""
    found = read_all(commands, dump_links(), read_link)
    addresses = read_all(commands, encode(AddressMessage, wire.RTM_GETADDR, 0, {}), read_address)
    return Interfaces(tuple(found), tuple(addresses))


def nexthops(commands: CommandSocket) -> list[SeenNexthop]:
    """All nexthop objects, foreign ones included: their ids are not free."""
    return read_all(commands, row_messages.dump_nexthops(), row_readers.nexthop_reader().read)


class RouteReading(msgspec.Struct):
    """The main table, in the kernel's order: our routes (the mesh's, and unreachable ones), and others' that are worth
    to be remembered."""

    ours: list[SeenRoute] = []
    foreign: list[ForeignRoute] = []


def routes(commands: CommandSocket, concerns: Callable[[Cidr], bool] = lambda prefix: False) -> RouteReading:
    """`concerns` is asked about the prefixes of others' routes."""
    reading = RouteReading()
    for family in wire.SIZES:
        ours, foreign = _read_routes(commands, family, concerns, row_readers.route_reader().read)
        keys = {seen.key for seen in ours}
        if len(keys) < len(ours) or any(route.prefix in keys for route in foreign):
            # What tells two of one key apart, and which comes first, is read only where there are such.
            ours, foreign = _read_routes(commands, family, concerns, row_readers.read_whole_route, placed=True)
        reading.ours += ours
        reading.foreign += foreign
    return reading


def _read_routes(
    commands: CommandSocket,
    family: int,
    concerns: Callable[[Cidr], bool],
    read: Callable[[bytes, int, int], SeenRoute | None],
    *,
    placed: bool = False,
) -> tuple[list[SeenRoute], list[ForeignRoute]]:
    """`placed`: of the foreign ones it is told which are behind ours of the same prefix."""
    foreign: list[ForeignRoute] = []
    before: set[RouteKey] = set()

    def read_any(buffer: bytes, start: int, end: int) -> SeenRoute | None:
        if buffer[start] != family:
            return None  # a kernel without IPv6 answers with the routes of all families that it has
        if row_readers.route_is_ours(buffer, start):
            seen = read(buffer, start, end)
            if placed and seen is not None:
                before.add(seen.key)
            return seen
        prefix = row_readers.read_rival_prefix(buffer, start, end) if len(foreign) < MOST_AT_ONCE else None
        if prefix is not None and concerns(prefix):
            route = row_readers.read_foreign_route(buffer, start, end)
            foreign.append(replace(route, behind=prefix in before and not route.tos))
        return None

    ours: list[SeenRoute] = []
    with unless_missing():
        ours = read_all(commands, row_messages.dump_routes(family), read_any)
    return ours, list({(route.key, route.body): route for route in foreign}.values())


def direct_routes(commands: CommandSocket) -> list[DirectRoute]:
    """Routes that lead to a device and by no gateway: everybody else's, and those to local pods."""
    found: list[DirectRoute] = []
    for family in wire.SIZES:

        def read(buffer: bytes, start: int, end: int, family: int = family) -> DirectRoute | None:
            return row_readers.read_direct_route(buffer, start, end) if buffer[start] == family else None

        found += read_all(commands, row_messages.dump_all_routes(family), read)
    return found


def load_node_network(commands: CommandSocket, node_network: SeenNodeNetwork) -> None:
    """The node's own devices, addresses and routes."""
    interfaces, found = read_interfaces(commands), list[NodeRoute | None]()
    for family, protocol in product(wire.SIZES, PROTOCOLS.values()):
        with unless_missing():
            found += read_all(commands, dump_node_routes(family, protocol), read_node_route)
    node_network.load(interfaces.links, interfaces.addresses, found)


def neighbours(commands: CommandSocket, ifindexes: Iterable[int]) -> dict[NeighbourKey, Mac]:
    """The permanent neighbours on our devices."""
    read = row_readers.neighbour_reader().read
    return {
        seen.key: seen.mac
        for ifindex in ifindexes
        for seen in read_all(commands, dump_neighbours(ifindex), read)
        if seen.ifindex == ifindex and seen.mac
    }


def fib_lookups(commands: CommandSocket, addresses: Sequence[Address]) -> list[tuple[Address, FibResult]]:
    """Which way packets to these addresses go."""
    return look_up(commands, addresses, row_readers.fib_result_reader().read, FibResult(), wire.RTM_F_FIB_MATCH)


def received(commands: CommandSocket, ifindex: int) -> int:
    """Packets that a device has received since it was made; 0 if it is not there."""
    with contextlib.suppress(RefusedError):
        return read_one(commands, encode(LinkMessage, wire.RTM_GETLINK, 0, {"index": ifindex}), read_received) or 0
    return 0
