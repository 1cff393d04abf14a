"""Keeps a store equal to what the API server holds of a kind: list once, then follow its changes.

The watch of kubernetes-asyncio is not used, as it repeats a 410 for ever, hangs on a half-open connection, takes the
text of a 503 for an event, and reconnects without a pause. What this one promises, and what a restored etcd does to a
watch, is in docs/runtime.md.

A version is a position in the server's history, and only compared (see `netloom.runtime.store`). What lies behind the
position (a new event, a bookmark, the answer to a writer or to a question) ends the stream: either its order is broken
or the history went back, and a list tells which. One list that is older than what was seen is a stale server; when the
next answer says so too, the history did go back, and the list is right.
"""

import asyncio
import math
import random
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from netloom.api.meta import Object
from netloom.runtime import metrics, stream
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.connection import ConnectionReplaced
from netloom.runtime.errors import ApiError, Gone, Unavailable
from netloom.runtime.store import Store, key_of, version_of

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Object)

BAD_STREAMS = 3
"""Streams that break at the same position before it is given up for a list."""
LARGE_EVENT = 128 << 10
"""Bytes of an event after which the stream goes on by another connection, a little later: buffers of TLS stay as large
as what came at once, up to half a MiB. An agent that follows 25 block lists has 12 MiB less so."""


class WatchTiming(msgspec.Struct, frozen=True):
    """Delays in seconds. The defaults are for production and roles of few replicas; tests shorten them."""

    inactivity: float = 150.0
    """Silence after which a stream is dead. More than two bookmarks' distance."""
    opening: float = 15.0
    """How long the server may take to accept a watch."""
    lifetime: tuple[float, float] = (300.0, 600.0)
    """How long the server shall keep a stream open, drawn per stream so that they do not all end at once."""
    healthy: float = 10.0
    """A stream that lived this long was good, even if it carried nothing new."""
    grace: float = 5.0
    """For how long a list, or a good stream that ended as it should, vouches for the cache until the next stream."""
    base: float = 0.25
    cap: float = 4.0
    """Of the pauses between attempts. Roles with few replicas may ask this often while there is no answer."""
    verify: tuple[float, float] = (0.0, 0.0)
    """After an outage the cache is compared with a list within so much per object, and within so much at most."""
    relist: float = 0.0
    """A stream that was cut counts as an outage only if the last list is this old."""


