"""TCP relays: one that can hold back what a server says, so that whoever is behind it sees a world that is some time
old, and one that shares connections out among several servers, as a Service does.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from netloom_e2e.background import Background

_CHUNK = 1 << 16
_NOBODY = ("127.0.0.1", 0)
"""No server can listen there: a connection is refused."""


class Relay(Background):
    """Listens on a loopback port. `hold` keeps the server's words back, `release` lets them go, in order.

    listener: where to listen instead. It may belong to another network namespace; connections onward are made in ours.
    """

    seconds = 10.0

    def __init__(self, host: str, port: int, *, listener: socket.socket | None = None) -> None:
        super().__init__()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._targets = [(host, port)]
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self.call(self._set(open_=False))

    def release(self) -> None:
        self.call(self._set(open_=True))

    async def _set(self, *, open_: bool) -> None:
        self._open.set() if open_ else self._open.clear()

    async def _serve(self, ready: threading.Event) -> None:
        busy: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            busy.add(task)
            task.add_done_callback(busy.discard)
            with suppress(asyncio.CancelledError):
                await self._join(reader, writer)

        server = await asyncio.start_server(accept, sock=self._listener)
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In turn; one that cannot be reached is an answer, too, and not hidden by asking another.
        self._targets.append(self._targets.pop(0))
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._targets[-1])
        except OSError:
            writer.transport.abort()  # as the server's own kernel would refuse
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, far_writer, held=False))
                group.create_task(self._copy(far_reader, writer, held=True))
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if held:
                    await self._open.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()


class Balancer(Relay):
    """New connections go in turn to the servers that were ready when last looked at, which is up to `lag` seconds ago:
    a Service learns of a server that goes away later than the server itself does. At first it knows none."""

    def __init__(self, lag: float) -> None:
        super().__init__(*_NOBODY)
        self._lag = lag
        self._known: dict[int, Callable[[], bool]] = {}

    def share(self, servers: Mapping[int, Callable[[], bool]]) -> None:
        """Among these from now on: ports of the loopback, and whether what is there says that it is ready."""
        self._known = dict(servers)
        self.call(self._look())

    async def _look(self) -> None:
        known = list(self._known.items())
        ready = await asyncio.gather(*(asyncio.to_thread(check) for _, check in known), return_exceptions=True)
        well = [("127.0.0.1", port) for (port, _), said in zip(known, ready, strict=True) if said is True]
        self._targets = well or [_NOBODY]

    async def _serve(self, ready: threading.Event) -> None:
        async def look_again() -> None:
            while True:
                await asyncio.sleep(self._lag)
                await self._look()

        looking = asyncio.create_task(look_again())
        await super()._serve(ready)
        looking.cancel()
        await asyncio.wait([looking])
