"""A feature of the operator: one thing that its leader does for the cluster.

It lives as long as the process, and keeps nothing but its caches. In each term of leadership that the process wins it
begins `TermWork` anew, with empty memory: what an earlier term knew may be wrong. What crashes is begun again, in the
same term if another feature still works in it, and stops no other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from netloom.api.meta import Resource
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom_reconcilers.features import Caches
from netloom_reconcilers.signs_of_life import GRACE_SECONDS

Told = Sequence[tuple[Resource[Any], Sequence[str]]]
"""Kinds of objects, each with field managers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterContext:
    """What the features of one operator share. `crashes`: what crashed in this process of late, as sentences.

    identity: of this replica. lease_namespace: of the operators' Lease and the agents'. grace_period: seconds of
    silence that agents are allowed in a small cluster.
    """

    api: Api
    events: EventRecorder
    caches: Caches
    crashes: Callable[[], Iterable[str]] = tuple
    identity: str = ""
    lease_namespace: str = "kube-system"
    grace_period: float = GRACE_SECONDS


class TermWork(Protocol):
    """What a feature does in one term."""

    @property
    def fault(self) -> str:
        """What keeps it from working, "" if nothing; for the readiness check."""

    async def run(self) -> None:
        """Works until it is cancelled; once."""

    def look(self) -> None:
        """`crashes` changed."""

    async def tell_crash(self, crash: str) -> None:
        """The last words of work that crashed, where people look."""


class ClusterFeature(Protocol):
    """See the module. It asks the context for its caches when it is made, and reads and writes nothing then.

    name: as in --features, and on /readyz.
    told: kinds of objects with a status by it that says that all is well, and the field managers that apply it. An
          operator without the feature takes that back, as it would be believed for ever.
    """

    name: ClassVar[str]
    told: ClassVar[Told]

    def __init__(self, context: ClusterContext) -> None: ...

    def begin(self) -> TermWork:
        """The work of a new term."""
