"""What is built or downloaded once is kept in the user's cache: a folder each, by what decides what is in it.

One that nobody has used for as long as its kind is kept goes when the next is made: every commit has an image of its
own.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from netloom_e2e.namespaces import in_lab
from netloom_e2e.progress import waiting

KEPT_SECONDS = 14 * 24 * 3600.0
"""How long after its last use, where nothing else is said."""


class BinariesError(Exception):
    """A program is not there and could not be built; the message says why and what to do."""


def cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netloom"
    except RuntimeError as error:
        raise BinariesError(f"{error} Set HOME or XDG_CACHE_HOME to a folder that can be written to") from error


_met: set[Path] = set()
"""Folders of the cache that this process has seen whole."""


def made(name: str, make: Callable[[Path, Path], None], kept: float = KEPT_SECONDS) -> Path:
    """A folder of the cache, which `make` fills (and writes a log) where it is missing. Raises BinariesError.

    It is there whole or not at all, and of two processes that need it one makes it and the other waits. kept: seconds
    after its last use, or more.
    """
    folder = cache() / name
    if folder in _met and folder.is_dir():
        with suppress(OSError):  # somebody else's
            os.utime(cache() / f"{name}.lock")
    else:
        if in_lab():
            raise BinariesError(
                f"{name} is asked for in the network namespace of a lab, where nothing can be downloaded: "
                "ask for it before a namespace is entered (from a shell: run `e2e/netloom-e2e build` outside of it)"
            )
        try:
            _make(folder, make, kept)
        except OSError as error:
            raise BinariesError(
                f"{name} cannot be put into {cache()}: {error}. "
                "XDG_CACHE_HOME can name another folder, which has to be writable and have 1 GB of space"
            ) from error
        _met.add(folder)
    return folder


@contextmanager
def in_use(name: str, kept: float = KEPT_SECONDS) -> Iterator[Path]:
    """A folder of the cache that a build goes on with from the last time, and that no other build uses or removes
    meanwhile. kept: as of `made`."""
    folder = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f"{name}.lock") as lock:
        lock.write_text(f"{kept:g}")
        folder.mkdir(exist_ok=True)
        yield folder


def _make(folder: Path, make: Callable[[Path, Path], None], kept: float) -> None:
    if folder.is_dir() and not os.access(cache(), os.W_OK):
        return  # somebody else's, who looks after it
    name = folder.name
    cache().mkdir(parents=True, exist_ok=True)
    log = cache() / f"{name}.log"
    with _locked(cache() / f"{name}.lock") as lock:
        lock.write_text(f"{kept:g}")
        if folder.is_dir():
            return
        # A name of its own each time: a compiler whose parent was killed may still write to the last one.
        _drop_unfinished(name)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.unfinished-", dir=cache()))
        try:
            make(unfinished, log)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
            log.unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    _drop_old()


def _drop_unfinished(name: str) -> None:
    for leftover in cache().glob(f"{name}.unfinished-*"):
        shutil.rmtree(leftover)


def _drop_old() -> None:
    """A lock's time is that of the last use, and it says for how many seconds after that the folder is kept. Nobody
    meets a folder that is half gone: they wait for the lock."""
    for lock in cache().glob("*.lock"):
        with suppress(OSError), lock.open("r+") as file:  # another process is using it, or removed it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = float(file.read() or KEPT_SECONDS)
            if _is_still(file, lock) and time.time() - lock.stat().st_mtime > kept:
                name = lock.name.removesuffix(".lock")
                _drop_unfinished(name)
                shutil.rmtree(cache() / name, ignore_errors=True)
                (cache() / f"{name}.log").unlink(missing_ok=True)
                lock.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    while True:
        with path.open("a") as file:
            take = functools.partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waiting(take, title=f"Waiting for another process that makes {path.stem}")
            if _is_still(file, path):
                yield path
                return


def _is_still(file: IO[str], path: Path) -> bool:
    """Whether it is the file of this name: the one who had its lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
