"""Fills stores from manifest files in a directory, without a cluster, through the same stores as a watch.

inotify says at once what changed; a slow comparison finds what it cannot tell (lost events, the target of a link). What
keeps half-written desired state away from the kernel:

- A file is read when its writer has closed it or renamed it into place, never while it is being written.
- Changes wait until the directory has been quiet for a moment: an editor that moves a file away and writes it anew
  does not remove its objects in between, and a set of files that is copied is one change.
- A file with a mistake keeps its last good objects. Until every file was good once, the stores are not `synced`: after
  a restart a typo must not look like a deletion.
"""

import asyncio
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from asyncinotify import Event, Inotify, Mask

from netloom.api.meta import Resource
from netloom.runtime import manifests, metrics
from netloom.runtime.errors import ConfigError
from netloom.runtime.manifests import InvalidManifests, Kind, Manifest, ManifestProblem
from netloom.runtime.store import Store
from netloom.runtime.waking import wait

log = structlog.get_logger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")
_APPEARED = Mask.CLOSE_WRITE | Mask.MOVED_TO
_GONE = Mask.DELETE | Mask.MOVED_FROM
_SELF = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
_WATCHED = _APPEARED | _GONE | Mask.CREATE | Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR

LONGEST_SETTLING = 20
"""A directory that is never quiet is read after this many times the quiet moment."""

Signature = tuple[int, int, int]


class DirectoryTiming(msgspec.Struct, frozen=True):
    """Delays in seconds."""

    settle: float = 0.1
    """So long the directory must be quiet before a change is read."""
    compare: float = 60.0
    """Distance of the full comparisons that find what no event told; also of attempts to find a lost directory."""


