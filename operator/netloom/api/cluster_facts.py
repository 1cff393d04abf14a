"""What is known of a cluster, by which the verdict on it is found; and what is said of one object that is not well."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from netloom.api.core import Node
from netloom.api.meta import Condition
from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode

OPERATOR_LEASE = "netloom-operator"
"""Name of the Lease whose holder leads."""
AGENT_LABEL = "netloom.dev/agent"
"""Of agents' Leases, with the value "true"."""
SUMMARY = "Degraded"
"""Condition of the NetloomNetwork that tells this verdict: True is bad. The verdict does not look at it."""

Life = Literal["alive", "silent", "released", "never", "unknown"]
"""silent: heard of once, and not in time since; released: the Lease was given back, and nobody took it (of operators);
never: there is no Lease; unknown: Leases could not be looked at, or an agent would not have one, as there is no
NetloomNode that it could belong to."""


def agent_lease(node: str) -> str:
    """Name of the Lease that the agent of a node renews."""
    return f"netloom-agent-{node}"


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life: a Lease as it was heard of last. `since` and `heard` are moments as in objects (RFC 3339).

    holder: who renews it; "" once it was given back. since: when that one took it. seconds: of silence, after which its
    holder counts as gone. alive: whether it was renewed within that time.
    """

    holder: str
    since: str
    heard: str
    seconds: float
    alive: bool

    @property
    def life(self) -> Life:
        """Of its holder."""
        return "released" if not self.holder else "alive" if self.alive else "silent"


@dataclass(frozen=True, slots=True)
class Unseen:
    """Stands for what could not be looked at. `why` is a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class ObjectProblem:
    """One thing that is wrong with one object. `condition` is `DataplaneReady=False` where a condition says so."""

    kind: str
    name: str
    reason: str
    message: str
    condition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """All that the verdict goes by.

    network, operator: None where there is none. agents: by the name of their node. left_out: whether a Node is none of
    Netloom's. namespace: of the Leases. unreadable: why, by kind and name of objects that do not fit their type. more:
    further problems.
    """

    nodes: Iterable[Node] | Unseen
    netloom_nodes: Iterable[NetloomNode] | Unseen
    network: NetloomNetwork | Unseen | None
    agents: Mapping[str, Sign] | Unseen
    operator: Sign | Unseen | None
    left_out: Callable[[Node], bool] = lambda node: False
    namespace: str = "kube-system"
    unreadable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    more: Iterable[ObjectProblem] = ()


def condition_problems(kind: str, name: str, conditions: Iterable[Condition]) -> Iterator[ObjectProblem]:
    """What an object's conditions say is wrong with it."""
    for each in conditions:
        if each.status != "True" and each.type != SUMMARY:
            told = f"{each.type}={each.status}"
            yield ObjectProblem(kind, name, each.reason, f"{kind} {name}: {told} {each.reason}: {each.message}", told)


def network_conditions(known: ClusterFacts) -> tuple[Condition, ...]:
    """Of the NetloomNetwork; none where it is not known."""
    return known.network.status.conditions if isinstance(known.network, NetloomNetwork) else ()


def status_of(conditions: Iterable[Condition], type_: str) -> str:
    """Of the condition of a type; "" where there is none."""
    return next((each.status for each in conditions if each.type == type_), "")
