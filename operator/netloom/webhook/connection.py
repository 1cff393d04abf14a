"""One connection of an API server, from its first packet to its last, and the crowd of them.

aiohttp takes a request through three turns of the event loop, a task of its own and objects for whatever HTTP can be:
0.20 ms of CPU time with TLS, where 0.11 are enough. An API server's question has one form (Go's HTTP client writes it),
so that is looked for first: what has exactly that form, to the order of its headers, is answered as it is read. All
else is aiohttp's, from the first byte, and so is all that follows on that connection: two parsers that had to agree on
where a request ends would be a way to smuggle one past the other.
"""

import asyncio
import re
import resource
import socket
import ssl
from collections.abc import Callable

import msgspec
import structlog
from aiohttp.helpers import rfc822_formatted_time

from netloom.runtime.http import web
from netloom.webhook import metrics
from netloom.webhook.names import PATH

log = structlog.get_logger(__name__)

AtOnce = Callable[[bytes], bytes | None]
"""From the body of a review to that of its answer; None where it is not to be answered in this short way."""

RESERVED_FILES = 100
"""File descriptors for all but these connections; where few are allowed, the connections are fewer."""

_VALUE = rb"[!-~][ -~]{0,300}\r\n"
_QUESTION = re.compile(
    rb"POST %b(?:\?timeout=\w{1,20})? HTTP/1\.1\r\nHost: %b(?:User-Agent: %b)?Content-Length: (\d{1,5})\r\n"
    rb"(?:Accept: %b)?(?:Baggage: %b)?Content-Type: application/json\r\n(?:Traceparent: %b)?(?:Tracestate: %b)?"
    rb"(?:Accept-Encoding: %b)?\r\n" % (re.escape(PATH.encode()), *[_VALUE] * 7)
)
"""The head of a review as net/http of Go writes it: its own headers, the others by name, what its transport adds."""

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nDate: %b\r\n\r\n"

_AIOHTTP_IDLE = 1e8
"""Seconds after which aiohttp ends a connection at rest. It does not see the requests that are answered without it."""


class ServerLimits(msgspec.Struct, frozen=True):
    """Bytes, numbers and seconds. The defaults are for production; tests shorten them."""

    body: int = 8 << 20
    """An object has 1.5 MiB at most (etcd), a review two of them, and JSON in JSON adds nothing."""
    small: int = 64 << 10
    large: int = 64 << 20
    """So much of the bodies that are being read, beyond `small` of each, is held at a time. Nearly all reviews are
    small: whoever sends large ones slowly can neither take all memory nor keep those out."""
    connections: int = 2000
    handshake: float = 5.0
    request: float = 10.0
    """From the first byte of a request to the last byte of its answer."""
    idle: float = 120.0


class ServerConnection(web.RequestHandler):
    """One connection: a handshake (a task), then rest and work by turns.

    at_once: answers a review, without waiting for anything.
    """

    def __init__(
        self, server: web.Server, connections: "ServerConnections", limits: ServerLimits, at_once: AtOnce
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_AIOHTTP_IDLE,
            lingering_time=min(1.0, limits.request),
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runners hand it down to switch it off
            # A body in gzip would let 8 KiB stand for 8 MiB; API servers do not send any.
            auto_decompress=False,
        )
        self._connections = connections
        self._limits = limits
        self._at_once = at_once
        self.handshake: asyncio.Task[None] | None = None
        self._clock: asyncio.Handle | None = None  # of the request that has begun, or of the rest
        self._working = False
        self._aiohttps = False  # what comes is aiohttp's, for good
        self._held = b""  # of a question that has begun
        self._body = self._end = 0  # where its body begins and ends

    async def shake_hands(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: self, sock, ssl=tls, ssl_handshake_timeout=self._limits.handshake, ssl_shutdown_timeout=1.0
            )
        except OSError as error:  # TLS errors and time-outs are such
            sock.close()
            log.debug("no TLS connection", error=str(error))
        except Exception:
            sock.close()
            log.exception("handshake failed by a bug")
        finally:
            self.handshake = None
            if self.transport is None:
                self._forget()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        metrics.HANDSHAKES.inc()
        self._rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp calls this with nothing to look at once more at what it has
            self.work()
            if not self._aiohttps:
                data = self._take(data)
                if not data:
                    return
        super().data_received(data)

    def _take(self, data: bytes) -> bytes:
        """Answers a question once all of it is there. What it returns is for aiohttp: nothing, or all that came."""
        read = self._held + data
        if not self._end and (head := _QUESTION.match(read)):
            self._body, self._end = head.end(), head.end() + int(head[1])
        if len(read) < self._end <= self._body + self._limits.small:
            self._held = read
            return b""
        whole = len(read) == self._end and not self.writing_paused
        answer = self._at_once(read[self._body :]) if whole else None
        self._held, self._end = b"", 0
        if answer is None or self.transport is None:
            self._aiohttps = True
            return read
        self.transport.write(_ANSWER % (len(answer), rfc822_formatted_time().encode()) + answer)
        if not self.writing_paused:
            self._rest()
        return b""

    def pause_writing(self) -> None:
        """The peer does not take an answer; the deadline of a request lasts until it has."""
        super().pause_writing()
        if not self._aiohttps:
            self.work()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._aiohttps and not self._held:
            self._rest()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The deadline of a request lasts until the peer has taken the answer."""
        finished = await super().finish_response(request, resp, start_time)
        self._rest()
        return finished

    def _rest(self) -> None:
        self._stop_clock()
        if self in self._connections:
            self._clock = self._loop.call_later(self._limits.idle, self.force_close)
            self._connections.renew(self)

    def work(self) -> None:
        """A request has begun; more of its bytes do not move its deadline."""
        if not self._working and self in self._connections:
            self._stop_clock()
            self._working = True
            self._clock = self._loop.call_later(self._limits.request, self._overdue)
            self._connections.renew(self)

    def _stop_clock(self) -> None:
        self._working = False
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _overdue(self) -> None:
        metrics.ERRORS.labels("deadline").inc()
        log.info("request took too long, connection closed", remote=self.peername)
        self.abort()

    def abort(self) -> None:
        """Ends the connection without a farewell that the peer could delay."""
        self._forget()
        if self.handshake is not None:
            self.handshake.cancel()
        if self.transport is not None:
            self.transport.abort()

    def _forget(self) -> None:
        self._stop_clock()
        self._connections.remove(self)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is not HTTP gets one line; what is left is a bug in this server."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client has left; aiohttp ends the connection
        if status >= 500:
            metrics.ERRORS.labels("answer").inc()
            log.error("request not answered", remote=request.remote, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun")
        return said(status, message or "the guard failed over this request; its log says why", close=True)


class ServerConnections:
    """All that are open, in the order in which they came into their present states."""

    def __init__(self, limits: ServerLimits) -> None:
        self._most = min(limits.connections, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES))
        self._open: dict[ServerConnection, None] = {}

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def add(self, connection: ServerConnection) -> None:
        """One more; where that is one too many, the one that has been in its state longest is ended."""
        while len(self._open) >= self._most:
            metrics.ERRORS.labels("crowd").inc()
            next(iter(self._open)).abort()
        self._open[connection] = None
        metrics.CONNECTIONS.set(len(self._open))

    def renew(self, connection: ServerConnection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: ServerConnection) -> None:
        self._open.pop(connection, None)
        metrics.CONNECTIONS.set(len(self._open))


def said(status: int, sentence: str, close: bool = False) -> web.Response:
    """An answer that is a sentence. close: the last of its connection."""
    response = web.Response(status=status, text=f"{sentence}\n")
    if close:
        response.force_close()
    return response
