"""A build, of the control plane or of more, that goes on beside something else.

A process of its own: it stays in the network namespace that it was started in while its owner enters others, and it can
be ended in the middle. It has a session of its own, so that Ctrl-C reaches the owner only, who ends it in order; the
kernel does so where the owner is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from netloom_e2e.binaries import BinariesError
from netloom_e2e.namespaces import die_with_parent

_COMMAND = (sys.executable, "-m", "netloom_e2e", "build")
_END_SECONDS = 20.0
_NICENESS = 10
"""What goes on beside it shall not look slow; on an idle machine it costs nothing."""


class Building:
    """A build that runs, or has ended."""

    def __init__(self, process: subprocess.Popen[str], said: IO[str]) -> None:
        self._process = process
        self._said = said

    def done(self, seconds: float) -> bool:
        """Whether it has ended; waits for it for so long. Raises BinariesError if it failed, with what it said."""
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(seconds) != 0:
                self._said.seek(0)
                raise BinariesError(self._said.read().rpartition("netloom-e2e: ")[2].strip())
            return True
        return False


@contextmanager
def building(*what: str) -> Iterator[Building]:
    """Build what is missing of these (see `netloom-e2e build`), in the caller's network namespace. It ends with the
    block."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*_COMMAND, *what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
            start_new_session=True,
            preexec_fn=_prepare,
        )
        try:
            yield Building(process, said)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    die_with_parent(signal.SIGINT)
    os.nice(_NICENESS)
