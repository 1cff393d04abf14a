"""By which device this node's own traffic with another node goes."""

import socket
from contextlib import suppress

from netloom.cidr import parse_address
from netloom.kernel.netlink.fib_lookup import outgoing
from netloom.kernel.netlink.sockets import CommandSocket


def device_to(address: str) -> str:
    """Its name; "" if there is no way, or no address. Raises OSError where there are no sockets, or no answer."""
    if not address:
        return ""
    commands = CommandSocket()
    try:
        ((_, ifindex),) = outgoing(commands, [parse_address(address)])
    finally:
        commands.close()
    with suppress(OSError):  # there is no route, or its device has just gone
        return socket.if_indextoname(ifindex)
    return ""
