"""The node's own devices, addresses and routes, read once: for who does not follow them."""

import asyncio

from netloom.kernel.mesh.lifelines import Surroundings
from netloom.kernel.mesh.reader import read_vicinity
from netloom.kernel.mesh.surroundings import Vicinity
from netloom.kernel.netlink.sockets import CommandSocket


async def vicinity() -> Surroundings:
    """As they are now, in the network namespace of this thread. Raises OSError."""
    commands = CommandSocket()  # opened in this thread, whose network namespace counts
    return await asyncio.to_thread(_read, commands)


def _read(commands: CommandSocket) -> Surroundings:
    try:
        found = Vicinity()
        read_vicinity(commands, found)
        return found.surroundings()
    finally:
        commands.close()
