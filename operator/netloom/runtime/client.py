"""A thin, typed client of the API server.

Configuration and authentication are kubernetes-asyncio's, and requests go through its ApiClient's connections; what
is left out is its `call_api`: it spends more time per request than aiohttp itself, and decodes into models 13 times
slower than msgspec. Here a request is: encode the struct to bytes, one aiohttp request, decode the answer into the
struct; beside a bare aiohttp client that decodes nothing that costs 10 us more than its 100.

Every request has a time-out. A write that was not answered may have happened all the same: writes are either
compare-and-swap (`replace`), or safe to repeat (`create` says AlreadyExists).
"""

import ssl
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import aiohttp
import msgspec
import structlog
from yarl import URL

from netloom.api.meta import Object, Resource
from netloom.runtime import connection, credentials, errors
from netloom.runtime.connection import Connections
from netloom.runtime.credentials import Credentials
from netloom.runtime.errors import ApiError, ConfigError, Gone, Unavailable
from netloom.runtime.wire import ENCODER, Listing, decode, decode_page, encode

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

REQUEST_SECONDS = 15.0
PAGE = 500
"""Objects per answer of a list."""
USER_AGENT = "netloom"

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_JSON = "application/json"
_NO_WARNINGS = {"fieldValidation": "Ignore"}


