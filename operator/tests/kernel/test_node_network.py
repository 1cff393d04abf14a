"""The node's devices, addresses and routes are followed by the kernel's events: read once, and never looked for."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from netloom.kernel.mesh.node_network_part import NodeNetworkKeeper, read_node_network
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Lab, Namespace


class Followed:
    """A node whose surroundings somebody follows. told: how often they were said to be others."""

    def __init__(self, node: Namespace) -> None:
        self.node = node
        self.told = 0
        self.keeper = NodeNetworkKeeper(self._changed, resync_seconds=None)

    def _changed(self) -> None:
        self.told += 1

    async def names(self) -> set[str]:
        around = await self.keeper.around()
        return {each.name for each in around.devices.values()}


@pytest.fixture
async def followed(node: Namespace) -> AsyncIterator[Followed]:
    made = Followed(node)
    async with contextlib.AsyncExitStack() as stack:
        await made.keeper.open()
        stack.push_async_callback(made.keeper.close)
        await stack.enter_async_context(running(made.keeper))
        yield made


async def test_who_asks_for_nothing_follows_nothing(followed: Followed) -> None:
    followed.node.ip("link add bridge0 type bridge")
    assert (followed.keeper.port, followed.keeper.part.readings, followed.told) == (0, 0, 0)


async def test_a_device_that_comes_goes_or_is_renamed_is_told(followed: Followed, lab: Lab) -> None:
    node, far = followed.node, lab.namespace("far")
    before = await followed.names()
    steps = (
        ("link add wire0 type veth peer name wire1", before | {"wire0", "wire1"}),
        ("link set wire0 name other0", before | {"other0", "wire1"}),
        (f"link set wire1 netns {far.name}", before | {"other0"}),
        ("link delete other0", before),
    )
    for command, names in steps:
        told = followed.told
        node.ip(command)
        await eventually(lambda told=told: followed.told > told)  # type: ignore[misc]
        await eventually(lambda names=names: _names(followed) == names)  # type: ignore[misc]
    assert followed.keeper.part.readings == 1


async def test_addresses_and_default_routes_are_told_and_what_changes_nothing_is_not(
    followed: Followed, lab: Lab
) -> None:
    node = followed.node
    lab.wire(node, "wire0", lab.namespace("far"), "wire1")
    await followed.keeper.around()
    steps = (
        "address add 192.0.2.5/24 dev wire0",
        "route add default via 192.0.2.1",
        "route delete default via 192.0.2.1",
        "address delete 192.0.2.5/24 dev wire0",
    )
    for step in steps:
        node.ip(step)
        there = await read_node_network()
        await eventually(lambda there=there: _known(followed) == (set(there.routes), set(there.addresses)))  # type: ignore[misc]
    told = followed.told
    node.ip("link set wire0 mtu 1400")
    node.ip("link add netloom_x type bridge")
    node.ip("link add last0 type bridge")
    await eventually(lambda: "last0" in _names(followed))
    assert (followed.told, followed.keeper.part.readings) == (told + 1, 1)


async def test_who_leaves_is_told_nothing_any_more(followed: Followed) -> None:
    await followed.keeper.around()
    await followed.keeper.leave()
    followed.node.ip("link add bridge0 type bridge")
    assert "bridge0" in await followed.names()
    assert (followed.told, followed.keeper.part.readings) == (0, 2)


def _names(followed: Followed) -> set[str]:
    known = followed.keeper.part.known
    assert known is not None
    return {each.name for each in known.devices.values()}


def _known(followed: Followed) -> tuple[set[object], set[object]]:
    known = followed.keeper.part.known
    assert known is not None
    return set(known.routes), set(known.addresses)
