"""What the API server answers with an error, again and again: told at the NetloomNetwork, as those who wait for it have
no object of their own that could tell.

Mostly it is an admission policy of the cluster's, a webhook that does not answer, or a quota. Each is tried again by
who writes; here it is only noted. What passes by itself is none of it: somebody else's write that came first, a server
that is away or asks to wait. And a moment is nothing: an API server that starts answers with errors, too.
"""

from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict, NotFound, TooManyRequests
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Incarnation, Member

REFUSED_SECONDS = 10.0
"""How long it must be so before it is told."""
LEDGERS = ""
"""Whose writes those of ledgers are."""
REASON = "WriteRefused"
_SHOWN = 3
_PASSING = (AlreadyExists, Conflict, NotFound, TooManyRequests)
_OBJECT = f"NetloomNetwork {NETWORK_NAME}"
_WAY_OUT = (
    "Let the admission policy, webhook or quota that is named take what the operator writes (group netloom.dev), and "
    "see that it answers."
)


class RefusedWrites(Member):
    """By the node for which was written, or `LEDGERS`."""

    def __init__(self, incarnation: Incarnation) -> None:
        super().__init__(incarnation)
        self._refused: dict[str, tuple[float, str]] = {}

    def note(self, whose: str, error: Exception | None) -> None:
        """What became of a write; None: it was done, or nobody waits for it any more."""
        if error is None:
            if self._refused.pop(whose, None) is not None:
                self._publish(Changed.WAITING)
        elif isinstance(error, ApiError) and error.status and not isinstance(error, _PASSING):
            since, _ = self._refused.get(whose, (self._clock(), ""))
            self._refused[whose] = since, str(error)
            if self._lasts(since):
                self._publish(Changed.WAITING)

    def problems(self) -> list[Problem]:
        """One for the ledgers, without which no node gets anything, and one for all nodes."""
        lasting = {whose: text for whose, (since, text) in sorted(self._refused.items()) if self._lasts(since)}
        found = []
        if (text := lasting.pop(LEDGERS, "")) or lasting:
            names = ", ".join(list(lasting)[:_SHOWN]) + (", ..." if len(lasting) > _SHOWN else "")
            what = "no node gets pod CIDRs" if text else f"{len(lasting)} node{'s' * (len(lasting) > 1)} ({names})"
            why = text or next(iter(lasting.values()))
            message = f"{what}: the API server refuses what the operator writes for that: {why}."
            found.append(Problem(_OBJECT, "", "", REASON, message, _WAY_OUT))
        return found

    def _lasts(self, since: float) -> bool:
        return self._clock() >= since + REFUSED_SECONDS
