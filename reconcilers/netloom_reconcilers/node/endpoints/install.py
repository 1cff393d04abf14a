"""The plugin's binary and the network configuration on the host: put there, kept as they are to be, taken away.

Container runtimes take the first file of the configuration's directory in the order of the names, so ours has a name
that comes early; a file before it is told (see `precedence`). Files of others are never changed or removed, nor is what
they put at the end of ours (`appended`).

Each file is written beside its place, synced, and renamed into it: a runtime that looks at any moment sees the old one
or the new one. The binary comes before the configuration that names it, and goes after it.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
from asyncinotify import Mask

from netloom_reconcilers.node.endpoints.appended import Entry, appended, is_alike
from netloom_reconcilers.node.endpoints.folders import follow
from netloom_reconcilers.node.endpoints.networks import NETWORK
from netloom_reconcilers.node.endpoints.options import Places, on_host
from netloom_reconcilers.node.endpoints.precedence import first, types_of

log = structlog.get_logger(__name__)

PLUGIN = "netloom-cni"
"""Name of the binary, and so the `type` in configurations."""
CONFLIST = "00-netloom.conflist"
CAPABILITIES: Mapping[str, Mapping[str, Any]] = {
    "portmap": {"snat": True, "capabilities": {"portMappings": True}},
    "bandwidth": {"capabilities": {"bandwidth": True}},
}
"""What plugins behind ours are to be told to do their work."""
OURS: Mapping[str, Any] = {"capabilities": {"mac": True, "dns": True}}
"""What runtimes tell ours of `runtimeConfig`: only what is named here."""
LOOK_SECONDS = 60.0
SETTLE_SECONDS = 0.05
"""An editor writes in several steps."""
QUIET_SECONDS = 60.0
"""After which a file that was put back counts as left alone."""
UPGRADE_SECONDS = 5.0
"""For which a plugin may be missing while a package's new version takes its place."""
LONGEST_SECONDS = 60.0
"""Between repairs of a file that somebody keeps changing."""
_WATCHED = Mask.CREATE | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ATTRIB
_MODE = "of another mode"


def binary_of(places: Places) -> Path:
    """Where the plugin is installed."""
    return places.bin_dir / PLUGIN


def conflist_of(places: Places) -> Path:
    """Where the configuration is."""
    return places.conf_dir / CONFLIST


def conflist(chain: Iterable[str], version: str, more: Iterable[Entry] = ()) -> bytes:
    """The network configuration, as a file. more: what others put behind ours."""
    behind = [*({"type": name, **CAPABILITIES.get(name, {})} for name in chain), *more]
    said = {"cniVersion": version, "name": NETWORK, "plugins": [{"type": PLUGIN, **OURS}, *behind]}
    return msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n"


class _InstalledFile(NamedTuple):
    path: Path
    content: bytes
    mode: int


@dataclass(slots=True)
class _Found:
    """Of one look. waits: seconds after which to look again. repaired: what was put back, and how it was."""

    installed: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    repaired: list[tuple[Path, str]] = field(default_factory=list)
    overruled: str = ""


