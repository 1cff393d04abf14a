"""What needs `cryptography`, done in a child process that ends with it.

A guard makes a certificate once in twenty days. With `cryptography` in it, it would hold 10 MiB for that all the time,
a seventh of what it needs. The child is this module, run by the same Python: one request in JSON at its stdin, one
answer at its stdout. Private keys are on no command line, in no environment and in no file.
"""

import asyncio
import datetime as dt
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from netloom.webhook import certificates
from netloom.webhook.certificates import CA, SERVING_LIFE, BadCertificate, BadSecret, Serving, Validity

T = TypeVar("T")

COMMAND = (sys.executable, "-P", "-m", "netloom.webhook.mint")
"""-P: without it, Python would look for modules in the working directory first."""

DEADLINE_SECONDS = 60.0
"""The child takes 0.12 s of CPU (and 35 MiB); a pod with a tight limit may wait a hundred times as long for it."""

_SHOWN = 300
"""Characters of what a child said last that a sentence repeats."""


class MintFailed(Exception):
    """The child did not do what it was asked for. The text is a sentence that says what, and why."""


class _MakeCA(msgspec.Struct, frozen=True, tag=True):
    now: dt.datetime


class _Issue(msgspec.Struct, frozen=True, tag=True):
    ca: CA
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    now: dt.datetime
    life: dt.timedelta


class _Parse(msgspec.Struct, frozen=True, tag=True):
    data: dict[str, str]
    secret: str


class _Validity(msgspec.Struct, frozen=True, tag=True):
    pem: str


_Request = _MakeCA | _Issue | _Parse | _Validity


class _Answer(msgspec.Struct, frozen=True):
    """`done`, or one of the others: the text of BadSecret, of BadCertificate, or what else went wrong."""

    done: msgspec.Raw = msgspec.Raw(b"null")
    bad_secret: str = ""
    bad_certificate: str = ""
    wrong: str = ""


class Mint:
    """Does by child processes what `certificates` does by `cryptography`: the functions of the same names.

    All raise MintFailed if the child fails, and end it when they are cancelled.
    """

    def __init__(self, command: Sequence[str] = COMMAND, deadline: float = DEADLINE_SECONDS) -> None:
        self._command = tuple(command)
        self._deadline = deadline
        self.children = 0
        """That were started until now."""

    async def new_ca(self, now: dt.datetime) -> CA:
        """A new CA."""
        return await self._ask("a CA was not made", _MakeCA(now), CA)

    async def issue(
        self,
        ca: CA,
        names: Sequence[str],
        now: dt.datetime,
        *,
        addresses: Sequence[str] = (),
        life: dt.timedelta = SERVING_LIFE,
    ) -> Serving:
        """A serving certificate."""
        request = _Issue(ca, tuple(names), tuple(addresses), now, life)
        return await self._ask("a serving certificate was not issued", request, Serving)

    async def parse(self, data: dict[str, str], secret: str) -> tuple[CA, ...]:
        """The CAs in the data of a Secret. Raises BadSecret."""
        return await self._ask(f"Secret {secret} was not read", _Parse(data, secret), tuple[CA, ...])

    async def validity(self, pem: str) -> tuple[Validity, ...]:
        """When each certificate of a PEM text is valid, at least one. Raises BadCertificate."""
        return await self._ask("a certificate was not read", _Validity(pem), tuple[Validity, ...])

    async def _ask(self, failure: str, request: _Request, kind: type[T]) -> T:
        try:
            output = await self._run(msgspec.json.encode(request))
            answer = msgspec.json.decode(output, type=_Answer)
            if answer.bad_secret:
                raise BadSecret(answer.bad_secret)
            if answer.bad_certificate:
                raise BadCertificate(answer.bad_certificate)
            if answer.wrong:
                raise MintFailed(answer.wrong)
            return msgspec.json.decode(answer.done, type=kind)
        except TimeoutError as error:
            why = f"the process that does it had not ended after {self._deadline:g} s, and was killed"
            raise MintFailed(f"{failure}: {why}") from error
        except OSError as error:
            raise MintFailed(f"{failure}: no process to do it could be started: {error}") from error
        except msgspec.MsgspecError as error:
            raise MintFailed(f"{failure}: the process that does it answered nonsense ({error})") from error
        except MintFailed as error:
            raise MintFailed(f"{failure}: {error}") from error

    async def _run(self, request: bytes) -> bytes:
        """What a child says to a request. Raises TimeoutError, OSError, MintFailed."""
        pipe = asyncio.subprocess.PIPE
        self.children += 1
        async with asyncio.timeout(self._deadline):
            child = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, stderr=pipe)
            try:
                output, said = await child.communicate(request)
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2][:_SHOWN]
            raise MintFailed(f"the process that does it ended with status {child.returncode}: {last}")
        return output


# The child


def answer(request: bytes) -> bytes:
    """What the child answers to a request."""
    try:
        done = _done(msgspec.json.decode(request, type=_Request))
        return msgspec.json.encode({"done": done})
    except BadSecret as error:
        return msgspec.json.encode({"bad_secret": str(error)})
    except BadCertificate as error:
        return msgspec.json.encode({"bad_certificate": str(error)})
    except (ValueError, ImportError) as error:
        return msgspec.json.encode({"wrong": str(error)})


def _done(request: _Request) -> object:
    match request:
        case _MakeCA(now=now):
            return certificates.new_ca(now)
        case _Issue(ca=ca, names=names, addresses=addresses, now=now, life=life):
            return certificates.issue(ca, names, now, addresses=addresses, life=life)
        case _Parse(data=data, secret=secret):
            return certificates.parse(data, secret)
        case _Validity(pem=pem):
            return certificates.validity(pem)


if __name__ == "__main__":
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
