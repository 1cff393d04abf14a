"""Finds out which addresses this node reaches the API server by: no route to pods may take them along.

They are in the configuration that the agent connects with, as addresses or as a name. A name is looked up again now
and then, and what it was stays in force while nobody answers. Told first of all, before anything is asked of the API
server: a route that an earlier run left may be what keeps the node from asking.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from netloom.cidr import Address, CidrError, is_address, parse_address
from netloom.kernel.netlink.sockets import AnswerLost
from netloom.runtime.client import Api

log = structlog.get_logger(__name__)

AGAIN_SECONDS, UNKNOWN_SECONDS = 60.0, 5.0
"""Between look-ups of a name that has, or has not, been found."""
LOOK_UP_SECONDS = 10.0


@dataclass(eq=False)
class ApiAddresses:
    """Calls `found` with all addresses and what has them, at the start and whenever they are others."""

    api: Api
    found: Callable[[Mapping[Address, str]], Awaitable[None]]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _told: Mapping[Address, str] | None = None

    async def run(self) -> None:
        """A component of the agent, for ever."""
        while True:
            if self._told is None and not is_address(self.api.reached_by[0]):
                await self._tell({})
            servers = await self.look_up()
            known = bool(servers) and await self._tell(servers)
            await self.sleep(AGAIN_SECONDS if known else UNKNOWN_SECONDS)

    async def look_up(self) -> Mapping[Address, str]:
        """The addresses, as far as they can be found out now, and what has them."""
        host, what = self.api.reached_by
        if is_address(host):
            return {parse_address(host): what}
        return dict.fromkeys(await _addresses_of(host), f"{what} ({host})")

    async def _tell(self, servers: Mapping[Address, str]) -> bool:
        if servers == self._told:
            return True
        try:
            await self.found(servers)
        except (AnswerLost, OSError) as error:
            log.warning("it is not known whether an old route cuts this node off", error=str(error))
            return False
        self._told = servers
        return True


async def _addresses_of(host: str) -> list[Address]:
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError, TimeoutError):
        return []  # what asks the API server says so
    addresses = []
    for *_, sockaddr in found:
        try:
            addresses.append(parse_address(str(sockaddr[0])))
        except CidrError:
            continue  # a link-local one, with its zone
    return sorted(set(addresses))
