"""The tunnels on Debian's kernel, which has Geneve: the tests of `e2e/guest`, in a virtual machine that boots once."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guest.reporting import RESULT
from netloom_e2e.lab import wait_for
from netloom_e2e.namespaces import environment
from netloom_e2e.virtual_machine import NICENESS, TREE, VirtualMachine, VirtualMachineError, kernel, newer_kernel

GUEST = TREE / "e2e" / "guest"
CAP_SYS_NICE = 23
"""linux/capability.h."""

SECONDS = 1200.0
"""It takes 2 minutes on two processors that have nothing else to do, and 6 where they have."""

UNUSED = ("cacheprovider", "xdist", "xdist.looponfail", "hypothesispytest")
"""Plugins of pytest that take longer to load than the tests to be collected, or that a guest has not got."""

PYTEST = [sys.executable, "-m", "pytest", "-q", *(f"-pno:{plugin}" for plugin in UNUSED), "--color=no"]

pytestmark = pytest.mark.timeout(SECONDS + 120)


def cases() -> list[str]:
    """Of the tests in the guest, as pytest names them. What is compiled meanwhile is there in the guest, too, where
    compiling it would take half a minute."""
    command = [*PYTEST, "--collect-only", str(GUEST)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=TREE, env=environment(), timeout=60, check=False)
    found = [line.partition("::")[2] for line in told.stdout.splitlines() if "::" in line]
    assert found, told.stdout + told.stderr
    return found


class Outcome:
    """What the guest said."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output
        lines = [line.removeprefix(RESULT) for line in output.splitlines() if line.startswith(RESULT)]
        self.results: list[dict[str, Any]] = [json.loads(line) for line in lines]


def describe(line: str) -> str:
    """A line of the guest's output, for people who wait."""
    return re.sub(r'.*"test": "(.*?)", "outcome": "(.*?)".*', r"\2: \1", line)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    machine = VirtualMachine()
    title = f"Testing the tunnels on Linux {machine.kernel.version} under QEMU (2 minutes)"
    return Outcome(*machine.run([*PYTEST, str(GUEST)], seconds=SECONDS, title=title, describe=describe))


@pytest.mark.parametrize("case", cases())
def test_on_debians_kernel(outcome: Outcome, case: str) -> None:
    found = [result for result in outcome.results if result["test"] == case]
    assert found, f"it was not run; the guest's output:\n{outcome.output[-5000:]}"
    assert found[0]["outcome"] == "passed", found[0]["text"]


def test_the_guest_passed_as_a_whole(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.output[-5000:]


def test_the_prefilter_on_debians_next_kernel() -> None:
    """Where the verifier is another one. Without the nodes that the other tests share, which take long to make."""
    machine = VirtualMachine(newer_kernel())
    assert tuple(int(each) for each in machine.kernel.version.split(".")[:2]) >= (6, 12), machine.kernel.version
    title = f"Testing the prefilter on Linux {machine.kernel.version} under QEMU (half a minute)"
    command = [*PYTEST, "--noconftest", str(GUEST / "test_prefilter.py")]
    status, output = machine.run(command, seconds=SECONDS, title=title, describe=describe)
    assert status == 0, output[-5000:]


def machines(owner: int) -> set[str]:
    """Process ids of QEMU, of guests with our kernel that this process has started: there may be others."""
    return set(Path(f"/proc/{owner}/task/{owner}/children").read_text().split()) & all_machines()


def all_machines() -> set[str]:
    """The same of whoever has started one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(kernel().image) in path.read_text().split("\0"):
                found.add(path.parent.name)
        except OSError:
            continue
    return found


def may_come_first() -> bool:
    """With CAP_SYS_NICE, which a container may lack."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_NICE & 1)


def comes_first(pid: str) -> bool:
    """Before what runs beside it: as a process and, where the kernel has groups of them by sessions, as a group."""
    group = Path(f"/proc/{pid}/autogroup")
    grouped = not group.exists() or group.read_text().endswith(f" nice {NICENESS}\n")
    return grouped and os.getpriority(os.PRIO_PROCESS, int(pid)) == NICENESS


def test_a_guest_that_is_not_done_in_time_is_ended() -> None:
    with pytest.raises(VirtualMachineError, match="was not done in time"):
        VirtualMachine().run(["sleep", "1000"], seconds=2)
    assert not machines(os.getpid())


def test_a_guest_ends_with_the_process_that_started_it() -> None:
    command = [sys.executable, "-m", "netloom_e2e.virtual_machine", "sleep", "1000"]
    environment = os.environ | {"PYTHONPATH": str(TREE / "e2e")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as owner:
        try:
            wait_for("the guest to start", lambda: bool(machines(owner.pid)), deadline=60)
            started = machines(owner.pid)
            assert not may_come_first() or all(map(comes_first, started))
        finally:
            owner.kill()
    deadline = time.monotonic() + 10
    while started & all_machines() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not started & all_machines()
