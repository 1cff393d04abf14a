"""What the guard says of one request."""

from collections.abc import Iterable
from itertools import islice

import msgspec
from msgspec.structs import replace

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

MOST = 20
"""Problems that are told of one list, and worked out at all."""


def told(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first problems of a list, and then that there are more. An object of 1.5 MiB may give cause for 60,000: three
    seconds, 27 MiB of an answer, and all others wait that ask."""
    found = tuple(islice(problems, MOST + 1))
    if len(found) <= MOST:
        return found
    last = replace(found[-1], value="", message="there is more of the kind.", way_out="Mend what is named first.")
    return (*found[:-1], last)
