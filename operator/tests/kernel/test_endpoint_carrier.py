"""An ADD returns when both ends can send; while one waits for that, others are served."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from netloom.kernel.endpoints import carrier
from netloom.kernel.endpoints import keeper as keeping
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, WiringFailed
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.netlink.sockets import CommandSocket
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import endpoints_of, forwarding_node, pod, shown


class Carrier:
    """The kernel's, but for one device, which has none until it is `there`. asked: how often that was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        self.device, self.there, self.asked = device, False, 0
        self._silent = carrier.silent
        monkeypatch.setattr(carrier, "silent", self.silent)

    def silent(self, commands: CommandSocket, within: CommandSocket, endpoint: Endpoint) -> str:
        if endpoint.device != self.device:
            return self._silent(commands, within, endpoint)
        self.asked += 1
        return "" if self.there else self.device


@pytest.fixture
def node(lab: Lab) -> Namespace:
    return forwarding_node(lab)


@pytest.fixture
async def keeper(node: Namespace) -> AsyncIterator[EndpointsKeeper]:
    async with endpoints_of(node) as made, running(made):
        await made.apply(Endpoints())
        await made.prune()
        yield made


async def test_thirty_pods_at_once_do_not_wait_for_one_that_gets_no_carrier(
    keeper: EndpointsKeeper, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, *others = (pod(lab, number, f"10.1.0.{number}") for number in range(1, 31))
    link = Carrier(monkeypatch, late.endpoint.device)
    waiting = asyncio.create_task(late.add(keeper))
    await eventually(lambda: link.asked > 1)
    made = await asyncio.gather(*(each.add(keeper) for each in others))
    assert len({wired.device for wired in made}) == 29
    assert not waiting.done()
    assert len(keeper._part.desired) == 30
    link.there = True
    assert (await waiting).device == late.endpoint.device
    assert await late.check(keeper) == []


async def test_where_none_comes_nothing_is_left(
    keeper: EndpointsKeeper, node: Namespace, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "CARRIER_SECONDS", 0.05)
    one = pod(lab, 1)
    link = Carrier(monkeypatch, one.endpoint.device)
    with pytest.raises(WiringFailed, match=r"is up, and cannot send after 0\.05 s: it has no carrier") as caught:
        await one.add(keeper)
    assert caught.value.reason == "refused"
    await eventually(lambda: shown(node) == "" and not keeper.report.leaving)
    assert "eth0" not in one.place.ip("link")
    link.there = True
    await one.add(keeper)
    assert await one.check(keeper) == []


async def test_who_is_cancelled_while_it_waits_leaves_nothing(
    keeper: EndpointsKeeper, node: Namespace, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pod(lab, 1)
    link = Carrier(monkeypatch, one.endpoint.device)
    waiting = asyncio.create_task(one.add(keeper))
    await eventually(lambda: link.asked > 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(keeper._part.desired) == 0
    await eventually(lambda: shown(node) == "" and keeper.report.in_sync)
    link.there = True
    await one.add(keeper)
