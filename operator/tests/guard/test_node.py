"""NetloomNodes: whose entries the addresses are."""

import pytest

from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.guard.cluster_state import ClusterState
from netloom.guard.node import GARBAGE_COLLECTOR
from tests.guard import requests as ask
from tests.guard.requests import Json, ipam, refused

NAMED = " A controller that gives addresses itself has to be named to the guard with --operator-user."


def node(held: Json) -> Json:
    return {"metadata": {"name": "worker-1"}, "spec": {"ipam": held}}


@pytest.fixture
def live() -> ClusterState:
    live = ask.fresh()
    ask.with_addresses(live, "worker-1", "192.168.0.1")
    return live


def test_a_user_does_not_edit_addresses(live: ClusterState) -> None:
    old = node(ipam("multi-pool", "10.244.1.0/24", pools={"default": ["10.245.0.0/27", "10.245.0.32/27"]}))
    new = node(ipam("multi-pool", "10.244.1.0/24"))
    assert refused(live, NETLOOM_NODES, old, new) == [
        "NetloomNode worker-1: spec.ipam '10.244.1.0/24': only the operator and this node's own agent keep the account "
        "of its addresses, and admin is neither: another entry takes addresses from pods of the node, which holds "
        "10.244.1.0/24, 10.245.0.0/27 and 1 more, or gives the same to two nodes. Leave spec.ipam as it is; to give a "
        f"node other addresses, remove the Node and let it join again.{NAMED}"
    ]


def test_a_user_does_not_give_addresses(live: ClusterState) -> None:
    assert refused(live, NETLOOM_NODES, None, node(ipam("crd", pool={"10.0.0.1": {}, "10.0.0.2": {}}))) == [
        "NetloomNode worker-1: spec.ipam '2 addresses': only the operator gives a node its addresses, and admin is not "
        "it: they may be in use on another node. Create it without spec.ipam, or leave it to the operator, which makes "
        f"one for every Node.{NAMED}"
    ]
    assert refused(live, NETLOOM_NODES, None, {"metadata": {"name": "worker-1"}}) == []


@pytest.mark.parametrize(
    ("user", "bound_to", "may"),
    [
        (ask.OPERATOR, "", True),
        (ask.AGENT, "worker-1", True),
        (ask.AGENT, "worker-2", False),
        (ask.AGENT, "", False),
        ("admin", "worker-1", False),
        (GARBAGE_COLLECTOR, "", False),
        ("", "", False),
    ],
)
def test_who_may_edit(live: ClusterState, user: str, bound_to: str, may: bool) -> None:
    old, new = node(ipam("multi-pool", pools={"default": ["10.245.0.0/27"]})), node(ipam("multi-pool"))
    assert (refused(live, NETLOOM_NODES, old, new, user=user, node=bound_to) == []) == may
    assert (refused(live, NETLOOM_NODES, None, old, user=user, node=bound_to) == []) == may


def test_its_agent_changes_what_it_has_of_pools_and_nothing_else(live: ClusterState) -> None:
    old = node(ipam("multi-pool", "10.244.1.0/24", pools={"default": ["10.245.0.0/27"]}))

    def said(new: Json) -> list[str]:
        return refused(live, NETLOOM_NODES, old, node(new), user=ask.AGENT, node="worker-1")

    assert said(ipam("multi-pool", "10.244.1.0/24")) == []
    by_operator = (
        "a node's agent may change spec.ipam.pools of it, and nothing else that it holds. Leave it to the operator."
    )
    assert said(ipam("multi-pool", "10.244.2.0/24")) == [f"NetloomNode worker-1: spec.ipam.podCIDRs: {by_operator}"]
    assert said(ipam("crd", "10.244.1.0/24")) == [f"NetloomNode worker-1: spec.ipam.mode: {by_operator}"]
    single = ipam("multi-pool", "10.244.1.0/24", pool={"10.0.0.1": {}})
    assert said(single) == [f"NetloomNode worker-1: spec.ipam.pool: {by_operator}"]


