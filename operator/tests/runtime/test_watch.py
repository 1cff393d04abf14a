"""The watch against an API server that misbehaves. After each fault: the cache equals the server's truth, and the
number of requests that it took is what it must be."""

import asyncio
import gc
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import CoroutineType
from typing import Any

import msgspec
import pytest
from aiohttp import web

from netloom.api.core import NODES, SECRETS, Node
from netloom.api.meta import ObjectMeta
from netloom.runtime import loop
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming
from tests.economy import seeds
from tests.runtime import scripted
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import Call, Object, ScriptedApi, serving, until

PATH = "/api/v1/nodes"
Labels = dict[str, dict[str, str]]


def node(name: str, **labels: str) -> Object:
    return {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}}


def at(version: int, name: str, **labels: str) -> Object:
    """A node as an event shows it."""
    obj = node(name, **labels)
    obj["metadata"]["resourceVersion"] = str(version)
    return obj


def truth(server: ScriptedApi) -> Labels:
    return {name: obj["metadata"].get("labels", {}) for name, obj in server.objects[PATH].items()}


def cached(store: Store[Node]) -> Labels:
    return {name: dict(obj.metadata.labels) for name, obj in store.items()}


class Watcher:
    """A running ListWatch, its store, what its subscribers heard, and the pauses that it made (and did not wait)."""

    def __init__(self, api: Api, **options: Any) -> None:
        self.store = Store(NODES)
        self.heard: list[tuple[str, str]] = []
        self.pauses: list[float] = []
        self.store.subscribe(self._hear)
        given = {key: options.pop(key) for key in ("inactivity", "healthy", "relist") if key in options}
        timing = msgspec.structs.replace(WatchTiming(inactivity=5.0, base=0.25, cap=30.0, relist=600.0), **given)
        self.watch = ListWatch(api, self.store, timing=timing, sleep=self._sleep, **options)

    def _hear(self, key: str, old: Node | None, new: Node | None) -> None:
        self.heard.append((key, "gone" if new is None else "new" if old is None else "changed"))

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def start(api: Api) -> AsyncIterator[Callable[..., Watcher]]:
    """Starts watches that end with the test."""
    async with asyncio.TaskGroup() as group:
        tasks = []

        def begin(**options: Any) -> Watcher:
            watcher = Watcher(api, **options)
            tasks.append(group.create_task(watcher.watch.run()))
            return watcher

        yield begin
        for task in tasks:
            task.cancel()


async def equal(watcher: Watcher, server: ScriptedApi) -> None:
    await until(
        lambda: watcher.store.synced.is_set() and cached(watcher.store) == truth(server),
        f"cache = truth: {cached(watcher.store)} = {truth(server)}",
    )


async def still_follows(watcher: Watcher, server: ScriptedApi) -> None:
    """What comes after the fault arrives, without a further request than the one that it may need."""
    server.put(PATH, node("after"))
    await equal(watcher, server)
    server.drop(PATH, "after")
    await equal(watcher, server)


async def test_the_cache_follows_creation_change_and_deletion(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    watcher = start()
    await equal(watcher, server)
    server.put(PATH, node("b"))
    server.put(PATH, node("a", zone="1"))
    server.drop(PATH, "b")
    await until(lambda: len(watcher.heard) == 4)
    await equal(watcher, server)
    assert watcher.heard == [("a", "new"), ("b", "new"), ("a", "changed"), ("b", "gone")]
    assert (server.count("list"), server.count("watch")) == (1, 1)
    query = server.queries("watch")[0]
    assert query["resourceVersion"] == "101"
    assert query["allowWatchBookmarks"] == "true"
    assert 300 <= int(query["timeoutSeconds"]) <= 600


async def test_a_410_within_the_stream_is_one_relist_that_finds_deletions(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    for name in "abc":
        server.put(PATH, node(name))

    async def expire(call: Call) -> web.StreamResponse:
        server.drop(PATH, "b")
        server.put(PATH, node("d"))
        server.compacted = server.version
        return await scripted.in_stream(410, "Expired", "too old resource version")(call)

    server.on("watch", expire)
    watcher = start()
    await equal(watcher, server)
    await until(lambda: ("d", "new") in watcher.heard)
    assert watcher.heard == [("a", "new"), ("b", "new"), ("c", "new"), ("b", "gone"), ("d", "new")]
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (2, 2)


async def test_a_410_on_connect_is_one_relist(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))

    async def expire(call: Call) -> web.StreamResponse:
        server.drop(PATH, "a")
        server.put(PATH, node("b"))
        server.compacted = server.version
        return await call.ordinary()

    server.on("watch", expire)
    watcher = start()
    await until(lambda: ("a", "gone") in watcher.heard)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (2, 2)


async def test_what_was_loaded_is_followed_without_another_question(server: ScriptedApi, api: Api):
    server.put(PATH, node("a"))
    watcher = Watcher(api)
    await watcher.watch.load()
    server.put(PATH, node("b"))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watcher.watch.run())
        await equal(watcher, server)
        running.cancel()
    assert [server.count(verb) for verb in ("list", "ask", "watch")] == [1, 0, 1]


