"""An API server in virtual time that is away now and then, and busy with its start when it comes back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from netloom.api.core import Node
from netloom.api.meta import ObjectMeta, Resource
from netloom.runtime.errors import Gone, TooManyRequests, Unavailable
from netloom.runtime.wire import Listing


class Restarting:
    """What a ListWatch asks of an Api. `outages`: when each begins and ends, in seconds of the event loop's clock.

    As kube-apiserver does: connections are reset and refused, then the first request of each kind is told to come again
    in a second, and a watch from before the start is told to list.
    """

    def __init__(
        self, outages: Sequence[tuple[float, float]] = (), *, closes_after: float = 1e9, forgets: bool = True
    ) -> None:
        self._outages = outages
        self._forgets = forgets
        self._closes_after = closes_after
        self._busy = 0
        self.requests: list[tuple[float, str]] = []
        """When, and what."""

    def during(self, begin: float, end: float) -> list[str]:
        return [what for when, what in self.requests if begin <= when < end]

    async def version(self, res: Resource[Any], **_: str) -> str:
        self._answer("ask")
        return str(100 + self._starts)

    async def list(self, res: Resource[Any], **_: Any) -> Listing[Node]:
        self._answer("list")
        return Listing(objects=[Node(metadata=ObjectMeta(name="a"))], resource_version=str(100 + self._starts))

    @asynccontextmanager
    async def stream(self, path: str, query: dict[str, str]) -> AsyncIterator["Restarting"]:
        self._answer("watch")
        if self._forgets and int(query["resourceVersion"]) < 100 + self._starts:
            raise Gone(410, "Expired", "too old resource version")
        yield self

    async def iter_any(self) -> AsyncIterator[bytes]:
        """A quiet kind: nothing comes until the connection is reset, or the server's time for it is over."""
        now = asyncio.get_running_loop().time()
        ahead = min((begin for begin, _ in self._outages if begin > now), default=1e12)
        await asyncio.sleep(min(ahead - now, self._closes_after))
        if self._closes_after > ahead - now:
            raise Unavailable(0, "ClientOSError", "connection reset by peer")
        return
        yield b""

    def _answer(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        self.requests.append((now, what))
        if any(begin <= now < end for begin, end in self._outages):
            raise Unavailable(0, "ClientConnectorError", "connection refused")
        if self._busy < self._starts:
            self._busy += 1
            raise TooManyRequests(429, "TooManyRequests", "storage is (re)initializing", 1.0)

    @property
    def _starts(self) -> int:
        now = asyncio.get_running_loop().time()
        return sum(end <= now for _, end in self._outages)
