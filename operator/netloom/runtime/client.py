"""A thin, typed client of the API server.

Configuration and authentication are kubernetes-asyncio's, and requests go through its ApiClient's connections; what
is left out is its `call_api`: it spends more time per request than aiohttp itself, decodes into models 13 times
slower than msgspec, and its session asks the environment for a proxy and a `.netrc` in a thread, per request. Here
a request is: encode the struct to bytes, one aiohttp request, decode the answer into the struct.

Every request has a time-out. A write that was not answered may have happened all the same: writes are either
compare-and-swap (`replace`), or safe to repeat (`create` says AlreadyExists).
"""

import asyncio
import functools
import os
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import aiohttp
import msgspec
import structlog
from yarl import URL

from netloom.api.meta import Object, ObjectMeta, Resource, Struct
from netloom.runtime import credentials, errors, slim
from netloom.runtime.credentials import Credentials
from netloom.runtime.errors import ApiError, ConfigError, Gone, Unauthorized, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
PAGE = 500
"""Objects per answer of a list."""
USER_AGENT = "netloom"
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Socket options of a watch: a peer that is gone is noticed after a minute."""

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_JSON = "application/json"
_NO_WARNINGS = {"fieldValidation": "Ignore"}


class ListMeta(Struct, frozen=True):
    """metav1.ListMeta: at which version the list was taken, and how to get its next chunk."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(Struct, Generic[T], frozen=True):
    """One answer to a list request."""

    metadata: ListMeta = ListMeta()
    items: list[T] | None = None


class Listing(Struct, Generic[T], frozen=True):
    """All objects of a kind as they were at `resource_version`. `unreadable` names those that could not be decoded."""

    objects: list[T]
    resource_version: str
    unreadable: Mapping[str, str] = msgspec.field(default_factory=dict)


class _RawPage(Struct, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class MetaOnly(Struct, frozen=True):
    """Any object, of which only the metadata is wanted."""

    metadata: ObjectMeta = ObjectMeta()


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
        self._proxy = _proxy_of(auth)
        name = auth.configuration.tls_server_name
        self._tls: Any = {"server_hostname": name} if name else {}
        self._headers = {"User-Agent": user_agent, "Accept": _JSON}
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        auth.configuration.connection_pool_maxsize = connections
        self._client = slim.ApiClient(auth.configuration)
        self._requests = self._adopt(self._client.rest_client)
        self._watches = self._adopt(slim.RESTClientObject(auth.configuration, maxsize=0))

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
        await self._watches.close()
        await self._client.close()

    async def check(self, timeout: float = CONNECT_SECONDS) -> str:
        """The API server's version ("v1.37.2"); asked early, it says plainly what is wrong. Raises ConfigError."""
        try:
            body = await self.request("GET", "/version", timeout=timeout)
            version: str = msgspec.json.decode(body)["gitVersion"]
        except ApiError as error:
            raise ConfigError(_explain(self.host, error)) from error
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.host} answers, but not as a Kubernetes API server does") from error
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
    ) -> Listing[T]:
        """All objects, asked for in chunks, as of one resource version.

        Where the continue token expires in the middle, the whole list is asked for in one piece: the server offers a
        token to go on with, but the list would be stitched from two moments, and an object deleted between them
        would stay in a cache for ever.
        """
        query = {"fieldSelector": field_selector, "labelSelector": label_selector}
        path = _path(res, "", namespace)
        try:
            return await self._list(res, path, query, limit)
        except Gone as error:
            log.info("list expired between chunks, asked for in one piece", kind=res.kind, error=error.message)
            return await self._list(res, path, query, 0)

    async def _list(self, res: Resource[T], path: str, query: Mapping[str, str], limit: int) -> Listing[T]:
        objects: list[T] = []
        unreadable: dict[str, str] = {}
        token = ""
        while True:
            chunk = {**query, "limit": str(limit) if limit else "", "continue": token}
            page = _decode_page(res, await self.request("GET", path, query=chunk), unreadable)
            objects += page.items or []
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
            body=_ENCODER.encode(patch),
            content_type=PATCH_TYPES[kind],
        )
        return decode(res, body)

    async def delete(
        self, res: Resource[T], name: str, *, namespace: str = "", uid: str = "", resource_version: str = ""
    ) -> None:
        """Deletes the object; with `uid` or `resource_version` only that one (else Conflict). Raises NotFound."""
        conditions = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
        options = {"preconditions": conditions} if conditions else {}
        await self.request("DELETE", _path(res, name, namespace), body=_ENCODER.encode(options))

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
                async with self._requests.request(
                    method, url, data=body, headers=headers, timeout=limits, allow_redirects=False, **self._tls
                ) as response:
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _unanswered(method, path, error, limits.total) from error
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
        )

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a watch as it arrives. No time-out of its own: the reader sets one. Raises ApiError."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        token = await self._auth.authorization()
        headers = {"Authorization": token} if token else {}
        try:
            async with self._watches.get(
                self._url(path, query), headers=headers, timeout=limits, allow_redirects=False, **self._tls
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
                    )
                transport = response.connection.transport if response.connection else None
                if transport is not None:
                    _keep_alive(transport)
                try:
                    yield response.content
                finally:
                    # Whoever leaves a watch before its end does not wait for a TLS farewell, least of all from a
                    # server that does not answer any more.
                    if transport is not None and response.connection is not None:
                        transport.abort()
        except (aiohttp.ClientError, OSError) as error:
            raise _unanswered("GET", path, error, None) from error

    def _adopt(self, rest: Any) -> aiohttp.ClientSession:
        """A session on the connections (TLS, client certificate) that kubernetes-asyncio made from the configuration.

        Its own session is replaced because of `trust_env`: it reads ~/.netrc and the environment in a thread, twice
        per request.
        """
        connector: aiohttp.BaseConnector = rest.pool_manager.connector
        rest.pool_manager.detach()
        rest.pool_manager = session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self._proxy,
        )
        return session

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        if query:
            given = {key: value for key, value in query.items() if value}
            if given:
                path = f"{path}?{urllib.parse.urlencode(given)}"
        return URL(self.host + path, encoded=True)


