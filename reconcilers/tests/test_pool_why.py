"""Why a pod has what it has, or waits: in which words."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from netloom.api.core import Pod
from netloom.api.meta import Condition
from netloom.api.pool_choice import ChosenPool, PoolChoice
from netloom.api.v1alpha1 import (
    IPPoolStatus,
    NetloomNode,
    NetloomNodeSpec,
    NodeIPAM,
    NodePools,
    PoolAllocation,
)
from netloom_reconcilers.node.pools.why import PodFacts, why
from tests.pool_world import network, pool
from tests.test_pool_telling import asked

BLUE = PoolChoice((ChosenPool(4, "blue", "selector"),))
FULL = Condition("Ready", "False", "PoolExhausted", "2 nodes wait for blocks. Append a CIDR.", "2026-01-01T00:00:00Z")


def pod(node: str = "n1", phase: str = "Pending", **spec: Any) -> Pod:
    meta = {"namespace": "shop", "name": "web"}
    return msgspec.convert({"metadata": meta, "spec": {"nodeName": node, **spec}, "status": {"phase": phase}}, Pod)


def node(*requested: Any, **allocated: tuple[str, ...]) -> NetloomNode:
    held = tuple(PoolAllocation(name, cidrs) for name, cidrs in allocated.items())
    spec = NetloomNodeSpec(ipam=NodeIPAM(mode="multi-pool", pools=NodePools(requested=requested, allocated=held)))
    return msgspec.convert({"metadata": {"name": "n1"}, "spec": msgspec.to_builtins(spec)}, NetloomNode)


def known(**other: Any) -> PodFacts:
    pools = {"blue": pool("blue", 2)}
    return PodFacts(pod(), network(), node(), BLUE, pools, ())._replace(**other)


def test_what_a_pod_has_and_by_which_rule() -> None:
    found = why(known(given=("10.2.0.3",), node=node(blue=("10.2.0.0/28",))))
    assert (found.name, found.node, found.mode, found.addresses) == ("shop/web", "n1", "multi-pool", ("10.2.0.3",))
    assert [(each.family, each.pool, each.rule) for each in found.choices] == [("IPv4", "blue", "selector")]
    assert (found.waits, found.note) == ("", "")
    other = why(known(given=("10.1.0.3",), node=node(default=("10.1.0.0/28",))))
    assert other.note == "The pool that it would get now is said; what it has, it was given before."


@pytest.mark.parametrize(
    ("other", "waits"),
    [
        ({"pod": pod("")}, "It is on no node yet: the scheduler has not chosen one."),
        ({"node": None}, "There is no NetloomNode n1: the operator makes one for each Node that takes part."),
        (
            {"seconds": {"blue": 12.4}, "node": node(asked("blue", 28), blue=("10.2.0.0/28",))},
            "shop/web gets no IPv4 address of NetloomIPPool blue on node n1: all usable addresses of its 1 block are "
            "taken, and it asks for 28 IPv4 addresses (somebody has waited for 12 s). The operator has not given it: "
            "`netloom status` says whether one leads, and what it says.",
        ),
        (
            {
                "seconds": {"blue": 12.4},
                "node": node(asked("blue", 28)),
                "pools": {"blue": replace(pool("blue", 2), status=IPPoolStatus(conditions=(FULL,)))},
            },
            "shop/web gets no IPv4 address of NetloomIPPool blue on node n1: it holds no block of it, and it asks "
            "for 28 IPv4 addresses (somebody has waited for 12 s). NetloomIPPool blue says PoolExhausted: 2 nodes "
            "wait for blocks. Append a CIDR.",
        ),
        (
            {"node": node(asked("blue", 28), blue=("10.2.0.0/28",))},
            "shop/web gets no IPv4 address of NetloomIPPool blue on node n1 yet: it holds 1 block of it, and it asks "
            "for 28 IPv4 addresses. On that node, `netloom ip why` says what its agent knows.",
        ),
        ({"seconds": {}}, "Nobody has asked the agent for an address of shop/web yet, or it was just served."),
        (
            {"seconds": {"blue": 1.0}, "pools": {"blue": pool("blue", 2, draining=True)}},
            "shop/web gets no IPv4 address of NetloomIPPool blue on node n1: the pool is draining (spec.draining), so "
            "nothing new is given of it. Name another pool.",
        ),
    ],
)
def test_why_it_waits(other: dict[str, Any], waits: str) -> None:
    assert why(known(**other)).waits == waits


def test_who_is_to_have_none() -> None:
    assert why(known(pod=pod(hostNetwork=True))).note == "It uses its node's network, and has no address of its own."
    assert why(known(pod=pod(phase="Succeeded"))).note == "It has ended, and what it had is free."
