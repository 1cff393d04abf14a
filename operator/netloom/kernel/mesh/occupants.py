"""What lives on this node inside a CIDR: a pod's route, the bridge of a CNI plugin.

Whoever wires pods leaves its traces in the node's own tables: a host route to each pod by its veth, or a bridge that
holds an address of the CIDR. Only a device that runs counts: a bridge whose last pod left has no carrier. A route by a
gateway leads away, and is nobody's who lives here.
"""

from collections.abc import Collection
from typing import NamedTuple

from netloom.cidr import Address, Cidr
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.rows import DirectRoute
from netloom.kernel.mesh.tunnel_device import Interfaces
from netloom.kernel.netlink.sockets import CommandSocket, once
from netloom.kernel.ownership import DEVICE_PREFIX, ENDPOINTS


async def occupants(within: Collection[Cidr]) -> dict[Cidr, str]:
    """Of these CIDRs, those that routes to pods and somebody's addresses on this node show to be lived in, with the
    first of these, as `10.1.0.5/32 on veth3`.

    Raises AnswerLost, OSError.
    """
    interfaces, routes = await once(_read)
    running = {
        link.ifindex: link.name
        for link in interfaces.links
        if link.running and (not link.name.startswith(DEVICE_PREFIX) or ENDPOINTS.link(link.name))
    }
    found = [(each.destination, str(each.destination), each.ifindex) for each in routes]
    found += [
        (Cidr.of(each.local.address, each.local.length), str(each.local), each.ifindex) for each in interfaces.addresses
    ]
    result: dict[Cidr, str] = {}
    for place, text, ifindex in sorted(found):
        name = running.get(ifindex)
        for cidr in within if name is not None else ():
            if cidr not in result and cidr.contains(place):
                result[cidr] = f"{text} on {name}"
    return result


class SingleAddresses(NamedTuple):
    """own: those that devices of this node have. routed: those to which a route of somebody else leads by a device,
    with its name: a pod's."""

    own: frozenset[Address]
    routed: dict[Address, str]


async def single_addresses() -> SingleAddresses:
    """As the kernel has them now, of whatever CIDR. Raises AnswerLost, OSError."""
    interfaces, routes = await once(_read)
    names = {link.ifindex: link.name for link in interfaces.links}
    own = frozenset(each.local.address for each in interfaces.addresses)
    routed = {}
    for each in routes:
        name, address = names.get(each.ifindex, ""), each.destination.packed
        single = each.destination.length == len(address) * 8
        if single and name and not name.startswith(DEVICE_PREFIX) and address not in own:
            routed[address] = name
    return SingleAddresses(own, routed)


async def own_addresses() -> frozenset[Address]:
    """Of that, those that devices have. Raises AnswerLost, OSError."""
    return frozenset(each.local.address for each in (await once(reader.read_interfaces)).addresses)


def _read(commands: CommandSocket) -> tuple[Interfaces, list[DirectRoute]]:
    return reader.read_interfaces(commands), reader.direct_routes(commands)
