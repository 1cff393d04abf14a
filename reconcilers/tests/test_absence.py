"""What an agent says of addresses that its machine has not: when it writes, and how often at most."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.runtime.errors import NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.node.mesh.absence import BACK_SECONDS, AbsenceReconciler


class Setting:
    """One agent, its object, and a server that takes its writes."""

    def __init__(self) -> None:
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.nodes.put(NetloomNode(metadata=ObjectMeta(name="a", uid="u", resource_version="1")))
        self.absent: frozenset[str] | None = frozenset()
        self.now = 1000.0
        self.written: list[list[str]] = []
        self.gone = False
        self.reconciler = AbsenceReconciler("a", self.nodes, self, lambda: self.absent, lambda: self.now)  # type: ignore[arg-type]

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> NetloomNode:
        assert (name, patch["metadata"], options["subresource"]) == ("a", {"name": "a", "uid": "u"}, "status")
        assert options["field_manager"] == "netloom-agent-addresses", "which owns no condition"
        if self.gone:
            raise NotFound(404, "NotFound", "it is gone")
        self.written.append(patch["status"]["absentAddresses"])
        node = self.nodes.get("a")
        assert node is not None
        status = msgspec.structs.replace(node.status, absent_addresses=tuple(self.written[-1]))
        meta = msgspec.structs.replace(node.metadata, resource_version=str(len(self.written) + 1))
        return msgspec.structs.replace(node, status=status, metadata=meta)

    async def are_absent(self, *addresses: str, after: float = 0.0) -> float | None:
        self.now += after
        self.absent = frozenset(addresses)
        return await self.reconciler.reconcile("a")


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_where_nothing_is_absent_nothing_is_written(setting: Setting) -> None:
    assert await setting.are_absent() is None
    setting.absent = None
    assert await setting.reconciler.reconcile("a") is None
    assert setting.written == []


async def test_what_went_is_told_at_once_and_what_is_back_when_it_has_stayed(setting: Setting) -> None:
    assert await setting.are_absent("10.0.0.9") is None
    assert await setting.are_absent("10.0.0.9", after=500) is None
    assert setting.written == [["10.0.0.9"]]
    assert await setting.are_absent(after=1) == BACK_SECONDS
    assert await setting.are_absent(after=BACK_SECONDS - 10) == 10
    assert setting.written == [["10.0.0.9"]]
    assert await setting.are_absent(after=10) is None
    assert setting.written == [["10.0.0.9"], []]


async def test_an_address_that_comes_and_goes_is_written_once(setting: Setting) -> None:
    for _ in range(100):
        await setting.are_absent("10.0.0.9", after=20)
        await setting.are_absent(after=20)
    assert setting.written == [["10.0.0.9"]]


async def test_one_does_not_wait_for_the_other(setting: Setting) -> None:
    await setting.are_absent("10.0.0.9")
    await setting.are_absent("10.0.0.7")
    assert setting.written == [["10.0.0.9"], ["10.0.0.7", "10.0.0.9"]]
    await setting.are_absent("10.0.0.7", after=BACK_SECONDS)
    assert setting.written[2:] == [["10.0.0.7"]]


async def test_an_object_that_is_gone_is_no_error(setting: Setting) -> None:
    setting.gone = True
    assert await setting.are_absent("10.0.0.9") is None
    setting.gone = False
    await setting.are_absent("10.0.0.9")
    assert setting.written == [["10.0.0.9"]]
