"""The HTTPS server that API servers ask: POST /validate, an AdmissionReview in, an AdmissionReview out.

It sits in the way of writes, so what it promises is about time: an answer for whoever asks properly, and for whoever
does not, an end. Three things that aiohttp's own server lacks are therefore here:

- **A request has a deadline**, from its first byte to the last byte of its answer, and so has a handshake. aiohttp
  takes a request whose headers trickle in for the rest between two.
- **Connections are counted from their first packet**, handshakes included; where there are too many, the one goes that
  has been in its state longest: a proper client needs milliseconds for a handshake or a request, and a rest that ends
  costs it nothing. Hence the accept loop: `loop.create_server` shows a connection only after its handshake.
- **Noise is no news.** Port scanners and half-open handshakes leave no traceback in the log.

All else (parsing, keep-alive, pipelining, flow control) is aiohttp's low-level server. `_Connection` overrides only the
methods of asyncio's protocol and the public `handle_error` and `finish_response` of `aiohttp.web.RequestHandler`.

`idle` is more than the 90 s after which the API server's own transport (Go's, as client-go sets it up) lets a
connection go: if this side were the first, it would now and then close one on which a POST is just being sent, and
that is not repeated.
"""

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import structlog

from netloom.api.admission import AdmissionRequest
from netloom.guard.verdict import Verdict
from netloom.runtime.errors import ConfigError
from netloom.runtime.http import web
from netloom.webhook import metrics, review

log = structlog.get_logger(__name__)

Decide = Callable[[AdmissionRequest], Verdict]

PATH = "/validate"
BACKLOG = 1024
SHUTDOWN_SECONDS = 2.0
RESERVED_FILES = 100
"""File descriptors for all but these connections; where few are allowed, the connections are fewer."""
RESOURCES = frozenset(
    {
        "netloomnetworks",
        "netloomippools",
        "netloomnodes",
        "configmaps",
        "ciliumpodippools",
        "ciliumnodes",
        "ciliumnodeconfigs",
    }
)
"""Named in metrics; any other is `other`, as whoever reaches the port could make up names without end."""


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


