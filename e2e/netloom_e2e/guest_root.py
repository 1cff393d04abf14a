"""The root of a virtual machine, as an initramfs: this tree, its Python, a few programs, and a kernel's modules.

The machine's own root could be lent to the guest as it is, but without hardware virtualization each look-up in a lent
folder takes a millisecond or more: `import pytest` took 30 s there. What the kernel unpacks into its memory at boot
needs no driver and no disk, is read at once, and is gone with the guest.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TREE = Path(__file__).parent.parent.parent
PROGRAMS = (
    *("bash", "cat", "env", "grep", "ls", "mkdir", "mount", "mv", "rm", "sh", "sleep", "uname"),
    *("depmod", "dmesg", "ip", "modprobe", "nsenter", "ping", "rmmod", "ss", "sysctl"),
)

_FILES = ("/etc/group", "/etc/nsswitch.conf", "/etc/passwd", "/etc/protocols", "/etc/services")
_FOLDERS = ("/etc/iproute2", "/usr/share/iproute2", "/usr/lib/iproute2")
_EMPTY = ("dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "etc/modprobe.d")

# Large, and of no use in a guest: the standard library's own tests, linters, the API client's thousand models.
_WITHOUT = (
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data"),
    *("config-*", "*.opt-?.pyc", "*.a"),
)
_PACKAGES_WITHOUT = (
    *("models", "api", "e2e_test"),  # of kubernetes_asyncio
    *("mypy", "mypyc", "*__mypyc.*", "pip", "setuptools", "pkg_resources", "hypothesis*", "grimp"),
    *("importlinter", "cryptography", "uvloop", "hatchling", "ast_serialize", "librt"),
    *("pydantic", "pydantic_core", "tzdata"),
)
_TREE_FOLDERS = ("operator", "reconcilers", "e2e", "bpf")


class GuestRoot:
    """What lies where. Links are followed: a guest's file is what its path leads to here."""

    def __init__(self, modules: Path) -> None:
        """`modules`: what is to be /lib/modules there. Reads the installed Python and programs as they are now."""
        self._content: dict[str, Path | bytes | None] = {}
        for name in _EMPTY:
            self._folder(name)
        paths = sysconfig.get_paths()
        self._tree(Path(paths["stdlib"]), _WITHOUT)
        self._tree(Path(paths["purelib"]), _PACKAGES_WITHOUT)
        for name in _TREE_FOLDERS:
            self._tree(TREE / name, ())
        for folder in _FOLDERS:
            self._tree(Path(folder), ())
        self._tree(modules, (), Path("/lib/modules"))
        programs = [Path(found) for program in PROGRAMS if (found := shutil.which(program, path=_search_path()))]
        executable = Path(sys.executable)
        extensions = [
            Path(place) for place in self._content.values() if isinstance(place, Path) and ".so" in place.name
        ]
        files = [executable, TREE / "pyproject.toml", *programs, *map(Path, _FILES)]
        if sys.prefix != sys.base_prefix:
            files.append(Path(sys.prefix) / "pyvenv.cfg")
        for file in (*files, *_libraries([executable, *programs, *extensions])):
            self._file(file)

    def add(self, path: Path, content: bytes) -> None:
        """A file of its own, executable."""
        self._content[self._place(path)] = content
        self._parents(path)

    def write(self, out: BinaryIO) -> None:
        """The whole as a cpio archive in the format newc, as Documentation/driver-api/early-userspace has it."""
        links = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64") if Path("/", name).is_symlink()}
        for number, (name, source) in enumerate(sorted(self._content.items()), 1):
            if source is None:
                _write_entry(out, number, name, stat.S_IFDIR | 0o755, b"")
            elif isinstance(source, bytes):
                _write_entry(out, number, name, stat.S_IFREG | 0o755, source)
            else:
                about = source.stat()
                mode, seconds = stat.S_IFREG | about.st_mode & 0o777, int(about.st_mtime)  # compiled Python goes by it
                _write_entry(out, number, name, mode, source.read_bytes(), seconds)
        for number, (name, target) in enumerate(links.items(), len(self._content) + 1):
            _write_entry(out, number, name, stat.S_IFLNK | 0o777, target.encode())
        _write_entry(out, 0, "TRAILER!!!", 0, b"")

    def _tree(self, folder: Path, without: tuple[str, ...], target: Path | None = None) -> None:
        for file in _walk(folder, (*without, ".git", ".pytest_cache")):
            self._file(file, (target or folder) / file.relative_to(folder))

    def _file(self, file: Path, path: Path | None = None) -> None:
        if file.is_file():
            self._content.setdefault(self._place(path or file), file)
            self._parents(path or file)

    def _parents(self, path: Path) -> None:
        for parent in Path(self._place(path)).parents[:-1]:
            self._folder(str(parent))

    def _folder(self, name: str) -> None:
        for folder in (Path(name), *Path(name).parents[:-1]):
            self._content.setdefault(str(folder))

    def _place(self, path: Path) -> str:
        """Under `/usr` where the first folder of its path is a link into it."""
        path = path.parent.absolute() / path.name
        first = Path("/", path.parts[1])
        if first.is_symlink():
            path = first.resolve() / path.relative_to(first)
        return str(path.relative_to("/"))


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def _walk(folder: Path, without: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not any(fnmatch.fnmatch(name, pattern) for pattern in without)]
        yield from (
            Path(root, name) for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in without)
        )


def _libraries(binaries: Iterable[Path]) -> list[Path]:
    """The shared libraries that programs and extension modules need."""
    environment = os.environ | {"LC_ALL": "C"}
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, env=environment, timeout=120, check=False)
    return [Path(path) for path in sorted(set(re.findall(r"(/\S+) \(0x", told.stdout)))]


def _write_entry(out: BinaryIO, number: int, name: str, mode: int, content: bytes, seconds: int = 0) -> None:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, seconds, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    out.write(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))
