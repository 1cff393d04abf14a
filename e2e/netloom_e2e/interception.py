"""A proxy before the API server that decides about every write: which is executed, which is answered, and when.

The process behind it speaks plain HTTP to the proxy, which adds the process's own certificate on the way on. Writes
pass one by one, so "after the third write" means one state of the API server, not many.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import aiohttp
import yaml
from aiohttp import web

from netloom_e2e.background import Background

Fate = Literal["unanswered", "late"]
"""What becomes of the write at which the process dies: it is executed, but the process does not live to read the
answer; or it is on its way for so long that it is executed after all that follows (see `Interception.deliver`)."""

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OF_ONE_CONNECTION = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
_SECONDS = 30.0


class _Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Interception(Background):
    """Counts the writes of netloom.dev objects. At a chosen one it calls `strike`; then nothing passes any more."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        """What leads to the API server, and where to write what leads to the proxy."""
        super().__init__()
        self.writes: list[str] = []
        """Method and path of every write that arrived."""
        self.strike: Callable[[], None] = lambda: None
        """Kills the process behind the proxy."""
        self.struck = threading.Event()
        self.kubeconfig = folder / "intercepted.yaml"
        config = yaml.safe_load(kubeconfig.read_text())
        self._cluster, self._user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._at = 0
        self._fate: Fate = "late"
        self._of = ""
        self._late: list[_Request] = []
        self._one_by_one = asyncio.Lock()

    def arm(self, at: int, fate: Fate, of: str = "") -> None:
        """Strike at write number `at` (from 1) of those that begin with `of`. To be called before the first write."""
        self._at, self._fate, self._of = at, fate, of

    def deliver(self) -> list[int]:
        """Executes what is late; the HTTP statuses of the answers, which nobody waits for any more."""

        async def send() -> list[int]:
            return [(await self._forward(request)).status for request in self._late]

        return self.call(send())

    # The proxy's own thread

    async def _serve(self, ready: threading.Event) -> None:
        tls = ssl.create_default_context(cafile=self._cluster["certificate-authority"])
        tls.load_cert_chain(self._user["client-certificate"], self._user["client-key"])
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._write_kubeconfig(runner.addresses[0][1])
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

    def _write_kubeconfig(self, port: int) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "proxy", "user": {}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _OF_ONE_CONNECTION}
        asked = _Request(request.method, request.raw_path, headers, await request.read())
        if asked.method not in _WRITES or not asked.path.startswith("/apis/netloom.dev/"):
            return await self._stream(request, asked)
        async with self._one_by_one:
            return await self._write(asked)

    async def _write(self, asked: _Request) -> web.Response:
        if self.struck.is_set():
            raise asyncio.CancelledError
        self.writes.append(f"{asked.method} {asked.path.partition('?')[0]}")
        counted = [write for write in self.writes if write.startswith(self._of)]
        if len(counted) != self._at or counted[-1] is not self.writes[-1]:
            return await self._forward(asked)
        if self._fate == "unanswered":
            await self._forward(asked)
        else:
            self._late.append(asked)
        self.struck.set()
        self.strike()
        raise asyncio.CancelledError

    async def _forward(self, asked: _Request) -> web.Response:
        async with self._send(asked) as answer:
            return web.Response(status=answer.status, headers=_passed_on(answer), body=await answer.read())

    async def _stream(self, request: web.Request, asked: _Request) -> web.StreamResponse:
        async with self._send(asked) as answer:
            response = web.StreamResponse(status=answer.status, headers=_passed_on(answer))
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the process was killed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response

    def _send(self, asked: _Request) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.request(
            asked.method,
            self._cluster["server"] + asked.path,
            headers=asked.headers,
            data=asked.body or None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS),
        )


def _passed_on(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key.lower() not in _OF_ONE_CONNECTION}
