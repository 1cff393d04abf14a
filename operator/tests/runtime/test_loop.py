"""What every process of a role carries with it."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from netloom.runtime import loop
from netloom_e2e.certificates import Authority

NEEDLESS = (
    "cryptography",
    "dateutil",
    "kubernetes_asyncio.client.models",
    "multiprocessing",
    "pydantic",
    "rich",
    "urllib3",
)


@pytest.mark.parametrize("role", ["agent", "operator", "webhook"])
def test_a_role_reads_no_certificates_of_the_system_for_a_library_that_it_imports(role: str, tmp_path: Path):
    code = (
        f"import netloom.cli, netloom.roles.{role}, aiohttp.connector, ssl\n"
        "for each in (aiohttp.connector._SSL_CONTEXT_VERIFIED, ssl.create_default_context()):\n"
        "    print(each.cert_store_stats()['x509_ca'])"
    )
    trusted = Authority(tmp_path, "ca").certificate
    environment = {**os.environ, "SSL_CERT_FILE": str(trusted)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["0", "1"], "and a context that somebody makes trusts whom the system trusts"


def test_an_agent_imports_nothing_that_it_never_needs():
    code = (
        "import netloom.cli, netloom.runtime.log, netloom.roles.agent, netloom.runtime.loop, sys; print(*sys.modules)"
    )
    brought = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert {"aiohttp", "netloom.roles.agent"} <= brought
    assert not brought.intersection(NEEDLESS)


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
