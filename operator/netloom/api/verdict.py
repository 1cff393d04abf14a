"""Whether Netloom is well in a cluster, and if not, what is wrong: one judgement of what is known, for all who tell it.

`netloom status` prints it, and the operator writes it to the NetloomNetwork (condition `Degraded`) and to metrics. Both
come from here, so they cannot differ. Nothing is read here and no clock is asked: who listened says whether a sign of
life counts (`Sign.alive`), as the command line and the operator listen in different ways. What is said has moments in
it and no ages, so that the same state is always told in the same words.

What is said is bounded however large the cluster is: problems of the same kind and reason are one group with a count,
some names and one example. `Verdict.nodes` is all there is to know of each node.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from netloom.api.cluster_facts import (
    OPERATOR_LEASE,
    ClusterFacts,
    Life,
    ObjectProblem,
    Sign,
    Unseen,
    condition_problems,
    network_conditions,
    status_of,
)
from netloom.api.meta import READY
from netloom.api.node_verdict import NodeJudge, NodeState
from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.api.words import SHOWN

EXAMPLE_LIMIT = 1000
"""Characters of an example; a condition's message may have 32 times as many."""

T = TypeVar("T")


class ProblemGroup(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Problems of the same kind and reason: how many, the first names, and what is said of the first of them."""

    kind: str
    reason: str
    condition: str = ""
    count: int
    names: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        if self.count == 1:
            return self.message
        more = f" and {self.count - len(self.names):,} more" if self.count > len(self.names) else ""
        what = f"{self.condition} {self.reason}" if self.condition else self.reason
        return f"{self.count:,} {self.kind}s ({', '.join(self.names)}{more}): {what}. For one, {self.message}"


class Totals(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Counts of nodes. `waiting` are those without addresses for pods; agents by `Life`."""

    nodes: int = 0
    ready: int = 0
    waiting: int = 0
    agents_alive: int = 0
    agents_silent: int = 0
    agents_never_seen: int = 0
    agents_unknown: int = 0
    left_out: int = 0

    @property
    def summary(self) -> str:
        """The first thing to say."""
        return f"{self.ready:,} of {self.nodes:,} nodes ready"


class OperatorState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who leads, or led last: since when, and when it was heard of last (RFC 3339, "" for never)."""

    life: Life
    leader: str = ""
    since: str = ""
    last_heard: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """healthy: nothing is wrong, and nothing had to be left unlooked at. `problems` come with the gravest first."""

    healthy: bool
    totals: Totals
    operator: OperatorState
    problems: tuple[ProblemGroup, ...]
    nodes: tuple[NodeState, ...]

    @property
    def summary(self) -> str:
        """The first thing to say."""
        return self.totals.summary


def judge(known: ClusterFacts) -> Verdict:
    """The verdict on what is known."""
    groups = _Groups()
    for problem in (*_unseen(known), *_operator(known), *_network(known)):
        groups.add(problem)
    judge_of_nodes = NodeJudge(known)
    states: list[NodeState] = []
    nodes = {node.metadata.name: node for node in _seen(known.nodes, ())}
    objects = {obj.metadata.name: obj for obj in _seen(known.netloom_nodes, ())}
    left_out = {name for name, node in nodes.items() if known.left_out(node)}
    for name in sorted((nodes.keys() | objects.keys()) - left_out):
        node, obj = nodes.get(name), objects.get(name)
        state, found = judge_of_nodes.judge(name, node, obj)
        states.append(state)
        for problem in found:
            groups.add(problem)
    for problem in known.more:
        groups.add(problem)
    problems = groups.listed()
    return Verdict(
        healthy=not problems,
        totals=_totals(states, len(left_out)),
        operator=_operator_state(known.operator),
        problems=problems,
        nodes=tuple(states),
    )


class _Groups:
    """Problems by kind, condition and reason."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], ObjectProblem] = {}
        self._names: dict[tuple[str, str, str], list[str]] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, problem: ObjectProblem) -> None:
        """One more; objects of a kind come in the order of their names."""
        key = (problem.kind, problem.condition, problem.reason)
        if key not in self._first:
            self._first[key], self._names[key] = problem, []
        self._counts[key] += 1
        if len(self._names[key]) < SHOWN:
            self._names[key].append(problem.name)

    def listed(self) -> tuple[ProblemGroup, ...]:
        """Those of the cluster as a whole, then the others, the largest first."""
        found = (
            ProblemGroup(
                kind=first.kind,
                reason=first.reason,
                condition=first.condition,
                count=self._counts[key],
                names=tuple(self._names[key]),
                message=_cut(first.message),
            )
            for key, first in self._first.items()
        )
        return tuple(sorted(found, key=_gravity))


def _gravity(group: ProblemGroup) -> tuple[bool, int]:
    of_the_cluster = group.kind in ("Operator", "NetloomNetwork") or group.reason == "NotLookedAt"
    return (not of_the_cluster, -group.count)


