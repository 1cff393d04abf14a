"""The CNI plugin of this tree: its build, and calls of it as a container runtime makes them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.build_cache import BinariesError, made
from netloom_e2e.progress import follow

SOURCE = Path(__file__).parent.parent.parent / "cni"
NAME = "netloom-cni"
_SANITIZER = "exitcode=99:detect_leaks=0"
"""It looks for leaks by ptrace, as strace works; and nothing is leaked by a process that answers one call."""
CALL_SECONDS = 60.0


def built(*, sanitized: bool = False) -> Path:
    """The plugin's path. Builds it where it is missing (a second). Raises BinariesError.

    sanitized: for tests, a program that ends with status 99 where it does what is undefined in C."""
    target = "sanitized" if sanitized else "all"
    files = sorted([*SOURCE.glob("*.[ch]"), SOURCE / "Makefile"])
    parts = [platform.machine().encode(), target.encode(), *(file.read_bytes() for file in files)]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def make(folder: Path, log: Path) -> None:
        command = ["make", "-C", str(SOURCE), f"OUT={folder / NAME}", target]
        if follow(command, title="Building the CNI plugin, once", log=log, cwd=SOURCE, env=dict(os.environ)) != 0:
            raise BinariesError(f"`{' '.join(command)}` failed:\n{log.read_text(errors='replace')}")

    return made(f"{NAME}-{digest}", make) / NAME


@dataclass(frozen=True, slots=True)
class Result:
    """What a runtime gets: exit status, standard output and standard error."""

    status: int
    output: bytes
    said: str

    @property
    def error(self) -> tuple[int, str, str]:
        """Code, message and way out of a CNI error."""
        assert self.status == 1, self
        error = json.loads(self.output)
        assert set(error) == {"cniVersion", "code", "msg", "details"}, error
        return error["code"], error["msg"], error["details"]

    @property
    def code(self) -> int:
        return self.error[0]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A built plugin with the socket and the directory that it is told to use."""

    program: Path
    socket: Path
    deletions: Path

    def environment(self, variables: Mapping[str, str], seconds: int = 30) -> dict[str, str]:
        """Of a call with these CNI_* variables (`COMMAND` and so on, without that prefix)."""
        return {
            "NETLOOM_CNI_SOCKET": str(self.socket),
            "NETLOOM_CNI_DELETIONS": str(self.deletions),
            "NETLOOM_CNI_SECONDS": str(seconds),
            "ASAN_OPTIONS": _SANITIZER,
            "UBSAN_OPTIONS": _SANITIZER,
            "PATH": os.environ["PATH"],
            **{f"CNI_{name}": value for name, value in variables.items()},
        }

    def call(
        self, variables: Mapping[str, str], stdin: bytes, *, seconds: int = 30, before: tuple[str, ...] = ()
    ) -> Result:
        """Calls it, and waits for its end. before: words in front of the command, `strace` and its options or so."""
        done = subprocess.run(
            [*before, str(self.program)],
            input=stdin,
            capture_output=True,
            env=self.environment(variables, seconds),
            timeout=CALL_SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
