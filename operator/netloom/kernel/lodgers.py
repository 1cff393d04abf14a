"""What lives on this node inside a CIDR and is none of ours: a pod's route, the bridge of a CNI plugin. Pure.

Whoever wires pods leaves its traces in the node's own tables: a host route to each pod by its veth, or a bridge that
holds an address of the CIDR. Only a device that runs counts: a bridge whose last pod left has no carrier. A route by a
gateway leads away, and is nobody's who lives here.
"""

from collections.abc import Collection, Iterable

import msgspec

from netloom.kernel.address import Address, Prefix
from netloom.kernel.device import Surroundings
from netloom.kernel.owned import DEVICE_PREFIX


class DirectRoute(msgspec.Struct, frozen=True):
    """Somebody's route by a device (its ifindex) and no gateway."""

    destination: Prefix
    ifindex: int


def lodgers(within: Collection[Prefix], around: Surroundings, routes: Iterable[DirectRoute]) -> dict[Prefix, str]:
    """Of these CIDRs, those that something lives in, with the first of it, as `10.1.0.5/32 on veth3`."""
    running = {
        link.ifindex: link.name for link in around.links if link.running and not link.name.startswith(DEVICE_PREFIX)
    }
    found = [(each.prefix, each.ifindex) for each in around.addresses]
    found += [(each.destination, each.ifindex) for each in routes]
    result: dict[Prefix, str] = {}
    for prefix, ifindex in sorted(found, key=lambda each: (each[0].address, each[0].length)):
        name = running.get(ifindex)
        for cidr in within if name is not None else ():
            if cidr not in result and prefix.length >= cidr.length and holds(cidr, prefix.address):
                result[cidr] = f"{prefix} on {name}"
    return result


def holds(cidr: Prefix, address: Address) -> bool:
    """Whether the address is in the CIDR."""
    shift = len(address) * 8 - cidr.length
    same = len(cidr.address) == len(address)
    return same and int.from_bytes(cidr.address, "big") >> shift == int.from_bytes(address, "big") >> shift
