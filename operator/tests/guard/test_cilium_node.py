"""What is refused of writes to CiliumNodes by anybody but Cilium."""

import pytest

from netloom.api.cilium import CILIUM_NODES
from netloom.guard.cluster_state import ClusterState
from tests.guard import requests as ask


@pytest.fixture
def live() -> ClusterState:
    live = ask.fresh()
    ask.with_addresses(live, "a", "192.168.0.1")
    return live


def node(name: str = "a", **ipam: object) -> ask.Json:
    return {"metadata": {"name": name}, "spec": {"ipam": ipam}}


HELD = node(podCIDRs=["10.0.0.0/24", "fd00::/120"])
LIVES = (
    "the Node of this name lives and holds 10.0.0.0/24, fd00::/120: Cilium's operator would give that to other nodes, "
    "while pods here go on with it."
)


def test_what_a_living_node_holds_stays(live: ClusterState) -> None:
    removed = (
        f"CiliumNode a: metadata.name 'a': {LIVES} Remove the Node (kubectl delete node a), and Cilium deletes this"
    )
    assert ask.refused(live, CILIUM_NODES, HELD) == [f"{removed} object."]
    emptied = f"CiliumNode a: spec.ipam: {LIVES} Leave spec.ipam to Cilium's operator and the agent of the node."
    assert ask.refused(live, CILIUM_NODES, HELD, node()) == [emptied]
    pooled = node(pools={"allocated": [{"pool": "p", "cidrs": ["10.1.0.0/27", "10.1.0.32/27"]}]})
    less = node(pools={"allocated": [{"pool": "p", "cidrs": ["10.1.0.0/27"]}]})
    assert "holds 10.1.0.32/27:" in ask.refused(live, CILIUM_NODES, pooled, less)[0]
    single = node(pool={"10.2.0.1": {}, "10.2.0.2": {}, "10.2.0.3": {}})
    assert "holds 10.2.0.1, 10.2.0.2 and 1 more:" in ask.refused(live, CILIUM_NODES, single, node())[0]


def test_what_takes_nothing_away_passes(live: ClusterState) -> None:
    for old, new in ((None, HELD), (node(), HELD), (HELD, HELD), (node(), None)):
        assert ask.refused(live, CILIUM_NODES, old, new) == []


def test_a_node_that_is_gone_holds_nothing(live: ClusterState) -> None:
    gone = node("gone", podCIDRs=["10.0.0.0/24"])
    assert ask.refused(live, CILIUM_NODES, gone) == []
    live.unseen = lambda kind: "not listed yet" if kind == "Node" else ""
    assert ask.verdict(live, CILIUM_NODES, gone).unseen == ("Node: not listed yet",)
    assert ask.refused(live, CILIUM_NODES, HELD) != [], "a Node that is seen to live is enough"
