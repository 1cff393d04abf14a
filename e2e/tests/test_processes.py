"""State folders: however their owner ends, nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from netloom_e2e import processes
from netloom_e2e.lab import wait_for
from netloom_e2e.namespaces import existing
from netloom_e2e.processes import StateFolder

# Says where its folder is, then waits for its end.
OWNER = """
import sys
from netloom_e2e.processes import StateFolder
folder = StateFolder()
folder.spawn("sleeper", ["sleep", "1000"])
print(folder.path, folder._keeper.pid, flush=True)
sys.stdin.read()
"""


# The same with what lies outside of any folder: a lab with a process in it, and a disk.
OWNER_OF_A_LAB = """
import json, os, subprocess, sys
from pathlib import Path
from netloom_e2e import processes
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.namespaces import NETNS
prefix, disk = f"nly{os.getpid() % 10000}", Path(sys.argv[1])
with Lab(prefix) as lab, processes.mounted(disk, "size=64k"):
    place = lab.add_node("n1")
    sleeper = subprocess.Popen([*place.enter, "sleep", "1000"])
    inside = Path(f"/proc/{sleeper.pid}/ns/net")
    wait_for("it to be in there", lambda: inside.stat().st_ino == (NETNS / place.name).stat().st_ino)
    print(json.dumps([prefix, sleeper.pid, processes.own()._keeper.pid]), flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner_of_a_lab(disk: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], set[str]], int]]:
    """An owner process, what there is of its belongings, and its keeper's pid."""
    disk.mkdir()
    command = [sys.executable, "-c", OWNER_OF_A_LAB, str(disk)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        prefix, sleeper, keeper = json.loads(process.stdout.readline())

        def belongings() -> set[str]:
            found = {name.removeprefix(f"{prefix}-") for name in existing(f"{prefix}-*")}
            found |= {"sleeper"} if processes.is_running(sleeper) else set()
            return found | ({"disk"} if disk.is_mount() else set())

        try:
            yield process, belongings, keeper
        finally:
            process.kill()


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """An owner process, its folder and its keeper's pid."""
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as process:
        assert process.stdout
        path, keeper = process.stdout.readline().split()
        try:
            yield process, Path(path), int(keeper)
        finally:
            process.kill()


def test_close_kills_and_removes() -> None:
    folder = StateFolder()
    sleeper = folder.spawn("sleeper", ["sleep", "1000"])
    assert processes.members(folder.path) == {sleeper.pid: "sleep"}
    folder.close()
    assert sleeper.popen.returncode == -signal.SIGKILL, "it was collected, not left a zombie"
    assert not folder.path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_when_a_signal_ends_the_owner(number: signal.Signals) -> None:
    with owner() as (process, path, keeper):
        (sleeper,) = processes.members(path)
        process.send_signal(number)
        process.wait(10)
        wait_for(f"{path} to vanish", lambda: not path.exists())
        wait_for("the keeper to end", lambda: not processes.is_running(keeper))
    assert not processes.is_running(sleeper)


def test_the_next_start_sweeps_what_neither_owner_nor_keeper_could() -> None:
    with owner() as (living, path_of_living, _), owner() as (dead, path_of_dead, keeper):
        os.kill(keeper, signal.SIGKILL)
        dead.kill()
        dead.wait(10)
        (sleeper,) = processes.members(path_of_dead)

        assert path_of_dead in processes.sweep()

        assert not path_of_dead.exists()
        assert not processes.is_running(sleeper)
        assert living.poll() is None
        assert len(processes.members(path_of_living)) == 1


ALL = {"sw", "n1", "sleeper", "disk"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nor_does_a_lab_or_a_disk(number: signal.Signals, tmp_path: Path) -> None:
    """pytest-xdist kills its workers where Ctrl-C ends a run: no fixture of theirs is torn down."""
    with owner_of_a_lab(tmp_path / "disk") as (process, belongings, keeper):
        assert belongings() == ALL
        process.send_signal(number)
        process.wait(10)
        wait_for("the lab and the disk to vanish", lambda: not belongings())
        wait_for("the keeper to end", lambda: not processes.is_running(keeper))


def test_the_next_lab_of_another_process_sweeps_what_is_left_of_one(tmp_path: Path) -> None:
    with owner_of_a_lab(tmp_path / "dead") as (dead, left, keeper):
        os.kill(keeper, signal.SIGKILL)
        dead.kill()
        dead.wait(10)
        assert left() == ALL
        with owner_of_a_lab(tmp_path / "next") as (_, belongings, _):
            assert not left()
            assert belongings() == ALL, "who lives keeps what is his"


def test_detached_processes_outlive_their_owner_until_they_are_destroyed() -> None:
    folder = StateFolder()
    sleeper = folder.spawn("sleeper", ["sleep", "1000"])
    folder.detach()
    assert folder.path not in processes.sweep()
    assert sleeper.status is None
    processes.destroy(folder.path)
    assert sleeper.popen.wait(1) == -signal.SIGKILL
    assert not folder.path.exists()


def test_a_detached_folder_without_processes_is_stale() -> None:
    """As after a reboot of the machine."""
    folder = StateFolder()
    folder.detach()
    assert folder.path in processes.sweep()


def test_a_name_is_taken_once_and_stays_inside_the_folder() -> None:
    folder = StateFolder("nltest-name")
    try:
        with pytest.raises(FileExistsError):
            StateFolder("nltest-name")
    finally:
        folder.close()
    for name in ("../nltest", "", ".", "a" * 41, "A"):
        with pytest.raises(ValueError, match="not a name"):
            processes.folder_of(name)


def test_the_log_is_kept_over_a_restart_and_its_tail_is_short() -> None:
    folder = StateFolder()
    try:
        for text in ("first", "second"):
            process = folder.spawn("shell", ["sh", "-c", f"seq 100; echo {text}"])
            assert process.popen.wait(10) == 0
        assert process.tail(2) == "100\nsecond"
        assert "first" in process.log.read_text()
    finally:
        folder.close()


def test_a_path_that_is_too_long_for_sockets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match=f"TMPDIR={deep} is too long a path"):
        StateFolder()
    assert not processes.folders()
