"""The connections to one API server, and what to call it when one cannot be had.

They are made by kubernetes-asyncio's ApiClient from the configuration (TLS, client certificate), but its session is
replaced: it is made with `trust_env`, which reads the environment and ~/.netrc in a thread, twice per request.
"""

import asyncio
import os
import socket
from typing import Any

import aiohttp

from netloom.runtime import slim
from netloom.runtime.credentials import Credentials
from netloom.runtime.errors import ApiError, Unauthorized, Unavailable, plain
from netloom.runtime.proxy import Proxy

CONNECT_SECONDS = 5.0
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Socket options of a watch: a peer that is gone is noticed after a minute."""


class Connections:
    """Ordinary requests share up to `limit` connections; watches have their own, as each holds one for minutes.

    `options` are to be given with every request.
    """

    def __init__(self, auth: Credentials, limit: int, user_agent: str) -> None:
        configuration = auth.configuration
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        self.proxy = Proxy.of(auth.host, auth.configuration.proxy or "", os.environ)
        configuration.connection_pool_maxsize = limit
        self._client = slim.ApiClient(configuration)
        self.requests = self._adopt(self._client.rest_client)
        self.watches = self._adopt(slim.RESTClientObject(configuration, maxsize=0))
        self.options: dict[str, Any] = {"allow_redirects": False}
        if configuration.tls_server_name:
            self.options["server_hostname"] = configuration.tls_server_name

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

    async def close(self) -> None:
        """Closes all connections."""
        await self.watches.close()
        await self._client.close()


def keep_alive(transport: asyncio.Transport) -> None:
    """Lets the kernel probe the peer of a connection on which nothing may be said for a minute.

    It finds a peer that is gone, and keeps the entry of a NAT or a load balancer between. That the server is alive it
    cannot tell; the watch's own deadline does.
    """
    connection = transport.get_extra_info("socket")
    for level, option, value in KEEPALIVE:
        connection.setsockopt(level, option, value)


def unanswered(where: str, error: BaseException, limit: float | None = None, proxy: Proxy | None = None) -> Unavailable:
    """The exception for a request that got no answer (within `limit` seconds)."""
    if proxy is not None:
        reason = "Timeout" if isinstance(error, TimeoutError) else type(error).__name__
        return Unavailable(0, reason, f"{where}: {proxy.said(error)}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Unavailable(0, type(error).__name__, f"{where}: {plain(error.os_error)}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unavailable(0, "Timeout", f"{where}: no connection within {CONNECT_SECONDS:g} s")
    if isinstance(error, TimeoutError):
        return Unavailable(0, "Timeout", f"{where}: no answer" + (f" within {limit:g} s" if limit else ""))
    return Unavailable(0, type(error).__name__, f"{where}: {error or 'connection lost'}")


def explain(host: str, error: ApiError, proxy: Proxy | None = None) -> str:
    """One sentence for people on why the first request failed."""
    cause = error.__cause__
    if proxy is not None and cause is not None:
        return f"the API server at {host} was not reached: {proxy.said(cause)}"
    if proxy is not None and proxy.via in error.message:
        return f"the API server at {host} was not reached: {error}"
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return f"the API server at {host} shows a certificate that is not trusted: {cause.certificate_error}"
    if isinstance(cause, aiohttp.ClientSSLError):
        return f"no TLS connection to the API server at {host}: {cause}"
    if isinstance(cause, TimeoutError):
        return f"the API server at {host} does not answer"
    if isinstance(cause, aiohttp.ClientConnectorError):
        return f"the API server at {host} cannot be reached: {plain(cause.os_error)}"
    if isinstance(error, Unauthorized):
        return f"the API server at {host} does not accept the credentials (401): {error.message}"
    return f"the API server at {host} refuses to talk: {error}"