async def test_a_503_in_text_is_waited_out_ever_longer(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    server.on("watch", *[scripted.refuse_in_text(503, "upstream connect error")] * 8)
    watcher = start()
    await until(lambda: server.count("watch") == 9)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (1, 9)
    assert_growing(watcher.pauses)


async def test_a_503_while_listing_is_waited_out_ever_longer(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    server.on("list", *[scripted.refuse_in_text(503, "no healthy upstream")] * 8)
    watcher = start()
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (9, 1)
    assert_growing(watcher.pauses)


@pytest.mark.parametrize("fault", [scripted.close_at_once, scripted.end_at_once])
async def test_a_server_that_accepts_and_ends_every_watch_is_asked_seldom(
    server: ScriptedApi, start: Callable[..., Watcher], fault: scripted.Fault
):
    server.put(PATH, node("a"))
    server.on("watch", *[fault] * 12)
    watcher = start()
    await until(lambda: server.count("watch") == 13)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (1, 13)
    assert_growing(watcher.pauses)
    assert sum(watcher.pauses) > 100  # seconds, in which 12 requests were sent


async def test_a_bookmark_that_says_nothing_new_does_not_shorten_the_pauses(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    server.put(PATH, node("a"))
    server.on("watch", *[scripted.events(("BOOKMARK", at(101, "")))] * 8)
    watcher = start()
    await until(lambda: server.count("watch") == 9)
    assert_growing(watcher.pauses)
    await still_follows(watcher, server)
    assert server.count("list") == 1


async def test_pauses_begin_anew_after_an_event_that_brought_something(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    server.put(PATH, node("a"))
    server.on("watch", *[scripted.close_at_once] * 6, scripted.events(("BOOKMARK", at(600, ""))))
    server.version = 500
    watcher = start()
    await until(lambda: server.count("watch") == 8)
    assert_growing(watcher.pauses[:6])
    assert watcher.pauses[6] <= 0.25


async def test_silence_is_ended_by_a_list(server: ScriptedApi, start: Callable[..., Watcher]):
    """A stream that never says anything, and a watch that is never answered: both may be from the server's future."""
    server.put(PATH, node("a"))
    server.on("watch", scripted.half_open, scripted.hang)
    watcher = start(inactivity=0.1)
    await equal(watcher, server)
    server.put(PATH, node("b"))
    await until(lambda: server.count("watch") == 3)
    await equal(watcher, server)
    assert (server.count("list"), server.count("ask")) == (3, 0)


async def test_a_stream_that_falls_silent_is_not_resumed(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    server.on("watch", scripted.events(("ADDED", at(102, "b")), ("BOOKMARK", at(107, "")), then="hang"))
    watcher = start(inactivity=0.1)
    await until(lambda: "b" in watcher.store)
    server.version = 110
    await until(lambda: server.count("watch") == 2)
    assert [query["resourceVersion"] for query in server.queries("watch")] == ["101", "110"]
    assert "b" not in watcher.store
    assert server.count("list") == 2


async def test_a_stream_that_speaks_now_and_then_is_not_silent(server: ScriptedApi, start: Callable[..., Watcher]):
    said = 0

    async def now_and_then(call: Call) -> web.StreamResponse:
        nonlocal said
        stream = await call.open()
        for said in range(8):
            await call.send("BOOKMARK", at(200 + said, ""))
            await asyncio.sleep(0.1)  # the server's own pace
        await asyncio.Event().wait()
        return stream

    server.on("watch", now_and_then)
    start(inactivity=0.5)
    await until(lambda: said == 7)
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_a_list_without_an_answer_is_asked_again(kubeconfig: str, server: ScriptedApi):
    server.put(PATH, node("a"))
    server.on("list", scripted.hang)
    async with await Api.connect(kubeconfig, timeout=0.1) as api:
        watcher = Watcher(api)
        task = asyncio.create_task(watcher.watch.run())
        await equal(watcher, server)
        task.cancel()
        await asyncio.wait([task])
    assert server.count("list") == 2


@pytest.mark.parametrize("then", ["end", "abort"])
async def test_a_truncated_event_is_asked_for_again(server: ScriptedApi, start: Callable[..., Watcher], then: str):
    server.put(PATH, node("a"))
    whole = json.dumps({"type": "ADDED", "object": at(102, "b")}).encode() + b"\n"

    async def truncate(call: Call) -> web.StreamResponse:
        server.put(PATH, node("b"))
        server.put(PATH, node("c"))
        return await scripted.events(whole, b'{"type":"ADDED","object":{"metadata":{"na', then=then)(call)

    server.on("watch", truncate)
    watcher = start()
    await until(lambda: "c" in watcher.store)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (1, 2)
    assert server.queries("watch")[1]["resourceVersion"] == "102"


@pytest.mark.parametrize("end_of_line", [b"\n", b""])
async def test_garbage_at_the_same_place_again_and_again_is_passed_by_a_list(
    server: ScriptedApi, start: Callable[..., Watcher], end_of_line: bytes
):
    server.put(PATH, node("a"))
    server.on("watch", *[scripted.events(b'{"type":"ADDED","object":{"meta' + end_of_line)] * 3)
    watcher = start()
    await until(lambda: server.count("watch") == 4)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (2, 4)
    assert_growing(watcher.pauses)


async def test_an_event_of_8_mib_is_read(server: ScriptedApi, start: Callable[..., Watcher]):
    watcher = start()
    await equal(watcher, server)
    server.put(PATH, node("large", text="x" * (8 << 20)))
    server.put(PATH, node("small"))
    await equal(watcher, server)
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_of_a_large_event_nothing_stays_and_the_stream_goes_on_by_another_connection(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    watcher = start(healthy=1.0)
    await equal(watcher, server)
    server.put(PATH, node("large", text="x" * (1 << 20)))
    await equal(watcher, server)
    following = [each for each in gc.get_objects() if isinstance(each, CoroutineType) and each.__name__ == "_follow"]
    held = [each for one in following for each in gc.get_referents(one) if isinstance(each, bytes)]
    assert not any(b"xx" in each for each in held), "the stream may be silent for days"
    await until(lambda: server.count("watch") == 2)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("ask"), server.count("watch")) == (1, 1, 2)
    (asked,) = [call.headers["Accept"] for call in server.calls if call.verb == "ask"]
    assert asked.partition(";")[2].startswith("as=PartialObjectMetadataList"), "the object is not sent again"


async def test_an_event_beyond_the_limit_is_passed_by_a_list(server: ScriptedApi, start: Callable[..., Watcher]):
    watcher = start(event_limit=1 << 20)
    await equal(watcher, server)
    server.put(PATH, node("large", text="x" * (2 << 20)))
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (2, 2)


@pytest.mark.parametrize("garbage", [b'{"type":"ADDED","object":{}}\n', b"{}\n", b"[]\n", b'"ADDED"\n', b"\xff\xfe\n"])
async def test_what_is_no_event_is_no_truth(server: ScriptedApi, start: Callable[..., Watcher], garbage: bytes):
    server.put(PATH, node("a"))
    server.on("watch", scripted.events(garbage))
    watcher = start()
    await until(lambda: server.count("watch") == 2)
    assert sorted(watcher.store) == ["a"]
    await still_follows(watcher, server)
    assert server.count("list") == 1


@pytest.mark.parametrize("answer", ["{}", '{"items": []}', "null"])
async def test_an_empty_answer_is_no_empty_list(server: ScriptedApi, start: Callable[..., Watcher], answer: str):
    server.put(PATH, node("a"))
    server.on("list", None, scripted.refuse_in_text(200, answer))
    server.on("watch", scripted.in_stream(410, "Expired"))
    watcher = start()
    await until(lambda: server.count("watch") == 2)
    await still_follows(watcher, server)
    assert ("a", "gone") not in watcher.heard
    assert server.count("list") == 3


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_retry_after_is_obeyed(server: ScriptedApi, start: Callable[..., Watcher], verb: str):
    server.put(PATH, node("a"))
    fault = scripted.refuse(429, "TooManyRequests", **{"Retry-After": "7"})
    server.on(verb, fault, fault)
    watcher = start()
    await until(lambda: server.count("watch") == (3 if verb == "watch" else 1))
    await still_follows(watcher, server)
    assert server.count(verb) == 3
    assert len(watcher.pauses) == 2
    assert all(7.0 <= pause < 9.0 for pause in watcher.pauses)


async def test_duplicates_change_nothing(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    b, c = ("ADDED", at(102, "b")), ("MODIFIED", at(103, "a", zone="1"))
    server.on("watch", scripted.events(b, b, c, b, c, then="hang"))
    watcher = start()
    await until(lambda: cached(watcher.store) == {"a": {"zone": "1"}, "b": {}})
    assert watcher.heard == [("a", "new"), ("b", "new"), ("a", "changed")]
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_an_older_version_never_replaces_a_newer_one(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    shuffled = [
        ("MODIFIED", at(104, "a", zone="3")),
        ("MODIFIED", at(102, "a", zone="1")),
        ("MODIFIED", at(103, "a", zone="2")),
        ("DELETED", at(106, "b")),
        ("ADDED", at(105, "b")),
        ("BOOKMARK", at(110, "")),
    ]
    server.on("watch", scripted.events(*shuffled, then="hang"))
    watcher = start()
    await until(lambda: not watcher.watch.fault and "110" in watcher.watch.position)
    assert cached(watcher.store) == {"a": {"zone": "3"}}
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_news_from_behind_the_position_end_the_stream_at_once(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))

    async def disorder(call: Call) -> web.StreamResponse:
        server.put(PATH, node("b"))
        server.put(PATH, node("c"))
        server.put(PATH, node("lost"))  # 104: between what is sent, and never sent
        server.put(PATH, node("d"))
        shuffled = [("ADDED", at(105, "d")), ("ADDED", at(103, "c")), ("ADDED", at(102, "b"))]
        return await scripted.events(*shuffled, then="hang")(call)

    server.on("watch", disorder)
    watcher = start()
    await until(lambda: "lost" in watcher.store)
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (2, 2)


async def test_expiry_within_a_chunked_list_costs_one_more_request(server: ScriptedApi, start: Callable[..., Watcher]):
    for number in range(1200):
        server.put(PATH, node(f"n{number}"))

    async def expire(call: Call) -> web.StreamResponse:
        server.drop(PATH, "n0")  # in the first chunk, which was sent
        server.snapshots.clear()
        return await call.ordinary()

    server.on("list", None, expire)
    watcher = start()
    await equal(watcher, server)
    await still_follows(watcher, server)
    queries = server.queries("list")
    assert [query.get("limit", "") for query in queries] == ["500", "500", ""]
    assert [bool(query.get("continue")) for query in queries] == [False, True, False]
    assert server.count("watch") == 1


async def test_a_list_comes_in_chunks(server: ScriptedApi, start: Callable[..., Watcher]):
    for number in range(1200):
        server.put(PATH, node(f"n{number}"))
    watcher = start()
    await equal(watcher, server)
    assert len(watcher.heard) == 1200
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (3, 1)


async def test_a_stale_list_is_not_believed(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    old = {"kind": "List", "metadata": {"resourceVersion": "101"}, "items": []}

    async def stale(_call: Call) -> web.StreamResponse:
        return web.json_response(old)

    server.on("list", None, stale)
    server.on("watch", scripted.events(("BOOKMARK", at(105, ""))), scripted.in_stream(410, "Expired"))
    server.version = 105
    watcher = start()
    await until(lambda: server.count("watch") == 3)
    assert ("a", "gone") not in watcher.heard
    await still_follows(watcher, server)
    assert (server.count("list"), server.count("watch")) == (3, 3)


async def restored(server: ScriptedApi, watcher: Watcher, *, then: int) -> None:
    """What the watcher holds is of a history that the server lost: etcd was restored from a backup of version 100, and
    has come to version `then` since. Each object that the watcher knows is gone, changed or of another version."""
    server.version = 5000
    for name in "abc":
        server.put(PATH, node(name))
    await equal(watcher, server)
    server.drop(PATH, "c")
    await equal(watcher, server)
    server.objects[PATH].clear()
    server.history.clear()
    server.version = 100
    server.put(PATH, node("a", restored="yes"))
    server.put(PATH, node("c"))
    server.put(PATH, node("joined"))
    server.version = then
    server.calls.clear()


async def test_a_history_that_went_back_is_believed_at_once(server: ScriptedApi, start: Callable[..., Watcher]):
    """The question before the stream tells; a watch from the server's future would be silent for ever."""
    watcher = start()
    await restored(server, watcher, then=103)
    server.disconnect()
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [1, 1, 1]


async def test_a_history_that_went_back_is_believed_when_two_lists_say_so(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    watcher = start(inactivity=0.3)
    await restored(server, watcher, then=103)
    await equal(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list")] == [0, 2]


@pytest.mark.parametrize("said", [("ADDED", at(101, "b")), ("BOOKMARK", at(101, ""))])
async def test_a_stream_that_goes_back_is_left_at_once(
    server: ScriptedApi, start: Callable[..., Watcher], said: tuple[str, Object]
):
    """The history went back under a living API server."""
    server.put(PATH, node("a"))
    server.version = 5000

    async def go_back(call: Call) -> web.StreamResponse:
        server.version = 102
        return await scripted.events(said, then="hang")(call)

    server.on("watch", go_back)
    watcher = start(inactivity=60.0)
    await until(lambda: server.count("watch") == 2)
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [0, 2, 2]


async def test_a_history_that_overtook_the_position_is_found_after_an_outage(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    """Nothing shows it: a resumed watch would go on silently from where the cache ends."""
    watcher = start()
    await restored(server, watcher, then=7000)
    server.on("ask", scripted.refuse_in_text(503, "no healthy upstream"))
    server.disconnect()
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [1, 1, 1]


@pytest.mark.parametrize(("relist", "asked", "listed"), [(600.0, 3, 1), (0.0, 0, 4)])
async def test_a_connection_that_was_cut_costs_a_list_where_replicas_are_few(
    server: ScriptedApi, start: Callable[..., Watcher], relist: float, asked: int, listed: int
):
    """A process that was frozen knows no more of an outage. But load balancers cut connections all day."""
    server.put(PATH, node("a"))
    watcher = start(relist=relist)
    await equal(watcher, server)
    for _ in range(3):
        await still_follows(watcher, server)
        server.disconnect()
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [asked, listed, 4]


async def test_nobody_decides_from_a_stream_that_proved_nothing(server: ScriptedApi, start: Callable[..., Watcher]):
    answer = asyncio.Event()

    async def late(call: Call) -> web.StreamResponse:
        await answer.wait()
        return await call.ordinary()

    watcher = start(healthy=0.0)
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert (watcher.watch.following, watcher.watch.fault) == (True, "")
    server.on("ask", late)
    server.disconnect()
    await until(lambda: server.count("ask") == 1)
    assert not watcher.watch.following
    assert watcher.watch.fault
    answer.set()
    await until(lambda: watcher.watch.following)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [1, 1, 2]


async def test_a_stream_that_ended_as_it_should_vouches_for_the_cache_until_the_next(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    """Else whoever decides from it would refuse to for a moment, every few minutes."""
    faults: list[str] = []
    watcher: Watcher

    async def look(call: Call) -> web.StreamResponse:
        faults.append(watcher.watch.fault)
        return await call.ordinary()

    server.on("watch", scripted.end_at_once)
    server.on("ask", look)
    watcher = start(healthy=0.0)
    await until(lambda: server.count("watch") == 2)
    assert faults == [""]


async def test_a_writers_answer_from_another_history_leads_to_a_list(
    server: ScriptedApi, start: Callable[..., Watcher], api: Api
):
    """All up to the position was told, and this was not."""
    watcher = start(healthy=0.0, inactivity=60.0)
    await restored(server, watcher, then=103)
    watcher.store.put(await api.create(NODES, Node(metadata=ObjectMeta(name="mine"))))
    await equal(watcher, server)
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [0, 2, 1]


async def test_a_writers_answer_that_was_overtaken_costs_a_question(server: ScriptedApi, start: Callable[..., Watcher]):
    watcher = start(healthy=0.0, inactivity=60.0)
    first, second = server.put(PATH, node("a")), server.put(PATH, node("a", zone="1"))
    await equal(watcher, server)
    await still_follows(watcher, server)
    watcher.store.put(msgspec.convert(second, Node))
    watcher.store.put(msgspec.convert(first, Node))
    await until(lambda: server.count("watch") == 2)
    await still_follows(watcher, server)
    assert [server.count(verb) for verb in ("ask", "list", "watch")] == [1, 1, 2]


async def test_an_unknown_event_is_passed_over(server: ScriptedApi, start: Callable[..., Watcher]):
    server.on("watch", scripted.events(("SURPRISE", {"x": [1]}), ("ADDED", at(101, "a")), then="hang"))
    watcher = start()
    await until(lambda: "a" in watcher.store)
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_an_unreadable_object_keeps_its_last_good_form_and_hides_no_other(
    server: ScriptedApi, start: Callable[..., Watcher]
):
    server.put(PATH, node("a", zone="1"))
    watcher = start()
    await equal(watcher, server)
    broken = node("a", zone="2")
    broken["spec"] = {"podCIDRs": "not a list"}
    server.put(PATH, broken)
    server.put(PATH, node("b"))
    await until(lambda: "b" in watcher.store)
    assert cached(watcher.store) == {"a": {"zone": "1"}, "b": {}}
    server.drop(PATH, "a")
    await equal(watcher, server)
    assert (server.count("list"), server.count("watch")) == (1, 1)


async def test_an_unreadable_object_in_a_list_hides_no_other(server: ScriptedApi, start: Callable[..., Watcher]):
    broken = node("a")
    broken["spec"] = {"podCIDRs": "not a list"}
    server.put(PATH, broken)
    server.put(PATH, node("b"))
    watcher = start()
    await until(lambda: "b" in watcher.store)
    assert cached(watcher.store) == {"b": {}}


async def test_an_unimportant_change_is_cached_and_told_to_nobody(server: ScriptedApi, start: Callable[..., Watcher]):
    server.put(PATH, node("a"))
    watcher = start(changed=lambda old, new: old.metadata.labels.get("zone") != new.metadata.labels.get("zone"))
    await equal(watcher, server)
    latest = server.put(PATH, node("a", heartbeat="1"))
    await equal(watcher, server)
    server.put(PATH, node("b"))
    await equal(watcher, server)
    assert watcher.heard == [("a", "new"), ("b", "new")]
    held = watcher.store.get("a")
    assert held is not None
    assert held.metadata.resource_version == latest["metadata"]["resourceVersion"]


async def test_an_own_write_may_arrive_before_its_event(server: ScriptedApi, start: Callable[..., Watcher], api: Api):
    """A writer puts what it wrote into the store; the event, when it comes, is a duplicate."""
    watcher = start()
    await equal(watcher, server)
    watcher.store.put(await api.create(NODES, Node(metadata=ObjectMeta(name="mine"))))
    server.put(PATH, node("other"))
    await equal(watcher, server)
    assert watcher.heard == [("mine", "new"), ("other", "new")]


async def test_selectors_are_sent_with_list_and_watch(server: ScriptedApi, start: Callable[..., Watcher]):
    start(field_selector="metadata.name=a", label_selector="x=y")
    await until(lambda: server.count("watch") == 1)
    for verb in ("list", "watch"):
        assert server.queries(verb)[0]["fieldSelector"] == "metadata.name=a"
        assert server.queries(verb)[0]["labelSelector"] == "x=y"


@pytest.mark.parametrize("seed", seeds(12))
def test_after_a_storm_of_faults_the_cache_is_the_truth(seed: int, tmp_path: Path):
    """Any fault at any moment, while objects come, change and go; on the event loop that the roles run on."""

    async def scene() -> None:
        async with serving() as server:
            kubeconfig = write_kubeconfig(tmp_path / "k", {"server": server.url}, {"token": "t"})
            async with await Api.connect(kubeconfig, timeout=5.0) as api:
                watcher = Watcher(api, inactivity=0.05)
                running = asyncio.create_task(watcher.watch.run())
                await storm(server, watcher, seed)
                running.cancel()
                await asyncio.wait([running])

    loop.run(scene())


async def storm(server: ScriptedApi, watcher: Watcher, seed: int) -> None:
    dice = random.Random(seed)
    faults = [
        scripted.close_at_once,
        scripted.end_at_once,
        scripted.refuse_in_text(503, "no"),
        scripted.refuse(429, "TooManyRequests", **{"Retry-After": "1"}),
        scripted.refuse(410, "Expired"),
        scripted.in_stream(410, "Expired"),
        scripted.in_stream(500, "InternalError"),
        scripted.half_open,
        scripted.hang,
        scripted.events(b'{"type":"ADD', then="abort"),
        scripted.events(b"<html>\n"),
    ]

    async def maybe(call: Call) -> web.StreamResponse:
        if call.verb == "list" and call.query.get("continue") and dice.random() < 0.3:
            server.snapshots.clear()
        elif dice.random() < 0.6:
            fault = dice.choice(faults)
            if call.verb == "watch" or fault not in (scripted.hang, scripted.half_open):
                return await fault(call)
        return await call.ordinary()

    server.faulty = maybe
    names = [f"n{number}" for number in range(40)]
    for step in range(300):
        name = dice.choice(names)
        if name in server.objects[PATH] and dice.random() < 0.4:
            server.drop(PATH, name)
        else:
            server.put(PATH, node(name, step=str(step)))
        if dice.random() < 0.2:
            answered = len(server.calls)
            await until(lambda: len(server.calls) > answered or cached(watcher.store) == truth(server))  # noqa: B023
        if dice.random() < 0.02:
            server.compacted = server.version
        if dice.random() < 0.05:
            server.disconnect()
    server.faulty = None
    await equal(watcher, server)
    server.calls.clear()
    await still_follows(watcher, server)
    assert len(server.calls) <= 3


def assert_growing(pauses: list[float], base: float = 0.25, cap: float = 30.0) -> None:
    """Each pause lies in the upper half of what the exponential allows."""
    for number, pause in enumerate(pauses):
        bound = min(cap, base * 2**number)
        assert bound / 2 <= pause <= bound, f"pause {number} of {pauses}"


async def test_a_watch_of_one_namespace_asks_for_no_other(server: ScriptedApi, api: Api):
    """Rights on one namespace are enough for it."""
    mine = "/api/v1/namespaces/mine/secrets"
    server.put("/api/v1/namespaces/other/secrets", {"metadata": {"name": "a", "namespace": "other"}})
    server.put(mine, {"metadata": {"name": "a", "namespace": "mine"}})
    store = Store(SECRETS)
    task = asyncio.create_task(ListWatch(api, store, namespace="mine").run())
    await until(lambda: list(store) == ["mine/a"], "listed")
    server.put(mine, {"metadata": {"name": "b", "namespace": "mine"}})
    await until(lambda: sorted(store) == ["mine/a", "mine/b"], "followed")
    task.cancel()
    await asyncio.wait([task])
    assert {call.collection for call in server.calls if call.verb in ("list", "watch")} == {mine}
