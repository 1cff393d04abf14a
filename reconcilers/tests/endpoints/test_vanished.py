"""Pods that are gone without a word of their runtime give back what they had, and living ones nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netloom.api.core import STATIC, Pod, PodIP, PodSpec, PodStatus
from netloom.api.meta import ObjectMeta
from netloom.kernel.endpoints.endpoint import Endpoint, WiringFailed, device_of
from netloom.runtime.errors import NotFound, Unavailable
from netloom_reconcilers.node.endpoints.vanished import PATIENCE_SECONDS, Vanished
from tests.endpoints.world import Node

RUNS = Pod(
    metadata=ObjectMeta(uid="u1"),
    spec=PodSpec(node_name="n1"),
    status=PodStatus(phase="Running", pod_ips=(PodIP("10.0.0.2"),)),
)


class World:
    def __init__(self, folder: Path) -> None:
        self.node = Node(folder)
        self.answer: Pod | Exception = RUNS
        self.asked: list[str] = []
        self.missing: list[str] = [device_of("c1", "eth0")]
        self.now = 0.0
        self.meanwhile: Callable[[], None] = lambda: None
        api: Any = self
        self.told: list[str] = []
        self.vanished = Vanished(
            api,
            "n1",
            self.node.attachments,
            self._missing,
            lambda: self.now,
            told=lambda pod, endpoint: self.told.append(f"{endpoint} {pod.metadata.uid}"),
        )

    def _missing(self) -> list[Endpoint]:
        return [*filter(None, map(self.node.attachments.endpoints.get, self.missing))]

    async def get(self, res: object, name: str, namespace: str) -> Pod:
        self.asked.append(f"{namespace}/{name}")
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def look(self) -> set[tuple[str, str]]:
        """After long enough; what is left."""
        await self.vanished.look()
        self.now += PATIENCE_SECONDS
        await self.vanished.look()
        return self.node.wired()


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.node.add("c1", "web", uid="u1")
    await made.node.add("c2", "other")
    return made


BOTH = {("c1", "eth0"), ("c2", "eth0")}


@pytest.mark.parametrize(
    "answer",
    [
        NotFound(404, "NotFound", "no such pod"),
        Pod(spec=PodSpec(node_name="n2"), status=PodStatus(phase="Running")),
        Pod(spec=PodSpec(node_name="n1"), status=PodStatus(phase="Succeeded")),
        Pod(spec=PodSpec(node_name="n1"), status=PodStatus(phase="Running", pod_ips=(PodIP("10.0.0.9"),))),
        Pod(metadata=ObjectMeta(uid="u2"), spec=PodSpec(node_name="n1"), status=PodStatus(phase="Pending")),
    ],
)
async def test_whose_pod_is_over_gives_back(world: World, answer: Any) -> None:
    world.answer = answer
    assert await world.look() == {("c2", "eth0")}
    assert list(world.node.held()) == ["default/other c2 eth0"]
    assert world.asked == ["default/web"]
    assert world.vanished.given_back == 1
    assert await world.node.ask("DEL", "c1", "web") == {}, "the runtime's word comes after all"


@pytest.mark.parametrize(
    "answer",
    [
        RUNS,
        Pod(metadata=RUNS.metadata, spec=RUNS.spec, status=PodStatus(phase="Pending")),
        Unavailable(0, "Unavailable", "no answer"),
    ],
)
async def test_whose_pod_may_run_keeps_all(world: World, answer: Any) -> None:
    world.answer = answer
    assert await world.look() == BOTH


async def test_nobody_is_asked_about_before_a_minute_or_after_it_is_back(world: World) -> None:
    world.answer = NotFound(404, "NotFound", "no such pod")
    await world.vanished.look()
    world.now += PATIENCE_SECONDS - 1
    await world.vanished.look()
    world.missing = []
    world.now += 2
    await world.vanished.look()
    world.missing = [device_of("c1", "eth0")]
    await world.vanished.look()
    assert world.asked == []
    assert world.node.wired() == BOTH


async def test_what_would_not_go_is_tried_again(world: World) -> None:
    world.answer = NotFound(404, "NotFound", "no such pod")
    world.node.wiring.fails["unwire"] = WiringFailed("lost", "no answer.")
    assert await world.look() == BOTH
    world.node.wiring.fails.clear()
    assert await world.look() == {("c2", "eth0")}


async def test_what_came_back_meanwhile_stays(world: World) -> None:
    world.answer = NotFound(404, "NotFound", "no such pod")
    world.meanwhile = world.missing.clear
    assert await world.look() == BOTH
    assert world.asked == ["default/web"]


async def test_the_pods_addresses_say_nothing_of_its_further_interfaces(world: World) -> None:
    await world.node.add("c1", "web", ifname="net1", name="blue")
    world.missing = [device_of("c1", "net1")]
    world.answer = RUNS
    assert await world.look() == BOTH | {("c1", "net1")}


async def test_a_static_pod_is_known_by_the_uid_that_its_kubelet_gave_it(world: World) -> None:
    mirror = ObjectMeta(uid="of-the-mirror", annotations={STATIC[0]: "u1"})
    world.answer = Pod(metadata=mirror, spec=RUNS.spec, status=RUNS.status)
    assert await world.look() == BOTH


async def test_a_pod_that_runs_on_without_its_device_is_told_of_once(world: World) -> None:
    """Nobody else tells: runtimes do not ask for CHECK."""
    for _ in range(3):
        await world.look()
    assert world.told == ["eth0 of default/web u1"]
    world.missing = []
    await world.look()
    world.missing = [device_of("c1", "eth0")]
    await world.look()
    assert len(world.told) == 2, "it was made anew meanwhile, and deleted again"
