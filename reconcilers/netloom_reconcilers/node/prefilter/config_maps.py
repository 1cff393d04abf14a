"""The ConfigMaps that prefilters name, each followed by itself: no other is read, so the right to read these is enough.

What is kept of one is its entries, not its text: it is read as it arrives, and only once. One that vanishes stays in
force as it was last, as long as a prefilter names it and the agent lives: that a list is gone is more often a mistake
than the wish that its senders may come in again. Taking it out of the prefilter is the way to say so. The same holds of
a key that a prefilter names, and of what a download leaves that failed.
"""

import asyncio
import base64
import binascii
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from netloom.api import core
from netloom.api.meta import ObjectMeta, Struct
from netloom.api.prefilter import ListReference
from netloom.prefilter.list_reader import ListReader
from netloom.prefilter.lists import ParsedList
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import EVERY_NODE, ListWatch
from netloom_reconcilers.node.prefilter.arrivals import PATIENCE_SECONDS, Arrivals

MOST_TEXT = 64 << 20
"""Bytes of a packed list when it is unpacked: one of 1.5 MB, as an object may have, could fill a node's memory."""
_STAYS = "What it held before stays in force while the agent runs."
_GZIP = b"\x1f\x8b"


class ListConfigMap(Struct, frozen=True):
    """core/v1 ConfigMap, with room for what its texts come to: `entries`, by key, or a sentence why a key is none."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] = msgspec.field(default_factory=dict)
    binary_data: dict[str, str] = msgspec.field(default_factory=dict)
    entries: Any = None


CONFIG_MAPS = core.CONFIG_MAPS.read_as(ListConfigMap)


class Place(NamedTuple):
    """Of a ConfigMap."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"ConfigMap {self.namespace}/{self.name}"


def read(config_map: ListConfigMap, readers: dict[str, ListReader]) -> ListConfigMap:
    """With its entries instead of its texts. readers: by key, what is known of them from before."""
    meta = config_map.metadata
    entries: dict[str, ParsedList | str] = {}
    for key, text in config_map.data.items():
        entries[key] = _read_text(text, readers.setdefault(key, ListReader()))
    for key, text in config_map.binary_data.items():
        entries[key] = _read_binary(text, readers.setdefault(key, ListReader()))
    for key in readers.keys() - entries.keys():
        del readers[key]
    kept = ObjectMeta(name=meta.name, namespace=meta.namespace, uid=meta.uid, resource_version=meta.resource_version)
    return ListConfigMap(metadata=kept, entries=entries)


def _read_text(text: str, reader: ListReader) -> ParsedList | str:
    """One without a word, or without an entry among its lines (a server's page that says what is wrong), is what a
    download leaves that failed; people who mean it can write a comment."""
    if not text or text.isspace():
        return "is empty, without even a comment"
    found = reader.read(text)
    return found if found.lines or not found.bad else f"holds no entry: {found.bad[0]}"


def _read_binary(text: str, reader: ListReader) -> ParsedList | str:
    try:
        content = base64.b64decode(text, validate=True)
        if content.startswith(_GZIP):
            unpacker = zlib.decompressobj(wbits=31)
            content = unpacker.decompress(content, MOST_TEXT)
            if not unpacker.eof:
                return f"is not whole, or more than {MOST_TEXT >> 20} MiB when unpacked"
        return _read_text(content.decode(), reader)
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        return f"is neither text nor text packed by gzip ({error})"


