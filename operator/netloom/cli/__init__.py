"""The command line. Every verb imports what it runs only when it runs: `netloom version` must not pay for aiohttp.

Importing makes hardly any garbage, but so many objects that the garbage collector looks at all of them again and again:
0.06 s of the 0.4 s that an agent takes to start. So it rests until `netloom.runtime.loop` wakes it.
"""

import gc

gc.disable()

from netloom.cli.app import main  # noqa: E402 - after the above

__all__ = ["main"]