EVERY_NODE = WatchTiming(cap=30.0, verify=(0.018, 90.0), relist=600.0)
"""For the role that runs on every node: 5,000 of them must not come back in one second, nor list in one, nor list for
each connection that a load balancer cuts."""


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
        timing: WatchTiming | None = None,
        event_limit: int = stream.EVENT_LIMIT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._store = store
        self._resource = store.resource
        self._chosen: dict[str, Any] = {
            "namespace": namespace,
            "field_selector": field_selector,
            "label_selector": label_selector,
        }
        self._changed = changed
        self._trim = trim
        self._timing = timing or WatchTiming()
        self._event_limit = event_limit
        self._sleep = sleep
        self._backoff = Backoff(self._timing.base, self._timing.cap)
        self.position = ""
        """The version that the watch goes on from; "": it begins with a list."""
        self._seen = 0  # the highest version that was ever seen
        self._behind = -1  # the last answer, where it lay behind what was seen
        self._bad = 0
        self._answered = False  # by refusals, and no stream was good since
        self._suspect = False  # the history may be another one
        self._fresh = False  # the position is a list's, and no stream has begun there
        self._verify_at = self._leave_at = math.inf
        self._listed_at = self._vouched_until = -math.inf
        self._began = self._heard_at = 0.0
        self._lived = 0.0  # the stream of this attempt, until it ended
        self._streaming = False
        self._deadline = asyncio.timeout(None)
        self._wrong = "not listed yet"
        kind = self._resource.kind
        self._events = metrics.WATCH_EVENTS.labels(kind)
        metrics.CACHED.labels(kind).set_function(_length_of(weakref.ref(store)))
        store.on_answer = self._doubt

    @property
    def following(self) -> bool:
        """Whether the cache can be decided from: a stream is open that began where the server had shown to be, or a
        list was taken, or a good stream ended as it should, a moment ago."""
        return self._streaming or self._now() < self._vouched_until

    @property
    def fault(self) -> str:
        """Why the cache may not be what the server holds; "" if it is."""
        return "" if self.following else self._wrong or "no watch is open that has proved anything"

    async def load(self) -> None:
        """Lists once: all that a command needs, and what `run` goes on from. Raises ApiError."""
        await self._list()

    async def run(self) -> None:
        """Lists and follows for ever; cancellation is the way to stop it."""
        while True:
            retry_after = 0.0
            self._lived = 0.0
            try:
                await self._attempt()
            except ApiError as error:
                retry_after = error.retry_after or 0.0
                self._failed(error.reason or str(error.status), str(error))
                self._refused(error)
            except stream.StreamBroken as error:
                self._failed("Broken", str(error))
                self._bad += 1
                if self._bad >= BAD_STREAMS or isinstance(error, stream.EventTooLarge | stream.OutOfOrder):
                    self._bad = 0
                    self.position = ""
            except TimeoutError:
                self._failed("Silent", f"nothing came for {self._patience():g} s")
                self.position = ""
            await self._sleep(max(retry_after, self._backoff.next()))

    def _failed(self, reason: str, text: str) -> None:
        self._wrong = text
        self._vouched_until = -math.inf
        metrics.WATCH_ERRORS.labels(self._resource.kind, reason).inc()
        log.warning("watch interrupted", kind=self._resource.kind, reason=reason, error=text)

    def _refused(self, error: ApiError) -> None:
        if isinstance(error, Gone):
            self.position = ""
        if isinstance(error, Unavailable):
            if self._lived:
                self._cut()
        elif not self._answered:
            # The server answers: what the back-off grew to while it did not has nothing to do with this.
            self._answered = True
            self._backoff.reset()

    def _cut(self) -> None:
        """A stream broke, or was ended before its time: there may have been an outage that we slept through."""
        if self._now() - self._listed_at > self._timing.relist:
            self._suspect = True

    async def _attempt(self) -> None:
        """A list, or the proof that none is needed; then one stream, to its end."""
        if self._now() >= self._verify_at or (self._suspect and not self._spread()):
            self.position = ""
        if self.position and not self._fresh:
            await self._prove()
        if not self.position:
            await self._list()
        await self._follow()

    def _spread(self) -> float:
        """Seconds over which watches like this one share out the lists that verify their caches; 0 for small ones."""
        each, most = self._timing.verify
        seconds = min(most, each * len(self._store))
        return seconds if seconds > 1.0 else 0.0

    async def _prove(self) -> None:
        """Asks how far the server's history reaches. Where that is not the position, a list has to follow."""
        metrics.WATCH_PROOFS.labels(self._resource.kind).inc()
        seen = self._seen
        try:
            version = version_of(await self._api.version(self._resource, **self._chosen))
        except Unavailable:
            self._suspect = True  # a backup is restored while no API server answers
            raise
        if version < seen:
            log.warning("the server is behind what was seen", kind=self._resource.kind, at=version, seen=seen)
            self._behind = version
            self.position = ""
            return
        self._behind = -1
        if self._suspect and self._verify_at == math.inf:
            self._verify_at = self._now() + random.uniform(0, self._spread())

    async def _list(self) -> None:
        metrics.WATCH_LISTS.labels(self._resource.kind).inc()
        found = await self._api.list(self._resource, trim=self._trim, **self._chosen)
        version = version_of(found.resource_version)
        before, self._behind = self._behind, version if version < self._seen else -1
        if version < self._seen and not 0 <= before <= version:
            raise ApiError(0, "Stale", f"the list is of version {version}, but {self._seen} was seen before")
        if version < self._seen:
            log.error("the server's history went back, its list is believed", kind=self._resource.kind, to=version)
        self._behind = -1
        self._seen = version
        self.position = found.resource_version
        self._fresh = True
        self._suspect = False
        self._verify_at = math.inf
        self._listed_at = self._now()
        if found.unreadable:
            metrics.UNREADABLE.labels(self._resource.kind).inc(len(found.unreadable))
        self._store.replace({key_of(obj): obj for obj in found.objects}, self._changed, frozenset(found.unreadable))
        self._vouch()
        log.debug("listed", kind=self._resource.kind, objects=len(found.objects))

    def _vouch(self) -> None:
        self._wrong = ""
        self._vouched_until = self._now() + self._timing.grace

    async def _follow(self) -> None:
        """One stream, to its end. It ends normally when the server's time for it is over, or when we leave it."""
        metrics.WATCH_STARTS.labels(self._resource.kind).inc()
        lifetime = round(random.uniform(*self._timing.lifetime))
        query = {
            "fieldSelector": self._chosen["field_selector"],
            "labelSelector": self._chosen["label_selector"],
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.position,
            "timeoutSeconds": str(lifetime),
        }
        lines = stream.LineSplitter(self._event_limit)
        self._fresh = False
        self._leave_at = math.inf
        try:
            async with asyncio.timeout(self._patience()) as self._deadline:
                async with self._api.stream(self._resource.path(namespace=self._chosen["namespace"]), query) as content:
                    self._opened()
                    try:
                        async for chunk in content.iter_any():
                            self._take_all(lines.feed(chunk))
                            del chunk  # it may be a megabyte, and the next one come tomorrow
                    finally:
                        self._closed()
        except TimeoutError:
            if self._now() < self._leave_at:
                raise
        except ConnectionReplaced as retired:
            if retired.elsewhere:
                self._cut()
        else:
            if lines.pending:
                raise stream.StreamBroken("the stream ended within an event")
            if self._lived < lifetime - 1.0:
                self._cut()
        self._bad = 0
        if self._lived >= self._timing.healthy:
            self._vouch()
        else:
            self._wrong = f"the watch ended after {self._lived:.1f} s"

    def _patience(self) -> float:
        """Seconds of silence: until a stream is dead, or an attempt to open one is."""
        timing = self._timing
        return timing.inactivity if self._streaming or self._lived else min(timing.opening, timing.inactivity)

    def _opened(self) -> None:
        self._began = self._now()
        self._streaming = True
        self._wrong = ""
        self._leave_at = self._verify_at
        self._heard()

    def _heard(self) -> None:
        self._heard_at = self._now()
        self._deadline.reschedule(min(self._now() + self._timing.inactivity, self._leave_at))

    def _closed(self) -> None:
        self._streaming = False
        self._lived = self._now() - self._began or 1e-9
        if self._now() - self._heard_at > self._timing.inactivity / 2:
            self._suspect = True  # bookmarks come more often: we stood still
        if self._lived >= self._timing.healthy:
            self._good()

    def _good(self) -> None:
        """Something worked: the next fault is the first of its kind."""
        self._backoff.reset()
        self._answered = False

    def _doubt(self, known: int, version: int) -> None:
        """A writer was answered by a version of an object of which `known` was known.

        All up to `_seen` has been told, so an older one that was not is of another history. One that is older than
        what is known may have been overtaken on its way: then the question that comes before each stream tells.
        """
        if version >= self._seen or version == known:
            return
        if known < version:
            log.warning("an answer is of another history", kind=self._resource.kind, version=version, seen=self._seen)
            self._suspect = True
        self._leave_soon()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _take_all(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._heard()
        for line in lines:
            self._take(line)
        if any(len(line) > LARGE_EVENT for line in lines):
            self._leave_soon()

    def _leave_soon(self) -> None:
        """In order: as if its time were over."""
        if self._streaming and not self._deadline.expired():
            self._leave_at = min(self._leave_at, max(self._now(), self._began + self._timing.healthy))
            self._deadline.reschedule(min(self._deadline.when() or math.inf, self._leave_at))

    def _take(self, line: bytes) -> None:
        match stream.parse(self._resource, line):
            case stream.ChangeEvent(type=kind, object=obj):
                if kind == "DELETED":
                    new = self._store.remove(key_of(obj), obj.metadata.resource_version)
                else:
                    new = self._store.take(self._trim(obj) if self._trim else obj, self._changed)
                if new:
                    self._events.inc()
                self._advance(obj.metadata.resource_version, news=new)
            case stream.BookmarkEvent(resource_version=version):
                self._advance(version, news=True)
            case stream.UndecodableEvent(type=kind, key=key, resource_version=version, error=error):
                # The last good object stays: half an object would be worse than an old one.
                metrics.UNREADABLE.labels(self._resource.kind).inc()
                log.warning("object not readable", kind=self._resource.kind, object=key, error=error)
                if kind == "DELETED":
                    self._store.remove(key, version)
                self._advance(version)

    def _advance(self, text: str, news: bool = False) -> None:
        """The stream has come to this version. OutOfOrder where it told something new (`news`) from behind `_seen`."""
        version = version_of(text)
        if version and version < self._seen:
            if not news:
                return
            self._behind = version
            raise stream.OutOfOrder(f"the watch is at version {version} after {self._seen}")
        if not version or version > self._seen:
            self._good()
            self._bad = 0
        self._seen = max(self._seen, version)
        if self.position:
            self.position = text


def _length_of(known: "weakref.ref[Store[Any]]") -> Callable[[], int]:
    """Of a store while anybody has it: the metric alone would keep all that is in it, for ever."""

    def length() -> int:
        store = known()
        return len(store) if store is not None else 0

    return length
