"""Whether pods run, and if not, why: of the Kubernetes API what people are told of Netloom's own pods."""

from collections.abc import Iterable

from netloom.api.core import PODS, PodSpec
from netloom.api.meta import ObjectMeta, Struct


class Ended(Struct, frozen=True):
    """state.terminated of a container."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class Waiting(Struct, frozen=True):
    """state.waiting of a container."""

    reason: str = ""
    message: str = ""


class State(Struct, frozen=True):
    """The state of a container."""

    waiting: Waiting | None = None
    terminated: Ended | None = None


class ContainerStatus(Struct, frozen=True):
    """status.containerStatuses[]"""

    state: State = State()
    last_state: State = State()


class PodStateStatus(Struct, frozen=True):
    """Pod.status"""

    phase: str = ""
    reason: str = ""
    message: str = ""
    container_statuses: tuple[ContainerStatus, ...] = ()


class PodState(Struct, frozen=True):
    """core/v1 Pod, as far as it says whether it runs, and how it ended."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStateStatus = PodStateStatus()

    @property
    def words(self) -> str:
        """What the container said as it ended, or why it does not run; the last line of it."""
        found = [each.message or each.reason for each in self._ends] + [self.status.message or self.status.reason]
        return next(filter(None, found), self.status.phase or "it was not begun").strip()

    @property
    def _ends(self) -> Iterable[Ended | Waiting]:
        for each in self.status.container_statuses:
            for state in (each.state, each.last_state):
                yield from filter(None, (state.terminated,))
            yield from filter(None, (each.state.waiting,))


POD_STATES = PODS.read_as(PodState)
