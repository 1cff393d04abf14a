"""What needs `cryptography`, called in a child process that ends with the call.

A guard makes a certificate once in twenty days. With `cryptography` in it, it holds 10 MiB for that all the time: 69 to
70 MiB with 5,000 nodes and writes, of the 70 that it may have, and 59 to 60 without. The function and its arguments go
to the child's stdin, and the result comes from its stdout, both pickled. Private keys are on no command line, in no
environment and in no file.
"""

import asyncio
import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from netloom.webhook.certificates import BadCertificate, BadSecret

P = ParamSpec("P")
T = TypeVar("T")

COMMAND = (sys.executable, "-P", "-m", "netloom.webhook.mint")
"""-P: without it, Python would look for modules in the working directory first."""

DEADLINE_SECONDS = 60.0
"""The child takes 0.12 s of CPU (and 35 MiB); a pod with a tight limit may wait a hundred times as long for it."""

_SHOWN = 300
"""Characters of what a child said last that a sentence repeats."""


class MintFailed(Exception):
    """The child did not do what it was asked for. The text is a sentence that says what, and why."""


class Mint:
    """Calls functions of `certificates`, each in a child process; ends the child when it is cancelled."""

    def __init__(self, command: Sequence[str] = COMMAND, deadline: float = DEADLINE_SECONDS) -> None:
        self._command = tuple(command)
        self._deadline = deadline
        self.children = 0
        """That were started until now."""

    async def call(self, failure: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns. Raises BadSecret and BadCertificate as it does, and MintFailed for all else.

        failure: what a MintFailed begins with, "a CA was not made".
        """
        try:
            result, raised = pickle.loads(await self._run(pickle.dumps(functools.partial(function, *args, **kwargs))))
        except TimeoutError as error:
            why = f"the process that does it had not ended after {self._deadline:g} s, and was killed"
            raise MintFailed(f"{failure}: {why}") from error
        except OSError as error:
            raise MintFailed(f"{failure}: no process to do it could be started: {error}") from error
        except MintFailed as error:
            raise MintFailed(f"{failure}: {error}") from error
        except Exception as error:  # whatever nonsense makes of pickle
            raise MintFailed(f"{failure}: the process that does it answered nonsense ({error})") from error
        match raised:
            case None:
                return result  # type: ignore[no-any-return]  # of pickle's answers mypy knows nothing
            case BadSecret() | BadCertificate():
                raise raised
        raise MintFailed(f"{failure}: {raised}") from raised

    async def _run(self, call: bytes) -> bytes:
        """What a child answers to a call. Raises TimeoutError, OSError, MintFailed."""
        pipe = asyncio.subprocess.PIPE
        self.children += 1
        async with asyncio.timeout(self._deadline):
            child = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, stderr=pipe)
            try:
                output, said = await child.communicate(call)
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2][:_SHOWN]
            raise MintFailed(f"the process that does it ended with status {child.returncode}: {last}")
        return output


def answer(call: bytes) -> bytes:
    """In the child: what a call returns, and what it raises."""
    try:
        return pickle.dumps((pickle.loads(call)(), None))
    except (BadSecret, BadCertificate, ValueError, ImportError) as error:
        return pickle.dumps((None, error))


if __name__ == "__main__":
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
