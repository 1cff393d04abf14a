"""Keeps a store equal to what the API server holds of a kind: list once, then follow its changes.

The watch of kubernetes-asyncio is not used, as it repeats a 410 for ever, hangs on a half-open connection, takes the
text of a 503 for an event, and reconnects without a pause. What this one promises:

- **Truth.** After any fault the store becomes what the server holds. The watch goes on where it stopped, or, where
  that cannot be trusted (410, an event out of order, garbage at the same place again), lists anew and takes the
  difference, deletions included.
- **Few requests.** Every failed attempt is followed by a jittered, growing delay. It starts over only when a stream
  proved good: an event took the watch forward, or came after the stream had lived for a while. A server that accepts
  each watch and closes it at once is asked seldom. Retry-After is obeyed.
- **No silence.** Bookmarks come about once a minute. A stream that says nothing for `inactivity` seconds is dead,
  whatever TCP believes.

A version is a position in the server's history, and only compared (see `netloom.runtime.store`). A *new* event with
a version below the stream's position means that the stream is out of order: it is applied, but the position can no
longer be resumed from, so the next connection begins with a list. A list older than what was seen is a stale server
and asked for again; if it stays so, the server's history went back (a restored backup) and the list is right.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from netloom.api.meta import Object
from netloom.runtime import metrics, stream
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, Gone, from_status
from netloom.runtime.store import Store, key_of, version_of

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

STALE_LISTS = 3
"""Lists older than what was seen before that are not believed; the next one is."""
BAD_STREAMS = 3
"""Streams that break at the same position before it is given up for a list."""


class Timing(msgspec.Struct, frozen=True):
    """Delays in seconds. The defaults are for production; tests shorten them."""

    inactivity: float = 150.0
    """Silence after which a stream is dead. More than two bookmarks' distance."""
    lifetime: tuple[float, float] = (300.0, 600.0)
    """How long the server shall keep a stream open, drawn per stream so that they do not all end at once."""
    healthy: float = 10.0
    """An event this long after a stream began shows that it is good, even if it carries nothing new."""
    base: float = 0.25
    cap: float = 30.0


