"""What the guard says of one request."""

import msgspec

from netloom.api.problem import Problem


class Ruling(msgspec.Struct, frozen=True):
    """refusals: what is wrong, the worst first; empty means: let it through.

    warnings: legal and unwise; shown to whoever asks, whatever the verdict.
    unseen: what the decision needs and the caches do not hold (yet): kind by kind, why. Nothing is decided then.
    """

    refusals: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return not self.refusals and not self.unseen


ALLOWED = Ruling()
