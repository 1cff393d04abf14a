"""Reads off the kernel what lives on this node inside a CIDR (see `lodgers`), for whoever has no data path open."""

import asyncio
from collections.abc import Collection

from netloom.cidr import Cidr
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.lodgers import lodgers
from netloom.kernel.netlink.sockets import CommandSocket


async def occupants(within: Collection[Cidr]) -> dict[Cidr, str]:
    """Of these CIDRs, those that somebody else's routes and addresses on this node show to be lived in, and by what.

    Raises AnswerLost, OSError.
    """
    commands = CommandSocket()  # opened in this thread, whose network namespace counts
    return await asyncio.to_thread(_read, commands, within)


def _read(commands: CommandSocket, within: Collection[Cidr]) -> dict[Cidr, str]:
    try:
        return lodgers(within, reader.read_interfaces(commands), reader.direct_routes(commands))
    finally:
        commands.close()
