"""What an agent says of its machine, absent addresses and connected networks: when it writes, and how often at most."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.errors import ApiError, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.node.mesh.machine import (
    BACK_SECONDS,
    LEFT_SECONDS,
    MOST,
    PAUSE_SECONDS,
    MachineFacts,
    MachineReconciler,
)

Written = tuple[list[str], list[str]]


class Setting:
    """One agent, its object, and a server that takes its writes."""

    def __init__(self) -> None:
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.nodes.put(NetloomNode(metadata=ObjectMeta(name="a", uid="u", resource_version="1")))
        self.machine: MachineFacts | None = MachineFacts()
        self.now = 1000.0
        self.written: list[Written] = []
        self.fails: ApiError | None = None
        self.reconnected = 0
        self.reconciler = self.restart()

    def restart(self) -> MachineReconciler:
        self.reconciler = MachineReconciler("a", self.nodes, self, lambda: self.machine, lambda: self.now)  # type: ignore[arg-type]
        return self.reconciler

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> NetloomNode:
        assert (name, patch["metadata"], options["subresource"]) == ("a", {"name": "a", "uid": "u"}, "status")
        assert options["field_manager"] == "netloom-agent-machine", "which owns no condition"
        if self.fails is not None:
            raise self.fails
        status = patch["status"]
        self.written.append((status.get("absentAddresses", []), status.get("connectedCIDRs", [])))
        node = self.nodes.get("a")
        assert node is not None
        absent, connected = (tuple(each) for each in self.written[-1])
        told = msgspec.structs.replace(node.status, absent_addresses=absent, connected_cidrs=connected)
        meta = msgspec.structs.replace(node.metadata, resource_version=str(len(self.written) + 1))
        return msgspec.structs.replace(node, status=told, metadata=meta)

    def reconnect(self) -> None:
        self.reconnected += 1

    async def are_absent(self, *addresses: str, after: float = 0.0) -> float | None:
        self.now += after
        self.machine = MachineFacts(absent=frozenset(addresses))
        return await self.reconciler.reconcile("a")

    async def is_on(self, *cidrs: str, after: float = 0.0) -> float | None:
        self.now += after
        self.machine = MachineFacts(connected=frozenset(cidrs))
        return await self.reconciler.reconcile("a")

    @property
    def absent(self) -> list[list[str]]:
        return [absent for absent, _ in self.written]

    @property
    def connected(self) -> list[list[str]]:
        return [connected for _, connected in self.written]


@pytest.fixture
def setting() -> Setting:
    return Setting()


# Absent addresses


async def test_connections_are_made_anew_when_an_address_was_lost(setting: Setting) -> None:
    """It may be the one that they come from."""
    await setting.are_absent("203.0.113.1")
    assert setting.reconnected == 0, "it was never there: a gateway translates it"
    for _ in range(2):
        await setting.are_absent("203.0.113.1", "172.16.0.1", after=1)
        assert setting.reconnected == 1
    await setting.are_absent("203.0.113.1", after=1)
    assert setting.reconnected == 1
    await setting.are_absent("203.0.113.1", "172.16.0.1", after=1)
    assert setting.reconnected == 2, "it was back, and went again"


async def test_where_nothing_is_absent_nothing_is_written(setting: Setting) -> None:
    assert await setting.are_absent() is None
    setting.machine = None
    assert await setting.reconciler.reconcile("a") is None
    assert setting.written == []


async def test_what_went_is_told_at_once_and_what_is_back_when_it_has_stayed(setting: Setting) -> None:
    assert await setting.are_absent("10.0.0.9") is None
    assert await setting.are_absent("10.0.0.9", after=500) is None
    assert setting.absent == [["10.0.0.9"]]
    assert await setting.are_absent(after=1) == BACK_SECONDS
    assert await setting.are_absent(after=BACK_SECONDS - 10) == 10
    assert setting.absent == [["10.0.0.9"]]
    assert await setting.are_absent(after=10) is None
    assert setting.absent == [["10.0.0.9"], []]


async def test_an_address_that_comes_and_goes_is_written_once(setting: Setting) -> None:
    for _ in range(100):
        await setting.are_absent("10.0.0.9", after=20)
        await setting.are_absent(after=20)
    assert setting.absent == [["10.0.0.9"]]


async def test_one_does_not_wait_for_the_other(setting: Setting) -> None:
    await setting.are_absent("10.0.0.9")
    await setting.are_absent("10.0.0.7")
    assert setting.absent == [["10.0.0.9"], ["10.0.0.7", "10.0.0.9"]]
    await setting.are_absent("10.0.0.7", after=BACK_SECONDS)
    assert setting.absent[2:] == [["10.0.0.7"]]


async def test_an_object_that_is_gone_is_no_error(setting: Setting) -> None:
    setting.fails = NotFound(404, "NotFound", "it is gone")
    assert await setting.are_absent("10.0.0.9") is None
    setting.fails = None
    await setting.are_absent("10.0.0.9")
    assert setting.absent == [["10.0.0.9"]]


# Connected networks


async def test_a_restart_writes_nothing_where_nothing_changed(setting: Setting) -> None:
    assert await setting.is_on("192.168.0.0/24", "172.17.0.0/16") is None
    setting.restart()
    assert await setting.is_on("172.17.0.0/16", "192.168.0.0/24", after=5) is None
    assert setting.connected == [["172.17.0.0/16", "192.168.0.0/24"]]


async def test_what_could_not_be_told_waits_for_the_controller_alone(setting: Setting) -> None:
    setting.fails = ApiError(503, "ServiceUnavailable", "not now")
    for _ in range(2):
        with pytest.raises(ApiError):
            await setting.is_on("192.168.0.0/24")
    setting.fails = None
    await setting.is_on("192.168.0.0/24")
    assert setting.connected == [["192.168.0.0/24"]]


async def test_a_network_that_went_is_told_when_it_has_stayed_away(setting: Setting) -> None:
    await setting.is_on("192.168.0.0/24", "10.9.0.0/24")
    assert await setting.is_on("192.168.0.0/24", after=100) == LEFT_SECONDS
    assert await setting.is_on("192.168.0.0/24", after=LEFT_SECONDS - 1) == 1
    assert len(setting.written) == 1
    assert await setting.is_on("192.168.0.0/24", after=1) is None
    assert setting.connected[1:] == [["192.168.0.0/24"]]


async def test_bridges_that_come_and_go_all_day_are_written_once_each(setting: Setting) -> None:
    """As a machine that builds with Docker makes them: the next one free of a few."""
    for number in range(1000):
        await setting.is_on("192.168.0.0/24", f"172.{18 + number % 5}.0.0/16", after=30)
    assert len(setting.written) <= 5
    assert len(setting.connected[-1]) == 6


async def test_however_many_networks_are_new_they_are_written_once_a_minute(setting: Setting) -> None:
    await setting.is_on("192.168.0.0/24")
    assert await setting.is_on("192.168.0.0/24", "10.1.0.0/24", after=10) == PAUSE_SECONDS - 10
    await setting.is_on("192.168.0.0/24", "10.1.0.0/24", "10.2.0.0/24", after=10)
    assert len(setting.written) == 1
    await setting.is_on("192.168.0.0/24", "10.1.0.0/24", "10.2.0.0/24", after=PAUSE_SECONDS - 20)
    assert setting.connected[1:] == [["10.1.0.0/24", "10.2.0.0/24", "192.168.0.0/24"]]


async def test_an_absent_address_does_not_wait_for_networks(setting: Setting) -> None:
    await setting.is_on("192.168.0.0/24")
    setting.machine = MachineFacts(frozenset({"10.0.0.9"}), frozenset({"192.168.0.0/24"}))
    await setting.reconciler.reconcile("a")
    assert setting.written[1:] == [(["10.0.0.9"], ["192.168.0.0/24"])]


async def test_of_a_thousand_networks_the_largest_are_told_and_the_small_may_change(setting: Setting) -> None:
    large = [f"10.{number}.0.0/16" for number in range(MOST)]
    await setting.is_on(*large, *(f"192.168.{number}.0/24" for number in range(200)))
    await setting.is_on(*large, "192.168.201.0/24", after=2 * LEFT_SECONDS)
    assert setting.connected == [sorted(large)]