class DirectorySource:
    """Keeps `stores` equal to the manifest files (*.yaml, *.yml, *.json) in `path`, its subdirectories left out.

    `ignored` are kinds that may be there and are nobody's concern here. `validate` says what is wrong with an object;
    one with an error is refused as the API server would refuse it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        stores: Iterable[Store[Any]],
        *,
        ignored: Iterable[Resource[Any]] = (),
        validate: manifests.Validate = lambda obj: (),
        timing: DirectoryTiming | None = None,
    ) -> None:
        self._path = Path(path)
        self._stores = {_kind(store.resource): store for store in stores}
        self._resources = {kind: store.resource for kind, store in self._stores.items()}
        self._ignored = {_kind(resource) for resource in ignored}
        self._validate = validate
        self._timing = timing or DirectoryTiming()
        self._good: dict[str, list[Manifest]] = {}
        self._bad: dict[str, tuple[ManifestProblem, ...]] = {}
        self._signatures: dict[str, Signature] = {}
        self._writing: set[str] = set()
        self._lost = False
        self._telling = True  # the log, unless who asked is told
        self._woken = asyncio.Event()
        self.problems: tuple[ManifestProblem, ...] = ()
        """What is wrong with the files now; empty if nothing is."""
        metrics.MANIFEST_PROBLEMS.set_function(lambda: len(self.problems))

    def fault(self) -> str:
        """The first problem as a sentence, "" if there is none: a readiness check."""
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"{self.problems[0]}{more}" if self.problems else ""

    def load(self) -> None:
        """Reads the directory once, for a command that does not follow it. Raises ConfigError if anything is wrong."""
        self._check_directory()
        self._telling = False
        self._read_changed()
        if self.problems:
            raise ConfigError("\n".join(str(problem) for problem in self.problems))

    async def run(self) -> None:
        """Reads and follows for ever. Raises ConfigError if the directory is not there at the start."""
        self._check_directory()
        while True:
            self._lost = False
            try:
                with Inotify(cache_size=64) as inotify:
                    inotify.add_watch(self._path, _WATCHED)
                    await self._follow(inotify)
            except OSError as error:
                self._report_lost(error.strerror or str(error))
            await asyncio.sleep(self._timing.compare)

    def _check_directory(self) -> None:
        if not self._path.is_dir():
            raise ConfigError(f"the directory of manifests {self._path} does not exist or is no directory")

    async def _follow(self, inotify: Inotify) -> None:
        """Until the directory is lost. Events are read by a task of their own, as a cancelled read loses some."""
        self._writing.clear()
        self._read_changed(found_again=True)
        async with asyncio.TaskGroup() as group:
            pump = group.create_task(self._pump(inotify), name="inotify")
            while not self._lost:
                await wait(self._woken, self._timing.compare)
                await self._settled()
                try:
                    if not self._lost:  # files that go with their directory are no deletion of objects
                        self._read_changed()
                except OSError:
                    self._lost = True
            pump.cancel()
        self._report_lost("it was removed, renamed or unmounted")

    async def _settled(self) -> None:
        """Waits until the directory is quiet, if an event has come."""
        for _ in range(LONGEST_SETTLING):
            if not self._woken.is_set():
                return
            self._woken.clear()
            await asyncio.sleep(self._timing.settle)

    async def _pump(self, inotify: Inotify) -> None:
        async for event in inotify:
            if self._note(event):
                self._woken.set()

    def _note(self, event: Event) -> bool:
        """False if the event means nothing here."""
        name = os.fspath(event.name) if event.name is not None else ""
        if event.mask & _SELF:
            self._lost = True
        elif _is_manifest(name):
            if event.mask & Mask.MODIFY or (event.mask & Mask.CREATE and self._has_writer(name)):
                self._writing.add(name)
            else:
                self._writing.discard(name)
        else:
            return bool(event.mask & Mask.Q_OVERFLOW or (name == "..data" and event.mask & _APPEARED))
        return True

    def _has_writer(self, name: str) -> bool:
        """Whether a new entry is a file that somebody will close, and not a link to one that is complete."""
        try:
            found = (self._path / name).lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def _read_changed(self, *, found_again: bool = False) -> None:
        """Reads the files that differ from what was read; one that is being written is left to its event."""
        present = {entry.name for entry in os.scandir(self._path) if _is_manifest(entry.name)}
        changed = False
        for name in sorted((present | set(self._signatures)) - self._writing):
            signature = self._signature(name)
            if signature != self._signatures.get(name):
                changed = True
                self._read(name, signature)
        if changed or found_again or not self._synced:
            self._publish()

    def _read(self, name: str, signature: Signature | None) -> None:
        self._bad.pop(name, None)
        if signature is None:
            self._signatures.pop(name, None)
            self._good.pop(name, None)
            return
        self._signatures[name] = signature
        try:
            content = (self._path / name).read_bytes()
            self._good[name] = manifests.parse(name, content, self._resources, self._ignored, self._validate)
        except InvalidManifests as error:
            self._bad[name] = error.problems
        except OSError as error:
            self._bad[name] = (ManifestProblem(name, 0, "", error.strerror or str(error)),)

    def _publish(self) -> None:
        objects: dict[Kind, dict[str, Any]] = {kind: {} for kind in self._stores}
        owner: dict[tuple[Kind, str], str] = {}
        problems = [problem for name in sorted(self._bad) for problem in self._bad[name]]
        for name in sorted(self._good):
            for manifest in self._good[name]:
                first = owner.setdefault((manifest.kind, manifest.key), name)
                if first == name:
                    objects[manifest.kind][manifest.key] = manifest.object
                else:
                    message = f"{manifest.kind[1]} {manifest.key} is taken from {first}"
                    problems.append(ManifestProblem(name, manifest.document, "", message))
        self._set_problems(problems)
        if self._bad and not self._synced:
            return
        for kind, store in self._stores.items():
            store.replace(objects[kind])

    @property
    def _synced(self) -> bool:
        return all(store.synced.is_set() for store in self._stores.values())

    def _set_problems(self, problems: list[ManifestProblem]) -> None:
        for problem in problems:
            if problem not in self.problems and self._telling:
                log.error("manifest not used", **msgspec.structs.asdict(problem))
        if self.problems and not problems:
            log.info("all manifests are good", directory=str(self._path))
        self.problems = tuple(problems)

    def _report_lost(self, why: str) -> None:
        message = f"cannot be watched ({why}), its last objects are kept"
        self._set_problems([ManifestProblem(str(self._path), 0, "", message)])

    def _signature(self, name: str) -> Signature | None:
        """What changes when a file does; None if it is gone or no file (reading a pipe would never end)."""
        try:
            found = (self._path / name).stat()
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _kind(resource: Resource[Any]) -> Kind:
    return resource.api_version, resource.kind


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith((".", "#"))