class Api:
    """Typed requests to one API server. Errors are `netloom.runtime.errors.ApiError` and its subclasses.

    Ordinary requests share up to `connections` connections; watches have their own, as each holds one for minutes.
    """

    def __init__(
        self,
        auth: Credentials,
        *,
        connections: int = 16,
        user_agent: str = USER_AGENT,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        self.host = auth.host
        self._auth = auth
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=connection.CONNECT_SECONDS)
        self._connections = Connections(auth, connections, user_agent)

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        connections: int = 16,
        user_agent: str = USER_AGENT,
        timeout: float = REQUEST_SECONDS,
    ) -> Self:
        """Loads the configuration. Sends nothing yet: see `check`. Raises ConfigError."""
        auth = await credentials.load(kubeconfig, context)
        try:
            return cls(auth, connections=connections, user_agent=user_agent, timeout=timeout)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"a certificate or key for {auth.host} cannot be used: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        await self._connections.close()

    async def check(self, timeout: float = connection.CONNECT_SECONDS) -> str:
        """The API server's version ("v1.37.2"); asked early, it says plainly what is wrong. Raises ConfigError."""
        try:
            body = await self.request("GET", "/version", timeout=timeout)
            version: str = msgspec.json.decode(body)["gitVersion"]
        except ApiError as error:
            raise ConfigError(connection.explain(self.host, error, self._connections.proxy)) from error
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.host}{self._via} answers, but not as a Kubernetes API server does") from error
        return version

    async def get(self, res: Resource[T], name: str, namespace: str = "") -> T:
        """The object as it is now. Raises NotFound."""
        return decode(res, await self.request("GET", _path(res, name, namespace)))

    async def list(
        self,
        res: Resource[T],
        *,
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
        limit: int = PAGE,
        trim: Callable[[T], T] | None = None,
    ) -> Listing[T]:
        """All objects, asked for in chunks, as of one resource version. `trim` is applied to each, chunk by chunk.

        Where the continue token expires in the middle, the whole list is asked for in one piece: the server offers a
        token to go on with, but the list would be stitched from two moments, and an object deleted between them
        would stay in a cache for ever.
        """
        query = {"fieldSelector": field_selector, "labelSelector": label_selector}
        path = _path(res, "", namespace)
        try:
            return await self._list(res, path, query, limit, trim)
        except Gone as error:
            log.info("list expired between chunks, asked for in one piece", kind=res.kind, error=error.message)
            return await self._list(res, path, query, 0, trim)

    async def _list(
        self, res: Resource[T], path: str, query: Mapping[str, str], limit: int, trim: Callable[[T], T] | None
    ) -> Listing[T]:
        objects: list[T] = []
        unreadable: dict[str, str] = {}
        token = ""
        while True:
            chunk = {**query, "limit": str(limit) if limit else "", "continue": token}
            page = decode_page(res, await self.request("GET", path, query=chunk), unreadable)
            if not page.metadata.resource_version:
                # Some proxy's `{}` must not pass for an empty list: caches would forget all they hold.
                raise Unavailable(0, "BadAnswer", f"what should be a list of {res.plural} has no version")
            objects += map(trim, page.items or []) if trim else page.items or []
            token = page.metadata.continue_
            if not token:
                return Listing(objects=objects, resource_version=page.metadata.resource_version, unreadable=unreadable)

    async def create(self, res: Resource[T], obj: T) -> T:
        """Creates the object; returns it as the server stored it. Raises AlreadyExists, Invalid.

        Without `fieldValidation` the server looks for fields that it does not know, to warn of them in a header that
        nobody reads: 3 % of what a NetloomNode costs it.
        """
        path = _path(res, "", obj.metadata.namespace)
        return decode(res, await self.request("POST", path, query=_NO_WARNINGS, body=encode(res, obj)))

    async def replace(self, res: Resource[T], obj: T, subresource: str = "") -> T:
        """Writes the object if it is still at its `metadata.resource_version`. Raises Conflict, NotFound, Invalid.

        Only for kinds of which Netloom's struct holds every field: what the struct leaves out is removed. Patch others.
        """
        meta = obj.metadata
        if not meta.resource_version:
            raise ValueError(f"{res.kind} {meta.name}: a replacement without resourceVersion would overwrite blindly")
        path = _path(res, meta.name, meta.namespace, subresource)
        return decode(res, await self.request("PUT", path, body=encode(res, obj)))

    async def patch(
        self,
        res: Resource[T],
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        namespace: str = "",
        subresource: str = "",
        kind: Literal["merge", "json", "apply"] = "merge",
        field_manager: str = "",
    ) -> T:
        """Changes some fields. `apply` is server-side apply with force, needs `field_manager`, and creates as well."""
        query = {"fieldManager": field_manager, "force": "true" if kind == "apply" else ""}
        if kind == "apply" and isinstance(patch, Mapping):
            patch = {"apiVersion": res.api_version, "kind": res.kind, **patch}
        body = await self.request(
            "PATCH",
            _path(res, name, namespace, subresource),
            query=query,
            body=ENCODER.encode(patch),
            content_type=PATCH_TYPES[kind],
        )
        return decode(res, body)

    async def delete(
        self, res: Resource[T], name: str, *, namespace: str = "", uid: str = "", resource_version: str = ""
    ) -> None:
        """Deletes the object; with `uid` or `resource_version` only that one (else Conflict). Raises NotFound."""
        conditions = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
        options = {"preconditions": conditions} if conditions else {}
        await self.request("DELETE", _path(res, name, namespace), body=ENCODER.encode(options))

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = _JSON,
        timeout: float | None = None,
    ) -> bytes:
        """One request, to the end of its answer's body. `timeout` in seconds for all of it. Raises ApiError."""
        url = self._url(path, query)
        limits = self._timeout if timeout is None else aiohttp.ClientTimeout(total=timeout)
        token = await self._auth.authorization()
        for may_repeat in (True, False):
            headers = {"Authorization": token} if token else {}
            if body is not None:
                headers["Content-Type"] = content_type
            try:
                async with self._connections.requests.request(
                    method, url, data=body, headers=headers, timeout=limits, **self._connections.options
                ) as response:
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise connection.unanswered(f"{method} {path}", error, limits.total, self._connections.proxy) from error
            if response.status < 300:
                return content
            if response.status == 401 and may_repeat and await self._auth.refused(token):
                token = await self._auth.authorization()
                continue
            break
        raise errors.from_answer(
            response.status,
            response.reason or "",
            content,
            response.headers.get("Retry-After"),
            f"{method} {path}",
            self._via,
        )

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a watch as it arrives. No time-out of its own: the reader sets one. Raises ApiError."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=connection.CONNECT_SECONDS)
        token = await self._auth.authorization()
        headers = {"Authorization": token} if token else {}
        try:
            async with self._connections.watches.get(
                self._url(path, query), headers=headers, timeout=limits, **self._connections.options
            ) as response:
                if response.status != 200:
                    if response.status == 401:
                        await self._auth.refused(token)  # the next attempt has the new token
                    raise errors.from_answer(
                        response.status,
                        response.reason or "",
                        await response.content.read(64 << 10),
                        response.headers.get("Retry-After"),
                        f"GET {path}",
                        self._via,
                    )
                transport = response.connection.transport if response.connection else None
                if transport is not None:
                    connection.keep_alive(transport)
                try:
                    yield response.content
                finally:
                    # Whoever leaves a watch before its end does not wait for a TLS farewell, least of all from a
                    # server that does not answer any more.
                    if transport is not None and response.connection is not None:
                        transport.abort()
        except (aiohttp.ClientError, OSError) as error:
            raise connection.unanswered(f"GET {path}", error, None, self._connections.proxy) from error

    @property
    def _via(self) -> str:
        return self._connections.proxy.via if self._connections.proxy else ""

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        if query:
            given = {key: value for key, value in query.items() if value}
            if given:
                path = f"{path}?{urllib.parse.urlencode(given)}"
        return URL(self.host + path, encoded=True)


def _path(res: Resource[T], name: str, namespace: str = "", subresource: str = "") -> str:
    """`Resource.path` with names escaped: a name from outside must not reach another path."""
    if name and not (name.isascii() and name.replace("-", "").isalnum()):
        name = urllib.parse.quote(name, safe=":")
    return res.path(name, namespace=urllib.parse.quote(namespace, safe=""), subresource=subresource)
