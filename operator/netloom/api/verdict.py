"""Whether Netloom is well in a cluster, and if not, what is wrong: one judgement of what is known, for all who tell it.

`netloom status` prints it, and the operator writes it to the NetloomNetwork (condition `Degraded`) and to metrics. Both
come from here, so they cannot differ. Nothing is read here and no clock is asked: who listened says whether a sign of
life counts (`Sign.alive`), as the command line and the operator listen in different ways. What is said has moments in
it and no ages, so that the same state is always told in the same words.

What is said is bounded however large the cluster is: problems of the same kind and reason are one group with a count,
some names and one example. `Verdict.nodes` is all there is to know of each node.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from netloom.api.core import Node
from netloom.api.holdings import block_texts, holds
from netloom.api.ipam_modes import mode_of
from netloom.api.meta import Condition
from netloom.api.odd_addresses import unreachable
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode
from netloom.api.words import SHOWN

OPERATOR_LEASE = "netloom-operator"
"""Name of the Lease whose holder leads."""
AGENT_LABEL = "netloom.dev/agent"
"""Of agents' Leases, with the value "true"."""
SUMMARY = "Degraded"
"""Condition of the NetloomNetwork that tells this verdict: True is bad. The verdict does not look at it."""
EXAMPLE_LIMIT = 1000
"""Characters of an example; a condition's message may have 32 times as many."""

T = TypeVar("T")

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
    further troubles.
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


