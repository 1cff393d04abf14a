"""The socket at which the plugin on the host asks the agent. Root alone may open it, and is asked again who it is.

Of callers beyond MOST_CALLERS the kernel keeps some waiting, and refuses the rest; they have three descriptors each.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from netloom.runtime.waking import wait
from netloom_reconcilers.node.addresses.server import bind, is_root, remove
from netloom_reconcilers.node.endpoints.connection import Handle, PluginConnection

log = structlog.get_logger(__name__)

OPTION = "--cni-socket"
MOST_CALLERS = 256
PAUSE_SECONDS = 0.5
"""Before the next attempt to accept, where there are no descriptors left."""
END_SECONDS = 5.0
"""For calls to take back what they had begun, when the agent ends."""


class CniServer:
    """Answers at a socket by `handle`."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._open: set[PluginConnection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._listener: socket.socket | None = None
        self._is_reading = False
        self.refused = 0
        """Callers that were not root."""

    @property
    def callers(self) -> int:
        """That are connected."""
        return len(self._open)

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Answers at this path meanwhile. Afterwards nobody is connected. Raises SocketUnusable."""
        self._listener = bind(path, OPTION)
        self._read()
        try:
            yield
        finally:
            self._pause()
            self._listener.close()
            self._listener = None
            remove(path)
            for each in list(self._open):
                each.close()
            await wait(self._idle, END_SECONDS)

    def _read(self) -> None:
        if self._listener is not None and not self._is_reading and len(self._open) < MOST_CALLERS:
            self._is_reading = True
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _pause(self) -> None:
        if self._listener is not None and self._is_reading:
            self._is_reading = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        while self._listener is not None and len(self._open) < MOST_CALLERS:
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as error:
                log.warning("a call of a container runtime cannot be accepted yet", error=error.strerror)
                self._pause()
                asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._read)
                return
            if not is_root(connected):
                self.refused += 1
                connected.close()
                continue
            self._idle.clear()
            self._open.add(PluginConnection(connected, self._handle, self._ended))
        self._pause()

    def _ended(self, connection: PluginConnection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._idle.set()
        self._read()
