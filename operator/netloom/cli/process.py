"""What a process of the command line is to its shell: open streams, one sentence when it fails, and an exit status.

    0 all is well     1 something that a user can mend, in a sentence on standard error     2 the command line is wrong
    130 ctrl-C        141 nobody reads the output any more (as of a program that SIGPIPE ends)

A traceback is for those who mend Netloom: a fault of its own is a sentence, too. NETLOOM_LOG_LEVEL=debug shows more.
"""

import errno
import os
import sys
from collections.abc import Callable
from io import BufferedWriter, RawIOBase, TextIOWrapper
from typing import TextIO, cast

from netloom.api.errors import WrongUsage, in_words, sentences

WRONG_USAGE = 2
INTERRUPTED = 130
UNREAD = 141

_TOO_MANY_FILES = os.strerror(errno.EMFILE)


class _OutputFailed(Exception):
    """Standard output takes no more; the cause says why."""


class _Output(TextIOWrapper):
    """Standard output, whose errors are told from those of any other file."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _OutputFailed from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _OutputFailed from error


def run(command: Callable[[], None]) -> int:
    """The exit status of the command, whatever it ends by."""
    try:
        _open_streams()
        status = _run(command)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except _OutputFailed as failure:
        status = _output_failed(cast(OSError, failure.__cause__))
    return status


def end(status: int) -> None:
    """Ends the process. What could not be written must not be tried again, and complained of, by the interpreter."""
    raise SystemExit(status)


def _run(command: Callable[[], None]) -> int:
    try:
        command()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except (_OutputFailed, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is: nobody else is there to tell it
        return _explain(error)
    return 0


def _explain(error: BaseException) -> int:
    said = sentences(error)
    if not said and os.environ.get("NETLOOM_LOG_LEVEL", "").lower() == "debug":
        sys.excepthook(type(error), error, error.__traceback__)
    words = in_words(error)
    if not said and (isinstance(error, OSError) or _TOO_MANY_FILES in words):  # an import fails by an ImportError
        said = [_of_the_system(error)]
    if not said:
        said = [
            f"{' '.join(f'{type(error).__name__}: {words}'.split())}{_place(error)}. This is a fault of Netloom: "
            "please report it, with what NETLOOM_LOG_LEVEL=debug shows of it"
        ]
    for line in "\n".join(said).splitlines():
        say(line)
    return WRONG_USAGE if isinstance(error, WrongUsage) else 1


def _of_the_system(error: BaseException) -> str:
    if _TOO_MANY_FILES in in_words(error):
        return f"{_TOO_MANY_FILES}: this process may not open what it needs; raise the limit, as by `ulimit -n 1024`"
    if not isinstance(error, OSError):
        return str(error)
    what = f"{error.filename}: " if error.filename else ""
    return f"{what}{os.strerror(error.errno) if error.errno and error.errno > 0 else error}"


def _place(error: BaseException) -> str:
    """Where, in our own code."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/netloom" in file:
            found = f" ({'/'.join(file.split('/')[-2:])}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found


def say(sentence: str) -> None:
    """To the person at the keyboard, on standard error."""
    try:
        print(f"netloom: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        _mute(2)


def confirm(question: str, otherwise: str) -> None:
    """Asks the person at the keyboard. Ends the process where the answer is no, and says what that means."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say(otherwise)
        end(1)


def _open_streams() -> None:
    """A stream that was closed would lend its number to the next file or socket, which would get what is printed."""
    missing = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in missing:
        os.open(os.devnull, os.O_RDWR)
    if 2 in missing:
        sys.stderr = cast(TextIO, open(2, "w", closefd=False))  # noqa: SIM115
    if 0 in missing:
        sys.stdin = cast(TextIO, open(0, closefd=False))  # noqa: SIM115
    if 1 in missing:
        os.close(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)  # who prints is told: Bad file descriptor
        sys.stdout = cast(TextIO, open(1, "w", closefd=False))  # noqa: SIM115
    # What a locale has no letters for is written as \u2026, and stops nothing.
    plain = cast(TextIOWrapper, sys.stdout)
    encoding, line_buffering = plain.encoding, plain.line_buffering
    binary = plain.detach()
    if isinstance(binary, RawIOBase):  # PYTHONUNBUFFERED: what a pipe does not take at once would be lost
        binary, line_buffering = BufferedWriter(binary), True
    sys.stdout = _Output(binary, encoding, "backslashreplace", line_buffering=line_buffering)
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _output_failed(error: OSError) -> int:
    _mute(1)
    if error.errno == errno.EPIPE:
        return UNREAD
    say(f"the output cannot be written: {os.strerror(error.errno or 0)}")
    return 1


def _mute(number: int) -> None:
    """Whatever is still in a buffer goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
