"""The loop that every role runs on."""

import ctypes
from types import SimpleNamespace

import pytest

from netloom.runtime import loop


async def _answer() -> int:
    return 42


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch):
    options: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda *option: options.append(option), malloc_trim=lambda _left: 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: libc)
    assert loop.run(_answer()) == 42
    assert options == list(loop.MALLOC_OPTIONS)


def test_another_c_library_does_no_harm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert loop.run(_answer()) == 42
