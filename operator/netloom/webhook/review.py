"""From the bytes of an AdmissionReview to a request, and from a verdict back to bytes."""

import msgspec

from netloom.api.admission import (
    API_VERSION,
    KIND,
    AdmissionRequest,
    AdmissionResponse,
    AdmissionReview,
    AdmissionStatus,
)
from netloom.guard.verdict import Ruling

WARNING_RUNES = 256
"""At so many characters the API server cuts a warning (apiserver/pkg/endpoints/filters/warning.go) ..."""
WARNINGS_RUNES = 4096
"""... and past so many of all warnings of a request it drops the rest; other webhooks have to share them."""
_MORE_RUNES = 40

_DECODER = msgspec.json.Decoder(AdmissionReview)
_ENCODER = msgspec.json.Encoder()


class BadReview(Exception):
    """What was sent is no AdmissionReview that can be answered; the text is a sentence that says why."""


def decode(body: bytes) -> AdmissionRequest:
    """The request of an AdmissionReview v1. Raises BadReview."""
    try:
        review = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise BadReview(f"the body is not an AdmissionReview of {API_VERSION}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReview(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise BadReview("the body is not JSON that can be read: it is nested too deeply") from error
    if review.kind != KIND or review.api_version != API_VERSION:
        raise BadReview(
            f"the body is a {review.kind or 'thing without a kind'} of {review.api_version or 'no version'}, and "
            f"answered is only an {KIND} of {API_VERSION}: let the webhook's admissionReviewVersions be [v1]"
        )
    if review.request is None:
        raise BadReview(f"the {KIND} has no request")
    if not review.request.uid:
        raise BadReview(f"the request of the {KIND} has no uid, so that no answer could be told to be its own")
    return review.request


def answer(request: AdmissionRequest, verdict: Ruling) -> bytes:
    """The AdmissionReview that says the verdict."""
    status: AdmissionStatus | None = None
    if verdict.refusals:
        status = AdmissionStatus(message="\n".join(map(str, verdict.refusals)))
    elif verdict.unseen:
        status = not_ready("; ".join(verdict.unseen))
    return _encode(
        AdmissionResponse(
            uid=request.uid,
            allowed=status is None,
            status=status,
            warnings=warnings([str(problem) for problem in verdict.warnings]) if verdict.warnings else (),
        )
    )


def crashed(request: AdmissionRequest, error: BaseException) -> bytes:
    """The AdmissionReview for a request over which the decision itself failed: nothing is let through unseen."""
    message = (
        f"the guard failed over {request.operation} of {object_of(request)} and refuses what it cannot judge; that is "
        f"a bug in Netloom, please report it ({type(error).__name__}: {' '.join(str(error).split())[:200]}). To write "
        "all the same, see Break-glass in docs/guard.md."
    )
    status = AdmissionStatus(message=message, code=500, reason="InternalError")
    return _encode(AdmissionResponse(uid=request.uid, allowed=False, status=status))


def not_ready(why: str) -> AdmissionStatus:
    """The status of a refusal that is none: the same request may be allowed in a moment."""
    message = f"the guard is not ready: {why}; try again in a few seconds"
    return AdmissionStatus(message=message, code=503, reason="ServiceUnavailable")


def object_of(request: AdmissionRequest) -> str:
    """What a request is about, as kubectl would name it: `netloomnetworks.netloom.dev/status default`."""
    resource = f"{request.resource.resource}.{request.resource.group}".strip(".") or "an unknown resource"
    if request.sub_resource:
        resource = f"{resource}/{request.sub_resource}"
    name = "/".join(part for part in (request.namespace, request.name) if part)
    return f"{resource} {name}".strip()


def warnings(texts: list[str]) -> tuple[str, ...]:
    """The texts in pieces that the API server does not cut, and not more of them than it passes on.

    A line break would make it drop the text: it becomes a blank.
    """
    pieces = [piece for text in texts for piece in _split(" ".join(text.split()))]
    kept: list[str] = []
    left = WARNINGS_RUNES - _MORE_RUNES
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            return (*kept, f"... and more, {len(pieces) - len(kept)} lines in all")
        kept.append(piece)
    return tuple(kept)


def _split(text: str) -> list[str]:
    """Pieces of at most WARNING_RUNES, cut behind a sentence or, where that would waste half, between two words."""
    pieces = []
    while len(text) > WARNING_RUNES:
        room = WARNING_RUNES - len(" ...")
        cut = text.rfind(". ", 0, room) + 1
        if cut < room // 2:
            cut = text.rfind(" ", 0, room + 1)
        if cut < room // 2:
            cut = room
        pieces.append(f"{text[:cut].rstrip()} ...")
        text = f"... {text[cut:].lstrip()}"
    return [*pieces, text] if text else pieces


def _encode(response: AdmissionResponse) -> bytes:
    return _ENCODER.encode(AdmissionReview(api_version=API_VERSION, kind=KIND, response=response))
