"""By which device this node's own traffic with another node goes."""

import socket
import sys
from contextlib import suppress

from netloom.cidr import parse_address
from netloom.kernel.netlink.messages import RouteMessage, encode
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.wire import RTM_GETROUTE, attributes

_RTMSG_SIZE, _RTA_OIF = 12, 4


def device_to(address: str) -> str:
    """Its name; "" if there is no way, or no address. Raises OSError where there are no sockets."""
    if not address:
        return ""
    packed = parse_address(address)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    question = encode(RouteMessage, RTM_GETROUTE, 0, {"family": family, "dst_len": 8 * len(packed)}, dst=packed)
    names: list[str] = []

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        index = int.from_bytes(attributes(buffer, start + _RTMSG_SIZE, end).get(_RTA_OIF, b""), sys.byteorder)
        names.append(socket.if_indextoname(index))

    commands = CommandSocket()
    try:
        with suppress(OSError):  # there is no route, or its device has just gone
            commands.get(question, visit)
    finally:
        commands.close()
    return names[0] if names else ""
