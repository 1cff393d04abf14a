"""Pods that come, go, fail and are forgotten in any order: nothing is ever given twice, and nothing is left."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netloom.kernel.endpoints.endpoint import FoundEndpoint, WiringFailed
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint, Unwritable
from tests.endpoints.world import Node, valid

LOST = WiringFailed("lost", "the kernel did not answer.")
REFUSED = WiringFailed("refused", "the kernel said no.")
CONTAINERS, PODS = ("c0", "c1", "c2", "c3", "c4"), ("p0", "p1", "p2")

Step = tuple[str, str, str, str]

STEPS = st.tuples(
    st.sampled_from(("add", "add", "add", "delete", "delete", "collect", "restart", "replay", "disk")),
    st.sampled_from(CONTAINERS),
    st.sampled_from(PODS),
    st.sampled_from(("", "", "refused", "lost", "hangs up", "hangs up twice", "unheard")),
)


class World:
    """A node through several lives of its agent, and what the kernel keeps between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = Node(folder, "10.0.0.0/28")
        self.full = False
        self.made: dict[str, str] = {}
        """By container, the pod that its runtime made it for: an id is never used for two."""

    async def take(self, step: Step) -> None:
        what, container, pod, fault = step
        pod = self.made.setdefault(container, pod) if what == "add" else self.made.get(container, pod)
        doing: dict[str, Callable[[str, str, str], Coroutine[Any, Any, None]]] = {
            "add": self.add,
            "delete": self.delete,
            "collect": self.collect,
            "restart": self.restart,
            "replay": self.replay,
            "disk": self.fill_disk,
        }
        await doing[what](container, pod, fault)
        self.check()

    async def add(self, container: str, pod: str, fault: str) -> None:
        node = self.node
        before, recorded = (dict(node.held()), node.wired()), self.recorded()
        node.wiring.fails = {"wire": REFUSED if fault == "refused" else LOST} if fault in ("refused", "lost") else {}
        if fault.startswith("hangs up"):
            await self._hang_up(container, pod, twice=fault.endswith("twice"))
        else:
            answer = await node.answer("ADD", container, pod)
            if fault == "unheard" and answer.unheard is not None:
                await answer.unheard()
                return
            if answer.status == 0:
                return
        node.wiring.fails = {}
        if not recorded and not self.full:  # else an older deletion was made up for, or is yet to be
            assert (node.held(), node.wired()) == before or (container, "eth0") in before[1], "all or nothing"

    async def _hang_up(self, container: str, pod: str, *, twice: bool) -> None:
        node = self.node
        node.wiring.hold = asyncio.Event()
        task = asyncio.create_task(node.answer("ADD", container, pod))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        if twice:
            await asyncio.sleep(0)
            task.cancel()
        node.wiring.hold.set()
        await asyncio.wait([task])
        node.wiring.hold = None

    async def delete(self, container: str, pod: str, fault: str) -> None:
        self.node.wiring.fails = {"unwire": LOST} if fault in ("refused", "lost") else {}
        answer = await self.node.answer("DEL", container, pod)
        assert answer.status == 0, "no pod's end waits"
        self.node.wiring.fails = {}
        if not fault and not self.full:
            assert (container, "eth0") not in self.node.wired()
            assert not any(f" {container} " in each for each in self.node.held())

    async def collect(self, container: str, pod: str, fault: str) -> None:
        keep = [key for key in self.node.wired() if key[0] <= container]
        assert (await self.node.answer("GC", **valid(*keep))).status == 0
        assert self.node.wired() == set(keep)

    async def restart(self, container: str, pod: str, fault: str) -> None:
        """The kernel keeps what was wired."""
        old = self.node
        old.service.checkpoint.close()
        self.node = Node(self.folder, "10.0.0.0/28")
        self.node.attachments.restore(
            FoundEndpoint(
                device=each.device,
                container=each.container,
                interface=each.interface,
                addresses=each.addresses,
                mtu=1450,
            )
            for each in old.attachments.endpoints
        )
        self.node.attachments.forget_others()
        await self.replay(container, pod, fault)

    async def replay(self, container: str, pod: str, fault: str) -> None:
        await self.node.deletions.replay()
        if not self.full:
            assert not self.recorded()

    async def fill_disk(self, container: str, pod: str, fault: str) -> None:
        self.full = not self.full
        if not self.full:
            self.node.service.check()

    def check(self) -> None:
        node = self.node
        held = {(owner.container, owner.interface): holding for owner, holding in node.service.allocator.held()}
        addresses = [address for holding in held.values() for address in holding.addresses]
        assert len(addresses) == len(set(addresses)), "one address, one owner"
        wired = {(each.container, each.interface): each.addresses for each in node.attachments.endpoints}
        for key, given_ in wired.items():
            assert held[key].addresses == given_, "who has an interface has its address"
        recorded = self.recorded()
        for key in held.keys() - wired.keys():
            assert ":".join(key) in recorded, f"{key} has an address for nothing"
        assert not node.attachments.adding

    def recorded(self) -> set[str]:
        """Deletions that are to be made up for."""
        return set(self.node.deletions.names()) if self.node.deletions.directory.exists() else set()

    async def end(self) -> None:
        """Each runtime deletes what it made, once more."""
        if self.full:
            await self.fill_disk("", "", "")
        for container, pod in self.made.items():
            await self.delete(container, pod, "")
        await self.replay("", "", "")
        assert self.node.held() == {}
        assert self.node.wired() == set()
        self.node.service.checkpoint.close()


@pytest.fixture
def append(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """The disk of the world that is in the list may be full."""
    worlds: list[World] = []
    write = Checkpoint.append

    def write_if_there_is_room(self: Checkpoint, records: Any) -> None:
        if worlds and worlds[0].full and records:
            raise Unwritable("No space left on device")
        write(self, records)

    monkeypatch.setattr(Checkpoint, "append", write_if_there_is_room)
    return worlds


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
def test_nothing_is_given_twice_and_nothing_is_left(append: list[World], steps: list[Step]) -> None:
    async def live(folder: Path) -> None:
        world = World(folder)
        append[:] = [world]
        for step in steps:
            await world.take(step)
        await world.end()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder)))
    append.clear()