class ListWatch(Generic[T]):
    """Keeps `store` equal to the server's objects (of one `namespace`, where given) that the selectors choose.

    `changed(old, new)` tells whether an update matters to the store's subscribers. The store takes in every update (a
    later compare-and-swap needs its version), so a watch that filters out heartbeats still writes at the first try.
    `trim` makes of each object what is to be kept of it: name, namespace and version at least.
    """

    def __init__(
        self,
        api: Api,
        store: Store[T],
        *,
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
        changed: Callable[[T, T], bool] | None = None,
        trim: Callable[[T], T] | None = None,
        timing: Timing | None = None,
        event_limit: int = stream.EVENT_LIMIT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._store = store
        self._resource = store.resource
        self._namespace = namespace
        self._selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._changed = changed
        self._trim = trim
        self._timing = timing or Timing()
        self._event_limit = event_limit
        self._sleep = sleep
        self._backoff = Backoff(self._timing.base, self._timing.cap)
        self.position = ""
        """The version that the watch goes on from; "": it begins with a list."""
        self._seen = 0  # the highest version that was ever seen
        self._stale = 0
        self._bad = 0
        self._expired = False
        self.trouble = "not listed yet"
        """What is wrong with the watch now; "" while the last attempt was good."""
        self.following = False
        """Whether a stream is open that began where the cache ends. `trouble` waits for its first event, or for the
        first bookmark, up to a minute: too long for whoever only wants to know whether changes arrive."""
        kind = self._resource.kind
        self._events = metrics.WATCH_EVENTS.labels(kind)
        metrics.CACHED.labels(kind).set_function(lambda: len(store))

    async def run(self) -> None:
        """Lists and follows for ever; cancellation is the way to stop it."""
        while True:
            retry_after = 0.0
            try:
                if not self.position:
                    await self._list()
                await self._follow()
            except ApiError as error:
                retry_after = error.retry_after or 0.0
                self._failed(error.reason or str(error.status), str(error))
                if isinstance(error, Gone):
                    self.position = ""
                    if not self._expired:
                        # The server answers: what the back-off grew to while it did not has nothing to do with this.
                        self._expired = True
                        self._backoff.reset()
            except stream.StreamBroken as error:
                self._failed("Broken", str(error))
                self._bad += 1
                if self._bad >= BAD_STREAMS or isinstance(error, stream.EventTooLarge):
                    self._bad = 0
                    self.position = ""
            except TimeoutError:
                self._failed("Silent", f"nothing came for {self._timing.inactivity:g} s")
            await self._sleep(max(retry_after, self._backoff.next()))

    def _failed(self, reason: str, text: str) -> None:
        self.trouble = text
        metrics.WATCH_ERRORS.labels(self._resource.kind, reason).inc()
        log.warning("watch interrupted", kind=self._resource.kind, reason=reason, error=text)

    async def _list(self) -> None:
        metrics.WATCH_LISTS.labels(self._resource.kind).inc()
        found = await self._api.list(
            self._resource,
            namespace=self._namespace,
            field_selector=self._selectors["fieldSelector"],
            label_selector=self._selectors["labelSelector"],
            trim=self._trim,
        )
        version = version_of(found.resource_version)
        if version < self._seen and self._stale < STALE_LISTS:
            self._stale += 1
            raise ApiError(0, "Stale", f"the list is of version {version}, but {self._seen} was seen before")
        if version < self._seen:
            log.error("the server's history went back, its list is believed", kind=self._resource.kind, to=version)
        self._stale = 0
        self._seen = version
        self.position = found.resource_version
        if found.unreadable:
            metrics.UNREADABLE.labels(self._resource.kind).inc(len(found.unreadable))
        self._store.replace({key_of(obj): obj for obj in found.objects}, self._changed, frozenset(found.unreadable))
        self.trouble = ""
        log.debug("listed", kind=self._resource.kind, objects=len(found.objects))

    async def _follow(self) -> None:
        """One stream, to its end. It ends normally when the server's time for it is over."""
        metrics.WATCH_STARTS.labels(self._resource.kind).inc()
        query = {
            **self._selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.position,
            "timeoutSeconds": str(round(random.uniform(*self._timing.lifetime))),
        }
        lines = stream.Lines(self._event_limit)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timing.inactivity) as deadline:
            async with self._api.stream(self._resource.path(namespace=self._namespace), query) as content:
                began = loop.time()
                self.following = True
                try:
                    async for chunk in content.iter_any():
                        events = lines.feed(chunk)
                        if not events:
                            continue
                        deadline.reschedule(loop.time() + self._timing.inactivity)
                        for line in events:
                            self._take(line, loop.time() - began)
                finally:
                    self.following = False
        if lines.pending:
            raise stream.StreamBroken("the stream ended within an event")

    def _take(self, line: bytes, age: float) -> None:
        event = stream.parse(self._resource, line)
        match event:
            case stream.Changed(type=kind, object=obj):
                self._apply(kind, obj, age)
            case stream.Bookmark(resource_version=version):
                self._advance(version, age)
            case stream.Failure(status=status):
                raise from_status(status, where=f"watch of {self._resource.plural}")
            case stream.Unreadable(key=key, resource_version=version, error=error):
                # The last good object stays: half an object would be worse than an old one.
                metrics.UNREADABLE.labels(self._resource.kind).inc()
                log.warning("object not readable", kind=self._resource.kind, object=key, error=error)
                if event.type == "DELETED":
                    self._store.remove(key, version)
                self._advance(version, age)
            case stream.Unknown(type=kind):
                log.warning("unknown event ignored", kind=self._resource.kind, type=kind)

    def _apply(self, kind: str, obj: T, age: float) -> None:
        version = obj.metadata.resource_version
        if kind == "DELETED":
            new = self._store.remove(key_of(obj), version)
        else:
            new = self._store.put(self._trim(obj) if self._trim else obj, self._changed)
        if new:
            self._events.inc()
        self._advance(version, age, disorder=new)

    def _advance(self, text: str, age: float, disorder: bool = False) -> None:
        """The stream has come to this version. `disorder`: it told news, which must not lie behind the position."""
        version = version_of(text)
        if version and version < self._seen:
            if disorder:
                log.warning("event out of order", kind=self._resource.kind, version=version, position=self._seen)
                self.position = ""
            return
        if not version or version > self._seen or age >= self._timing.healthy:
            self._backoff.reset()
            self._bad = 0
            self._expired = False
        self.trouble = ""
        self._seen = max(self._seen, version)
        if self.position:
            self.position = text
