"""By which device this node's own traffic with another node goes."""

import socket
from contextlib import suppress

from netloom.cidr import parse_address
from netloom.kernel.netlink.messages import RouteMessage, decode, encode
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.wire import FAMILIES, RTM_GETROUTE


def device_to(address: str) -> str:
    """Its name; "" if there is no way, or no address. Raises OSError where there are no sockets."""
    if not address:
        return ""
    packed = parse_address(address)
    fields = {"family": FAMILIES[len(packed)], "dst_len": 8 * len(packed)}
    question = encode(RouteMessage, RTM_GETROUTE, 0, fields, dst=packed)
    names: list[str] = []

    def visit(_kind: int, buffer: bytes, start: int, _end: int) -> None:
        names.append(socket.if_indextoname(decode(RouteMessage, buffer, start).get_attr("RTA_OIF", 0)))

    commands = CommandSocket()
    try:
        with suppress(OSError):  # there is no route, or its device has just gone
            commands.get(question, visit)
    finally:
        commands.close()
    return names[0] if names else ""
