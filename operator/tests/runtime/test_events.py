"""Events: written once and then counted, within limits, and never at a reconciler's cost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from netloom.api.events import Event, ObjectReference
from netloom.runtime import metrics
from netloom.runtime.allowance import Pace
from netloom.runtime.client import Api
from netloom.runtime.clock import ServerClock
from netloom.runtime.events import EventLimits, EventRecorder
from tests.runtime import scripted, virtual
from tests.runtime.scripted import ScriptedApi, until
from tests.runtime.virtual import on_both_loops

PATH = "/api/v1/namespaces/default/events"
NODE = ObjectReference(api_version="v1", kind="Node", name="a", uid="u-1")


def other(name: str) -> ObjectReference:
    return ObjectReference(api_version="v1", kind="Node", name=name, uid=name)


def dropped(cause: str) -> float:
    return metrics.REGISTRY.get_sample_value("netloom_events_dropped_total", {"cause": cause}) or 0.0


@pytest.fixture
async def recorder(api: Api) -> AsyncIterator[Callable[..., EventRecorder]]:
    tasks: list[asyncio.Task[None]] = []

    def begin(**limits: Any) -> EventRecorder:
        made = EventRecorder(api, "netloom-operator", host="pod-1", limits=EventLimits(**limits))
        tasks.append(asyncio.create_task(made.run()))
        return made

    yield begin
    for task in tasks:
        task.cancel()
        await asyncio.wait([task])


def stored(server: ScriptedApi) -> list[dict[str, Any]]:
    return list(server.objects[PATH].values())


async def test_an_event_is_what_kubectl_looks_for(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    recorder().event(NODE, "Warning", "PoolExhausted", "no CIDR is left")
    await until(lambda: stored(server))
    event = stored(server)[0]
    assert event["metadata"]["namespace"] == "default"
    assert event["metadata"]["name"].startswith("a.")
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u-1"}
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "PoolExhausted", "no CIDR is left")
    assert event["source"] == {"component": "netloom-operator", "host": "pod-1"}
    assert (event["reportingComponent"], event["reportingInstance"]) == ("netloom-operator", "pod-1")
    assert event["count"] == 1
    assert event["firstTimestamp"] <= event["lastTimestamp"]
    assert len(event["firstTimestamp"]) == len("2026-01-02T03:04:05Z")


async def test_what_is_said_again_is_counted_not_written_again(
    server: ScriptedApi, recorder: Callable[..., EventRecorder]
):
    speaker = recorder(repeat=0.05)
    for _ in range(100):
        speaker.event(NODE, "Warning", "PoolExhausted", "no CIDR is left")
    await until(lambda: stored(server) and stored(server)[0]["count"] == 100)
    speaker.event(NODE, "Warning", "PoolExhausted", "no CIDR is left")
    await until(lambda: stored(server)[0]["count"] == 101)
    assert len(stored(server)) == 1
    assert (server.count("create"), server.count("patch")) == (1, 1)


@dataclass
class Recording:
    """What the recorder uses of `Api`, with the times of its writes."""

    writes: list[tuple[float, str, int]] = field(default_factory=list)
    clock: ServerClock = field(default_factory=ServerClock)

    async def create(self, _res: object, event: Event) -> Event:
        self.writes.append((asyncio.get_running_loop().time(), "create", event.count))
        return event

    async def patch(self, _res: object, _name: str, patch: dict[str, Any], *, namespace: str) -> None:
        assert namespace == "default"
        self.writes.append((asyncio.get_running_loop().time(), "patch", patch["count"]))


@on_both_loops
def test_repetitions_are_written_at_growing_distances(loop: Callable[[], Any]):
    api = Recording()

    async def scene() -> None:
        clock = asyncio.get_running_loop().time
        limits = EventLimits(repeat=5.0, repeat_cap=20.0)
        speaker = EventRecorder(api, "c", limits=limits, clock=clock)  # type: ignore[arg-type]
        task = asyncio.create_task(speaker.run())
        for _ in range(60):
            speaker.event(NODE, "Normal", "R", "m")
            await asyncio.sleep(1)
        await asyncio.sleep(100)
        task.cancel()
        await asyncio.wait([task])

    virtual.run(scene(), loop)
    # Said each second for a minute; the last write has what was said since the one before.
    assert api.writes == [
        (0, "create", 1), (5, "patch", 5), (15, "patch", 15), (35, "patch", 35), (55, "patch", 55), (75, "patch", 60),
    ]  # fmt: skip


async def test_different_events_are_kept_apart(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    speaker = recorder()
    for ref, reason, message in [(NODE, "A", "m"), (NODE, "B", "m"), (NODE, "A", "n"), (other("b"), "A", "m")]:
        speaker.event(ref, "Normal", reason, message)
    await until(lambda: len(stored(server)) == 4)


async def test_one_object_cannot_flood(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    before = dropped("object")
    speaker = recorder(of_object=Pace(3, 60.0))
    for number in range(50):
        speaker.event(NODE, "Normal", "R", f"message {number}")
    speaker.event(other("b"), "Normal", "R", "heard all the same")
    await until(lambda: len(stored(server)) == 4)
    assert dropped("object") - before == 47
    assert server.count("create") == 4


async def test_all_objects_together_cannot_flood(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    before = dropped("process")
    speaker = recorder(of_process=Pace(10, 1000.0))
    for number in range(500):
        speaker.event(other(f"n{number}"), "Normal", "R", "m")
    await until(lambda: len(stored(server)) == 10)
    assert dropped("process") - before == 490


async def test_memory_is_bounded(api: Api):
    speaker = EventRecorder(api, "c", limits=EventLimits(remembered=100, of_process=Pace(10_000, 0.2)))
    for number in range(1000):
        speaker.event(other(f"n{number}"), "Normal", "R", "m")
    assert len(speaker._said) == 100
    assert speaker._budget_of.cache_info().currsize == 100


@on_both_loops
def test_what_is_not_said_again_is_forgotten_after_an_hour(loop: Callable[[], Any]):
    """As where a figure is in the text. One that is said again now and then is known by then."""
    api = Recording()

    async def scene() -> None:
        speaker = EventRecorder(api, "c", clock=asyncio.get_running_loop().time)  # type: ignore[arg-type]
        task = asyncio.create_task(speaker.run())
        for minute in range(24 * 60):
            speaker.event(NODE, "Warning", "R", f"{minute} of them")
            if not minute % 50:
                speaker.event(other("b"), "Normal", "R", "now and then")
            await asyncio.sleep(60)
            assert len(speaker._said) <= 62
        task.cancel()
        await asyncio.wait([task])

    virtual.run(scene(), loop)
    assert sum(what == "create" for _, what, _ in api.writes) == 24 * 60 + 1


async def test_an_expired_event_is_written_anew(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    """The API server keeps events for an hour."""
    speaker = recorder(repeat=0.01)
    speaker.event(NODE, "Normal", "R", "m")
    await until(lambda: stored(server))
    server.objects[PATH].clear()
    speaker.event(NODE, "Normal", "R", "m")
    await until(lambda: stored(server))
    assert stored(server)[0]["count"] == 2
    assert (server.count("create"), server.count("patch")) == (2, 1)


@pytest.mark.parametrize("fault", [scripted.refuse(403, "Forbidden"), scripted.refuse_in_text(503, "no")])
async def test_a_refused_event_is_dropped_and_counted(
    server: ScriptedApi, recorder: Callable[..., EventRecorder], fault: scripted.Fault
):
    before = dropped("refused")
    server.on("create", fault)
    speaker = recorder()
    speaker.event(NODE, "Normal", "R", "refused")
    speaker.event(NODE, "Normal", "R", "taken")
    await until(lambda: stored(server))
    assert dropped("refused") - before == 1
    assert server.count("create") == 2


async def test_nobody_waits_for_an_api_server_that_hangs(server: ScriptedApi, api: Api):
    server.on("create", *[scripted.hang] * 100)
    speaker = EventRecorder(api, "c", limits=EventLimits(drain=0.05))
    task = asyncio.create_task(speaker.run())
    for number in range(40):
        speaker.event(other(f"n{number}"), "Normal", "R", "m")
    await until(lambda: server.count("create") == 1)
    before = dropped("stopping")
    task.cancel()
    async with asyncio.timeout(2):
        await asyncio.wait([task])
    assert dropped("stopping") > before


async def test_what_was_said_last_is_written_at_the_end(server: ScriptedApi, api: Api):
    speaker = EventRecorder(api, "c")
    task = asyncio.create_task(speaker.run())
    server.on("create", scripted.hang)
    speaker.event(NODE, "Normal", "Stopping", "m")
    await until(lambda: server.count("create") == 1)
    for number in range(5):
        speaker.event(other(f"n{number}"), "Normal", "Stopping", "m")
    task.cancel()
    await asyncio.wait([task])
    assert len(stored(server)) == 6


async def test_long_messages_and_names_fit(server: ScriptedApi, recorder: Callable[..., EventRecorder]):
    recorder().event(other("n" * 253), "Normal", "R", "ä" * 5000)
    await until(lambda: stored(server))
    event = stored(server)[0]
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"].encode()) <= 1024


async def test_what_differs_behind_the_end_of_a_message_is_the_same_event(
    server: ScriptedApi, recorder: Callable[..., EventRecorder]
):
    """A condition of 32 KiB in which counts change would else be an Event of the same words each time."""
    recording = recorder(repeat=0.01)
    for count in range(5):
        recording.event(NODE, "Warning", "NodesFailed", "\N{SNOWMAN}" * 10_000 + str(count))
    await until(lambda: stored(server) and stored(server)[0]["count"] == 5)
    (event,) = stored(server)
    assert event["message"] == "\N{SNOWMAN}" * 341
