"""What demos share: a story is told, and however it ends (a signal, a failure), nothing of it stays.

A story is a function that puts all that it starts on a stack. What goes wrong is told in a sentence; the exit status is
1 then, or if a step of the story saw something else than it should.
"""

import fcntl
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from rich.markup import escape

from netloom_e2e import processes
from netloom_e2e.bench import TROUBLES
from netloom_e2e.binaries import BinariesError
from netloom_e2e.report import Report

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TAIL = 15
"""Lines of each log that are shown where a demo failed."""

T = TypeVar("T")


class Stopped(Exception):
    """One of SIGNALS."""


def perform(
    name: str, story: Callable[[ExitStack, Path, Report], T], afterwards: Callable[[T, Report], None] | None = None
) -> int:
    """Tell a story, with a folder for its logs; the exit status. Two of a name do not run at once.

    afterwards: is called when it has been told, while all that it put on the stack is still there.
    """
    report = Report()
    with ExitStack() as stack:
        folder: Path | None = None
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"netloom-{name}-")))
            stack.enter_context(_alone(name))
            told = story(stack, folder, report)
            report.verdict()
            if afterwards:
                afterwards(told, report)
        except Stopped as signalled:
            report.console.print(f"\nstopped by {signalled}; cleaning up")
            return 130
        except Exception as error:  # noqa: BLE001 (who tries Netloom is not to read a traceback)
            report.saw(f"the {name} could not go on", _sentence(name, error), False)
            if folder and not isinstance(error, BinariesError):
                _show_logs(folder, report)
            report.verdict()
        finally:
            catch_signals(ignore=True)  # taking it down takes a second, and is not to be broken off
    return 1 if report.failed else 0


def _show_logs(folder: Path, report: Report) -> None:
    for log in sorted(folder.glob("*.log")):
        tail = "".join(log.read_text().splitlines(keepends=True)[-_TAIL:])
        report.console.print(f"--- end of {log.name}\n{escape(tail)}")


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two would take each other's namespaces away. Raises RuntimeError, which names the other."""
    with (processes.root() / f"{name}.lock").open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another {name} is up: `kill {lock.read().strip()}` takes it down") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _sentence(name: str, error: Exception) -> str:
    """What went wrong; where nobody has thought of it, with a file for the report of the fault."""
    if isinstance(error, (*TROUBLES, ValueError, AssertionError)):
        return str(error)
    with tempfile.NamedTemporaryFile("w", prefix="netloom-fault-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"a fault of the {name} itself, please report it with {file.name}: {type(error).__name__}: {error}"


def catch_signals(*, ignore: bool = False) -> None:
    """From now on each of SIGNALS raises Stopped, or does nothing."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(signum).name)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup
            signal.signal(number, signal.SIG_IGN if ignore else stop)
