"""FIB look-ups: which way this kernel sends packets to an address."""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from netloom.cidr import Address
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import RouteMessage
from netloom.kernel.netlink.sockets import BATCH, CommandSocket
from netloom.kernel.netlink.template import marker, message_template

T = TypeVar("T")


def ask_route(sequence: int, address: Address, flags: int = 0) -> bytes:
    """Question: which way packets to an address go. The answer is a route to the address alone, with RTM_F_FIB_MATCH
    the one by which they go."""
    return _question(len(address), flags) % (sequence.to_bytes(4, sys.byteorder), address)


@lru_cache
def _question(size: int, flags: int) -> bytes:
    fields = {"family": wire.FAMILIES[size], "dst_len": size * 8, "flags": flags}
    return message_template(RouteMessage, wire.RTM_GETROUTE, 0, fields, dst=marker(b"a", size))


def look_up(
    commands: CommandSocket,
    addresses: Sequence[Address],
    read: Callable[[bytes, int, int], T],
    nowhere: T,
    flags: int = 0,
) -> list[tuple[Address, T]]:
    """What `read` makes of the answers about these addresses; `nowhere` for those to which no way leads. Raises
    OSError when answers are missing."""
    found: list[tuple[Address, T]] = []
    for at in range(0, len(addresses), BATCH):
        part = addresses[at : at + BATCH]

        def visit(number: int, kind: int, buffer: bytes, start: int, end: int, part: Sequence[Address] = part) -> None:
            found.append((part[number], nowhere if kind == wire.NLMSG_ERROR else read(buffer, start, end)))

        commands.ask([ask_route(number, address, flags) for number, address in enumerate(part)], visit)
    return found


def outgoing(commands: CommandSocket, addresses: Sequence[Address]) -> list[tuple[Address, int]]:
    """The ifindex of the device by which packets to each leave; 0: by none. Raises as `look_up`."""
    return look_up(commands, addresses, _read_outgoing, 0)


def _read_outgoing(buffer: bytes, start: int, end: int) -> int:
    return wire.number(wire.attributes(buffer, start + wire.ROUTE.size, end).get(wire.RTA_OIF, b""))
