"""The plugin as a program: it runs on any host, is as hard to misuse as the compiler makes it, and starts at once."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from netloom_e2e import cni_plugin
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.namespaces import run
from netloom_e2e.scripted_agent import ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

MOST_BYTES = 64 << 10


def elf(plugin: Plugin, *options: str) -> str:
    return run("readelf", "--wide", *options, str(plugin.program))


def test_it_is_static_and_small(plugin: Plugin) -> None:
    assert "INTERP" not in elf(plugin, "--program-headers")
    assert "NEEDED" not in elf(plugin, "--dynamic")
    assert plugin.program.stat().st_size < MOST_BYTES


def test_it_runs_where_there_is_nothing_else(plugin: Plugin, folder: Path) -> None:
    shutil.copy(plugin.program, folder / "netloom-cni")
    done = subprocess.run(
        ["/netloom-cni"],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=lambda: os.chroot(folder),
    )
    assert (done.returncode, b"supportedVersions" in done.stdout) == (0, True)


def test_it_is_hardened(plugin: Plugin) -> None:
    """Its addresses are random, what is relocated is read-only afterwards, the stack is no code and nothing is both."""
    headers = elf(plugin, "--program-headers")
    assert "Elf file type is DYN" in headers
    assert "GNU_RELRO" in headers
    assert re.search(r"GNU_STACK.* RW ", headers)
    assert not re.search(r"LOAD.* RWE ", headers)
    assert re.search(r"FLAGS_1.*NOW.*PIE", elf(plugin, "--dynamic"))


def test_the_same_source_gives_the_same_bytes(plugin: Plugin, tmp_path: Path) -> None:
    """Wherever it lies, whoever builds it, and whenever."""
    copy = tmp_path / "elsewhere" / "cni"
    shutil.copytree(cni_plugin.SOURCE, copy)
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    run("make", "-C", str(copy), f"OUT={tmp_path / 'again'}")
    run("make", "--makefile", str(copy / "Makefile"), f"OUT={tmp_path / 'from-afar'}")
    for again in ("again", "from-afar"):
        assert (tmp_path / again).read_bytes() == plugin.program.read_bytes()


def test_gcc_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    sources = [str(path) for path in sorted(cni_plugin.SOURCE.glob("*.c"))]
    analyzed = ("-fanalyzer", "-O2", "-Wall", "-Wextra", "-Werror")
    run("gcc", "-std=c11", *analyzed, "-o", str(tmp_path / "analyzed"), *sources, timeout=120)


def calls(plugin: Plugin, variables: dict[str, str], config: bytes, folder: Path) -> list[str]:
    """Names of the system calls of one call of the plugin."""
    trace = folder / "trace"
    assert plugin.call(variables, config, before=("strace", "-f", "-qq", "-o", str(trace))).status == 0
    return [line.split()[1].partition("(")[0] for line in trace.read_text().splitlines()]


@pytest.mark.parametrize(("command", "most"), [("VERSION", 13), ("ADD", 29), ("DEL", 26)])
def test_what_a_call_costs(
    plugin: Plugin,
    agent: Agents,
    folder: Path,
    variables: dict[str, str],
    config: bytes,
    command: str,
    most: int,
) -> None:
    with agent(answering(0, b"{}")):
        made = calls(plugin, {"COMMAND": command, **variables}, config, folder)
    assert len(made) <= most, made
    assert not {"mmap", "brk", "clone", "fork"} & set(made)