class _Followed:
    """One ConfigMap. last: as it was when it was last there. arrivals: is told when it comes."""

    def __init__(self, api: Api, place: Place, arrivals: Arrivals, changed: Callable[[], None]) -> None:
        self.store: Store[ListConfigMap] = Store(CONFIG_MAPS)
        self.last: ListConfigMap | None = None
        self.since = time.monotonic()
        self._key = f"{place.namespace}/{place.name}"
        self._changed = changed
        self._arrivals = arrivals
        self._readers: dict[str, ListReader] = {}
        self.watch = ListWatch(
            api,
            self.store,
            namespace=place.namespace,
            field_selector=f"metadata.name={place.name}",
            trim=lambda config_map: read(config_map, self._readers),
            timing=EVERY_NODE,
        )
        self._unsubscribe = self.store.subscribe(lambda key, old, new: self._took(new)), self.store.on_replace(changed)

    def _took(self, new: ListConfigMap | None) -> None:
        if new is not None:
            if self.last is None:
                self._arrivals.came()
            self.last = new
        self._changed()

    def leave(self) -> None:
        """Nobody names it any more: its entries, megabytes perhaps, go now, and not when a garbage collection of all
        objects finds them, which is seldom."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self.store.replace({})
        self._readers.clear()
        self.last = None

    @property
    def is_missing(self) -> bool:
        return self.store.synced.is_set() and self._key not in self.store


class ConfigMaps:
    """See the module. home: the namespace of those that name none. changed: is called when one is another."""

    def __init__(self, api: Api, home: str, changed: Callable[[], None]) -> None:
        self.home = home
        self._api = api
        self._changed = changed
        self._followed: dict[Place, _Followed] = {}
        self._arrivals = Arrivals()
        self._good: dict[tuple[Place, bool], dict[str, ParsedList]] = {}
        """Of each key that is read, what it held when it was last a list: of those that prefilters name, and of those
        that they read as all of a ConfigMap. A key that goes is missed by the first alone."""
        self._turned = asyncio.Event()

    def place_of(self, reference: ListReference) -> Place:
        """Where the ConfigMap is that a prefilter names."""
        return Place(reference.namespace or self.home, reference.name)

    def want(self, references: Iterable[ListReference]) -> None:
        """Follow these, and no others."""
        wanted = {self.place_of(each) for each in references}
        if wanted != self._followed.keys():
            new = {
                place: _Followed(self._api, place, self._arrivals, self._changed)
                for place in wanted - self._followed.keys()
            }
            for place in self._followed.keys() - wanted:
                self._followed[place].leave()
            self._followed = {place: each for place, each in self._followed.items() if place in wanted} | new
            self._good = {at: each for at, each in self._good.items() if at[0] in wanted}
            self._turned.set()

    def wait(self) -> float:
        """Seconds for which it is worth waiting for what was not answered yet, or comes after what came (`arrivals`);
        not more than 0: for nothing, what is there is to be taken."""
        waited_for = [each for each in self._followed.values() if not each.store.synced.is_set()]
        now = time.monotonic()
        if (patience := max((each.since + PATIENCE_SECONDS - now for each in waited_for), default=0.0)) > 0:
            return patience
        return self._arrivals.wait(missing=any(each.last is None for each in self._followed.values()))

    def lists(self, reference: ListReference) -> tuple[Mapping[str, ParsedList], list[str]]:
        """The lists of a ConfigMap that a prefilter names, by `namespace/name:key`, and what is wrong, as sentences."""
        place = self.place_of(reference)
        followed = self._followed.get(place)
        if followed is None or followed.last is None:
            return {}, [self._why_not(place, followed)]
        problems = []
        if followed.is_missing:
            problems.append(
                f"{place} is gone; what it held stays in force while the agent runs. Create it again, or take it out "
                "of the prefilter."
            )
        held: Mapping[str, ParsedList | str] = followed.last.entries
        good = self._good.setdefault((place, bool(reference.keys)), {})
        keys = reference.keys or held or tuple(good)
        if not held:
            stays = f"{_STAYS} " if keys and not reference.keys else ""
            way = f"{stays}Fill it, or take it out of the prefilter."
            problems.append(f"{place} is empty: it has neither data nor binaryData. {way}")
        if held and not reference.keys:
            for key in good.keys() - held.keys():
                del good[key]
        found: dict[str, ParsedList] = {}
        for key in keys:
            entries = held.get(key)
            if isinstance(entries, ParsedList):
                good[key] = entries
            if key in good:
                found[f"{place.namespace}/{place.name}:{key}"] = good[key]
            stays = _STAYS if key in good else ""
            if entries is None and reference.keys:
                way = f"Name one that it has: {', '.join(sorted(held)) or 'none'}."
                problems.append(f"{place} has no key {key}. {f'{stays} {way}'.strip()}")
            elif isinstance(entries, str):
                problems.append(f"{place}, key {key}: it {entries}. {stays or 'Nothing of it is in force.'}")
        return found, problems

    def _why_not(self, place: Place, followed: _Followed | None) -> str:
        if followed is not None and followed.is_missing:
            return f"there is no {place}. Create it, or take it out of the prefilter."
        fault = followed.watch.fault if followed is not None else ""
        rights = (
            ""
            if place.namespace == self.home
            else f" Agents may read ConfigMaps of namespace {self.home} by themselves; of {place.namespace}, where a "
            "Role there lets them."
        )
        return f"{place} cannot be read: {fault or 'no answer yet'}.{rights}"

    async def load(self) -> None:
        """Read what is wanted once, for a command. Raises ApiError."""
        for each in self._followed.values():
            await each.watch.load()

    async def run(self) -> None:
        """Follows for ever what is wanted."""
        running: dict[Place, tuple[_Followed, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._turned.clear()
                for place in [place for place, (each, _) in running.items() if self._followed.get(place) is not each]:
                    running.pop(place)[1].cancel()
                for place, each in self._followed.items():
                    if place not in running:
                        running[place] = each, group.create_task(each.watch.run())
                await self._turned.wait()