def _cut(message: str) -> str:
    return message if len(message) <= EXAMPLE_LIMIT else f"{message[: EXAMPLE_LIMIT - 3]}..."


def _seen(found: T | Unseen, otherwise: T) -> T:
    return otherwise if isinstance(found, Unseen) else found


# Of the cluster as a whole


def _unseen(known: ClusterFacts) -> Iterator[ObjectProblem]:
    looked_at = {
        "Nodes": known.nodes,
        "NetloomNodes": known.netloom_nodes,
        "NetloomNetworks": known.network,
        "Leases of the agents": known.agents,
        "Lease of the operator": known.operator,
    }
    for what, found in looked_at.items():
        if isinstance(found, Unseen):
            yield ObjectProblem(what, what, "NotLookedAt", f"{what}: could not be looked at: {found.why}")
    for (kind, name), why in sorted(known.unreadable.items()):
        yield ObjectProblem(kind, name, "Unreadable", f"{kind} {name}: is not readable, and left out here: {why}")


def _operator(known: ClusterFacts) -> Iterator[ObjectProblem]:
    sign, lease = known.operator, f"Lease {known.namespace}/{OPERATOR_LEASE}"
    consequence = "new nodes get no pod CIDRs, and nothing is told of nodes that fail"
    if sign is None and status_of(network_conditions(known), READY):
        why = (
            f"operator: no sign of life can be seen: {lease} does not exist, though one has judged the NetloomNetwork. "
            "If it keeps its Lease in another namespace, give that as --lease-namespace; of one with --no-leader-elect "
            "nothing can be known."
        )
        yield ObjectProblem("Operator", OPERATOR_LEASE, "OperatorUnknown", why)
    elif sign is None:
        why = f"operator: none was ever heard of ({lease} does not exist): {consequence}. Start `netloom operator`."
        yield ObjectProblem("Operator", OPERATOR_LEASE, "OperatorNeverSeen", why)
    elif isinstance(sign, Unseen) or sign.life == "alive":
        return
    elif sign.life == "released":
        why = f"operator: the last one ended in order at {sign.heard}, and none took over ({lease}): {consequence}."
        yield ObjectProblem("Operator", OPERATOR_LEASE, "OperatorGone", f"{why} Start `netloom operator`.")
    else:
        why = (
            f"operator {sign.holder}: was last heard of at {sign.heard}, {sign.seconds:g} s of silence are allowed, "
            f"and none took over ({lease}): {consequence}. "
            "Look whether `netloom operator` runs and reaches the API server."
        )
        yield ObjectProblem("Operator", sign.holder, "OperatorSilent", why)


def _operator_state(sign: Sign | Unseen | None) -> OperatorState:
    if sign is None or isinstance(sign, Unseen):
        return OperatorState(life="never" if sign is None else "unknown")
    return OperatorState(life=sign.life, leader=sign.holder, since=sign.since, last_heard=sign.heard)


def _network(known: ClusterFacts) -> Iterator[ObjectProblem]:
    network = known.network
    if isinstance(network, Unseen):
        return
    if network is None:
        why = f"{_NETWORK}: does not exist, so no node gets pod CIDRs. Apply one."
        yield ObjectProblem("NetloomNetwork", NETWORK_NAME, "NoNetwork", why)
        return
    if since := network.metadata.deletion_timestamp:
        why = (
            f"{_NETWORK}: was deleted at {since}, and goes when no node holds addresses any more; a deletion cannot be "
            f"taken back. Keep a copy (kubectl get netloomnetwork {NETWORK_NAME} -o yaml), and apply it when this one "
            "is gone."
        )
        yield ObjectProblem("NetloomNetwork", NETWORK_NAME, "NetworkDeleted", why)
    yield from condition_problems("NetloomNetwork", NETWORK_NAME, network.status.conditions)
    sign = known.operator
    if isinstance(sign, Sign) and sign.life == "alive" and not status_of(network.status.conditions, READY):
        why = f"{_NETWORK}: the operator {sign.holder} has not said whether it accepts it; if that lasts, see its log."
        yield ObjectProblem("NetloomNetwork", NETWORK_NAME, "NotYetAccepted", why)


_NETWORK = f"NetloomNetwork {NETWORK_NAME}"


def _totals(states: Iterable[NodeState], left_out: int) -> Totals:
    states = list(states)
    agents = Counter(state.agent for state in states)
    return Totals(
        nodes=len(states),
        ready=sum(state.ready for state in states),
        waiting=sum(state.waiting for state in states),
        agents_alive=agents["alive"],
        agents_silent=agents["silent"] + agents["released"],
        agents_never_seen=agents["never"],
        agents_unknown=agents["unknown"],
        left_out=left_out,
    )
