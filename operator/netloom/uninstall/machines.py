"""Which machines are to be cleaned, how far each is, and what is said of those that do not get there. No I/O."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netloom.api.meta import ObjectMeta, Resource, Struct
from netloom.uninstall.cleaner import pod_name


class MachineSpec(Struct, frozen=True):
    """Node.spec, with taints as they are on the wire: they are written back."""

    taints: tuple[dict[str, Any], ...] = ()


class Heard(Struct, frozen=True):
    """Node.status.conditions[], without times, which may be null."""

    type: str = ""
    status: str = ""


class MachineStatus(Struct, frozen=True):
    """Node.status, as far as it says whether its kubelet lives."""

    conditions: tuple[Heard, ...] = ()


class Machine(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: MachineSpec = MachineSpec()
    status: MachineStatus = MachineStatus()

    @property
    def is_silent(self) -> bool:
        """Whether its kubelet is not heard of. One that says that it is not ready, as for lack of a network, runs pods
        in the machine's network."""
        return not any(each.type == "Ready" and each.status in ("True", "False") for each in self.status.conditions)


MACHINES = Resource("", "v1", "nodes", Machine)


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


class CleanerStatus(Struct, frozen=True):
    """Pod.status"""

    phase: str = ""
    reason: str = ""
    message: str = ""
    container_statuses: tuple[ContainerStatus, ...] = ()


class CleanerSpec(Struct, frozen=True):
    """Pod.spec"""

    node_name: str = ""


class CleanerPod(Struct, frozen=True):
    """core/v1 Pod, as far as it says how a cleanup ended."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CleanerSpec = CleanerSpec()
    status: CleanerStatus = CleanerStatus()

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


CLEANERS = Resource("", "v1", "pods", CleanerPod)


@dataclass(slots=True)
class Progress:
    """How far the machines are, by name. clean: with what they left, as sentences. open: why not yet. silent: those
    whose kubelets are not heard of."""

    clean: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def wanted(machines: Iterable[Machine], chosen: Mapping[str, str], known: Collection[str]) -> list[Machine]:
    """Those on which agents may have been: the DaemonSet chooses them, or there is something of theirs."""
    return [
        each
        for each in machines
        if each.metadata.name in known or chosen.items() <= each.metadata.labels.items()
        # Without a label it is some old kubelet's; Windows has no network namespaces to clean.
        if each.metadata.labels.get("kubernetes.io/os", "linux") == "linux"
    ]


def look(
    machines: Iterable[Machine], agents: Collection[str], pods: Iterable[CleanerPod]
) -> tuple[Progress, list[str]]:
    """How far all are, and the machines that are to get a cleaner now. agents: where agents still are."""
    by_name = {each.metadata.name: each for each in pods}
    progress, ready = Progress(), []
    for name, machine in sorted((each.metadata.name, each) for each in machines):
        pod = by_name.get(pod_name(name))
        if pod is not None and pod.status.phase == "Succeeded":
            ends = [each.state.terminated for each in pod.status.container_statuses if each.state.terminated]
            progress.clean[name] = " ".join(each.message.strip() for each in ends)
        elif machine.is_silent:
            progress.silent.append(name)
        elif pod is not None:
            progress.open[name] = pod.words
        elif name in agents:
            progress.open[name] = "its agent has not ended"
        else:
            progress.open[name] = "it was not begun"
            ready.append(name)
    return progress, ready
