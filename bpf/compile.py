"""Compiles prefilter.c by bcc, for the system's Python: `compile.py SOURCE [-DNAME=VALUE ...]`.

A child of the agent's, that ends: LLVM takes 110 MiB, and changes the working directory. Writes JSON to its standard
output: the instructions with and without support for several buffers, in hexadecimal digits. Status 3: there is no bcc.
What clang says is on its standard error.

bcc includes headers of the kernel before the source, which needs none of them. Their guards are defined here, and there
is one empty file where it looks for a kernel's: neither headers nor modules have to be installed.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

GUARDS = ("_UAPI__LINUX_BPF_H__", "__LINUX_BPF_H__", "__BPF_HELPERS_H")
VARIANTS = {"multi_buffer": ["-DMULTI_BUFFER"], "single_buffer": []}
FUNCTION = b"netloom_drop"
NO_BCC = 3


def main(source: str, *definitions: str) -> None:
    text = Path(source).read_bytes()
    with tempfile.TemporaryDirectory() as place:
        empty = Path(place, "include/linux/kconfig.h")
        empty.parent.mkdir(parents=True)
        empty.touch()
        os.environ["BCC_KERNEL_SOURCE"] = place
        try:
            from bcc import BPF, __version__
        except ImportError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(NO_BCC)
        options = [*(f"-D{guard}" for guard in GUARDS), *definitions]
        compiled = {}
        for name, more in VARIANTS.items():
            try:
                compiled[name] = BPF(text=text, cflags=options + more).dump_func(FUNCTION).hex()
            except Exception as error:  # noqa: BLE001 - bcc raises nothing narrower; clang has said why
                sys.exit(str(error))
        os.chdir("/")
    sys.stdout.write(json.dumps({"compiler": f"bcc {__version__}", **compiled}))


if __name__ == "__main__":
    main(*sys.argv[1:])
