"""Servers of tests that have an event loop and a thread of their own, as the test itself blocks."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

T = TypeVar("T")


class TidyLoop(asyncio.SelectorEventLoop):
    """Ends with its connections.

    One that was broken off in the middle of a request still says its TLS farewell when the loop is closed. It would be
    found by the garbage collector, minutes later, and blamed on the test that runs then.
    """

    def close(self) -> None:
        if not self.is_closed() and (left := list(self._transports.values())):  # type: ignore[attr-defined]
            for transport in left:
                transport.abort()
            self.run_until_complete(asyncio.sleep(0))
        super().close()


class Background(ABC):
    """Subclasses serve in `_serve` until `_stop` is set, and set `ready` once they do."""

    seconds = 30.0
    """That its start, its end and each `call` may take."""

    def __init__(self) -> None:
        self._loop = TidyLoop()
        self._stop = asyncio.Event()

    @abstractmethod
    async def _serve(self, ready: threading.Event) -> None: ...

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns that runs in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(self.seconds)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """The server, which serves while the context lasts."""
        name, ready = type(self).__name__.lower(), threading.Event()
        thread = threading.Thread(target=self._run, args=(ready,), name=name)
        thread.start()
        try:
            assert ready.wait(self.seconds), f"the {name} does not start"
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(self.seconds)

    def _run(self, ready: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()
