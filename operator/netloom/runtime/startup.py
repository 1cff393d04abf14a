"""Waiting for an API server that is not there when a role starts.

After a reboot an agent is often there first. One that ended would be started again by its supervisor later each time,
up to five minutes, and its node would have no routes meanwhile. So whatever is in the way, even 403, is waited for,
said on /readyz, and asked again. The caches ask for themselves at the same time; this is what speaks.

Only where the answers have been nothing but 401 for `PATIENCE_SECONDS`, the role ends: an API server that has just
started may not know its tokens yet, but credentials that are wrong have to be mended by somebody.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError, Unauthorized
from netloom.runtime.manager import Manager

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 120.0


def follow_api_server(api: Api, manager: Manager) -> None:
    """Lets a role wait for its API server at the start, and follow credentials and certificates on disk after it."""
    check = StartupCheck(api, manager.backoff())
    manager.add("API server", check.run, restart=True)
    manager.health.ready("API server", lambda: check.fault)
    manager.add("credentials", api.follow, restart=True)


class StartupCheck:
    """A component that ends when the API server has answered; until then `fault` says why it has not."""

    def __init__(
        self,
        api: Api,
        backoff: Backoff,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._backoff = backoff
        self._clock = clock
        self._sleep = sleep
        self.fault = "the API server was not asked yet"

    async def run(self) -> None:
        """Asks until there is an answer. Raises ConfigError if the credentials are refused for good."""
        refused_since: float | None = None
        while True:
            try:
                version = await self._api.check()
            except ConfigError as error:
                if not isinstance(error.__cause__, Unauthorized):
                    refused_since = None
                elif refused_since is None:
                    refused_since = self._clock()
                elif self._clock() - refused_since >= PATIENCE_SECONDS:
                    raise
                if self.fault != str(error):
                    log.warning("the API server is waited for", error=str(error))
                self.fault = str(error)
                await self._sleep(self._backoff.next())
            else:
                self.fault = ""
                log.info("the API server answers", api_server=version, host=self._api.host)
                return
