"""What the API server's addresses are, and when they are told: first of all, and again when they are others."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from netloom.cidr import Address, format_address
from netloom_reconcilers.node.mesh import api_addresses
from netloom_reconcilers.node.mesh.api_addresses import ApiAddresses


class Setting:
    """An agent's connection, and a resolver."""

    def __init__(self) -> None:
        self.reached_by = ("api.example.org", "the API server")
        self.resolved: list[str] = []
        self.told: list[dict[str, str]] = []
        self.refuses = 0
        self.component = ApiAddresses(self, self.found, self.sleep)  # type: ignore[arg-type]
        self.slept: list[float] = []
        self.steps = asyncio.Semaphore(0)
        self.idle = asyncio.Event()

    async def found(self, servers: Mapping[Address, str]) -> None:
        if self.refuses:
            self.refuses -= 1
            raise OSError("the kernel is busy")
        self.told.append({format_address(address): what for address, what in servers.items()})

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.idle.set()
        await self.steps.acquire()

    async def lookup(self, host: str, port: None) -> list[Any]:
        assert host == self.reached_by[0]
        if not self.resolved:
            raise socket.gaierror("nobody knows")
        return [(0, 0, 0, "", (text, 0)) for text in self.resolved]

    async def step(self) -> None:
        """One round more."""
        self.idle.clear()
        self.steps.release()
        await asyncio.wait_for(self.idle.wait(), 5)


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Setting()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", made.lookup, raising=False)
    return made


async def started(setting: Setting) -> asyncio.Task[None]:
    task = asyncio.create_task(setting.component.run())
    await asyncio.wait_for(setting.idle.wait(), 5)
    return task


@pytest.mark.parametrize("host", ["10.90.0.2", "2001:db8::6"])
async def test_an_address_is_told_once_without_a_question(setting: Setting, host: str) -> None:
    setting.reached_by = (host, "the API server")
    task = await started(setting)
    await setting.step()
    task.cancel()
    assert (setting.told, set(setting.slept)) == ([{host: "the API server"}], {api_addresses.AGAIN_SECONDS})


async def test_a_name_is_looked_up_until_it_is_known_and_then_now_and_again(setting: Setting) -> None:
    task = await started(setting)
    assert setting.told == [{}], "what is known without it is not kept waiting"
    await setting.step()
    assert set(setting.slept) == {api_addresses.UNKNOWN_SECONDS}
    setting.resolved = ["10.90.0.2", "10.90.0.2", "fe80::1%eth0", "2001:db8::6"]
    await setting.step()
    what = "the API server (api.example.org)"
    assert setting.told[1:] == [{"10.90.0.2": what, "2001:db8::6": what}]
    setting.resolved = []
    await setting.step()
    assert len(setting.told) == 2, "nobody answers: they are what they were"
    setting.resolved = ["10.90.0.3"]
    await setting.step()
    assert setting.told[2:] == [{"10.90.0.3": what}]
    task.cancel()


async def test_what_could_not_be_done_is_tried_again(setting: Setting) -> None:
    setting.reached_by, setting.refuses = ("10.90.0.2", "the proxy to the API server"), 1
    task = await started(setting)
    assert setting.told == []
    await setting.step()
    assert (setting.told, setting.slept) == (
        [{"10.90.0.2": "the proxy to the API server"}],
        [api_addresses.UNKNOWN_SECONDS, api_addresses.AGAIN_SECONDS],
    )
    task.cancel()
