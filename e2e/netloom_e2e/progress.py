"""Shows that something slow is going on: one line rewritten in a terminal, a line now and then elsewhere (CI's log)."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_TERMINAL_SECONDS = 1.0
_LOG_SECONDS = 15.0


class Progress:
    def __init__(self, title: str, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._rewrite = self._out.isatty()
        self._started = time.monotonic()
        self._next = self._started
        self._title = title
        self._say(f"{title} ...\n")

    def show(self, detail: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_SECONDS if self._rewrite else _LOG_SECONDS)
        line = f"  {_duration(now - self._started)}  {detail}"
        self._say(f"\r\x1b[K{line[:100]}" if self._rewrite else f"{line}\n")

    def end(self, outcome: str) -> None:
        start = "\r\x1b[K" if self._rewrite else ""
        self._say(f"{start}  {outcome} after {_duration(time.monotonic() - self._started)}\n")

    def _say(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def follow(
    command: list[str],
    *,
    title: str,
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    describe: Callable[[list[str]], str] = lambda output: output[-1] if output else "",
) -> int:
    """Runs a command, its output into `log`, and shows what `describe` makes of the lines so far; its exit status."""
    progress = Progress(title)
    log.parent.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    with log.open("wb") as output:
        try:
            with _interrupts_held():
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env
                )
            while True:
                try:
                    status = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    progress.show(describe(log.read_text(errors="replace").splitlines()))
        except BaseException:
            if process is not None:
                process.send_signal(signal.SIGINT)  # which `go build` answers by ending its compilers
                process.wait()
            progress.end("stopped")
            raise
    progress.end("done" if status == 0 else "failed")
    return status


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C in the block comes at its end: one in the middle of a start leaves a process that nobody knows of."""
    answer = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(answer):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)
        if held:
            signal.raise_signal(signal.SIGINT)


def waiting(take: Callable[[], None], *, title: str) -> None:
    """Calls `take` until it does not raise BlockingIOError any more."""
    progress: Progress | None = None
    while True:
        try:
            take()
        except BlockingIOError:
            progress = progress or Progress(title)
            progress.show("")
            time.sleep(0.2)
        else:
            if progress:
                progress.end("done")
            return
