"""What can go wrong between Netloom and the API server, by what the caller can do about it.

`ApiError` and its subclasses are for code: a reconciler catches `Conflict` and reads again. `ConfigError` is for
people: its text is one sentence that names the file, context or address to look at, and the command line prints
it without a traceback.
"""

import datetime as dt
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from netloom.api.errors import UserError
from netloom.runtime.clock import http_date, wall


class ConfigError(UserError):
    """The way to the API server is missing or wrong. `str()` is one sentence for people."""


class ApiError(Exception):
    """The API server refused a request, or did not answer it.

    `status` is the HTTP status (0: no answer), `reason` the server's machine-readable reason ("AlreadyExists"),
    `message` its sentence, `retry_after` seconds it asked to wait (at most MOST_SECONDS), `details` its
    metav1.StatusDetails. `foreign`: the answer is not an API server's, but of somebody on the way.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details: Mapping[str, Any] = details or {}
        self.foreign = False

    def __str__(self) -> str:
        answer = f"{self.status} {self.reason}".strip() if self.status else self.reason
        return f"{self.message} ({answer})"


class NotFound(ApiError):
    """404: no such object, or the server does not know the kind."""


class Conflict(ApiError):
    """409: somebody wrote in between; read again, decide again. So it is where the object is not the one that was meant
    (by its uid), but a successor of its name; of patches the API server says that by 422."""


class AlreadyExists(ApiError):
    """409: an object of that name is there."""


class Invalid(ApiError):
    """422 (or 400): the object is refused for what it says; the same request will be refused again."""


class Forbidden(ApiError):
    """403: the server knows who asks and says no."""


class Unauthorized(ApiError):
    """401: the server does not know who asks."""


class TooManyRequests(ApiError):
    """429: wait `retry_after` seconds."""


class Gone(ApiError):
    """410: the resource version (or continue token) is too old; list again."""


class Unavailable(ApiError):
    """No answer, or 5xx. A write may or may not have happened: read, or write again with compare-and-swap."""


class Status(msgspec.Struct, rename="camel"):
    """metav1.Status: how the API server says no."""

    kind: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: dict[str, Any] | None = None


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}
_STATUS_DECODER = msgspec.json.Decoder(Status)
_TEXT_LIMIT = 200
MOST_SECONDS = 60.0
"""So long an answer may make anybody wait. API servers ask for a second; the page of a load balancer that is being
worked on asks for an hour, in which all would sleep, were it well after a minute."""


def from_status(status: Status, where: str, retry_after: float | None = None) -> ApiError:
    """The exception for a metav1.Status, from an answer or from an ERROR event of a watch."""
    kind = _BY_STATUS.get(status.code, Unavailable if status.code >= 500 else ApiError)
    if kind is Invalid and _is_of_another(status):
        kind = Conflict
    elif status.reason == "AlreadyExists":
        kind = AlreadyExists
    elif status.reason == "Expired":
        kind = Gone
    if retry_after is None and status.details:
        seconds = status.details.get("retryAfterSeconds")
        retry_after = float(seconds) if isinstance(seconds, int | float) else None
    if retry_after is not None:
        retry_after = min(retry_after, MOST_SECONDS)
    return kind(status.code, status.reason, f"{where}: {status.message}", retry_after, status.details)


def _is_of_another(status: Status) -> bool:
    """Whether a patch is refused for the uid in it: what it was meant for was deleted, and another has its name."""
    causes = (status.details or {}).get("causes")
    return isinstance(causes, list) and any(
        isinstance(each, dict) and each.get("field") == "metadata.uid" for each in causes
    )


def from_answer(
    code: int,
    phrase: str,
    body: bytes,
    retry_after: str | None,
    where: str,
    *,
    now: dt.datetime | None = None,
    via: str = "",
) -> ApiError:
    """The exception for an HTTP answer that is no success; `body` need not be JSON (proxies answer in text).

    now: by the clock of who answered. via: the way that it came, told where the answer is not an API server's.
    """
    try:
        status = _STATUS_DECODER.decode(body)
    except msgspec.MsgspecError:
        status = Status()
    foreign = status.kind != "Status"
    if foreign:
        text = " ".join(body.decode(errors="replace").split())
        status = Status(message=text[:_TEXT_LIMIT] or phrase)
        where += via
    status.code = code
    status.reason = status.reason or phrase.replace(" ", "")
    error = from_status(status, where, parse_retry_after(retry_after, now))
    error.foreign = foreign
    return error


def parse_retry_after(value: str | None, now: dt.datetime | None = None) -> float | None:
    """Seconds from a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3). None where unreadable."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        then = http_date(value)
    return None if then is None else max(0.0, (then - (now or wall())).total_seconds())


def unreadable(error: ApiError) -> str:
    """Why Netloom's objects could not be read, for people. The same words for every kind: all are asked for at once,
    and the answer is one sentence."""
    if isinstance(error, NotFound):
        return "the cluster does not know Netloom's objects: install the CRDs with `kubectl apply -f crds/`"
    if isinstance(error, Forbidden):
        return f"the objects may not be read: {error.message}. Give that user the rights, or use another context."
    return f"the objects could not be read: {error}"


def plain(error: OSError) -> str:
    """What the system calls the error, without the event loop's wrapping ("Connect call failed ('127.0.0.1', 1)")."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or "connection lost"