class ProblemGroup(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Troubles of the same kind and reason: how many, the first names, and what is said of the first of them."""

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


class NodeState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node. `ready`: nothing is wrong with it; else `reasons` says what, the words of `ObjectProblem.reason`.

    allocated, dataplane: a condition's status, "" where it is absent, as `kubectl get` shows them. last_heard: of its
    agent, by the API server's clock (RFC 3339); "" for never. waiting: it holds no addresses for pods.
    """

    name: str
    ready: bool
    reasons: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    single_addresses: int = 0
    mode: str = ""
    waiting: bool = False
    allocated: str = ""
    dataplane: str = ""
    agent: Life = "unknown"
    last_heard: str = ""
    conditions: tuple[Condition, ...] = ()


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
    for trouble in (*_unseen(known), *_operator(known), *_network(known)):
        groups.add(trouble)
    judging = _Nodes(known)
    states: list[NodeState] = []
    nodes = {node.metadata.name: node for node in _seen(known.nodes, ())}
    objects = {obj.metadata.name: obj for obj in _seen(known.netloom_nodes, ())}
    left_out = {name for name, node in nodes.items() if known.left_out(node)}
    for name in sorted((nodes.keys() | objects.keys()) - left_out):
        node, obj = nodes.get(name), objects.get(name)
        state, troubles = judging.judge(name, node, obj)
        states.append(state)
        for trouble in troubles:
            groups.add(trouble)
    for trouble in known.more:
        groups.add(trouble)
    problems = groups.listed()
    return Verdict(
        healthy=not problems,
        totals=_totals(states, len(left_out)),
        operator=_operator_state(known.operator),
        problems=problems,
        nodes=tuple(states),
    )


class _Groups:
    """Troubles by kind, condition and reason."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], ObjectProblem] = {}
        self._names: dict[tuple[str, str, str], list[str]] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, trouble: ObjectProblem) -> None:
        """One more; objects of a kind come in the order of their names."""
        key = (trouble.kind, trouble.condition, trouble.reason)
        if key not in self._first:
            self._first[key], self._names[key] = trouble, []
        self._counts[key] += 1
        if len(self._names[key]) < SHOWN:
            self._names[key].append(trouble.name)

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
    if sign is None and _status(_network_conditions(known), "Ready"):
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
    yield from _conditions("NetloomNetwork", NETWORK_NAME, network.status.conditions)
    sign = known.operator
    if isinstance(sign, Sign) and sign.life == "alive" and not _status(network.status.conditions, "Ready"):
        why = f"{_NETWORK}: the operator {sign.holder} has not said whether it accepts it; if that lasts, see its log."
        yield ObjectProblem("NetloomNetwork", NETWORK_NAME, "NotYetAccepted", why)


_NETWORK = f"NetloomNetwork {NETWORK_NAME}"


def _conditions(kind: str, name: str, conditions: Iterable[Condition]) -> Iterator[ObjectProblem]:
    for each in conditions:
        if each.status != "True" and each.type != SUMMARY:
            told = f"{each.type}={each.status}"
            yield ObjectProblem(kind, name, each.reason, f"{kind} {name}: {told} {each.reason}: {each.message}", told)


def _network_conditions(known: ClusterFacts) -> tuple[Condition, ...]:
    return known.network.status.conditions if isinstance(known.network, NetloomNetwork) else ()


def _status(conditions: Iterable[Condition], type_: str) -> str:
    return next((each.status for each in conditions if each.type == type_), "")


# Of each node

_LAST_WORDS = ("DataplaneReady=Unknown", "PodTrafficPasses=False", "PodTrafficPasses=Unknown")
"""Of an agent that is gone: it looks no more."""


class _Nodes:
    """Judges each node; what is the same for all of them is looked at once."""

    def __init__(self, known: ClusterFacts) -> None:
        self._known = known
        self._agents = known.agents
        self._why_waiting = _why_waiting(known)
        self._what = "addresses" if _from_outside(known) else "pod CIDRs"

    def judge(self, name: str, node: Node | None, obj: NetloomNode | None) -> tuple[NodeState, list[ObjectProblem]]:
        """How the node is, and what is wrong with it."""
        sign = None if isinstance(self._agents, Unseen) else self._agents.get(name)
        life: Life = sign.life if sign else "unknown" if obj is None or isinstance(self._agents, Unseen) else "never"
        conditions = obj.status.conditions if obj else ()
        troubles = [*self._of_object(name, node, obj), *self._of_agent(name, life, sign, obj)]
        # That nothing is known of a data path whose agent is gone, the agent's silence has said.
        passed_over = _LAST_WORDS if life in ("silent", "released", "never") else ()
        told = _conditions("NetloomNode", name, conditions)
        troubles += [trouble for trouble in told if trouble.condition not in passed_over]
        state = NodeState(
            name=name,
            ready=not troubles and obj is not None,
            reasons=tuple(dict.fromkeys(trouble.reason for trouble in troubles)),
            addresses=_internal(node, obj),
            pod_cidrs=block_texts(obj.spec.ipam) if obj else (),
            single_addresses=len(obj.spec.ipam.pool) if obj else 0,
            mode=obj.spec.ipam.mode if obj else "",
            waiting=not _holds(obj) and not (obj is None and isinstance(self._known.netloom_nodes, Unseen)),
            allocated=_status(conditions, "Allocated"),
            dataplane=_status(conditions, "DataplaneReady"),
            agent=life,
            last_heard=sign.heard if sign else "",
            conditions=conditions,
        )
        return state, troubles

    def _of_object(self, name: str, node: Node | None, obj: NetloomNode | None) -> Iterator[ObjectProblem]:
        if obj is None:
            if not isinstance(self._known.netloom_nodes, Unseen):
                reason, why = self._why_waiting
                if node is not None and (odd := unreachable(node)) is not None:
                    reason, why = odd.reason, f"{f'{odd.field} {odd.value}'.strip()}: {odd.text}"
                yield ObjectProblem(
                    "Node", name, reason, f"Node {name}: has no NetloomNode, and so no {self._what}: {why}"
                )
            return
        allocated = _status(obj.status.conditions, "Allocated")
        if node is None and not isinstance(self._known.nodes, Unseen) and allocated != "False":
            why = f"NetloomNode {name}: there is no Node {name}. The operator removes it, unless it was made by hand."
            yield ObjectProblem("NetloomNode", name, "NoNode", why)
        elif not _holds(obj) and allocated in ("", "True"):
            reason, why = self._why_waiting
            yield ObjectProblem("NetloomNode", name, reason, f"NetloomNode {name}: holds no {self._what}: {why}")

    def _of_agent(self, name: str, life: Life, sign: Sign | None, obj: NetloomNode | None) -> Iterator[ObjectProblem]:
        if life == "never":
            why = (
                f"agent of {name}: was never heard of (there is no Lease {self._known.namespace}/{agent_lease(name)}). "
                f"Run `netloom agent` on node {name}; where one runs, it needs "
                f"--lease-namespace={self._known.namespace} as well, and its log says why it writes none."
            )
            yield ObjectProblem("Agent", name, "AgentNeverSeen", why)
        elif sign is not None and life != "alive":
            why = (
                f"agent of {name}: was last heard of at {sign.heard}, and {sign.seconds:g} s of silence are allowed. "
                f"Look whether `netloom agent` runs on node {name} and reaches the API server."
            )
            yield ObjectProblem("Agent", name, "AgentSilent", why)
        elif obj is not None and not _status(obj.status.conditions, "DataplaneReady"):
            why = f"agent of {name}: has not said yet whether the kernel holds what is desired."
            yield ObjectProblem("Agent", name, "DataplaneNotTold", why)


def _why_waiting(known: ClusterFacts) -> tuple[str, str]:
    """Why nodes have no addresses yet, if nothing is said at the node: reason and sentence."""
    sign, network = known.operator, known.network
    if network is None:
        return "NoNetwork", "there is no NetloomNetwork to say from which ranges."
    if isinstance(sign, Unseen):
        return "Waiting", "the operator gives them; whether one works could not be looked at."
    if sign is None or sign.life != "alive":
        return "NoOperator", "no operator is heard of that would give them."
    ready = next((each for each in _network_conditions(known) if each.type == "Ready"), None)
    if ready is not None and ready.status != "True":
        return ready.reason, f"NetloomNetwork {NETWORK_NAME} is not ready ({ready.reason}), and says why."
    if _from_outside(known):
        return "Waiting", "whoever gives them from outside (docs/ipam.md) writes them into spec.ipam.pool."
    way = "if this lasts, the Node's Events and the operator's log say why."
    return "Waiting", f"the operator {sign.holder} gives them within moments; {way}"


def _from_outside(known: ClusterFacts) -> bool:
    return isinstance(known.network, NetloomNetwork) and mode_of(known.network).from_outside


def _holds(obj: NetloomNode | None) -> bool:
    """Whether it holds addresses for pods, in any mode."""
    return obj is not None and holds(obj.spec.ipam)


def _internal(node: Node | None, obj: NetloomNode | None) -> tuple[str, ...]:
    if obj is not None:
        return tuple(each.ip for each in obj.spec.addresses if each.type == "InternalIP")
    return tuple(each.address for each in node.status.addresses if each.type == "InternalIP") if node else ()


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
