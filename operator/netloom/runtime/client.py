"""A thin, typed client of the API server.

Configuration and authentication are kubernetes-asyncio's, and requests go through its ApiClient's connections; what
is left out is its `call_api`: it spends more time per request than aiohttp itself, and decodes into models 13 times
slower than msgspec.

Every request has a time-out. A write that was not answered may have happened all the same: writes are either
compare-and-swap (`replace`), or safe to repeat (`create` says AlreadyExists).
"""

import functools
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, Self, TypeVar

import msgspec
import structlog
from yarl import URL

from netloom.api.meta import Object, Resource
from netloom.runtime import connection, credentials, errors, tls
from netloom.runtime.clock import ServerClock
from netloom.runtime.connection import ApiPools, Connections
from netloom.runtime.credentials import Credentials
from netloom.runtime.errors import ApiError, ConfigError, Gone, Unauthorized, Unavailable
from netloom.runtime.http import aiohttp
from netloom.runtime.time_limits import TimeLimit, TimeLimits
from netloom.runtime.tls import ApiEndpoint
from netloom.runtime.wire import ENCODER, Listing, Page, decode, decode_page, encode

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

REQUEST_SECONDS = 15.0
PAGE = 500
"""Objects per answer of a list."""

PATCH_TYPES = {"merge": "application/merge-patch+json", "apply": "application/apply-patch+yaml"}
_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{_JSON}"
"""Of a list: of the objects no more than their metadata."""
_CONNECTING = aiohttp.ClientTimeout(total=None, sock_connect=connection.CONNECT_SECONDS)
"""All that is left to aiohttp of time-outs."""
_NO_WARNINGS = {"fieldValidation": "Ignore"}
"""Of unknown fields, in a header that nobody reads: 3 % of what a NetloomNode costs the server."""


