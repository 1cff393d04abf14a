"""Processes that leave nothing behind: not after a test that failed, not after Ctrl-C, not after `kill -9`.

All that belongs to one cluster lives in one state folder, and each of its processes carries the folder's name in its
environment. So one function can take a whole cluster away, and everyone calls it: the owner when it stops, a keeper
process when the owner died without doing so, and the next start where keeper and owner died together.

What a process makes beside clusters, as the namespaces of a lab, belongs to a folder of the process itself (`own`).
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e import belongings
from netloom_e2e.namespaces import KEEPER, run

_MARK = "NETLOOM_E2E_STATE"
_NAME = r"[a-z0-9-]{1,40}"  # short, as Unix sockets lie in the folder
_PATH_BYTES = 107 - len("/etcd-peer.sock")
"""Of a folder: the kernel takes no longer path of a Unix socket in it."""
_KILL_SECONDS = 20.0
_PROCESS = "process_"
"""How the names of processes' own folders begin, as no name of a cluster can."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running program, its output in `log`."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.popen.poll()

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead (and a port of its is free)."""
        self.popen.kill()
        self.popen.wait(_KILL_SECONDS)

    def tail(self, lines: int = 25) -> str:
        with self.log.open(errors="replace") as log:
            return "".join(deque(log, lines)).rstrip()


class StateFolder:
    """A folder and the processes started in it. While the owner lives it holds a lock on the folder's `owner` file."""

    def __init__(self, name: str = "", *, prefix: str = "own-") -> None:
        """Without a name one is made up, which begins with the prefix. Raises FileExistsError where there is one of
        that name, and ValueError where the folder for temporary files has too long a path."""
        with _root_locked():
            if name:
                self.path = folder_of(name)
                self.path.mkdir(mode=0o700)
            else:
                self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root()))
            if len(bytes(self.path)) > _PATH_BYTES:
                self.path.rmdir()
                raise ValueError(f"TMPDIR={tempfile.gettempdir()} is too long a path for Unix sockets below it")
            self._lock = (self.path / "owner").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._lock.write(f"{os.getpid()}\n")
            self._lock.flush()
        (self.path / "logs").mkdir()
        self._spawned: list[Process] = []
        self._keeper = _start_keeper(self.path)

    def spawn(
        self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        """Starts a program, in a session of its own so that Ctrl-C reaches the owner only."""
        log = self.path / "logs" / f"{name}.log"
        environment = {**(os.environ if env is None else env), _MARK: str(self.path)}
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=cwd or self.path,
                start_new_session=True,
            )
        # It is being executed, but for a moment its new environment is not there to see.
        while popen.poll() is None and not _is_member(popen.pid, self.path):
            time.sleep(0.0005)
        self._spawned.append(Process(name, popen, log))
        return self._spawned[-1]

    def detach(self) -> None:
        """From now on the processes live until somebody calls `destroy`."""
        (self.path / "detached").touch()
        self._release(b"detach")

    def close(self) -> None:
        """Kills all that was started and removes the folder."""
        destroy(self.path)
        for process in self._spawned:
            process.kill()
        self._release(b"")

    def _release(self, last_word: bytes) -> None:
        self._keeper.communicate(last_word, timeout=_KILL_SECONDS)
        self._lock.close()


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A disk of its own at this folder, in memory; gone afterwards, and also where this process is killed."""
    folder = own().path
    belongings.add_mount(folder, place)
    try:
        run("mount", "-t", "tmpfs", "-o", options, "none", str(place))
        yield
    finally:
        run("umount", str(place), check=False)
        belongings.forget_mount(folder, place)


_own: dict[int, StateFolder] = {}
"""By process id: a fork is another process."""


def own() -> StateFolder:
    """This process's: what is written down in it is gone when the process has ended, in whatever way."""
    pid = os.getpid()
    if pid not in _own:
        sweep()
        _own[pid] = StateFolder(prefix=_PROCESS)
        atexit.register(_close_own, pid)
    return _own[pid]


def _close_own(pid: int) -> None:
    if pid == os.getpid():
        _own.pop(pid).close()


def root() -> Path:
    """Where the state folders of this user are. They hold keys, so nobody else may own or read them."""
    path = Path(tempfile.gettempdir()) / f"netloom-e2e-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.getuid() or path.is_symlink():
        raise PermissionError(f"{path} belongs to somebody else")
    return path


def folder_of(name: str) -> Path:
    """Where the state folder of that name is, or would be. Raises ValueError where it can be no name."""
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"not a name of 1 to 40 lower-case letters, digits and dashes: {name!r}")
    return root() / name


def folders() -> list[Path]:
    """Of clusters."""
    return [path for path in _all_folders() if not path.name.startswith(_PROCESS)]


def _all_folders() -> list[Path]:
    return sorted(path for path in root().iterdir() if path.is_dir())


def members(folder: Path) -> dict[int, str]:
    """The processes of a state folder: their pids and programs' names."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _is_member(int(process.name), folder):
                program = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
                found[int(process.name)] = program.rpartition("/")[2]
    return found


def _is_member(pid: int, folder: Path) -> bool:
    try:
        return f"{_MARK}={folder}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or it is another user's
        return False


def is_running(pid: int) -> bool:
    """False for a zombie: a process without a parent may stay one for a while where process 1 is slow to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def destroy(folder: Path) -> None:
    """Kills what runs in a state folder, etcd last, and removes the folder. Nothing happens where there is none.

    SIGKILL, as there is no data to save, and as an API server that lost its etcd would hold its port for minutes.
    """
    while folder.exists() or members(folder):  # again, for what was being executed at the first look
        while found := members(folder):
            _kill([pid for pid, name in found.items() if name != "etcd"] or list(found))
        belongings.remove(folder)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def sweep() -> list[Path]:
    """Destroys the state folders whose owner is gone; returns them."""
    with _root_locked():
        stale = [folder for folder in _all_folders() if _is_stale(folder)]
    for folder in stale:
        destroy(folder)
    return stale


def _is_stale(folder: Path) -> bool:
    if (folder / "detached").exists():
        return not members(folder)
    try:
        with (folder / "owner").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _kill(pids: list[int]) -> None:
    """Kills processes that need not be our children, and waits until they are dead."""
    deadline = time.monotonic() + _KILL_SECONDS
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(f"process {pid} does not die")
            finally:
                os.close(handle)


@contextmanager
def _root_locked() -> Iterator[None]:
    """Between the making of a folder and the lock on its `owner` file nobody may take it for a stale one."""
    with (root() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_keeper(folder: Path) -> subprocess.Popen[bytes]:
    """A process that sees its standard input end when the owner dies, in whatever way, and then destroys the folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), KEEPER: "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "netloom_e2e.processes", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # it outlives the owner, and must not hold the owner's terminal or pipe
        env=environment,
        cwd="/",
        start_new_session=True,
    )


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != b"detach":
        destroy(Path(sys.argv[1]))
