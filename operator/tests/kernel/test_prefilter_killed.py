"""An agent is killed at any of its calls to the kernel while it exchanges program and entries: what was dropped is
dropped all the time, and the next agent finds its way, and leaves nothing over."""

import asyncio
import contextlib
import itertools
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.kernel.prefilter import bpf, compiler, tries
from netloom.kernel.prefilter.compiler import Compiled
from netloom.kernel.prefilter.prefiltering import Prefiltering
from tests.kernel.netns import Lab, Namespace
from tests.kernel.prefilters import IPV4, Filtered, Receiver, ethernet, ipv4, lives, mounted_bpffs, rules, wanted

BAD, WORSE = ethernet(ipv4("198.51.100.1"), IPV4), ethernet(ipv4("203.0.113.1"), IPV4)
FIRST = wanted(rules({"198.51.100.0/24": "a", "2001:db8::/32": "a"}), "wire0")
NEXT = wanted(rules({"198.51.100.0/24": "b", "203.0.113.0/24": "b"}), "wire0")
_SYSTEM_CALL = bpf.bpf


def killed_at(number: int, filtered: Filtered, desired: Prefiltering) -> bool:
    """An agent in a process of its own that does not survive its call of this number; False: it had not as many."""
    pid = os.fork()
    if pid == 0:
        left = itertools.count(number, -1)

        def deadly(command: int, attributes: bpf.Attributes) -> int:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return _SYSTEM_CALL(command, attributes)

        try:
            bpf.bpf = deadly
            asyncio.run(lives(filtered, desired))
        finally:
            os._exit(0)
    _pid, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_an_agent_may_be_killed_at_any_call(
    node: Namespace, lab: Lab, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "_LEAST_REWRITTEN", 0)
    now = compiler.instructions
    another = False

    def instructions(cache: Path) -> Compiled:
        found = now(cache)
        return replace(found, multi_buffer="b700000000000000" + found.multi_buffer) if another else found

    monkeypatch.setattr(compiler, "instructions", instructions)
    far = lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1")
    with (
        mounted_bpffs(tmp_path / "bpf") as bpffs,
        contextlib.closing(Receiver(node, "wire0", far, "wire1")) as receiver,
    ):
        filtered = Filtered(node, bpffs, compiled, contextlib.AsyncExitStack())
        for number in itertools.count(1):
            another = False
            assert asyncio.run(lives(filtered, FIRST)).in_sync
            another = True
            killed = killed_at(number, filtered, NEXT)
            assert not asyncio.run(receiver.passes(BAD)), number
            report = asyncio.run(lives(filtered, NEXT))
            assert report.in_sync, (number, report)
            names = [
                path.rpartition("/")[2] for path in filtered.pins() if "/prefilter-" in path and path.count("/") > 1
            ]
            assert [name for name in names if not name.startswith("entries_v4")] == [
                "counters",
                "names",
                f"program_{report.program}",
                "tries4",
                "tries6",
            ], number
            assert len(names) == 6, (number, names)
            assert not asyncio.run(receiver.passes(WORSE)), number
            if not killed:
                break
        assert number > 20
        asyncio.run(lives(filtered, Prefiltering()))
        assert (filtered.programs(), filtered.pins()) == ({}, ["maps.debug", "progs.debug"])
