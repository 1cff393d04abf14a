"""The connections to one API server, and what to call it when one cannot be had.

They are made by kubernetes-asyncio's ApiClient from the configuration (TLS, client certificate), but its session is
replaced: it is made with `trust_env`, which reads the environment and ~/.netrc in a thread, twice per request.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netloom.runtime import slim, tls
from netloom.runtime.credentials import Credentials
from netloom.runtime.errors import ApiError, Unauthorized, Unavailable, plain
from netloom.runtime.http import aiohttp
from netloom.runtime.proxy import Proxy
from netloom.runtime.tls import ApiEndpoint

CONNECT_SECONDS = 5.0
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Socket options of a watch: a peer that is gone is noticed after a minute."""


class ConnectionReplaced(Exception):
    """A watch's connection is given up, as there is another for it now. `elsewhere`: to another address."""

    def __init__(self, elsewhere: bool) -> None:
        super().__init__("the connection was given up for one with other credentials")
        self.elsewhere = elsewhere


class Connections:
    """The pools of connections to the endpoint that the credentials name now; when that changes, new requests go by new
    pools, requests under way are finished by the old ones, watches there end, and what nobody uses is closed."""

    def __init__(self, auth: Credentials, limit: int, user_agent: str) -> None:
        self._limit = limit
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        self._closing: set[asyncio.Task[None]] = set()
        self.present = ApiPools(auth.endpoint, limit, self._headers)
        """What new requests go by; `use` it for what takes time."""
        auth.on_change = self._replace

    def renew(self) -> None:
        """New connections to where the present ones lead."""
        self._replace(self.present.endpoint)

    def _replace(self, endpoint: ApiEndpoint) -> None:
        old, self.present = self.present, ApiPools(endpoint, self._limit, self._headers)
        old.retire(elsewhere=endpoint.host != old.endpoint.host)
        self._close_if_idle(old)

    def _close_if_idle(self, pools: "ApiPools") -> None:
        if pools.retired and not pools.users:
            task = asyncio.create_task(pools.close(), name="close old connections")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    @contextmanager
    def use(self) -> Iterator["ApiPools"]:
        """The present pools, which stay open while the context lasts."""
        pools = self.present
        pools.users += 1
        try:
            yield pools
        finally:
            pools.users -= 1
            if pools.retired:
                self._close_if_idle(pools)

    async def close(self) -> None:
        """Closes all connections."""
        await self.present.close()
        if self._closing:
            await asyncio.wait(self._closing)


class ApiPools:
    """Connections of ordinary requests, up to `limit`, and of watches. `options` are to be given with every request."""

    def __init__(self, endpoint: ApiEndpoint, limit: int, headers: dict[str, str]) -> None:
        tls.check(endpoint)
        self.endpoint = endpoint
        self.users = 0
        self.retired = False
        self._headers = headers
        self._streams: set[aiohttp.StreamReader] = set()
        self.proxy = Proxy.of(endpoint.host, endpoint.proxy, os.environ)
        configuration = slim.Configuration()
        configuration.host = endpoint.host
        configuration.verify_ssl = endpoint.verify
        configuration.connection_pool_maxsize = limit
        with tls.files(endpoint.ca, endpoint.certificate, endpoint.key) as names:
            configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file = names
            self._client = slim.ApiClient(configuration)
            self.requests = self._adopt(self._client.rest_client)
            self.watches = self._adopt(slim.RESTClientObject(configuration, maxsize=0))
        self.options: dict[str, Any] = {"allow_redirects": False}
        if endpoint.tls_server_name:
            self.options["server_hostname"] = endpoint.tls_server_name

    def _adopt(self, rest: Any) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector = rest.pool_manager.connector
        rest.pool_manager.detach()
        rest.pool_manager = session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self.proxy.url if self.proxy else None,
        )
        return session

    @contextmanager
    def streaming(self, content: aiohttp.StreamReader) -> Iterator[None]:
        """While the context lasts, a watch's reader gets a ConnectionReplaced when the pools are given up."""
        self._streams.add(content)
        if self.retired:
            content.set_exception(ConnectionReplaced(elsewhere=False))
        try:
            yield
        finally:
            self._streams.discard(content)

    def retire(self, *, elsewhere: bool) -> None:
        """Ends watches; requests under way go on."""
        self.retired = True
        for content in self._streams:
            content.set_exception(ConnectionReplaced(elsewhere))

    @property
    def via(self) -> str:
        """To be added to what went this way; "" without a proxy."""
        return f" through {self.proxy.name}" if self.proxy else ""

    def unanswered(self, where: str, error: BaseException, limit: float | None = None) -> Unavailable:
        """The exception for a request that got no answer (within `limit` seconds)."""
        if fault := tls.fault(self.endpoint, error):
            return Unavailable(0, "TLS", f"{where}{self.via}: {fault}")
        reason = "Timeout" if isinstance(error, TimeoutError) else type(error).__name__
        return Unavailable(0, reason, f"{where}: {self._hindrance(error, limit)}")

    def _hindrance(self, error: BaseException, limit: float | None = None) -> str:
        """What kept an answer away, but for TLS. A proxy on the way is named: it may be at fault."""
        proxy = self.proxy
        unreachable = f"{proxy.name} cannot be reached: " if proxy else ""
        if isinstance(error, aiohttp.ClientHttpProxyError) and proxy:
            held = "it does not accept those" if proxy.url.user else "there are none"
            credentials = f"; it wants credentials, and {held} in its address" if error.status == 407 else ""
            return f"{proxy.name} does not let it through: {error.status} {error.message}{credentials}"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"{unreachable}{plain(error.os_error)}"
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return f"{unreachable}no connection within {CONNECT_SECONDS:g} s"
        if isinstance(error, TimeoutError):
            return f"no answer{self.via}" if proxy or not limit else f"no answer within {limit:g} s"
        if proxy:
            return f"the connection{self.via} was lost ({type(error).__name__})"
        return str(error) or "connection lost"

    def explain(self, error: ApiError, aside: str) -> str:
        """One sentence for people on why the first request failed; `aside` belongs to it where there was no answer."""
        server, cause = f"the API server at {self.endpoint.host}", error.__cause__
        if cause is not None and (fault := tls.fault(self.endpoint, cause)):
            return f"{fault}{aside}" + (f" (asked{self.via})" if self.proxy else "")
        if self.proxy and (cause is not None or error.foreign):
            return f"{server} was not reached: {self._hindrance(cause) if cause is not None else error}"
        if isinstance(cause, TimeoutError):
            return f"{server} does not answer"
        if isinstance(cause, aiohttp.ClientConnectorError):
            return f"{server} cannot be reached: {plain(cause.os_error)}{aside}"
        if isinstance(error, Unauthorized):
            return f"{server} does not accept the credentials (401): {error.message}"
        return f"{server} refuses to talk: {error}"

    async def close(self) -> None:
        """Closes all connections."""
        await self.watches.close()
        await self._client.close()


def keep_alive(transport: asyncio.Transport) -> None:
    """Lets the kernel probe the peer of a watch: that finds one that is gone, and keeps the entry of a NAT between."""
    connection = transport.get_extra_info("socket")
    for level, option, value in KEEPALIVE:
        connection.setsockopt(level, option, value)
