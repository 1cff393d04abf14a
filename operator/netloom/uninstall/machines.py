"""Which machines are to be cleaned, how far each is, and what is said of those that do not get there. No I/O."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from netloom.api.core import NODES, TaintedSpec
from netloom.api.meta import READY, ObjectMeta, Struct
from netloom.api.pod_state import PodState
from netloom.uninstall.cleaner import pod_name


class Heard(Struct, frozen=True):
    """Node.status.conditions[], without times, which may be null."""

    type: str = ""
    status: str = ""


class MachineStatus(Struct, frozen=True):
    """Node.status, as far as it says whether its kubelet lives."""

    conditions: tuple[Heard, ...] = ()


class MachineNode(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: TaintedSpec = TaintedSpec()
    status: MachineStatus = MachineStatus()

    @property
    def is_silent(self) -> bool:
        """Whether its kubelet is not heard of. One that says that it is not ready, as for lack of a network, runs pods
        in the machine's network."""
        return not any(each.type == READY and each.status in ("True", "False") for each in self.status.conditions)


MACHINES = NODES.read_as(MachineNode)


@dataclass(slots=True)
class Progress:
    """How far the machines are, by name. clean: with what they left, as sentences. open: why not yet. silent: those
    whose kubelets are not heard of."""

    clean: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def wanted(machines: Iterable[MachineNode], chosen: Mapping[str, str], known: Collection[str]) -> list[MachineNode]:
    """Those on which agents may have been: the DaemonSet chooses them, or there is something of theirs."""
    return [
        each
        for each in machines
        if each.metadata.name in known or chosen.items() <= each.metadata.labels.items()
        # Without a label it is some old kubelet's; Windows has no network namespaces to clean.
        if each.metadata.labels.get("kubernetes.io/os", "linux") == "linux"
    ]


def look(
    machines: Iterable[MachineNode], agents: Collection[str], pods: Iterable[PodState]
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
