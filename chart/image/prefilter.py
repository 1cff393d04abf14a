"""`prefilter.py FOLDER`: compiles the prefilter into a folder with its source, for an image that has no compiler.

By Debian's bcc, which only the stage has in which this runs."""

import sys
from pathlib import Path

import msgspec

from netloom.kernel.prefilter.compiler import compile_now, file_name

folder = Path(sys.argv[1])
compiled = msgspec.json.encode(compile_now(folder, Path("/usr/bin/python3")))
(folder / file_name(folder / "prefilter.c")).write_bytes(compiled)