class _Connection(web.RequestHandler):
    """One connection, from its first packet on: a handshake (a task), then rest and work by turns."""

    def __init__(self, server: web.Server, connections: "_Connections", limits: ServerLimits) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle,
            lingering_time=min(1.0, limits.request),
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runners hand it down to switch it off
            # A body in gzip would let 8 KiB stand for 8 MiB; API servers do not send any.
            auto_decompress=False,
        )
        self._connections = connections
        self._limits = limits
        self.handshake: asyncio.Task[None] | None = None
        self._deadline: asyncio.Handle | None = None  # of the request that has begun

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
        self._rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp calls this with nothing to look at once more at what it has
            self.work()
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The deadline of a request lasts until the peer has taken the answer."""
        finished = await super().finish_response(request, resp, start_time)
        self._rest()
        return finished

    def _rest(self) -> None:
        self._stop_clock()
        self._connections.renew(self)

    def work(self) -> None:
        """A request has begun; more of its bytes do not move its deadline."""
        if self._deadline is None and self in self._connections:
            self._deadline = self._loop.call_later(self._limits.request, self._overdue)
            self._connections.renew(self)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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
        return _said(status, message or "the guard failed over this request; its log says why", close=True)


class _Connections:
    """All that are open, in the order in which they came into their present states."""

    def __init__(self, limits: ServerLimits) -> None:
        self._most = min(limits.connections, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES))
        self._open: dict[_Connection, None] = {}

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def add(self, connection: _Connection) -> None:
        """One more; where that is one too many, the one that has been in its state longest is ended."""
        while len(self._open) >= self._most:
            metrics.ERRORS.labels("crowd").inc()
            next(iter(self._open)).abort()
        self._open[connection] = None
        metrics.CONNECTIONS.set(len(self._open))

    def renew(self, connection: _Connection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        metrics.CONNECTIONS.set(len(self._open))


@asynccontextmanager
async def serve(
    decide: Decide,
    tls: ssl.SSLContext,
    host: str = "0.0.0.0",
    port: int = 0,
    *,
    limits: ServerLimits | None = None,
    leaving: Callable[[], bool] = lambda: False,
) -> AsyncIterator[int]:
    """Answers while the context lasts, and gives the port (0: a free one). `host` "" stands for all addresses of both
    families.

    Handshakes are done with what `tls` holds at that moment: a new certificate in it needs no restart.
    Once `leaving`, each answer is the last of its connection: the next request goes elsewhere. At the end requests that
    have begun are answered, for SHUTDOWN_SECONDS at most. Raises ConfigError if the address cannot be had.
    """
    limits = limits or ServerLimits()
    server = web.Server(_Handler(decide, limits, leaving).handle)
    with _listening(host, port) as listener:
        accepting = asyncio.create_task(_accept(listener, tls, server, limits), name="accept")
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            server.pre_shutdown()
            await server.shutdown(SHUTDOWN_SECONDS)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    shown = f"{f'[{host}]' if ':' in host else host or '*'}:{port}"
    try:
        if host:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        else:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            listener = socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        raise ConfigError(f"cannot serve HTTPS on {shown}: {error.strerror or error}") from error
    with listener:
        listener.setblocking(False)
        yield listener


async def _accept(listener: socket.socket, tls: ssl.SSLContext, server: web.Server, limits: ServerLimits) -> None:
    loop = asyncio.get_running_loop()
    connections = _Connections(limits)
    async with asyncio.TaskGroup() as handshakes:
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # The peer gave up while it waited, or there are no more file descriptors: ours or the machine's.
                log.warning("connection not accepted", error=error.strerror or str(error))
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            connection = _Connection(server, connections, limits)
            connection.handshake = handshakes.create_task(connection.shake_hands(sock, tls), name="handshake")
            connections.add(connection)


class _Handler:
    """From HTTP to the decision and back."""

    def __init__(self, decide: Decide, limits: ServerLimits, leaving: Callable[[], bool]) -> None:
        self._decide = decide
        self._limits = limits
        self._leaving = leaving
        self._large = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.work()  # a second request that came with the first one's bytes
        response = await self._respond(request)
        if self._leaving():
            response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        if wrong := _wrong(request):
            return wrong
        if (request.content_length or 0) > self._limits.body:
            return self._too_large()
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await self._read(request)
        if isinstance(body, web.Response):
            return body
        try:
            asked = review.decode(body)
        except review.BadReview as error:
            metrics.ERRORS.labels("request").inc()
            return _said(400, str(error))
        return web.Response(body=self._judge(asked), content_type="application/json")

    async def _read(self, request: web.BaseRequest) -> bytes | web.Response:
        chunks: list[bytes] = []
        size = large = 0
        try:
            async for chunk in request.content.iter_any():
                chunks.append(chunk)
                size += len(chunk)
                if size > self._limits.body:
                    return self._too_large()
                if size > self._limits.small:
                    large += len(chunk)
                    self._large += len(chunk)
                    if self._large > self._limits.large:
                        metrics.ERRORS.labels("crowd").inc()
                        return _said(503, "too many large reviews at a time; try again in a few seconds", close=True)
        except web.RequestPayloadError as error:
            metrics.ERRORS.labels("request").inc()
            return _said(400, f"the body cannot be read: {error}", close=True)
        finally:
            self._large -= large
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _judge(self, request: AdmissionRequest) -> bytes:
        """The answer's body; never fails."""
        began = time.perf_counter()
        try:
            verdict = self._decide(request)
            body = review.answer(request, verdict)
            word = "refused" if verdict.refusals else "not-ready" if verdict.unseen else "allowed"
        except Exception as error:
            metrics.ERRORS.labels("decision").inc()
            log.exception("decision failed, request refused", object=review.object_of(request), uid=request.uid)
            body = review.crashed(request, error)
            word = "error"
        metrics.SECONDS.observe(time.perf_counter() - began)
        plural = request.resource.resource
        metrics.REVIEWS.labels(plural if plural in RESOURCES else "other", request.operation, word).inc()
        return body

    def _too_large(self) -> web.Response:
        metrics.ERRORS.labels("request").inc()
        return _said(413, f"the body has more than {self._limits.body >> 20} MiB", close=True)


def _wrong(request: web.BaseRequest) -> web.Response | None:
    if request.path != PATH:
        return _said(404, f"nothing is served here but POST {PATH}")
    if request.method != "POST":
        refusal = _said(405, f"{PATH} takes nothing but POST")
        refusal.headers["Allow"] = "POST"
        return refusal
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if request.content_type != "application/json" or encoding != "identity":
        metrics.ERRORS.labels("request").inc()
        shown = request.content_type if encoding == "identity" else f"{request.content_type} in {encoding}"
        return _said(415, f"an AdmissionReview comes as plain application/json, not as {shown}")
    return None


def _said(status: int, sentence: str, close: bool = False) -> web.Response:
    response = web.Response(status=status, text=f"{sentence}\n")
    if close:
        response.force_close()
    return response
