"""What is said of each state of a cluster, in full."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest

from netloom.api.cluster_facts import ClusterFacts, ObjectProblem, Sign, Unseen
from netloom.api.core import Node, NodeAddress, NodeStatus
from netloom.api.meta import Condition, ObjectMeta
from netloom.api.v1alpha1 import (
    Address,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetloomNodeStatus,
    NetworkIPAM,
    NetworkSpec,
    NetworkStatus,
    NodeIPAM,
    PoolAddress,
)
from netloom.api.verdict import EXAMPLE_LIMIT, Verdict, judge

EARLIER, THEN, NOW = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z"

LEADER = Sign("op-1_aa", EARLIER, NOW, 15, alive=True)
DEAD_LEADER = Sign("op-1_aa", EARLIER, THEN, 15, alive=False)
ALIVE = Sign("a", EARLIER, NOW, 40, alive=True)
SILENT = Sign("a", EARLIER, THEN, 40, alive=False)

CONSEQUENCE = "new nodes get no pod CIDRs, and nothing is told of nodes that fail"


def condition(type_: str, status: Any, reason: str, message: str = "so it is") -> Condition:
    return Condition(type_, status, reason, message, EARLIER)


READY = condition("Ready", "True", "Accepted")
SINGLE = NodeIPAM(mode="crd", pool={"10.7.0.5": PoolAddress(), "10.7.0.6": PoolAddress()})
IN_SYNC = condition("DataplaneReady", "True", "InSync")


def network(*conditions: Condition) -> NetloomNetwork:
    return NetloomNetwork(metadata=ObjectMeta(name="default"), status=NetworkStatus(conditions=conditions or (READY,)))


def node(name: str, **labels: str) -> Node:
    addresses = (NodeAddress(type="InternalIP", address="172.16.0.1"),)
    return Node(metadata=ObjectMeta(name=name, labels=labels), status=NodeStatus(addresses=addresses))


def obj(name: str, *conditions: Condition, cidrs: Iterable[str] = ("10.0.0.0/24",)) -> NetloomNode:
    ipam = NodeIPAM(mode="cluster-pool", pod_cidrs=tuple(cidrs)) if cidrs else NodeIPAM()
    spec = NetloomNodeSpec(addresses=(Address("InternalIP", "172.16.0.1"),), ipam=ipam)
    return NetloomNode(
        metadata=ObjectMeta(name=name), spec=spec, status=NetloomNodeStatus(conditions=conditions or (IN_SYNC,))
    )


def verdict(
    nodes: Iterable[str] = ("a",),
    objects: Iterable[NetloomNode] | None = None,
    agents: Mapping[str, Sign] | None = None,
    **known: Any,
) -> Verdict:
    """Of a cluster in which all is well, but for what is given."""
    nodes = list(nodes)
    known.setdefault("network", network())
    known.setdefault("operator", LEADER)
    return judge(
        ClusterFacts(
            **{
                "nodes": [node(name) for name in nodes],
                "netloom_nodes": [obj(name) for name in nodes] if objects is None else objects,
                "agents": dict.fromkeys(nodes, ALIVE) if agents is None else agents,
            }
            | known
        )
    )


def said(found: Verdict) -> list[str]:
    return [str(group) for group in found.problems]


WITHIN_MOMENTS = (
    "the operator op-1_aa gives them within moments; if this lasts, the Node's Events and the operator's log say why."
)


@pytest.mark.parametrize(
    ("address", "reason", "why"),
    [
        (
            "127.0.0.1",
            "NodeAddressUnusable",
            "status.addresses[0] 127.0.0.1: this is a loopback address, and no other ",
        ),
        ("", "NodeAddressMissing", "status.addresses: it reports no address of type InternalIP, so no other node can "),
        ("172.16.0.1", "Waiting", WITHIN_MOMENTS),
    ],
)
def test_a_newcomer_to_which_nobody_could_send_is_not_promised_addresses(address: str, reason: str, why: str) -> None:
    addresses = (NodeAddress(type="InternalIP", address=address),) if address else ()
    odd = Node(metadata=ObjectMeta(name="a"), status=NodeStatus(addresses=addresses))
    found = judge(ClusterFacts(nodes=[odd], netloom_nodes=[], network=network(), agents={}, operator=LEADER))
    assert [group.reason for group in found.problems] == [reason]
    assert said(found)[0].startswith(f"Node a: has no NetloomNode, and so no pod CIDRs: {why}")
    if address != "172.16.0.1":
        alone = judge(ClusterFacts(nodes=[odd], netloom_nodes=[], network=network(), agents={}, operator=None))
        assert [group.reason for group in alone.problems] == ["OperatorUnknown", reason], "also of one unseen"


def test_all_is_well() -> None:
    found = verdict(["b", "a"])
    assert found.healthy
    assert found.problems == ()
    assert found.summary == "2 of 2 nodes ready"
    assert msgspec.to_builtins(found.totals) == {
        "nodes": 2,
        "ready": 2,
        "waiting": 0,
        "agentsAlive": 2,
        "agentsSilent": 0,
        "agentsNeverSeen": 0,
        "agentsUnknown": 0,
        "leftOut": 0,
    }
    assert msgspec.to_builtins(found.operator) == {
        "life": "alive",
        "leader": "op-1_aa",
        "since": EARLIER,
        "lastHeard": NOW,
    }
    assert [state.name for state in found.nodes] == ["a", "b"]
    assert found.nodes[0].pod_cidrs == ("10.0.0.0/24",)
    assert found.nodes[0].addresses == ("172.16.0.1",)
    assert (found.nodes[0].agent, found.nodes[0].last_heard) == ("alive", NOW)


def test_a_dead_operator_and_two_nodes_that_wait() -> None:
    found = verdict(["a", "b", "c"], [obj("a")], {"a": ALIVE, "b": ALIVE, "c": ALIVE}, operator=DEAD_LEADER)
    assert not found.healthy
    assert found.summary == "1 of 3 nodes ready"
    assert found.totals.waiting == 2
    assert found.operator.life == "silent"
    assert said(found)[0] == (
        f"operator op-1_aa: was last heard of at {THEN}, 15 s of silence are allowed, and none took over (Lease "
        f"kube-system/netloom-operator): {CONSEQUENCE}. Look whether `netloom operator` runs and reaches the API "
        "server."
    )
    assert said(found)[1] == (
        "2 Nodes (b, c): NoOperator. For one, Node b: has no NetloomNode, and so no pod CIDRs: no operator is heard of "
        "that would give them."
    )
    assert [state.name for state in found.nodes if state.waiting] == ["b", "c"]
    assert found.nodes[1].addresses == ("172.16.0.1",), "as its Node has it"


def test_an_operator_that_ended_in_order_or_never_was() -> None:
    ended = verdict(operator=Sign("", EARLIER, THEN, 1, alive=False))
    assert said(ended) == [
        f"operator: the last one ended in order at {THEN}, and none took over (Lease kube-system/netloom-operator): "
        f"{CONSEQUENCE}. Start `netloom operator`."
    ]
    never = verdict(operator=None, namespace="net", network=NetloomNetwork(metadata=ObjectMeta(name="default")))
    assert said(never) == [
        f"operator: none was ever heard of (Lease net/netloom-operator does not exist): {CONSEQUENCE}. Start `netloom "
        "operator`."
    ]
    assert said(verdict(operator=None, namespace="net")) == [
        "operator: no sign of life can be seen: Lease net/netloom-operator does not exist, though one has judged the "
        "NetloomNetwork. If it keeps its Lease in another namespace, give that as --lease-namespace; of one with "
        "--no-leader-elect nothing can be known."
    ]
    assert (ended.summary, ended.healthy) == ("1 of 1 nodes ready", False), "the data path of the nodes is as it was"


def test_packets_of_pods_that_do_not_pass_are_a_problem_while_somebody_looks() -> None:
    lost = obj("a", IN_SYNC, condition("PodTrafficPasses", "False", "ForwardHookDrops"))
    found = verdict(["a"], [lost], {"a": ALIVE})
    assert [problem.condition for problem in found.problems] == ["PodTrafficPasses=False"]
    assert (found.nodes[0].ready, found.nodes[0].reasons) == (False, ("ForwardHookDrops",))
    unknown = obj("a", IN_SYNC, condition("PodTrafficPasses", "Unknown", "NothingKnown"))
    for told in (lost, unknown):
        assert [problem.reason for problem in verdict(["a"], [told], {"a": SILENT}).problems] == ["AgentSilent"]


def test_a_dead_agent_counts_although_its_last_word_was_good() -> None:
    unknown = obj("b", condition("DataplaneReady", "Unknown", "AgentSilent"))
    found = verdict(["a", "b", "c"], [obj("a"), unknown, obj("c")], {"a": SILENT, "b": SILENT, "c": ALIVE})
    assert found.summary == "1 of 3 nodes ready"
    assert (found.totals.agents_alive, found.totals.agents_silent) == (1, 2)
    assert said(found) == [
        f"2 Agents (a, b): AgentSilent. For one, agent of a: was last heard of at {THEN}, and 40 s of silence are "
        "allowed. Look whether `netloom agent` runs on node a and reaches the API server."
    ], "that DataplaneReady is Unknown is the same news"
    assert found.nodes[0].dataplane == "True", "as kubectl shows it"


def test_no_agent_anywhere() -> None:
    found = verdict(["a", "b"], agents={})
    assert found.totals.agents_never_seen == 2
    assert said(found) == [
        "2 Agents (a, b): AgentNeverSeen. For one, agent of a: was never heard of (there is no Lease "
        "kube-system/netloom-agent-a). Run `netloom agent` on node a; where one runs, it needs "
        "--lease-namespace=kube-system as well, and its log says why it writes none."
    ]


def test_an_agent_whose_node_has_no_netloom_node_has_no_lease_either() -> None:
    found = verdict(["a"], [], {})
    assert found.nodes[0].agent == "unknown"
    assert found.totals.agents_unknown == 1
    assert [group.kind for group in found.problems] == ["Node"]


def test_an_agent_that_lives_and_says_that_something_is_wrong_or_nothing_yet() -> None:
    broken = condition("DataplaneReady", "False", "Degraded", "link netloom_x: EPERM")
    unsure = condition("DataplaneReady", "Unknown", "JustStarted", "wait")
    told = condition("Allocated", "True", "Allocated")
    found = verdict(["a", "b", "c"], [obj("a", broken), obj("b", unsure), obj("c", told)])
    assert said(found) == [
        "NetloomNode a: DataplaneReady=False Degraded: link netloom_x: EPERM",
        "NetloomNode b: DataplaneReady=Unknown JustStarted: wait",
        "agent of c: has not said yet whether the kernel holds what is desired.",
    ]
    assert [state.reasons for state in found.nodes] == [("Degraded",), ("JustStarted",), ("DataplaneNotTold",)]
    assert (found.nodes[2].allocated, found.nodes[2].dataplane) == ("True", "")


def test_what_an_agent_said_before_it_died_is_told_beside_its_death() -> None:
    found = verdict(objects=[obj("a", condition("DataplaneReady", "False", "Degraded"))], agents={"a": SILENT})
    assert found.nodes[0].reasons == ("AgentSilent", "Degraded")


def test_half_of_the_nodes_have_no_addresses() -> None:
    exhausted = condition("Allocated", "False", "ClusterPoolExhausted", "no block of /24 is left.")
    names = [f"n{number:02}" for number in range(10)]
    objects = [
        obj(name) if number < 5 else obj(name, IN_SYNC, exhausted, cidrs=()) for number, name in enumerate(names)
    ]
    found = verdict(names, objects, network=network(condition("Ready", "False", "ClusterPoolExhausted", "Append one.")))
    assert found.summary == "5 of 10 nodes ready"
    assert found.totals.waiting == 5
    assert said(found) == [
        "NetloomNetwork default: Ready=False ClusterPoolExhausted: Append one.",
        "5 NetloomNodes (n05, n06, n07 and 2 more): Allocated=False ClusterPoolExhausted. For one, NetloomNode n05: "
        "Allocated=False ClusterPoolExhausted: no block of /24 is left.",
    ]
    assert found.nodes[9].allocated == "False"


@pytest.mark.parametrize(
    ("known", "reason", "why"),
    [
        ({"network": None}, "NoNetwork", "there is no NetloomNetwork to say from which ranges."),
        ({"operator": None}, "NoOperator", "no operator is heard of that would give them."),
        (
            {"operator": Unseen("no")},
            "Waiting",
            "the operator gives them; whether one works could not be looked at.",
        ),
        (
            {"network": network(condition("Ready", "False", "PodCIDRsMissing"))},
            "PodCIDRsMissing",
            "NetloomNetwork default is not ready (PodCIDRsMissing), and says why.",
        ),
        ({}, "Waiting", WITHIN_MOMENTS),
    ],
)
def test_why_a_node_waits(known: dict[str, Any], reason: str, why: str) -> None:
    waiting = {"Node": [], "NetloomNode": [obj("a", cidrs=())]}
    for kind, objects in waiting.items():
        found = verdict(objects=objects, **known)
        assert (kind, reason) in [(group.kind, group.reason) for group in found.problems]
        assert any(text.startswith(f"{kind} a: ") and text.endswith(why) for text in said(found))
        assert found.totals.waiting == 1


def test_a_node_without_addresses_from_outside() -> None:
    """Nothing is promised: the operator gives none."""
    outside = msgspec.structs.replace(network(), spec=NetworkSpec(ipam=NetworkIPAM(mode="crd")))
    bare, served = obj("a", cidrs=()), msgspec.structs.replace(obj("b"), spec=NetloomNodeSpec(ipam=SINGLE))
    found = judge(
        ClusterFacts(
            nodes=[node("a"), node("b")],
            netloom_nodes=[bare, served],
            network=outside,
            agents={"a": ALIVE, "b": ALIVE},
            operator=LEADER,
        )
    )
    assert said(found) == [
        "NetloomNode a: holds no addresses: whoever gives them from outside (docs/ipam.md) writes them into "
        "spec.ipam.pool."
    ]
    assert [(each.waiting, each.single_addresses) for each in found.nodes] == [(True, 0), (False, 2)]


def test_a_netloom_node_without_a_node() -> None:
    told = obj("b", IN_SYNC, condition("Allocated", "False", "NoSuchNode"))
    found = verdict([], [obj("a"), told], {"a": ALIVE, "b": ALIVE})
    assert [state.reasons for state in found.nodes] == [("NoNode",), ("NoSuchNode",)], "never twice"


def test_the_summary_in_the_network_is_not_a_problem_of_its_own() -> None:
    for status in ("True", "False"):
        assert verdict(network=network(READY, condition("Degraded", status, "AgentSilent"))).healthy


def test_a_network_that_waits_for_its_deletion() -> None:
    meta = ObjectMeta(name="default", deletion_timestamp="2026-01-01T00:00:00Z")
    found = verdict(network=msgspec.structs.replace(network(READY), metadata=meta))
    assert [group.reason for group in found.problems] == ["NetworkDeleted"]
    assert said(found)[0].startswith(
        "NetloomNetwork default: was deleted at 2026-01-01T00:00:00Z, and goes when no node"
    )


def test_conditions_of_the_network() -> None:
    assert not verdict(network=None).healthy
    silent = NetloomNetwork(metadata=ObjectMeta(name="default"))
    assert said(verdict(network=silent)) == [
        "NetloomNetwork default: the operator op-1_aa has not said whether it accepts it; if that lasts, see its log."
    ]
    assert [group.kind for group in verdict(network=silent, operator=DEAD_LEADER).problems] == ["Operator"]
    other = condition("Other", "Unknown", "Why")
    assert [group.condition for group in verdict(network=network(READY, other)).problems] == ["Other=Unknown"]


@pytest.mark.parametrize(
    ("known", "what", "ready"),
    [
        ({"agents": Unseen("forbidden")}, "Leases of the agents", 1),
        ({"operator": Unseen("forbidden")}, "Lease of the operator", 1),
        ({"nodes": Unseen("forbidden")}, "Nodes", 1),
        ({"network": Unseen("forbidden")}, "NetloomNetworks", 1),
        ({"netloom_nodes": Unseen("forbidden")}, "NetloomNodes", 0),
    ],
)
def test_what_could_not_be_looked_at_is_said_and_is_not_fine(known: dict[str, Any], what: str, ready: int) -> None:
    found = judge(
        ClusterFacts(
            **{
                "nodes": [node("a")],
                "netloom_nodes": [obj("a")],
                "agents": {"a": ALIVE},
                "operator": LEADER,
                "network": network(),
            }
            | known
        )
    )
    assert said(found) == [f"{what}: could not be looked at: forbidden"]
    assert not found.healthy
    assert (found.totals.nodes, found.totals.ready, found.totals.waiting) == (1, ready, 0)


def test_an_object_that_cannot_be_read() -> None:
    found = verdict(unreadable={("NetloomNode", "b"): "Expected `str`"})
    assert said(found) == ["NetloomNode b: is not readable, and left out here: Expected `str`"]


def test_nodes_that_are_none_of_netlooms_are_left_out() -> None:
    nodes = [node("a"), node("b", ignore="me"), node("c", ignore="me")]
    found = verdict(nodes=[], objects=[obj("a"), obj("c")], agents={"a": ALIVE})
    assert len(found.nodes) == 2
    known = ClusterFacts(
        nodes=nodes,
        netloom_nodes=[obj("a"), obj("c")],
        agents={"a": ALIVE},
        operator=LEADER,
        network=network(),
        left_out=lambda node: "ignore" in node.metadata.labels,
    )
    found = judge(known)
    assert found.healthy
    assert (found.totals.nodes, found.totals.left_out) == (1, 2)


def test_further_troubles_count() -> None:
    found = verdict(more=[ObjectProblem("Agent", "here", "NotInSync", "agent here: not in sync")])
    assert not found.healthy
    assert said(found) == ["agent here: not in sync"]


def test_5_000_nodes_of_which_2_984_wait_are_told_in_a_few_lines() -> None:
    names = [f"node-{number:04}" for number in range(5000)]
    found = verdict(names, [obj(name) for name in names[2984:]], operator=DEAD_LEADER)
    assert found.summary == "2,016 of 5,000 nodes ready"
    assert found.totals.waiting == 2984
    assert len(found.problems) == 2
    assert said(found)[1].startswith(
        "2,984 Nodes (node-0000, node-0001, node-0002 and 2,981 more): NoOperator. For one,"
    )


def test_an_endless_message_is_cut() -> None:
    found = verdict(objects=[obj("a", condition("DataplaneReady", "False", "Degraded", "x" * 32768))])
    assert len(found.problems[0].message) == EXAMPLE_LIMIT
    assert len(found.nodes[0].conditions[0].message) == 32768


def test_the_same_state_is_told_in_the_same_words_whatever_came_first() -> None:
    names = ["c", "a", "b"]
    one, other = verdict(names, agents={}), verdict(names[::-1], agents={})
    assert one == other
    assert json.loads(msgspec.json.encode(one))["problems"][0]["names"] == ["a", "b", "c"]
