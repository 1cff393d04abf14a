"""The agent of a machine, asked by HTTP: at its address, or at its socket.

Its answer may be anybody's: whatever else listens there is told apart from an agent, and named as what it is.
"""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from netloom.api.errors import UserError
from netloom.runtime.errors import plain
from netloom.runtime.http import aiohttp

M = TypeVar("M", bound=msgspec.Struct)


class Nobody(UserError):
    """Nothing listens there."""


class AgentAnswer(NamedTuple):
    """at: where from. status, kind: of HTTP, the kind of content."""

    at: str | Path
    status: int
    kind: str
    body: bytes

    def decode(self, kind: type[M], able: str = "") -> M:
        """What it says; able: " that can ...", where not every agent does. Raises UserError, if it is no agent's."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except msgspec.MsgspecError as error:
            what = f"no agent of Netloom{able} (status {self.status}, {self.kind})"
            raise UserError(f"{self.at}: what answers there is {what}.") from error


async def ask(at: str | Path, url: str, seconds: float, method: str = "GET", **what: Any) -> AgentAnswer:
    """What HOST:PORT, or the socket of that path, answers in so many seconds. what: as of aiohttp. Raises UserError;
    Nobody, if nothing listens there."""
    connector = aiohttp.UnixConnector(str(at)) if isinstance(at, Path) else None
    timeout = aiohttp.ClientTimeout(total=seconds)
    whole = f"http://{'agent' if isinstance(at, Path) else at}{url}"
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, whole, allow_redirects=False, **what) as answer,
        ):
            return AgentAnswer(at, answer.status, answer.content_type, await answer.read())
    except aiohttp.ClientConnectorError as error:
        raise Nobody(f"agent at {at}: does not answer: {plain(error.os_error)}.") from error
    except TimeoutError as error:
        raise UserError(f"agent at {at}: does not answer within {seconds:g} s.") from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{at}: what answers there is no agent of Netloom: {why}.") from error
