"""Why a pod has the addresses that it has, or none: for `netloom ip why`. Pure.

The pod's own agent is asked where it listens on this machine: it alone knows for how long a pod has waited, and what it
gave before a kubelet told of it. Everywhere else the API server's objects tell most of the same, by the same rules.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from netloom.api.core import Pod
from netloom.api.ipam_modes import mode_of
from netloom.api.pool_choice import ChosenPool, PoolChoice
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.ipam.node_allocator import Shortage
from netloom_reconcilers.node.addresses.wire import FamilyChoice, Why
from netloom_reconcilers.node.pools import telling


class PodFacts(NamedTuple):
    """What is known. choice: None in modes without pools. given: addresses. seconds: for how long it is waited for each
    pool; None: nobody who is asked knows."""

    pod: Pod
    network: NetloomNetwork
    node: NetloomNode | None
    choice: PoolChoice | Problem | None
    pools: Mapping[str, NetloomIPPool]
    given: Collection[str]
    seconds: Mapping[str, float] | None = None


def why(known: PodFacts) -> Why:
    """As sentences."""
    pod, choice = known.pod, known.choice
    name = pod.name
    answer = Why(
        name=name,
        node=pod.spec.node_name,
        mode=mode_of(known.network).name,
        choices=tuple(_said(each, known) for each in choice.families) if isinstance(choice, PoolChoice) else (),
        addresses=tuple(known.given),
    )
    if pod.spec.host_network:
        return msgspec.structs.replace(
            answer, choices=(), note="It uses its node's network, and has no address of its own."
        )
    if pod.is_over:
        return msgspec.structs.replace(answer, note="It has ended, and what it had is free.")
    if known.given:
        note = "The pool that it would get now is said; what it has, it was given before." if _differs(known) else ""
        return msgspec.structs.replace(answer, note=note)
    return msgspec.structs.replace(answer, waits=_waits(known, name))


def _said(each: ChosenPool, known: PodFacts) -> FamilyChoice:
    match each.rule:
        case "pod":
            text = f"the pod's annotation {each.annotation} names it"
        case "namespace":
            text = f"annotation {each.annotation} of Namespace {known.pod.metadata.namespace} names it"
        case "selector":
            text = "its selectors choose the pod, and no annotation names a pool"
        case "default":
            text = "it is the default pool, and nothing names or chooses another"
        case "asked":
            text = "it was asked for"
    return FamilyChoice(f"IPv{each.version}", each.pool, each.rule, text)


def _differs(known: PodFacts) -> bool:
    """Whether what it has is of another pool than it would get now."""
    if known.node is None or not isinstance(known.choice, PoolChoice):
        return False
    now = set(known.choice.pools)
    return any(pool not in now for pool in telling.pools_of(known.node, known.given))


def _waits(known: PodFacts, name: str) -> str:
    if isinstance(known.choice, Problem):
        return str(known.choice)
    if not known.pod.spec.node_name:
        return "It is on no node yet: the scheduler has not chosen one."
    if known.node is None:
        return (
            f"There is no NetloomNode {known.pod.spec.node_name}: the operator makes one for each Node that takes part."
        )
    if known.choice is None:
        return "Its node has not given it one yet: see `netloom ip list` there, and Events of the pod."
    sentences = []
    for pool, versions in known.choice.pools.items():
        seconds = known.seconds.get(pool) if known.seconds is not None else None
        if known.seconds is not None and seconds is None:
            sentences.append(f"Nobody has asked the agent for an address of {name} yet, or it was just served.")
        else:
            sentences.append(
                telling.shortage(known.node, known.pools.get(pool), name, Shortage(pool, versions), seconds)
            )
    return " ".join(dict.fromkeys(sentences))
