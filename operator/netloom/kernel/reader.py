"""The kernel's state, read whole: what a start, a full comparison and a plan begin with.

Needs no capability. 10,000 peers are read in about 0.1 s; while that happens the event loop goes on (the caller uses
a thread).
"""

import contextlib
import socket
from collections.abc import Iterable, Sequence

from netloom.cidr import Address
from netloom.kernel import alike, links, rows
from netloom.kernel.device import Surroundings
from netloom.kernel.links import InterfaceAddress, Link
from netloom.kernel.lodgers import DirectRoute
from netloom.kernel.mac import Mac
from netloom.kernel.netlink import BATCH, DUMP_ATTEMPTS, Commands, RefusedError, Visit
from netloom.kernel.reach import Hop
from netloom.kernel.rows import NeighbourKey, SeenNexthop, SeenRoute
from netloom.kernel.wire import NLMSG_ERROR


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
    read = alike.NexthopReader().read

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        found.append(read(buffer, start, end))

    _dump(commands, rows.dump_nexthops(), found, visit)
    return found


def routes(commands: Commands) -> list[SeenRoute]:
    """The mesh's routes."""
    found: list[SeenRoute] = []
    read = alike.RouteReader().read

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = read(buffer, start, end)
        if seen is not None and rows.owned_route(seen):
            found.append(seen)

    for family in (socket.AF_INET, socket.AF_INET6):
        keep = list(found)
        _dump(commands, rows.dump_routes(family), found, visit, keep)
    return found


def direct_routes(commands: Commands) -> list[DirectRoute]:
    """Everybody else's routes that lead to a device and by no gateway."""
    found: list[DirectRoute] = []

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = rows.read_direct_route(buffer, start, end)
        if seen is not None:
            found.append(seen)

    for family in (socket.AF_INET, socket.AF_INET6):
        _dump(commands, rows.dump_all_routes(family), found, visit, list(found))
    return found


def neighbours(commands: Commands, ifindexes: Iterable[int]) -> dict[NeighbourKey, Mac]:
    """The permanent neighbours on our devices."""
    found: list[tuple[NeighbourKey, Mac]] = []
    read = alike.NeighbourReader().read
    for ifindex in ifindexes:

        def visit(_kind: int, buffer: bytes, start: int, end: int, ifindex: int = ifindex) -> None:
            seen = read(buffer, start, end)
            if seen is not None and seen.ifindex == ifindex and seen.mac:
                found.append(((ifindex, seen.address), seen.mac))

        _dump(commands, rows.dump_neighbours(ifindex), found, visit, list(found))
    return dict(found)


def hops(commands: Commands, addresses: Sequence[Address]) -> list[tuple[Address, Hop]]:
    """Which way packets to these addresses go."""
    found: list[tuple[Address, Hop]] = []
    question = {size: rows.ask_route(size) for size in (4, 16)}
    read = alike.HopReader().read
    for at in range(0, len(addresses), BATCH):
        part = addresses[at : at + BATCH]

        def visit(number: int, kind: int, buffer: bytes, start: int, end: int, part: Sequence[Address] = part) -> None:
            found.append((part[number], Hop() if kind == NLMSG_ERROR else read(buffer, start, end)))

        commands.ask([question[len(address)](number, address) for number, address in enumerate(part)], visit)
    return found


def received(commands: Commands, ifindex: int) -> int:
    """Packets that a device has received since it was made; 0 if it is not there."""
    counts: list[int] = []
    with contextlib.suppress(RefusedError):
        commands.get(
            links.get_link(ifindex),
            lambda _k, buffer, start, end: counts.append(links.read_received(buffer, start, end)),
        )
    return sum(counts)


def _dump(commands: Commands, request: bytes, found: list, visit: Visit, keep: list | None = None) -> None:  # type: ignore[type-arg]
    """Read, and again while the kernel says that the state changed meanwhile; the last reading stands."""
    for _ in range(DUMP_ATTEMPTS):
        found[:] = keep or []
        if commands.dump(request, visit):
            return
