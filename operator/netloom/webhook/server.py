"""The HTTPS server that API servers ask: POST /validate, an AdmissionReview in, an AdmissionReview out.

It sits in the way of writes, so what it promises is about time: an answer for whoever asks properly, and for whoever
does not, an end. Three things that aiohttp's own server lacks are therefore here, and a shorter way for the requests of
API servers (`netloom.webhook.connection`):

- **A request has a deadline**, from its first byte to the last byte of its answer, and so has a handshake. aiohttp
  takes a request whose headers trickle in for the rest between two.
- **Connections are counted from their first packet**, handshakes included; where there are too many, the one goes that
  has been in its state longest: a proper client needs milliseconds for a handshake or a request, and a rest that ends
  costs it nothing. Hence the accept loop: `loop.create_server` shows a connection only after its handshake.
- **Noise is no news.** Port scanners and half-open handshakes leave no traceback in the log.

All else (parsing, keep-alive, pipelining, flow control) is aiohttp's low-level server. `ServerConnection` overrides
only the methods of asyncio's protocol and the public `handle_error` and `finish_response` of
`aiohttp.web.RequestHandler`.

`idle` is more than the 90 s after which the API server's own transport (Go's, as client-go sets it up) lets a
connection go: if this side were the first, it would now and then close one on which a POST is just being sent, and
that is not repeated.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import structlog

from netloom.api.admission import AdmissionRequest
from netloom.guard.verdict import Ruling
from netloom.runtime.errors import ConfigError
from netloom.runtime.http import web
from netloom.webhook import metrics, review
from netloom.webhook.connection import ServerConnection, ServerConnections, ServerLimits, said
from netloom.webhook.names import PATH

log = structlog.get_logger(__name__)

Decide = Callable[[AdmissionRequest], Ruling]

BACKLOG = 1024
SHUTDOWN_SECONDS = 2.0
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
    handler = _Handler(decide, limits, leaving)
    server = web.Server(handler.handle)
    with _listening(host, port) as listener:
        accepting = asyncio.create_task(_accept(listener, tls, server, handler, limits), name="accept")
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


async def _accept(
    listener: socket.socket, tls: ssl.SSLContext, server: web.Server, handler: "_Handler", limits: ServerLimits
) -> None:
    loop = asyncio.get_running_loop()
    connections = ServerConnections(limits)
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
            connection = ServerConnection(server, connections, limits, handler.at_once)
            connection.handshake = handshakes.create_task(connection.shake_hands(sock, tls), name="handshake")
            connections.add(connection)


class _Handler:
    """From HTTP to the decision and back."""

    def __init__(self, decide: Decide, limits: ServerLimits, leaving: Callable[[], bool]) -> None:
        self._decide = decide
        self._limits = limits
        self._leaving = leaving
        self._large = 0

    def at_once(self, body: bytes) -> bytes | None:
        """The answer to a review, without waiting for anything. None: `handle` has more to say."""
        if self._leaving():
            return None
        try:
            asked = review.decode(body)
        except review.BadReview:
            return None
        return self._judge(asked)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, ServerConnection)
        connection.work()  # a second request that came with the first one's bytes
        metrics.IRREGULAR.inc()
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
            return said(400, str(error))
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
                        return said(503, "too many large reviews at a time; try again in a few seconds", close=True)
        except web.RequestPayloadError as error:
            metrics.ERRORS.labels("request").inc()
            return said(400, f"the body cannot be read: {error}", close=True)
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
        return said(413, f"the body has more than {self._limits.body >> 20} MiB", close=True)


def _wrong(request: web.BaseRequest) -> web.Response | None:
    if request.path != PATH:
        return said(404, f"nothing is served here but POST {PATH}")
    if request.method != "POST":
        refusal = said(405, f"{PATH} takes nothing but POST")
        refusal.headers["Allow"] = "POST"
        return refusal
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if request.content_type != "application/json" or encoding != "identity":
        metrics.ERRORS.labels("request").inc()
        shown = request.content_type if encoding == "identity" else f"{request.content_type} in {encoding}"
        return said(415, f"an AdmissionReview comes as plain application/json, not as {shown}")
    return None
