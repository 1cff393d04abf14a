"""The loop that every role runs on."""

import asyncio
import ctypes
from types import SimpleNamespace

import pytest

from netloom.runtime import loop


async def _answer() -> int:
    return 42


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch):
    options: list[tuple[int, int]] = []
    trims = 0

    def trim(_left: int) -> int:
        nonlocal trims
        trims += 1
        return 1

    async def until_trimmed() -> int:
        before = trims
        while trims < before + 2:
            await asyncio.sleep(0.01)
        return 42

    libc = SimpleNamespace(mallopt=lambda *option: options.append(option), malloc_trim=trim)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: libc)
    monkeypatch.setattr(loop, "TRIM_SECONDS", 0.01)
    assert loop.run(asyncio.wait_for(until_trimmed(), 20)) == 42, "again and again"
    assert options == list(loop.MALLOC_OPTIONS)


def test_another_c_library_does_no_harm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert loop.run(_answer()) == 42


async def _fail_on_a_connection(failure: Exception, *, closed: bool) -> None:
    """As TLS does that cannot write."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    if closed:
        transport.abort()
    loop.call_exception_handler({"message": "Fatal error", "exception": failure, "transport": transport})
    transport.abort()
    server.close()


@pytest.mark.parametrize(
    ("failure", "closed", "told"),
    [
        (RuntimeError("the handler is closed"), True, []),
        (RuntimeError("the handler is closed"), False, ["Fatal error"]),
        (ValueError("of a protocol"), True, ["Fatal error"]),
    ],
)
def test_what_cannot_be_written_to_a_closed_connection_is_not_told(
    failure: Exception, closed: bool, told: list[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    loop.run(_fail_on_a_connection(failure, closed=closed))
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == told


def test_a_task_that_nobody_waits_for_is_told_of(caplog: pytest.LogCaptureFixture):
    async def fail() -> None:
        raise ValueError("its own")

    async def leave() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    loop.run(leave())
    assert "Task exception was never retrieved" in caplog.text
