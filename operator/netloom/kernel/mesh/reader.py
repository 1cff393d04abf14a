"""The kernel's state, read whole: what a start, a resync and a plan begin with.

Needs no capability. 10,000 peers are read in about 0.1 s; while that happens the event loop goes on (the caller uses
a thread).
"""

import contextlib
import socket
from collections.abc import Iterable, Sequence

from netloom.cidr import Address
from netloom.kernel.mac import Mac
from netloom.kernel.mesh import row_readers, row_requests
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.rows import DirectRoute, NeighbourKey, SeenNexthop, SeenRoute
from netloom.kernel.mesh.tunnel_device import Interfaces
from netloom.kernel.netlink import links
from netloom.kernel.netlink.sockets import BATCH, CommandSocket, RefusedError, read_all
from netloom.kernel.netlink.wire import NLMSG_ERROR

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def read_interfaces(commands: CommandSocket) -> Interfaces:
    """All links and addresses."""
    found = read_all(commands, links.dump_links(), links.read_link)
    return Interfaces(tuple(found), tuple(read_all(commands, links.dump_addresses(), links.read_address)))


def nexthops(commands: CommandSocket) -> list[SeenNexthop]:
    """All nexthop objects, foreign ones included: their ids are not free."""
    return read_all(commands, row_requests.dump_nexthops(), row_readers.nexthop_reader().read)


def routes(commands: CommandSocket) -> list[SeenRoute]:
    """The mesh's routes."""
    read = row_readers.route_reader().read
    found = [read_all(commands, row_requests.dump_routes(family), read) for family in _FAMILIES]
    return [seen for part in found for seen in part if seen.owned]


def direct_routes(commands: CommandSocket) -> list[DirectRoute]:
    """Everybody else's routes that lead to a device and by no gateway."""
    read = row_readers.read_direct_route
    found = [read_all(commands, row_requests.dump_all_routes(family), read) for family in _FAMILIES]
    return [seen for part in found for seen in part]


def neighbours(commands: CommandSocket, ifindexes: Iterable[int]) -> dict[NeighbourKey, Mac]:
    """The permanent neighbours on our devices."""
    read = row_readers.neighbour_reader().read
    return {
        (ifindex, seen.address): seen.mac
        for ifindex in ifindexes
        for seen in read_all(commands, row_requests.dump_neighbours(ifindex), read)
        if seen.ifindex == ifindex and seen.mac
    }


def fib_lookups(commands: CommandSocket, addresses: Sequence[Address]) -> list[tuple[Address, FibResult]]:
    """Which way packets to these addresses go."""
    found: list[tuple[Address, FibResult]] = []
    read, ask = row_readers.fib_result_reader().read, row_requests.ask_route
    for at in range(0, len(addresses), BATCH):
        part = addresses[at : at + BATCH]

        def visit(number: int, kind: int, buffer: bytes, start: int, end: int, part: Sequence[Address] = part) -> None:
            found.append((part[number], FibResult() if kind == NLMSG_ERROR else read(buffer, start, end)))

        commands.ask([ask(number, address) for number, address in enumerate(part)], visit)
    return found


def received(commands: CommandSocket, ifindex: int) -> int:
    """Packets that a device has received since it was made; 0 if it is not there."""
    counts: list[int] = []
    with contextlib.suppress(RefusedError):
        commands.get(
            links.get_link(ifindex),
            lambda _k, buffer, start, end: counts.append(links.read_received(buffer, start, end)),
        )
    return sum(counts)
