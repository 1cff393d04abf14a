"""The kernel's state, read whole: what a start, a full comparison and a plan begin with.

Needs no capability. 10,000 peers are read in about 0.1 s; while that happens the event loop goes on (the caller uses
a thread).
"""

import socket

from netloom.kernel import links, rows
from netloom.kernel.address import Address, Mac
from netloom.kernel.device import Surroundings
from netloom.kernel.links import InterfaceAddress, Link
from netloom.kernel.netlink import DUMP_ATTEMPTS, Commands, Visit
from netloom.kernel.owned import ROUTE_PROTOCOL
from netloom.kernel.rows import SeenNexthop, SeenRoute


def surroundings(commands: Commands) -> Surroundings:
    """All links and addresses."""
    found_links: list[Link] = []
    found_addresses: list[InterfaceAddress] = []

    def visit_link(_kind: int, buffer: bytes, start: int, end: int) -> None:
        link = links.read_link(buffer, start, end)
        if link is not None:
            found_links.append(link)

    def visit_address(_kind: int, buffer: bytes, start: int, end: int) -> None:
        address = links.read_address(buffer, start, end)
        if address is not None:
            found_addresses.append(address)

    _dump(commands, links.dump_links(), found_links, visit_link)
    _dump(commands, links.dump_addresses(socket.AF_UNSPEC), found_addresses, visit_address)
    return Surroundings(tuple(found_links), tuple(found_addresses))


def nexthops(commands: Commands) -> list[SeenNexthop]:
    """All nexthop objects, foreign ones included: their ids are not free."""
    found: list[SeenNexthop] = []
    read = rows.NexthopReader().read

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        found.append(read(buffer, start, end))

    _dump(commands, rows.dump_nexthops(), found, visit)
    return found


def routes(commands: Commands) -> list[SeenRoute]:
    """Our routes."""
    found: list[SeenRoute] = []

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = rows.read_route(buffer, start, end)
        if seen is not None and seen.protocol == ROUTE_PROTOCOL:
            found.append(seen)

    for family in (socket.AF_INET, socket.AF_INET6):
        keep = list(found)
        _dump(commands, rows.dump_routes(family), found, visit, keep)
    return found


def neighbours(commands: Commands, ifindex: int) -> dict[Address, Mac]:
    """The permanent neighbours on our device."""
    found: list[tuple[Address, Mac]] = []

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = rows.read_neighbour(buffer, start, end)
        if seen is not None and seen.ifindex == ifindex and seen.mac:
            found.append((seen.address, seen.mac))

    if ifindex:
        _dump(commands, rows.dump_neighbours(ifindex), found, visit)
    return dict(found)


def _dump(commands: Commands, request: bytes, found: list, visit: Visit, keep: list | None = None) -> None:  # type: ignore[type-arg]
    """Read, and again while the kernel says that the state changed meanwhile; the last reading stands."""
    for _ in range(DUMP_ATTEMPTS):
        found[:] = keep or []
        if commands.dump(request, visit):
            return