@pytest.mark.parametrize(
    ("pool", "cidr", "why"),
    [
        ("default", "10.245.0.64/27", ""),
        ("default", "10.245.0.64/28", ""),  # as the pool cut it when it was made anew since
        ("default", "fd00::40/122", ""),
        ("default", "10.245.1.0/27", "1 node holds blocks of it (worker-2)"),
        ("default", "10.245.1.0/28", "1 node holds blocks of it (worker-2)"),
        ("default", "10.245.0.0/16", "2 nodes hold blocks of it (worker-2, gone)"),
        ("blue", "10.245.1.0/27", "1 node holds blocks of it (worker-2)"),
        ("default", "10.245.2.0/27", "1 node holds blocks of it (gone)"),
        ("default", "10.245.128.0/26", "NetloomIPPool default has no such block"),
        ("default", "0.0.0.0/0", "3 nodes hold blocks of it (fixed, worker-2, gone)"),
        ("default", "10.96.0.0/27", "NetloomIPPool default has no such block"),
        ("default", "fd01::/122", "NetloomIPPool default has no such block"),
        ("blue", "10.245.0.64/27", "NetloomIPPool blue has no such block"),
        ("blue", "fd00::40/122", "NetloomIPPool blue has no such block"),
        ("nowhere", "10.245.0.64/27", "NetloomIPPool nowhere has no such block"),
    ],
)
def test_its_agent_enters_again_what_is_nobody_elses(live: ClusterState, pool: str, cidr: str, why: str) -> None:
    both = {"ipv4": {"cidrs": ["10.245.0.0/16"], "maskSize": 27}, "ipv6": {"cidrs": ["fd00::/64"], "maskSize": 122}}
    ask.with_pool(live, {"metadata": {"name": "default"}, "spec": both})
    ask.with_pool(live, ask.ip_pool("blue", "10.246.0.0/16"))
    mine = ipam("multi-pool", pools={"default": ["10.245.0.0/27"]})
    ask.with_node(live, "worker-1", mine)
    ask.with_node(live, "worker-2", ipam("multi-pool", pools={"default": ["10.245.1.0/27"]}))
    ask.with_node(live, "gone", ipam("multi-pool", pools={"default": ["10.245.2.0/27"]}))
    ask.with_node(live, "fixed", ipam("cluster-pool", "10.1.0.0/24"))
    new = ipam("multi-pool", pools={pool: [cidr]})
    said = refused(live, NETLOOM_NODES, node(mine), node(new), user=ask.AGENT, node="worker-1")
    begin = f"NetloomNode worker-1: spec.ipam.pools.allocated '{cidr}': {why}, and a node's agent may only enter again"
    assert [each[: len(begin)] for each in said] == ([begin] if why else [])


def test_what_it_enters_waits_until_holders_and_pools_are_seen(live: ClusterState) -> None:
    ask.with_pool(live, ask.ip_pool("default", "10.245.0.0/16"))
    live.unseen = lambda kind: "its list was not read yet" if kind in ("NetloomNode", "NetloomIPPool") else ""
    old, new = (node(ipam("multi-pool", pools={"default": cidrs})) for cidrs in (["10.245.0.0/27"], ["10.245.0.32/27"]))
    by_it: Json = {"user": ask.AGENT, "node": "worker-1"}
    assert len(ask.verdict(live, NETLOOM_NODES, old, new, **by_it).unseen) == 2
    assert refused(live, NETLOOM_NODES, old, node(ipam("multi-pool")), **by_it) == []


def test_everything_else_of_it_is_not_guarded(live: ClusterState) -> None:
    old = node(ipam("cluster-pool", "10.244.1.0/24"))
    new = {**old, "spec": {**old["spec"], "encapsulations": [{"protocol": "vxlan", "port": 8472}]}}
    assert refused(live, NETLOOM_NODES, old, new) == []


def test_it_lives_as_long_as_its_node(live: ClusterState) -> None:
    old = node(ipam("cluster-pool", "10.244.1.0/24"))
    assert refused(live, NETLOOM_NODES, old) == [
        "NetloomNode worker-1: metadata.name 'worker-1': the Node of this name lives and it holds 10.244.1.0/24: "
        "without "
        "this object the other nodes lose their way to its pods, and its addresses may be given to another node. "
        "Remove "
        "the Node (kubectl delete node worker-1); this object goes with it."
    ]
    assert refused(live, NETLOOM_NODES, old, user=ask.AGENT, node="worker-1") != []
    assert refused(live, NETLOOM_NODES, old, user=ask.OPERATOR) == []
    assert refused(live, NETLOOM_NODES, old, user=GARBAGE_COLLECTOR) == []
    live.node("worker-1", None, None)
    assert refused(live, NETLOOM_NODES, old) == []


def test_its_deletion_waits_until_nodes_are_seen() -> None:
    live = ask.fresh()
    live.unseen = lambda kind: "its list was not read yet" if kind == "Node" else ""
    verdict = ask.verdict(live, NETLOOM_NODES, node(ipam()))
    assert verdict.unseen == ("Node: its list was not read yet",)
    assert refused(live, NETLOOM_NODES, node(ipam()), user=ask.OPERATOR) == []
    assert refused(live, NETLOOM_NODES, node(ipam()), node(ipam("crd"))) != []
