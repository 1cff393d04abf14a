"""The networks that this node is connected to: for whom the kernel made a route by a device when it got an address.

The kernel picks them out itself, so a routing daemon's million costs nothing.
"""

from netloom.cidr import Cidr
from netloom.kernel.mesh.row_messages import dump_connected_routes
from netloom.kernel.mesh.row_readers import read_direct_route
from netloom.kernel.netlink.sockets import CommandSocket, once, read_all, unless_missing
from netloom.kernel.netlink.wire import SIZES


async def connected_networks() -> frozenset[Cidr]:
    """Those of the main table, of pods' bridges as well. Raises OSError."""
    return await once(_read)


def _read(commands: CommandSocket) -> frozenset[Cidr]:
    found: set[Cidr] = set()
    for family in SIZES:
        with unless_missing():
            routes = read_all(commands, dump_connected_routes(family), read_direct_route)
            found.update(route.destination for route in routes)
    return frozenset(found)
