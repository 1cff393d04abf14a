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
