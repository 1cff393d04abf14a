"""The prefilter's program of this tree, compiled: for guests and images, which have no compiler."""

from __future__ import annotations

from pathlib import Path

from netloom.kernel.prefilter import compiler
from netloom_e2e.build_cache import BinariesError, made


def compiled() -> Path:
    """The compiled file, whose name is that by which an agent looks for it beside its source. Compiles it where it is
    missing (a second). Raises BinariesError."""
    name = compiler.file_name(compiler.source_folder() / "prefilter.c")

    def make(folder: Path, log: Path) -> None:
        try:
            compiler.instructions(folder)
        except compiler.CompileError as error:
            raise BinariesError(str(error)) from error

    return made(name.removesuffix(".json"), make) / name
