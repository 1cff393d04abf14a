"""What is not as it was made, on both sides of an endpoint: for CNI's CHECK. Reads, and changes nothing."""

from collections.abc import Iterator

from netloom.cidr import format_address
from netloom.kernel.endpoints import row_messages
from netloom.kernel.endpoints.adjusting import steps
from netloom.kernel.endpoints.alias import read_alias
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.inside import asked
from netloom.kernel.endpoints.row_messages import gateway_of
from netloom.kernel.endpoints.wiring import DEFAULT_MTU, look
from netloom.kernel.mac import Mac, format_mac
from netloom.kernel.netlink.links import device_name, read_address
from netloom.kernel.netlink.neighbours import dump_neighbours, read_neighbour
from netloom.kernel.netlink.sockets import CommandSocket, read_all


def differences(commands: CommandSocket, endpoint: Endpoint, inside: int) -> list[str]:
    """Sentences. Raises WiringFailed."""
    with asked(endpoint, inside) as within:
        return [*_here(commands, endpoint), *_in_the_pod(within, endpoint)]


def _here(commands: CommandSocket, endpoint: Endpoint) -> Iterator[str]:
    end = look(commands, endpoint.device)
    if end is None:
        yield f"{endpoint.device}, its device on the node, is gone"
        return
    if end.kind != "veth" or read_alias(end.alias).identity not in ((endpoint.container, endpoint.interface), ("", "")):
        yield f"{endpoint.device}, its device on the node, is another's"
        return
    for step in steps(endpoint, end):
        yield f"its device on the node needs `{step.text}`"
    found = _neighbours(commands, end.ifindex)
    for address, ifindex, own in row_messages.fib_lookups(commands, endpoint.addresses):
        if own or ifindex != end.ifindex:
            where = "the node itself" if own else device_name(ifindex) if ifindex else "nowhere"
            yield f"{format_address(address)} leads to {where} and not to {end.name}"
        yield from _neighbour("on the node", found.get(address, b""), format_address(address), endpoint.pod_mac)


def _in_the_pod(within: CommandSocket, endpoint: Endpoint) -> Iterator[str]:
    end = look(within, endpoint.interface)
    if end is None:
        yield f"{endpoint.interface} is gone from the pod"
        return
    if not end.up:
        yield f"{endpoint.interface} is down in the pod"
    if end.mac != endpoint.pod_mac:
        yield f"{endpoint.interface} has the MAC {format_mac(end.mac)} in the pod, not {format_mac(endpoint.pod_mac)}"
    if end.mtu != (endpoint.mtu or DEFAULT_MTU):
        yield f"{endpoint.interface} has an MTU of {end.mtu} in the pod, not {endpoint.mtu or DEFAULT_MTU}"
    seen = read_all(within, row_messages.dump_addresses(end.ifindex), read_address)
    held = {each.local.address for each in seen if each.ifindex == end.ifindex}
    found = _neighbours(within, end.ifindex)
    for address in endpoint.addresses:
        gateway = gateway_of(address)
        name = format_address(gateway)
        if address not in held:
            yield f"{format_address(address)} is not on {endpoint.interface} in the pod"
        yield from _neighbour("in the pod", found.get(gateway, b""), name, endpoint.host_mac)
        if end.ifindex not in row_messages.default_route_links(within, len(address)):
            add = (
                f"ip {'-6 ' if len(address) == 16 else ''}route add default via {name} dev {endpoint.interface} onlink"
            )
            yield f"the pod has no default route by {endpoint.interface}: `{add}`"


def _neighbours(commands: CommandSocket, ifindex: int) -> dict[bytes, Mac]:
    seen = read_all(commands, dump_neighbours(ifindex), read_neighbour)
    return {each.address: each.mac for each in seen if each.ifindex == ifindex}


def _neighbour(where: str, mac: Mac, address: str, wanted: Mac) -> Iterator[str]:
    if mac != wanted:
        yield f"the permanent neighbour {address} {where} is {format_mac(mac) or 'missing'}, not {format_mac(wanted)}"
