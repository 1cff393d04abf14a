"""The checkpoint: a file to which every record of a node's allocator is appended before anybody is told of it.

A record is there for the next life of the agent as soon as write(2) returns: it is the kernel's then, whatever happens
to the process. There is no fsync, which would guard against a crash of the machine: no pod outlives that, so what was
written in another boot counts for nothing, however well it was kept.

A write that failed is taken back. Whoever cuts, swaps or removes the file while the agent runs does no harm: it is
noticed before the next record, and written anew. It is written anew, and renamed into place, as well when it has grown
to many times what it tells.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from netloom.ipam.address_records import FORMAT, Header, Record, RecordsRead, line, read, whole
from netloom_reconcilers.node.addresses import machine

log = structlog.get_logger(__name__)

NAME = "addresses.checkpoint"
LOCK = "addresses.lock"
GROWS = 512 << 10
"""Bytes that may be appended before it is written anew, or as many as it had then."""


Cause = Literal["whole", "none", "boot", "node", "damage"]


class Unwritable(Exception):
    """Why nothing can be written down, as the end of a sentence."""


class InUse(Unwritable):
    """Another process does."""


@dataclass(frozen=True, slots=True)
class CheckpointFound:
    """What was there. records: of this node and this boot. lost: why that may not be all, "" if it is; cause: the same
    for programs. Without a file, or after a boot, nothing is wrong with that."""

    records: tuple[Record, ...] = ()
    lost: str = ""
    cause: Cause = "whole"


class Checkpoint:
    """Of one node, in one directory. `records`: all that there is to know, for when it is written anew."""

    def __init__(self, directory: Path, node: str, records: Callable[[], Sequence[Record]] = tuple) -> None:
        self.path = directory / NAME
        self.records = records
        self._directory = directory
        self._node = node
        self._file = self._lock = -1
        self._header = Header("", "", "")
        self._size = self._last = 0
        self._anew = GROWS
        self.rewritten = 0
        """How often it was written anew."""

    def open(self) -> CheckpointFound:
        """What an earlier life left. Afterwards it can be appended to. Raises Unwritable."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            boot = machine.boot()
            data = self.path.read_bytes() if self.path.exists() else None
        except OSError as error:
            raise Unwritable(_why(error)) from error
        reading = read(data) if data is not None else RecordsRead(None, (), 0, 0)
        found = _judged(reading, self._node, boot, is_there=data is not None)
        if found.lost or reading.header is None:
            if found.cause in ("node", "damage"):
                self._set_aside(found.lost)
            self._header = Header(self._node, boot, "")
            return found
        self._header = reading.header
        self._size, self._last = reading.size, reading.last
        self._anew = GROWS  # how much of it tells something is not known: lives that end early must not add up
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise Unwritable(_why(error)) from error
        return found

    def append(self, records: Sequence[Record]) -> None:
        """They are written down, or none of them is. Raises Unwritable.

        For none it is not written anew where it need not be: when an agent begins, it does not know yet which blocks
        the node holds, and would leave out what has rested there.
        """
        try:
            if (records and self._size > self._anew) or not self._is_ours():
                self._write_anew()  # which has them already
                return
            if not records:
                return
            lines = [line(number, each, self._header.seed) for number, each in enumerate(records, self._last + 1)]
            self._write(b"".join(lines))
            self._last += len(lines)
        except OSError as error:
            raise Unwritable(_why(error)) from error

    def close(self) -> None:
        """Somebody else may open it."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        descriptor = os.open(self._directory / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InUse("another agent uses it") from None
        self._lock = descriptor

    def _is_ours(self) -> bool:
        """Whether what was appended last is the end of the file of that name."""
        if self._file < 0:
            return False
        try:
            there, mine = self.path.stat(), os.fstat(self._file)
        except OSError:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev) and there.st_size == self._size

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(28, "No space left on device")
        except OSError:
            with contextlib.suppress(OSError):  # else it is not ours next time, and written anew
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _write_anew(self) -> None:
        header = Header(self._node, self._header.boot, uuid.uuid4().hex)
        data, last = whole(header, self.records())
        fresh = self.path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            fresh.rename(self.path)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._header, self._size, self._last = descriptor, header, len(data), last
        self._anew = self._size + max(GROWS, self._size)
        self.rewritten += 1

    def _set_aside(self, why: str) -> None:
        """For whoever wants to know what happened."""
        kept = self.path.with_suffix(".refused")
        log.warning("the checkpoint of addresses is not relied on", file=str(self.path), why=why, kept_as=str(kept))
        with contextlib.suppress(OSError):
            kept.unlink(missing_ok=True)
            kept.hardlink_to(self.path)


def _judged(reading: RecordsRead, node: str, boot: str, *, is_there: bool) -> CheckpointFound:
    header = reading.header
    if not is_there:
        return CheckpointFound((), "there was none", "none")
    if header is None:
        return CheckpointFound((), reading.damage, "damage")
    if header.format != FORMAT:
        return CheckpointFound((), f"it is of format {header.format}, and this version writes {FORMAT}", "damage")
    if header.node != node:
        return CheckpointFound((), f"it is that of node {header.node}", "node")
    if header.boot != boot:
        return CheckpointFound((), "the machine was started again since, and no pod outlives that", "boot")
    return CheckpointFound(reading.records, reading.damage, "damage" if reading.damage else "whole")


def files(directory: Path) -> list[Path]:
    """All that is left of it."""
    names = (NAME, LOCK, f"{NAME.removesuffix('.checkpoint')}.refused", f"{NAME.removesuffix('.checkpoint')}.new")
    return [directory / name for name in names if (directory / name).exists()]


def _why(error: OSError) -> str:
    return f"{error.strerror or error}"
