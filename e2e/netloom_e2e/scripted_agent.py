"""Stands in for the agent at the CNI plugin's socket, and does to it what an agent never should: a script says what."""

from __future__ import annotations

import array
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.namespaces import wait_for

MAGIC = b"NETLOOM-CNI/1 "
_ROOM = socket.CMSG_SPACE(16 * array.array("i").itemsize)


@dataclass(frozen=True, slots=True)
class Request:
    """As it came, and the descriptors that came with its first bytes; the agent closes them when it ends."""

    raw: bytes
    files: tuple[int, ...]

    @property
    def headers(self) -> dict[str, str]:
        head = self.raw.partition(b"\n")[2].partition(b"\n\n")[0].decode()
        return dict(line.split("=", 1) for line in head.splitlines())

    @property
    def stdin(self) -> bytes:
        return self.raw.partition(b"\n\n")[2]


class Conversation:
    """With one plugin."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> Request:
        """A whole request. Raises EOFError where the plugin hangs up before."""
        raw, files = bytearray(), array.array("i")
        while (length := whole_length(bytes(raw))) is None or len(raw) < length:
            data, ancillary, flags, _ = self._connection.recvmsg(1 << 20, _ROOM)
            assert not flags & socket.MSG_CTRUNC
            assert not ancillary or not raw, "descriptors came later than the first bytes"
            for _level, _kind, some in ancillary:
                files.frombytes(some)
            if not data:
                raise EOFError(bytes(raw))
            raw += data
        return Request(bytes(raw), tuple(files))

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def send_with(self, data: bytes, file: int) -> None:
        """With a descriptor, which no plugin expects."""
        socket.send_fds(self._connection, [data], [file])

    def answer(self, status: int, output: bytes) -> None:
        self.send(MAGIC + b"%d %d\n" % (status, len(output)) + output)

    def ignore(self) -> None:
        """Reads nothing, until the plugin has hung up."""
        waiting = select.poll()
        waiting.register(self._connection, 0)
        waiting.poll()

    def trickle(self) -> None:
        """One byte after another, until the plugin has hung up: it is never done with the first 16 MB."""
        waiting = select.poll()
        waiting.register(self._connection, 0)
        with suppress(BrokenPipeError, ConnectionResetError):
            while not waiting.poll(10):
                self.send(b"x")


Script = Callable[[Conversation], Request | None]


def whole_length(raw: bytes) -> int | None:
    """Of the request that begins so, in bytes; None: that has not come yet."""
    first, line_end, _ = raw.partition(b"\n")
    if not line_end:
        return None
    assert first.startswith(MAGIC), first
    return len(first) + 1 + int(first.removeprefix(MAGIC))


def answering(status: int = 0, output: bytes = b"") -> Script:
    """A well-behaved agent that gives everybody the same answer, but for who hangs up without having asked."""

    def script(plugin: Conversation) -> Request | None:
        try:
            request = plugin.receive()
        except EOFError:
            return None
        plugin.answer(status, output)
        return request

    return script


class ScriptedAgent:
    """Listens; each caller is dealt with by the script, in a thread, and hung up on when that returns. `requests` has
    what scripts returned, in the order in which they ended."""

    def __init__(self, path: Path, script: Script, backlog: int = 128) -> None:
        self.path = path
        self.script = script
        self.requests: list[Request] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def request(self) -> Request:
        """The only one, which may come yet."""
        wait_for("somebody asks the agent", lambda: self.requests)
        [request] = self.requests
        return request

    @contextmanager
    def running(self) -> Iterator[ScriptedAgent]:
        self._threads[0].start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join(30)
            self._listener.close()
            self.path.unlink()
            for request in self.requests:
                for file in request.files:
                    os.close(file)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # it was shut down
            thread = threading.Thread(target=self._converse, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            request = self.script(Conversation(connection))
            if request is not None:
                self.requests.append(request)
