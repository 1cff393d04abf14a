"""An API server that is away for a moment ends no uninstallation: it is asked again.

All that is asked is what shall be so, and not one step more: a request whose answer was lost may be repeated.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from netloom.runtime.client import Api
from netloom.runtime.errors import TooManyRequests, Unavailable

PATIENCE_SECONDS = 45.0
"""For one request: as long as an API server takes to be restarted."""
PAUSE_SECONDS = 1.0


class PatientApi(Api):
    """say: tells people whom it waits for, once; None: nobody is waited for."""

    say: Callable[[str], None] | None = None
    pause = PAUSE_SECONDS
    _told = False

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        """As `Api.request`. Raises ApiError."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await super().request(method, path, **options)
            except (Unavailable, TooManyRequests) as error:
                if self.say is None or time.monotonic() > deadline:
                    raise
                if not self._told:
                    self.say(f"the API server is asked again for {PATIENCE_SECONDS:g} s: {error}")
                    self._told = True
            await asyncio.sleep(self.pause)