class Api(AbstractAsyncContextManager["Api", None]):
    """Typed requests to one API server. Errors are `netloom.runtime.errors.ApiError` and its subclasses.

    Ordinary requests share up to `connections` connections; watches have their own, as each holds one for minutes.
    """

    def __init__(
        self,
        auth: Credentials,
        *,
        connections: int = 16,
        user_agent: str = "netloom",
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        self.clock = ServerClock()
        self._auth = auth
        self._limits = TimeLimits(timeout)
        self._connections = Connections(auth, connections, user_agent)

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        patient: bool = False,
        **options: Any,
    ) -> Self:
        """Loads the configuration, as `credentials.load` does; `options` are the constructor's. Sends nothing yet."""
        return cls(await credentials.load(kubeconfig, context, patient=patient), **options)

    @property
    def host(self) -> str:
        """Base URL of the API server."""
        return self._auth.endpoint.host

    @property
    def reached_by(self) -> tuple[str, str]:
        """What connections go to: the name or address of the API server, or of the proxy to it, and which it is."""
        proxy = self._connections.present.proxy
        if proxy is not None:
            return proxy.url.host or "", "the proxy to the API server"
        return URL(self.host).host or "", "the API server"

    async def follow(self) -> None:
        """Follows kubeconfig, certificates and tokens on disk for ever; a component of every role that lives long."""
        await self._auth.follow()

    def reconnect(self) -> None:
        """New connections from now on, also for watches, which go on where they were: to be called when this machine
        lost an address that they may come from. The kernel leaves them open, and finds only after a minute that
        nobody answers there (`connection.KEEPALIVE`)."""
        self._connections.renew()

    async def __aexit__(self, *_error: object) -> None:
        """Closes all connections."""
        await self._connections.close()

    async def check(self, timeout: float = connection.CONNECT_SECONDS) -> str:
        """The API server's version ("v1.37.2"); asked early, it says plainly what is wrong. Raises ConfigError."""
        try:
            body = await self.request("GET", "/version", timeout=timeout)
            version: str = msgspec.json.decode(body)["gitVersion"]
        except ApiError as error:
            pools = self._connections.present
            aside = self._aside(error.__cause__, pools.endpoint) if error.__cause__ else ""
            raise ConfigError(pools.explain(error, aside)) from error
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            via = self._connections.present.via
            raise ConfigError(f"{self.host}{via} answers, but not as a Kubernetes API server does") from error
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

        Where the continue token expires in the middle, the whole list is asked for in one piece: by the token that the
        server then offers, an object deleted between two moments would stay in a cache for ever.
        """
        query = {"fieldSelector": field_selector, "labelSelector": label_selector}
        path = _path(res, "", namespace)
        try:
            return await self._list(res, path, query, limit, trim)
        except Gone as error:
            log.info("list expired between chunks, asked for in one piece", kind=res.kind, error=error.message)
            return await self._list(res, path, query, 0, trim)

    async def count(self, res: Resource[T]) -> int:
        """How many objects there are, by a list of one. Raises Unavailable where the server does not say."""
        unreadable: dict[str, str] = {}
        page = await self._page(res, _path(res, ""), {"limit": "1"}, unreadable)
        more = page.metadata.remaining_item_count
        if page.metadata.continue_ and more is None:
            raise Unavailable(0, "BadAnswer", f"how many {res.plural} there are is not in the answer")
        return len(page.items or []) + len(unreadable) + (more or 0)

    async def version(
        self, res: Resource[T], *, namespace: str = "", field_selector: str = "", label_selector: str = ""
    ) -> str:
        """The version that the server's history has come to, of a list of one object: where it asks for no version, it
        is answered from what the majority of etcd says now, never from an old cache. The object may be a megabyte, and
        is not sent."""
        query = {"fieldSelector": field_selector, "labelSelector": label_selector, "limit": "1"}
        return (await self._page(res, _path(res, "", namespace), query, {}, _METADATA)).metadata.resource_version

    async def _list(
        self, res: Resource[T], path: str, query: Mapping[str, str], limit: int, trim: Callable[[T], T] | None
    ) -> Listing[T]:
        objects: list[T] = []
        unreadable: dict[str, str] = {}
        token = ""
        while True:
            chunk = {**query, "limit": str(limit) if limit else "", "continue": token}
            page = await self._page(res, path, chunk, unreadable)
            objects += map(trim, page.items or []) if trim else page.items or []
            token = page.metadata.continue_
            if not token:
                break
        for name, error in unreadable.items():
            log.warning("object not readable", kind=res.kind, object=name, error=error)
        return Listing(objects=objects, resource_version=page.metadata.resource_version, unreadable=unreadable)

    async def _page(
        self, res: Resource[T], path: str, query: Mapping[str, str], unreadable: dict[str, str], accept: str = _JSON
    ) -> Page[T]:
        page = decode_page(res, await self.request("GET", path, query=query, accept=accept), unreadable)
        if not page.metadata.resource_version:
            # Some proxy's `{}` must not pass for an empty list: caches would forget all they hold.
            raise Unavailable(0, "BadAnswer", f"what should be a list of {res.plural} has no version")
        return page

    async def create(self, res: Resource[T], obj: T) -> T:
        """Creates the object; returns it as the server stored it. Raises AlreadyExists, Invalid."""
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
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        kind: Literal["merge", "apply"] = "merge",
        field_manager: str = "",
    ) -> T:
        """Changes some fields. `apply` is server-side apply with force, needs `field_manager`, and creates as well.
        Raises NotFound, Invalid, and Conflict where the object has another `uid` or `resourceVersion` than the patch
        says; of the status of custom resources the uid is not compared.
        """
        query = {"fieldManager": field_manager, "force": "true" if kind == "apply" else ""}
        if kind == "apply":
            patch = {"apiVersion": res.api_version, "kind": res.kind, **patch}
        path, body = _path(res, name, namespace, subresource), ENCODER.encode(patch)
        return decode(res, await self.request("PATCH", path, query=query, body=body, content_type=PATCH_TYPES[kind]))

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
        accept: str = _JSON,
        timeout: float | None = None,
    ) -> bytes:
        """One request, to the end of its answer's body. `timeout` in seconds for all of it. Raises ApiError."""
        where = f"{method} {path}"
        limit = self._limits if timeout is None else TimeLimit(timeout)
        for may_repeat in (True, False):
            token = await self._auth.authorization()
            headers = {"Accept": accept, **({"Authorization": token} if token else {})}
            if body is not None:
                headers["Content-Type"] = content_type
            with self._connections.use() as pools:
                endpoint = pools.endpoint
                try:
                    with limit:
                        async with pools.requests.request(
                            method,
                            _url(endpoint, path, query),
                            data=body,
                            headers=headers,
                            timeout=_CONNECTING,
                            **pools.options,
                        ) as response:
                            self.clock.heard(response.headers.get("Date"))
                            content = await response.read()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    if (
                        await self._mended(error, endpoint) and may_repeat and isinstance(error, aiohttp.ClientSSLError)
                    ):  # nothing was sent
                        continue
                    raise self._unanswered(where, error, pools, limit.seconds) from error
            if response.status < 300:
                return content
            if response.status == 401 and may_repeat and await self._auth.look_again(endpoint, refused=token):
                continue
            break
        raise self._refusal(response, content, where, pools)

    async def _mended(self, error: BaseException, endpoint: ApiEndpoint) -> bool:
        """Whether what TLS failed by has been replaced on disk, and is taken over now."""
        return bool(tls.fault(endpoint, error)) and await self._auth.look_again(endpoint)

    def _unanswered(self, where: str, error: BaseException, pools: ApiPools, limit: float | None = None) -> Unavailable:
        failure = pools.unanswered(where, error, limit)
        failure.message += self._aside(error, pools.endpoint)
        return failure

    def _aside(self, error: BaseException, endpoint: ApiEndpoint) -> str:
        """What else is to be known of a failure: that newer certificates are not used, or that ours is out of date."""
        return self._auth.unused if tls.fault(endpoint, error) else tls.ended(endpoint)

    def _refusal(self, response: aiohttp.ClientResponse, content: bytes, where: str, pools: ApiPools) -> ApiError:
        phrase, retry_after, now = response.reason or "", response.headers.get("Retry-After"), self.clock.now()
        refusal = errors.from_answer(response.status, phrase, content, retry_after, where, now=now, via=pools.via)
        if isinstance(refusal, Unauthorized):
            shown = f"; shown was {tls.client_certificate(pools.endpoint)}" if pools.endpoint.certificate else ""
            refusal.message += f"{shown}{self._auth.unused}"
        return refusal

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a watch as it arrives. No time-out of its own: the reader sets one.

        Raises ApiError, and ConnectionReplaced when the endpoint was replaced on disk.
        """
        token = await self._auth.authorization()
        headers = {"Authorization": token} if token else {}
        where = f"GET {path}"
        with self._connections.use() as pools:
            endpoint = pools.endpoint
            try:
                async with pools.watches.get(
                    _url(endpoint, path, query), headers=headers, timeout=_CONNECTING, **pools.options
                ) as response:
                    self.clock.heard(response.headers.get("Date"))
                    if response.status != 200:
                        if response.status == 401:
                            await self._auth.look_again(endpoint, refused=token)  # the next attempt has the new token
                        raise self._refusal(response, await response.content.read(64 << 10), where, pools)
                    transport = response.connection.transport if response.connection else None
                    if transport is not None:
                        connection.keep_alive(transport)
                    try:
                        with pools.streaming(response.content):
                            yield response.content
                    finally:
                        # Whoever leaves a watch before its end does not wait for a TLS farewell, least of all from a
                        # server that does not answer any more.
                        if transport is not None and response.connection is not None:
                            transport.abort()
            except (aiohttp.ClientError, OSError) as error:
                await self._mended(error, endpoint)  # the next attempt has the new certificate
                raise self._unanswered(where, error, pools) from error


def _url(endpoint: ApiEndpoint, path: str, query: Mapping[str, str] | None) -> URL:
    return _url_of(endpoint.host + path, tuple(query.items()) if query else ())


@functools.lru_cache(maxsize=64)
def _url_of(address: str, query: tuple[tuple[str, str], ...]) -> URL:
    """Objects of a kind are all created at one."""
    given = [(key, value) for key, value in query if value]
    return URL(f"{address}?{urllib.parse.urlencode(given)}" if given else address, encoded=True)


def _path(res: Resource[T], name: str, namespace: str = "", subresource: str = "") -> str:
    """`Resource.path` with names escaped: a name from outside must not reach another path."""
    if name and not (name.isascii() and name.replace("-", "").isalnum()):
        name = urllib.parse.quote(name, safe=":")
    return res.path(name, namespace=urllib.parse.quote(namespace, safe=""), subresource=subresource)
