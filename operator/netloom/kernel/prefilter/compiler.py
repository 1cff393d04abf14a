"""The program as instructions: from a file that an earlier compilation left, or by a child that compiles it.

The instructions depend on the source and the byte order alone. They use nothing but the kernel's stable interface, so
those that were compiled anywhere (when an image is built) run on every kernel: where they are at hand, no compiler is.
"""

import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from netloom.kernel.prefilter import maps
from netloom.kernel.replaced_file import replace_file

PYTHON = Path("/usr/bin/python3")
"""Debian's bcc is for the system's interpreter."""

COMPILE_SECONDS = 120.0
"""It takes half a second; a machine that swaps has more patience than a node that is to be filtered."""

_BESIDE = Path(__file__).parent / "source"
_IN_TREE = Path(__file__).parents[4] / "bpf"
_MOST_LINES = 6


class Compiled(msgspec.Struct, frozen=True):
    """Instructions, in hexadecimal digits. multi_buffer: for kernels from 5.18 on, single_buffer: for older ones."""

    compiler: str
    multi_buffer: str
    single_buffer: str


class CompileError(Exception):
    """There are no instructions, and why, as a sentence."""


def source_folder() -> Path:
    """Where prefilter.c and compile.py are: beside this module where Netloom is installed, or in its source tree."""
    return _BESIDE if _BESIDE.is_dir() else _IN_TREE


def file_name(source: Path) -> str:
    """Of a compiled file: another source, or other numbers in it, is another file. Raises OSError."""
    parts = (source.read_bytes(), repr(sorted(maps.definitions().items())).encode(), sys.byteorder.encode())
    return f"prefilter-{sha256(b'|'.join(parts)).hexdigest()[:16]}.json"


def instructions(cache: Path, *, folder: Path | None = None, python: Path | None = None) -> Compiled:
    """That came with the source, or were compiled into `cache` before, or are compiled now. Raises CompileError."""
    folder = folder or source_folder()
    try:
        name = file_name(folder / "prefilter.c")
    except OSError as error:
        raise CompileError(f"the prefilter's source is missing from this installation: {error}") from error
    for place in (folder, cache):
        with suppress(OSError, msgspec.DecodeError):  # one that was not written to its end is compiled anew
            return msgspec.json.decode((place / name).read_bytes(), type=Compiled)
    compiled = compile_now(folder, python or PYTHON)
    with suppress(OSError):  # it can do without: the next start compiles again
        replace_file(cache / name, msgspec.json.encode(compiled))
    return compiled


def compile_now(folder: Path, python: Path) -> Compiled:
    """Have a child compile it. Raises CompileError."""
    import subprocess  # a node without a prefilter does without

    source = folder / "prefilter.c"
    options = [f"-D{name}={number}" for name, number in maps.definitions().items()]
    command = [str(python), "-I", str(folder / "compile.py"), str(source), *options]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except OSError as error:
        raise CompileError(f"the prefilter cannot be compiled: {python} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"compiling the prefilter took longer than {COMPILE_SECONDS:g} s and was ended") from error
    said = done.stderr.decode(errors="replace")
    if done.returncode == _NO_BCC:
        raise CompileError(
            f"the prefilter has to be compiled, which takes bcc for {python} ({said.strip()}): install Debian's "
            "python3-bpfcc, or use an image that has the compiled program"
        )
    try:
        return msgspec.json.decode(done.stdout, type=Compiled)
    except msgspec.DecodeError as error:
        raise CompileError(f"the prefilter does not compile: {_told(said, done.returncode)}") from error


_NO_BCC = 3


def _told(said: str, status: int) -> str:
    """What the compiler says of errors, or else how it ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines[-_MOST_LINES:]
    return "; ".join(errors[:_MOST_LINES]) or f"the compiler ended with status {status} and said nothing"
