"""Lets the nodes of a lab reach a TCP port of this machine: the API server that the tests share.

A socket belongs to the network namespace it was made in, for ever. So a listener made inside the switch's namespace
can be served by an event loop outside of it, and the connections onward are made outside.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from netloom_e2e.lab import Lab

_CHUNK = 1 << 16


@contextmanager
def gateway(lab: Lab, port: int, *, to_host: str = "127.0.0.1") -> Iterator[None]:
    """While it lasts, the lab's nodes reach `to_host`:`port` of the caller's namespace at `lab.address`:`port`."""
    listener = lab.switch.inside(lambda: socket.create_server((lab.address, port)))
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(_serve(listener, (to_host, port), stop),), name="gateway"
    )
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
        loop.close()


async def _serve(listener: socket.socket, target: tuple[str, int], stop: asyncio.Event) -> None:
    busy: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            await _join(reader, writer, target)
        except asyncio.CancelledError:
            pass
        finally:
            busy.discard(task)

    server = await asyncio.start_server(accept, sock=listener)
    await stop.wait()
    server.close()
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]) -> None:
    try:
        far_reader, far_writer = await asyncio.open_connection(*target)
    except OSError:
        writer.transport.abort()  # as the API server's own kernel would refuse
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, far_writer))
            group.create_task(_copy(far_reader, writer))
    finally:
        for each in (writer, far_writer):
            each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
