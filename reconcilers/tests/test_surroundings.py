"""From objects to what is looked at on a node, and that other nodes' changes cost nothing there."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    Address,
    Limits,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkSpec,
    NodeIPAM,
    Routing,
)
from netloom.runtime.store import Store
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.surroundings import SETTLE_SECONDS, SurroundingsFeature
from tests.contexts import context


def node(number: int) -> NetloomNode:
    addresses = (Address("InternalIP", f"192.168.7.{number}"), Address("Hostname", "h"))
    ipam = NodeIPAM(mode="cluster-pool", pod_cidrs=(f"10.{number}.0.0/24",))
    return NetloomNode(ObjectMeta(name=f"node-{number}"), NetloomNodeSpec(addresses, ipam))


class Asked(SurroundingsFeature):
    """Notes when it is asked to reconcile, instead of doing so: seconds from now."""

    def __init__(self, *args: object) -> None:
        self.asked: list[float] = []
        super().__init__(*args)  # type: ignore[arg-type]
        self.controller.enqueue = lambda key: self.asked.append(0.0)  # type: ignore[method-assign]
        self.controller.enqueue_after = lambda key, seconds: self.asked.append(seconds)  # type: ignore[method-assign]


@pytest.fixture
def nodes() -> Store[NetloomNode]:
    return Store(NETLOOM_NODES)


@pytest.fixture
def networks() -> Store[NetloomNetwork]:
    return Store(NETWORKS)


@pytest.fixture
def feature(networks: Store[NetloomNetwork], nodes: Store[NetloomNode], tmp_path: Path) -> Asked:
    made = context("node-1", networks, nodes, OwnNode("node-1"))
    made.run_dir = tmp_path
    feature = Asked(made)
    for number in (1, 2, 3):
        nodes.put(node(number))
    networks.put(NetloomNetwork(ObjectMeta(name="default"), NetworkSpec()))
    return feature


def test_what_is_looked_at(feature: Asked, networks: Store[NetloomNetwork]) -> None:
    desired = feature.desired()
    assert desired is not None
    assert [str(cidr) for cidr in desired.own] == ["10.1.0.0/24"]
    assert (desired.peers, desired.native, desired.raise_limits) == (3, False, False)
    assert [(each.node, str(each.cidr), len(each.addresses)) for each in desired.remotes()] == [
        ("node-2", "10.2.0.0/24", 1),
        ("node-3", "10.3.0.0/24", 1),
    ]
    spec = NetworkSpec(routing=Routing(mode="hybrid"), limits=Limits(raises=True))
    networks.put(NetloomNetwork(ObjectMeta(name="default"), spec))
    desired = feature.desired()
    assert desired is not None
    assert (desired.native, desired.raise_limits) == (True, True)
    assert feature.desired() == desired, "nothing is looked at again for the same"


def test_changes_of_other_nodes_cost_nothing_and_those_that_come_are_counted_together(
    feature: Asked, networks: Store[NetloomNetwork], nodes: Store[NetloomNode]
) -> None:
    feature.asked.clear()
    for number in range(2, 100):
        changed = node(2)
        spec = replace(changed.spec, addresses=(Address("InternalIP", f"192.168.8.{number}"),))
        nodes.put(replace(changed, spec=spec))
    assert feature.asked == []
    nodes.put(node(4))
    nodes.remove("node-4")
    assert set(feature.asked) == {SETTLE_SECONDS}
    feature.asked.clear()
    nodes.put(replace(node(1), spec=replace(node(1).spec, ipam=NodeIPAM(pod_cidrs=("10.1.0.0/25",)))))
    assert 0.0 in feature.asked, "its own"
