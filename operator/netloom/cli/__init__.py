"""The command line. Every verb imports what it runs only when it runs: `netloom version` must not pay for aiohttp.

Importing makes hardly any garbage, but so many objects that the garbage collector looks at all of them again and again:
0.06 s of the 0.4 s that an agent takes to start. So it rests until `netloom.runtime.loop` wakes it.

This module imports next to nothing itself: from here on ctrl-C and a full disk end in a sentence.
"""

import gc
import sys
from collections.abc import Callable

from netloom.cli import process

gc.disable()


def main() -> None:
    """Entry point of `netloom`, and of `kubectl netloom` by the name of `kubectl-netloom`."""
    process.end(process.run(_command))


def complete() -> None:
    """Entry point of `kubectl_complete-netloom`, which kubectl asks when TAB is pressed behind `kubectl netloom`."""
    sys.argv.insert(1, "__complete")
    main()


def _app() -> Callable[..., None]:
    """Without what it imports for mistyped words, and for archives that nobody packs here."""
    from netloom.shells import imported_later

    with imported_later({"difflib": ("get_close_matches",), "bz2": (), "lzma": ()}):
        from netloom.cli.app import app
    return app


def _command() -> None:
    if sys.argv[1:2] == ["__complete"]:
        from netloom.cli.completion import answer

        answer(sys.argv[2:])
        return
    _app()(prog_name="kubectl netloom" if sys.argv[0].endswith("kubectl-netloom") else "netloom")


__all__ = ["complete", "main"]