_ENCODER = msgspec.json.Encoder()


@functools.cache
def _head(api_version: str, kind: str) -> bytes:
    return _ENCODER.encode({"apiVersion": api_version, "kind": kind})[:-1]


def encode(res: Resource[T], obj: T) -> bytes:
    """The object as the API server takes it: apiVersion and kind, then the struct's fields that are not at default."""
    body = _ENCODER.encode(obj)
    head = _head(res.api_version, res.kind)
    return head + b"," + body[1:] if len(body) > 2 else head + b"}"


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(res: Resource[T], body: bytes | msgspec.Raw) -> T:
    """An object from the API server's bytes. Raises Unavailable if it does not fit: the server is not to be trusted."""
    try:
        obj: T = _decoder(res.type).decode(body)
    except msgspec.MsgspecError as error:
        raise Unavailable(0, "BadAnswer", f"{res.kind} not readable: {error}") from error
    return obj


def _decode_page(res: Resource[T], body: bytes, unreadable: dict[str, str]) -> Page[T]:
    """One chunk. One object that does not fit its struct must not hide the others: it is left out and named."""
    try:
        page: Page[T] = _decoder(Page[res.type]).decode(body)  # type: ignore[name-defined]
        return page
    except msgspec.ValidationError:
        pass
    except msgspec.DecodeError as error:
        raise Unavailable(0, "BadAnswer", f"list of {res.plural} is not JSON: {error}") from error
    raw = msgspec.json.decode(body, type=_RawPage)
    objects: list[T] = []
    for item in raw.items or []:
        try:
            objects.append(_decoder(res.type).decode(item))
        except msgspec.ValidationError as error:
            meta = msgspec.json.decode(item, type=MetaOnly).metadata
            name = f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
            unreadable[name] = str(error)
            log.warning("object not readable", kind=res.kind, object=name, error=str(error))
    return Page(metadata=raw.metadata, items=objects)


def _path(res: Resource[T], name: str, namespace: str = "", subresource: str = "") -> str:
    """`Resource.path` with names escaped: a name from outside must not reach another path."""
    if name and not (name.isascii() and name.replace("-", "").isalnum()):
        name = urllib.parse.quote(name, safe=":")
    return res.path(name, namespace=urllib.parse.quote(namespace, safe=""), subresource=subresource)


def _keep_alive(transport: asyncio.Transport) -> None:
    """Lets the kernel probe the peer of a connection on which nothing may be said for a minute.

    It finds a peer that is gone, and keeps the entry of a NAT or a load balancer between. That the server is alive it
    cannot tell; the watch's own deadline does.
    """
    connection = transport.get_extra_info("socket")
    for level, option, value in KEEPALIVE:
        connection.setsockopt(level, option, value)


def _proxy_of(auth: Credentials) -> str | None:
    """The proxy that kubeconfig names, else the environment's, looked up once."""
    if auth.configuration.proxy:
        return str(auth.configuration.proxy)
    url = URL(auth.host)
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _unanswered(method: str, path: str, error: BaseException, limit: float | None) -> Unavailable:
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectorError):
        return Unavailable(0, "Timeout", f"{method} {path}: no answer" + (f" within {limit:g} s" if limit else ""))
    return Unavailable(0, type(error).__name__, f"{method} {path}: {error or 'connection lost'}")


def _explain(host: str, error: ApiError) -> str:
    """One sentence for people on why the first request failed."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return f"the API server at {host} shows a certificate that is not trusted: {cause.certificate_error}"
    if isinstance(cause, aiohttp.ClientSSLError):
        return f"no TLS connection to the API server at {host}: {cause}"
    if isinstance(cause, TimeoutError):
        return f"the API server at {host} does not answer"
    if isinstance(cause, aiohttp.ClientConnectorError):
        return f"the API server at {host} cannot be reached: {_plain(cause.os_error)}"
    if isinstance(error, Unauthorized):
        return f"the API server at {host} does not accept the credentials (401): {error.message}"
    return f"the API server at {host} refuses to talk: {error}"


def _plain(error: OSError) -> str:
    """What the system calls the error, without the event loop's wrapping ("Connect call failed ('127.0.0.1', 1)")."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
