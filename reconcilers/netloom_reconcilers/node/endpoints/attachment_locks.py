"""One at a time for each attachment: what is asked about a container's interface waits for what was asked before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

Key = tuple[str, str]
"""Of an attachment: container, interface."""


class AttachmentLocks:
    """Locks by attachment, as long as somebody wants them."""

    def __init__(self) -> None:
        self._locks: dict[Key, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """This attachment is the caller's meanwhile."""
        lock, wanted = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, wanted + 1
        try:
            async with lock:
                yield
        finally:
            lock, wanted = self._locks[key]
            if wanted == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, wanted - 1
