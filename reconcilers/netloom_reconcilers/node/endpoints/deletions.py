"""Deletions that are written down because nobody could make them: a directory with one request per file.

The plugin on the host writes them while no agent answers, and so does the agent while it cannot write down that an
address is free. They are made up for as soon as one appears, and before any pod is added. A file is removed once it is
done; one that cannot be read is set aside in `refused/`, told, and keeps nobody waiting.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from asyncinotify import Mask

from netloom.runtime.waking import Alarm
from netloom_reconcilers.node.endpoints.errors import CniError
from netloom_reconcilers.node.endpoints.folders import follow
from netloom_reconcilers.node.endpoints.framing import Call, parse

log = structlog.get_logger(__name__)

OPTION = "--cni-deletions"
REFUSED = "refused"
AGAIN_SECONDS = 2.0
"""Until one that could not be made up for yet is tried again."""
LOOK_SECONDS = 60.0
"""Until it is looked again without an event."""
TOLD_SECONDS = 300.0
"""How long it is told that one was set aside."""
UNFINISHED_SECONDS = 3600.0
"""After which a file that is still being written is nobody's (`cni/README.md`)."""
_MOST_BYTES = 5 << 20
_WATCHED = Mask.MOVED_TO | Mask.CLOSE_WRITE


class NotYet(Exception):
    """Why a deletion has to wait, as a sentence."""


