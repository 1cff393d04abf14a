"""An ADD returns when packets pass; while one waits for that, others are served."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from netloom.cidr import format_address
from netloom.kernel.endpoints import keeper as keeping
from netloom.kernel.endpoints import readiness
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
        self._lacking = readiness.lacking
        monkeypatch.setattr(readiness, "lacking", self.lacking)

    def lacking(self, commands: CommandSocket, within: CommandSocket, endpoint: Endpoint) -> str:
        if endpoint.device != self.device:
            return self._lacking(commands, within, endpoint)
        self.asked += 1
        return "" if self.there else f"{self.device} has no carrier"


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
    monkeypatch.setattr(keeping, "READY_SECONDS", 0.05)
    one = pod(lab, 1)
    link = Carrier(monkeypatch, one.endpoint.device)
    with pytest.raises(WiringFailed, match=r"after 0\.05 s netloom_p\w+ has no carrier") as caught:
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


async def test_an_add_waits_for_the_local_route_of_an_ipv6_address(
    keeper: EndpointsKeeper, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel makes it in a work item of its own; here somebody has taken it away before it is asked for."""
    one = pod(lab, 1)
    address = next(text for each in one.endpoint.addresses if ":" in (text := format_address(each)))
    lacked: list[str] = []
    ask = readiness.lacking

    def lacking(commands: CommandSocket, within: CommandSocket, endpoint: Endpoint) -> str:
        if not lacked:
            while f"local {address} " not in one.place.ip("-6 route show table local"):
                pass
            one.place.ip(f"-6 route del local {address} dev eth0 table local")
        lacked.append(ask(commands, within, endpoint))
        return lacked[-1]

    monkeypatch.setattr(readiness, "lacking", lacking)
    waiting = asyncio.create_task(one.add(keeper))
    await eventually(lambda: len(lacked) > 1 or waiting.done())
    assert not waiting.done()
    one.place.ip(f"-6 route add local {address} dev eth0 table local")
    await waiting
    assert set(lacked[:-1]) == {f"{address} is on eth0, and has no local route in the pod"}
    assert await one.check(keeper) == []
