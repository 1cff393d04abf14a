"""The verdict on each node: how it is, and what is wrong with it."""

from collections.abc import Iterator

import msgspec

from netloom.api.cluster_facts import (
    ClusterFacts,
    Life,
    ObjectProblem,
    Sign,
    Unseen,
    agent_lease,
    condition_problems,
    network_conditions,
    status_of,
)
from netloom.api.core import Node
from netloom.api.holdings import block_texts, holds
from netloom.api.ipam_modes import mode_of
from netloom.api.meta import ALLOCATED, DATAPLANE_READY, POD_TRAFFIC_PASSES, READY, Condition, condition_of
from netloom.api.odd_addresses import unreachable
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode

_LAST_WORDS = (f"{DATAPLANE_READY}=Unknown", f"{POD_TRAFFIC_PASSES}=False", f"{POD_TRAFFIC_PASSES}=Unknown")
"""Of an agent that is gone: it looks no more."""


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


class NodeJudge:
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
        problems = [*self._of_object(name, node, obj), *self._of_agent(name, life, sign, obj)]
        # That nothing is known of a data path whose agent is gone, the agent's silence has said.
        passed_over = _LAST_WORDS if life in ("silent", "released", "never") else ()
        told = condition_problems("NetloomNode", name, conditions)
        problems += [problem for problem in told if problem.condition not in passed_over]
        state = NodeState(
            name=name,
            ready=not problems and obj is not None,
            reasons=tuple(dict.fromkeys(problem.reason for problem in problems)),
            addresses=_internal(node, obj),
            pod_cidrs=block_texts(obj.spec.ipam) if obj else (),
            single_addresses=len(obj.spec.ipam.pool) if obj else 0,
            mode=obj.spec.ipam.mode if obj else "",
            waiting=not _holds(obj) and not (obj is None and isinstance(self._known.netloom_nodes, Unseen)),
            allocated=status_of(conditions, ALLOCATED),
            dataplane=status_of(conditions, DATAPLANE_READY),
            agent=life,
            last_heard=sign.heard if sign else "",
            conditions=conditions,
        )
        return state, problems

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
        allocated = status_of(obj.status.conditions, ALLOCATED)
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
        elif obj is not None and not status_of(obj.status.conditions, DATAPLANE_READY):
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
    ready = condition_of(network_conditions(known), READY)
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