class Deletions:
    """Of one directory. delete: does what a request asks for; raises NotYet where it is to be tried again, and
    CniError where it never can be done. changed: is called when `errors` may be different."""

    def __init__(
        self,
        directory: Path,
        delete: Callable[[Call], Awaitable[None]],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.done = self.refused = 0
        """How many were made up for, and set aside."""
        self._delete = delete
        self._changed = changed
        self._clock = clock
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._why = self._unfollowed = ""
        """Why one of those that are left has to wait, or they cannot be read; why nothing tells of new ones."""
        self._failing: set[str] = set()
        """Files about which a fault of ours was logged."""
        self._set_aside: dict[str, tuple[float, str]] = {}
        self._told = Alarm(self._forget)

    def names(self) -> list[str]:
        """Of the files that are to be made up for, the oldest first. Raises OSError."""
        with os.scandir(self.directory) as entries:
            found = [each for each in entries if not each.name.startswith(".") and each.is_file(follow_symlinks=False)]
            return [each.name for each in sorted(found, key=_age)]

    async def replay(self) -> None:
        """Makes up for all that can be. Who calls this while another does waits for it."""
        if not self._turn.locked() and not self._listed():
            return
        async with self._turn:
            names, why = self._listed(), ""
            self._failing.intersection_update(names)
            for name in names:
                why = await self._replay(name) or why
            if names:
                self._say(why)

    def _listed(self) -> list[str]:
        """The names. Where there are none, nothing has to wait any more; where they cannot be read, that is told."""
        names, why = list[str](), ""
        try:
            names = self.names()
        except FileNotFoundError:
            pass
        except OSError as error:
            why = (
                f"{self.directory}: deletions of pods that were written down cannot be read: {error.strerror}. Their "
                f"addresses stay taken. Give the agent that directory, or name another by {OPTION}."
            )
        if not names:
            self._say(why)
        return names

    async def _replay(self, name: str) -> str:
        """Why it has to wait; "" where it is over."""
        path = self.directory / name
        try:
            call = _read(path)
            if call.command != "DEL":
                raise CniError(4, f"CNI_COMMAND is {call.command!r}, which is no deletion.")
            await self._delete(call)
        except NotYet as error:
            return f"{path}: the deletion of a pod has to wait: {error}"
        except CniError as error:
            self._put_aside(path, str(error))
            return ""
        except Exception as error:  # that of one file keeps no other waiting, and no ADD
            if isinstance(error, FileNotFoundError) and not path.exists():
                return ""  # somebody has removed it
            if name not in self._failing:
                self._failing.add(name)
                log.exception("a deletion that was written down cannot be made up for", file=str(path))
            why = (
                error.strerror if isinstance(error, OSError) else f"the agent failed ({type(error).__name__}: {error})"
            )
            return f"{path}: the deletion of a pod has to wait: {why}"
        self._failing.discard(name)
        self.done += 1
        log.info("a deletion that was written down is made up for", container=call.containerid, interface=call.ifname)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            return f"{path}: the deletion is made, and its file cannot be removed: {error.strerror}."
        return ""

    def _put_aside(self, path: Path, why: str) -> None:
        self.refused += 1
        into = path.parent / REFUSED
        try:
            into.mkdir(mode=0o700, exist_ok=True)
            path.rename(into / path.name)
            kept = (
                f"It is kept as {into / path.name}; if it was of a pod that is gone, `netloom ip list` shows what is "
            )
            kept += "left of it."
        except OSError as error:
            kept = f"It cannot be set aside, either: {error.strerror}. Remove it."
        sentence = f"{path}: what should be the deletion of a pod cannot be read: {why} {kept}"
        if path.name not in self._set_aside:
            log.warning("a deletion that was written down is of no use", file=str(path), why=why)
        self._set_aside[path.name] = self._clock(), sentence
        self._changed()
        self._told.set(TOLD_SECONDS)

    def _say(self, why: str) -> None:
        if why != self._why:
            self._why = why
            self._changed()

    def _forget(self) -> None:
        """One has been told for long enough. (Of one that cannot be set aside each ADD says so again.)"""
        self._drop_told()
        self._changed()
        if self._set_aside:
            self._told.set(min(at for at, _ in self._set_aside.values()) + TOLD_SECONDS - self._clock())

    def _drop_told(self) -> None:
        now = self._clock()
        self._set_aside = {name: each for name, each in self._set_aside.items() if each[0] + TOLD_SECONDS > now}

    def errors(self) -> list[str]:
        """What is not made up for, as sentences."""
        self._drop_told()
        return [*filter(None, (self._unfollowed, self._why)), *(sentence for _, sentence in self._set_aside.values())]

    def look_soon(self) -> None:
        """More can be done than before."""
        self._wake.set()

    async def write(self, call: Call) -> None:
        """Write a deletion down: when this returns, it outlives a crash of the machine. Raises OSError."""
        await asyncio.to_thread(_write, self.directory, call)
        self._wake.set()

    async def run(self) -> None:
        """Follows the directory for ever."""
        while True:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sweep(self.directory)
                await follow([self.directory], _WATCHED, self._wake, self._look)
            except OSError as error:
                self._say_unfollowed(
                    f"{self.directory}: deletions of pods that are written down there cannot be followed: "
                    f"{error.strerror or error}. Give the agent that directory, or name another by {OPTION}."
                )
                await asyncio.sleep(AGAIN_SECONDS)

    def _say_unfollowed(self, why: str) -> None:
        if why != self._unfollowed:
            self._unfollowed = why
            self._changed()

    async def _look(self) -> float:
        self._say_unfollowed("")
        await self.replay()
        return AGAIN_SECONDS if self._why else LOOK_SECONDS


def files(directory: Path) -> list[Path]:
    """That are in such a directory. Those that were set aside are somebody's to look at, and stay."""
    try:
        return [path for path in sorted(directory.iterdir()) if path.is_file()]
    except OSError:
        return []


def _sweep(directory: Path) -> None:
    """Who was killed while it wrote left what no one will finish."""
    for each in directory.glob(".*"):
        with contextlib.suppress(OSError):
            if each.is_file() and each.lstat().st_mtime < time.time() - UNFINISHED_SECONDS:
                each.unlink()


def _age(entry: "os.DirEntry[str]") -> tuple[float, str]:
    try:
        return entry.stat(follow_symlinks=False).st_mtime, entry.name
    except FileNotFoundError:
        return 0.0, entry.name


def _read(path: Path) -> Call:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    return parse(data)


def name_of(call: Call) -> str:
    """Of the file of a container's interface, as the plugin has it."""
    return f"{call.containerid}:{call.ifname}"


def _write(directory: Path, call: Call) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = name_of(call)
    descriptor, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # two may write one down at once
    fresh = Path(path)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(call.encode())
            file.flush()
            os.fsync(descriptor)
        fresh.rename(directory / name)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