class Installer:
    """Keeps both files. is_ready: whether pods can be added by now; until then no configuration is written where there
    is none, or kubelets would say that the node is ready. repaired: is told of each file that somebody had changed.
    meeting: where plugin and agent meet, by the option that says so.
    """

    def __init__(
        self,
        places: Places,
        is_ready: Callable[[], bool],
        repaired: Callable[[Path, str], None] = lambda path, what: None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        meeting: Mapping[str, Path] | None = None,
    ) -> None:
        self.places = places
        self._meeting = meeting or {}
        self.repairs: Counter[str] = Counter()
        """By the file's name, how often it was put back."""
        self.installed = False
        """Whether both are as they are to be."""
        self.overruled = ""
        """Why the container runtime wires pods by another configuration all the same."""
        self._is_ready = is_ready
        self._repaired = repaired
        self._changed = changed
        self._clock = clock
        self._seen: dict[Path, tuple[int, ...]] = {}
        """How files were when they were as they are to be."""
        self._written: dict[Path, _InstalledFile] = {}
        self._patience: dict[Path, tuple[float, float]] = {}
        """Of files that are put back: when that was last, and how long to wait before it is done again."""
        self._gone: dict[str, float] = {}
        """Plugins of the chain that are missing, and since when."""
        self._appended: tuple[Entry, ...] = ()
        """What others put behind ours."""
        self._read: tuple[tuple[int, ...], bytes] | None = None
        self._problems: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()
        self._wake = asyncio.Event()

    def errors(self) -> list[str]:
        """Why pods are not wired by Netloom, or may not be, as sentences."""
        return list(self._problems)

    def warnings(self) -> list[str]:
        """What somebody may have meant so."""
        return list(self._warnings)

    def look_soon(self) -> None:
        """Something is different: it may be ready by now."""
        self._wake.set()

    def look(self) -> float | None:
        """Make both as they are to be. Returns after how many seconds to look again, None for no hurry."""
        return self._take(self._keep_all(is_ready=self._is_ready()))

    def _take(self, found: _Found) -> float | None:
        """Tell what is new of it."""
        for path, what in found.repaired:
            self.repairs[path.name] += 1
            log.warning("a file of the CNI was put back", file=str(path), it_was=what)
            self._repaired(path, what)
        before = self.installed, self._problems, self._warnings
        self.installed, self.overruled = found.installed, found.overruled
        self._problems, self._warnings = tuple(found.problems), tuple(found.warnings)
        if before != (self.installed, self._problems, self._warnings):
            self._changed()
        return min(found.waits, default=None)

    def _keep_all(self, *, is_ready: bool) -> _Found:
        """Touches nothing that others look at: it may run in a thread, as a disk may take seconds to sync."""
        found = _Found()
        found.installed = self._keep_both(found, is_ready=is_ready)
        self._look_before_ours(found)
        return found

    def _keep_both(self, found: _Found, *, is_ready: bool) -> bool:
        places = self.places
        try:
            binary = _InstalledFile(binary_of(places), self._plugin(), 0o755)
        except OSError as error:
            found.problems.append(
                f"{places.plugin}: the CNI plugin cannot be read: {_why(error)}. Name it by --cni-plugin."
            )
            return False
        found.warnings += self._elsewhere(binary.content)
        if not self._keep(binary, found):
            return False
        if not (is_ready or conflist_of(places).exists() or conflist_of(places) in self._written):
            return False
        missing = self._missing(found.waits)
        if missing:
            found.warnings.append(
                f"{on_host(places.bin_dir)} has no {', '.join(missing)}, so pods go without (portmap does hostPort). "
                "Install the CNI plugins, or leave them out of --cni-chain."
            )
        chain = [name for name in places.chain if name not in missing]
        content = conflist(chain, places.version, self._of_others(found))
        return self._keep(_InstalledFile(conflist_of(places), content, 0o644), found)

    def _of_others(self, found: _Found) -> tuple[Entry, ...]:
        """What others put behind ours; where the file is gone or damaged, what was there before."""
        places = self.places
        with contextlib.suppress(OSError):
            seen = appended(conflist_of(places).read_bytes(), PLUGIN, places.chain, CAPABILITIES)
            if seen is not None and seen != self._appended:
                self._appended = seen
                log.info(
                    "what others put behind our plugins is another", file=str(conflist_of(places)), types=_types(seen)
                )
        lacking = [name for name in _types(self._appended) if not (places.bin_dir / name).exists()]
        if lacking:
            found.warnings.append(
                f"{on_host(conflist_of(places))}: somebody put {', '.join(lacking)} behind Netloom's plugins, and "
                f"{on_host(places.bin_dir)} has no such plugin: unless the container runtime has it elsewhere, no pod "
                "comes or goes. Install it there again, or take it out of that file."
            )
        return self._appended

    def _missing(self, waits: list[float]) -> list[str]:
        """Plugins of the chain that are not there. One that is in the configuration and is missing for a moment is
        being upgraded: pods of that moment would go without what it does for life. (An ADD that fails is repeated.)"""
        places, now = self.places, self._clock()
        missing = [name for name in places.chain if not (places.bin_dir / name).exists()]
        self._gone = {name: self._gone.get(name, now) for name in missing}
        chained = types_of(conflist_of(places)) if missing else ()
        awaited = [name for name in missing if name in chained and self._gone[name] + UPGRADE_SECONDS > now]
        waits += [self._gone[name] + UPGRADE_SECONDS - now for name in awaited]
        return [name for name in missing if name not in awaited]

    def _elsewhere(self, binary: bytes) -> list[str]:
        """Paths that are compiled into the plugin, as runtimes give it no environment of ours."""
        return [
            f"{self.places.plugin} does not know {path} ({option}), but has another path compiled in: unless both are "
            "one and the same on the host, no pod is added, or what it writes down is never made up for. Leave the "
            "option out, or build the plugin with that path (cni/README.md)."
            for option, path in self._meeting.items()
            if bytes(path) not in binary
        ]

    def _plugin(self) -> bytes:
        """The binary that is to be installed; read again when it is another. Raises OSError."""
        now = _signature(self.places.plugin)
        if self._read is None or self._read[0] != now:
            self._read = now, self.places.plugin.read_bytes()
        return self._read[1]

    def _keep(self, wanted: _InstalledFile, found: _Found) -> bool:
        """Whether the file is as wanted now."""
        path = wanted.path
        try:
            what = self._difference(wanted)
            if not what:
                return True
            before = self._written.get(path)
            if before == wanted:  # somebody changed it; else it is new, or what is wanted is
                wait = self._must_wait(path)
                if wait:
                    found.waits.append(wait)
                    found.problems.append(
                        f"{on_host(path)}: somebody else keeps changing it; it is put back ever later."
                    )
                    return False
            if what == _MODE:
                path.chmod(wanted.mode)  # its content may be as others wrote it, who would take another for a change
            else:
                _write(wanted)
            self._seen[path] = _signature(path)
        except OSError as error:
            found.problems.append(
                f"{on_host(path)}: {_why(error)}, so pods are not wired by Netloom. See --cni-bin-dir, --cni-conf-dir."
            )
            return False
        if before == wanted:
            found.repaired.append((path, what))
        else:
            log.info("a file of the CNI is installed", file=str(path), it_was=what)
        self._written[path] = wanted
        return True

    def _difference(self, wanted: _InstalledFile) -> str:
        """What is different of the file; "" for nothing. What was looked at and did not change is not read again."""
        path = wanted.path
        try:
            now = _signature(path)
        except FileNotFoundError:
            return "gone"
        if self._seen.get(path) == now and self._written.get(path) == wanted:
            return ""
        if path.is_symlink() or not path.is_file():
            return "no file"
        content = path.read_bytes()
        if content != wanted.content and not (path.name == CONFLIST and is_alike(content, wanted.content)):
            return "edited"
        if path.stat().st_mode & 0o777 != wanted.mode:
            return _MODE
        self._seen[path], self._written[path] = now, wanted
        return ""

    def _must_wait(self, path: Path) -> float:
        """Seconds until it may be put back."""
        now = self._clock()
        at, wait = self._patience.get(path, (-float("inf"), 0.0))
        if at + wait > now:
            return at + wait - now
        fresh = at + max(QUIET_SECONDS, 2 * wait) < now
        self._patience[path] = now, 0.0 if fresh else min(max(1.0, 2 * wait), LONGEST_SECONDS)
        return 0.0

    def _look_before_ours(self, found: _Found) -> None:
        """At the file that a runtime takes instead."""
        preceding = first(self.places.conf_dir, conflist_of(self.places), PLUGIN)
        if preceding is None:
            return
        before = f"{on_host(preceding.path)} comes before {CONFLIST}: the container runtime takes that one, and "
        if preceding.calls_others:
            found.warnings.append(f"{before}pods are wired by Netloom only if it calls it, as Multus does.")
            return
        who = f"by {', '.join(preceding.types)}" if preceding.types else "not at all, as it cannot be read"
        found.overruled = (
            f"{before}pods that come are wired {who}, and not by Netloom. Two CNIs on one node fight: remove that one "
            "(what writes the file first, then the file), or uninstall Netloom."
        )
        found.problems.append(found.overruled)

    async def run(self) -> None:
        """Keeps them for ever: on events of both directories."""
        folders = self.places.bin_dir, self.places.conf_dir
        while True:
            try:
                for folder in folders:
                    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                await follow(folders, _WATCHED, self._wake, self._look, SETTLE_SECONDS)
            except OSError as error:
                self._problems = (f"the files of the CNI cannot be kept: {_why(error)}.",)
                self._changed()
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> float:
        again = self._take(await asyncio.to_thread(self._keep_all, is_ready=self._is_ready()))
        return LOOK_SECONDS if again is None else again


def installed(places: Sequence[Path]) -> list[Path]:
    """Of these files, those that are there, with what an interrupted write left, in the order in which they go."""
    found = [each for path in places for each in (path, _fresh(path))]
    return [each for each in found if each.is_symlink() or each.exists()]


def _fresh(path: Path) -> Path:
    """Where it is written: no runtime takes a file whose name begins or ends so."""
    return path.with_name(f".{path.name}.new")


def _write(wanted: _InstalledFile) -> None:
    fresh = _fresh(wanted.path)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(wanted.content)
            file.flush()
            os.fchmod(descriptor, wanted.mode)
            os.fsync(descriptor)
        fresh.replace(wanted.path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _signature(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode


def _types(entries: Iterable[Entry]) -> list[str]:
    return [each["type"] for each in entries]


def _why(error: OSError) -> str:
    return error.strerror or str(error)
