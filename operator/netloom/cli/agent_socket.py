"""The agent of this machine, asked at its socket for addresses of pods."""

from pathlib import Path
from typing import TypeVar

import msgspec

from netloom.api.errors import UserError
from netloom.runtime.errors import plain
from netloom.runtime.http import aiohttp
from netloom_reconcilers.node.addresses.wire import ErrorAnswer

M = TypeVar("M", bound=msgspec.Struct)

_SLACK = 10.0
"""Seconds for the answer, beside those that the agent waits."""


async def ask(
    path: Path,
    method: str,
    url: str,
    kind: type[M],
    wait: float,
    body: bytes | None = None,
    query: list[tuple[str, str]] | None = None,
) -> M:
    """What the agent answers that listens at the path, in `wait` seconds and some more. Raises UserError."""
    timeout = aiohttp.ClientTimeout(total=wait + _SLACK)
    about = f"agent at {path}"
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session,
            session.request(method, f"http://agent{url}", data=body, params=query) as answer,
        ):
            said, status = await answer.read(), answer.status
    except aiohttp.ClientConnectorError as error:
        advice = "Run it as root on a node whose agent runs, or name its socket by --socket."
        raise UserError(f"{about}: does not answer: {plain(error.os_error)}. {advice}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UserError(f"{about}: gave no answer: {' '.join(str(error).split()) or type(error).__name__}.") from error
    try:
        if status != 200:
            raise UserError(msgspec.json.decode(said, type=ErrorAnswer).message)
        return msgspec.json.decode(said, type=kind)
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}: what answers there is no agent of Netloom (status {status}).") from error
