"""A TCP relay that can hold back what a server says: whoever is behind it sees a world that is some time old."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from netloom_e2e.background import Background

_CHUNK = 1 << 16


class Relay(Background):
    """Listens on a loopback port. `hold` keeps the server's words back, `release` lets them go, in order."""

    seconds = 10.0

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.port = 0
        self._target = host, port
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
            with suppress(OSError, asyncio.CancelledError):
                await self._join(reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
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
