"""Network namespaces of this machine, the commands that run in them, and their end."""

import ctypes
import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

NETNS = Path("/run/netns")
_MARK = "e2e-lab"
"""Alias of the loopback device in every namespace of a lab: it comes and goes with the namespace, and tells all that
run in there, however they came in, that there is no way out of it."""
KEEPER = "NETLOOM_E2E_KEEPER"
"""In the environment of processes that tidy up when others have died: they are not ended with what they tidy up."""
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_POLL_SECONDS, _SLOWEST_POLL_SECONDS = 0.02, 0.1
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """For `preexec_fn`: the kernel kills the child (or sends it `number`) when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def environment() -> dict[str, str]:
    """Ours, but with compiled modules kept: a role starts in half a second with them, in two and a half without."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(*argv: str, check: bool = True, stdin: str | None = None, timeout: float = 30) -> str:
    """Standard output of a command. Raises RuntimeError with its standard error if it fails and `check` is set."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(
            f"`{' '.join(argv)}` failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


async def until(condition: Callable[[], object], what: str = "", seconds: float = 30.0) -> None:
    """`wait_for` in a coroutine. Raises AssertionError that says `what` was awaited."""
    import asyncio  # a keeper starts in half the time without it, and there is one for each control plane

    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 (what tests wait for tells nobody)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


def wait_for(what: str, condition: Callable[[], object], *, deadline: float = 30.0, every: float = 0.0) -> float:
    """Poll until `condition()` is true; the seconds it took. Raises TimeoutError that says `what` was awaited.

    every: seconds between two polls; if not given, as many as make up a twentieth of the wait.
    """
    start = time.monotonic()
    while not condition():
        elapsed = time.monotonic() - start
        if elapsed > deadline:
            raise TimeoutError(f"not within {deadline:g} s: {what}")
        time.sleep(every or min(max(elapsed / 20, _POLL_SECONDS), _SLOWEST_POLL_SECONDS))
    return time.monotonic() - start


@dataclass(frozen=True)
class Namespace:
    """A network namespace by its name in /run/netns."""

    name: str

    @property
    def enter(self) -> tuple[str, ...]:
        """Words to put before a command to run it in here. Mounts stay the caller's."""
        return ("nsenter", f"--net={NETNS / self.name}", "--")

    @property
    def enter_line(self) -> str:
        """The same, for a person to type."""
        return " ".join(self.enter[:-1])

    def run(self, *argv: str, check: bool = True, stdin: str | None = None, timeout: float = 30) -> str:
        """Run a command in here; see `run`."""
        return run(*self.enter, *argv, check=check, stdin=stdin, timeout=timeout)

    def ip(self, *argv: str, check: bool = True) -> str:
        """Run `ip` in here."""
        return run("ip", "-n", self.name, *argv, check=check)

    def batch(self, lines: Sequence[str]) -> None:
        """Run many `ip` commands in here, one line each; stops at the first that fails."""
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines) + "\n")

    def sysctl(self, **values: int) -> None:
        """Set kernel parameters below `net`; `ipv4__ip_forward=1` is net/ipv4/ip_forward."""
        self.run("sysctl", "-qw", *(f"net/{name.replace('__', '/')}={value}" for name, value in values.items()))

    def popen(
        self, argv: Sequence[str], *, stdout: IO[str] | int, stdin: IO[str] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """Start a command in here, to live no longer than the caller."""
        return subprocess.Popen(
            [*self.enter, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=die_with_parent,
            text=True,
        )

    def ask(self, port: int, path: str, *, seconds: float = 5.0) -> str:
        """What a program in here answers by HTTP at the loopback, be it a success or not; empty where none does.

        By a socket that is made in here: `curl` would cost ten times as much, and agents are asked all the time.
        """
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            try:
                with self.entered():
                    connection.sock = socket.create_connection(("127.0.0.1", port), seconds)
                connection.request("GET", path)
                return connection.getresponse().read().decode()
            except (OSError, http.client.HTTPException):
                return ""

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` gives when called in here, as a socket that stays in here; the caller's thread does not move."""
        with ThreadPoolExecutor(1, initializer=self.move_thread) as thread:
            return thread.submit(make).result()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and all that it starts, is in here while the block lasts."""
        with Path("/proc/thread-self/ns/net").open() as before:
            self.move_thread()
            try:
                yield
            finally:
                _enter(before)

    def move_thread(self) -> None:
        """Move the calling thread, and all that it starts from now on, into here."""
        with (NETNS / self.name).open() as namespace:
            _enter(namespace)


def _enter(namespace: IO[str]) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace.name}")


def add(place: Namespace, **sysctl: int) -> None:
    """Make a namespace of a lab, with these kernel parameters (see `Namespace.sysctl`).

    Raises RuntimeError, which says what rights it takes where they are missing.
    """
    try:
        run("ip", "netns", "add", place.name)
        place.ip("link", "set", "lo", "up", "alias", _MARK)
        # A machine with containers forwards, and a new namespace begins as the machine is.
        place.sysctl(**({"ipv4__ip_forward": 0} | sysctl))
    except RuntimeError as error:
        if not re.search("denied|not permitted|read-only", str(error), re.IGNORECASE):
            raise
        raise RuntimeError(
            f"{error}\nNetwork namespaces take root with CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root; "
            "a container has to be started with --privileged"
        ) from None


def in_lab() -> bool:
    """Whether the calling thread is in a namespace of a lab."""
    try:
        return f"alias {_MARK}" in run("ip", "-o", "link", "show", "lo", check=False)
    except FileNotFoundError:  # without `ip` there is no lab either
        return False


def held(place: Namespace) -> IO[str]:
    """A lock on it: for as long as the file is open, whoever has it lives. Others see that in whatever container they
    are, where its process id says nothing. Raises BlockingIOError where somebody else has it, and FileNotFoundError."""
    file = (NETNS / place.name).open()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def is_held(place: Namespace) -> bool:
    """Whether somebody has a lock on it."""
    try:
        held(place).close()
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def existing(pattern: str) -> list[str]:
    """Names of the namespaces that match a glob pattern."""
    return [path.name for path in NETNS.glob(pattern)] if NETNS.is_dir() else []


def remove(names: Iterable[str]) -> None:
    """End every process in these namespaces but this one and keepers, then the namespaces."""
    names = list(names)
    ours = str(os.getpid())
    for name in names:
        for pid in run("ip", "netns", "pids", name, check=False).split():
            if pid != ours and not _is_keeper(pid):
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    for name in names:
        run("ip", "netns", "delete", name, check=False)


def _is_keeper(pid: str) -> bool:
    try:
        return f"{KEEPER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended
        return False
