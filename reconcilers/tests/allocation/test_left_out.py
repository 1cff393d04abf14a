"""Nodes that are none of Netloom's: left out by a label or a selector, or odd in what they report."""

import pytest

from netloom.api.v1alpha1 import IGNORE_LABEL
from tests.allocation.test_last_known import addresses, report
from tests.allocation.test_network import metric, ready, words_of
from tests.allocation.world import World

IGNORED = {IGNORE_LABEL: "true"}
ACCEPTED = ("True", "Accepted")


def left_out(world: World) -> int:
    count: int = world.network["status"].get("ipam", {}).get("nodesLeftOut", 0)
    return count


def choose(world: World, **selector: object) -> None:
    world.edit("netloomnetworks", "default", nodeSelector=selector)


# By label and selector


def test_a_node_that_is_left_out_gets_nothing_and_counts_nowhere(world: World) -> None:
    choose(world, matchExpressions=[{"key": "role", "operator": "NotIn", "values": ["edge"]}])
    operator = world.start()
    world.join("vk", address="10.0.0.7", labels=IGNORED)
    world.join("odd", address=None, labels=IGNORED)
    world.join("edge", labels={"role": "edge"})
    world.join("kept", labels={IGNORE_LABEL: "false", "role": "worker"})
    world.calm(60)
    assert world.texts() == {"kept": "10.0.1.0/24"}, "nobody gets the block with the address of a machine in it"
    assert ready(world)[:2] == ACCEPTED
    assert words_of(world) == "1 node holds addresses (kept)"
    assert left_out(world) == 3
    assert metric("netloom_nodes_waiting") is None
    assert {ref for ref, *_ in operator.said.events} <= {"NetloomNetwork/default"}

    # One joins again when its label goes, the other when the selector does.
    report(world, "odd", "192.168.0.9")
    world.label("odd")
    choose(world, matchExpressions=None)
    world.calm(60)
    assert set(world.texts()) == {"edge", "kept", "odd"}
    assert all(world.texts().values())
    assert left_out(world) == 1
    world.leave("vk")
    world.calm(60)
    assert "nodesLeftOut" not in world.network["status"]["ipam"]


@pytest.mark.parametrize("by_label", [True, False])
def test_a_node_keeps_its_cidr_while_pods_live_on_it(world: World, by_label: bool) -> None:
    operator = world.start()
    for name in "ab":
        world.join(name)
    world.calm(20)
    world.run_pod("done", "a", "10.0.0.8", phase="Succeeded")
    world.run_pod("host", "a", "192.168.0.98", host_network=True)
    world.run_pod("elsewhere", "b", "10.0.1.9")
    world.run_pod("web-1", "a", "10.0.0.9")
    world.run_pod("starting", "a")
    if by_label:
        world.label("a", **{"netloom.dev_ignore": ""})
        why = "its label netloom.dev/ignore takes it out of Netloom"
    else:
        world.label("b", zone="z1")
        choose(world, matchLabels={"zone": "z1"})
        why = "spec.nodeSelector of the NetloomNetwork does not choose it"
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24"}
    assert ready(world) == (
        "True",
        "LeftOutWithPods",
        "Nodes are given their pod CIDRs in IPAM mode cluster-pool. 1 Node is left out of Netloom and keeps its pod "
        f"CIDRs (a). Of a: {why}, and 2 pods live in 10.0.0.0/24 (default/starting, default/web-1). Drain such a node, "
        "and keep off it the pods that a drain leaves there (DaemonSets'), and its CIDR comes back; or "
        "remove what leaves it out, and it takes part again.",
    )
    assert ("NetloomNetwork/default", "Warning", "LeftOutWithPods") in [each[:3] for each in operator.said.events]
    assert left_out(world) == 0, "its object is there, as every other"
    since = len(world.server.executed)
    world.calm(300)
    asked = [str(each) for each in world.server.executed[since:]]
    assert asked.count("list pods/") <= 10
    assert [each for each in asked if not each.startswith(("list pods/", "get "))] == []

    world.delete("pods", "web-1")
    world.delete("pods", "starting")
    world.calm(100)
    assert world.texts() == {"b": "10.0.1.0/24"}
    assert ready(world)[:2] == ACCEPTED
    assert left_out(world) == 1
    for name in "cdef":
        world.join(name, labels={"zone": "z1"})
    world.calm(20)
    assert "10.0.0.0/24" in world.texts().values(), "the block came back"


def test_a_selector_that_chooses_nobody_takes_no_network_away(world: World) -> None:
    world.start()
    for name in "abc":
        world.join(name)
        world.run_pod(f"pod-{name}", name, f"10.0.{'abc'.index(name)}.5")
    world.calm(20)
    before = world.texts()
    choose(world, matchLabels={"rolle": "worker"})
    world.calm(60)
    assert world.texts() == before
    status, reason, message = ready(world)
    assert (status, reason) == ("True", "LeftOutWithPods")
    assert "3 Nodes are left out of Netloom and keep their pod CIDRs (a, b, c). Of a: spec.nodeSelector" in message
    assert "spec.nodeSelector: it chooses none of the 3 Nodes. Compare it with the Nodes' labels" in message
    choose(world, matchLabels=None)
    world.calm(60)
    assert world.texts() == before
    assert ready(world)[:2] == ACCEPTED


def test_what_a_lagging_cache_says_of_a_label_is_not_believed(world: World) -> None:
    operator = world.start()
    world.join("a")
    world.calm(20)
    world.label("a", **{"netloom.dev_ignore": "true"})
    asks = world.until(operator, "get netloomnetworks/default")
    world.label("a")  # taken back, which the cache learns later
    world.handle(asks)
    world.work(operator, 0.3, blind="nodes")
    assert world.texts() == {"a": "10.0.0.0/24"}
    world.calm(60)
    assert world.texts() == {"a": "10.0.0.0/24"}
    assert world.writes()["delete netloomnodes"] == 0


def test_a_pod_that_comes_when_its_object_is_gone_keeps_the_block(world: World) -> None:
    operator = world.start()
    world.join("a")
    world.calm(20)
    world.label("a", **{"netloom.dev_ignore": "true"})
    deletes = world.until(operator, "delete netloomnodes/a")
    world.run_pod("late", "a", "10.0.0.9")
    world.handle(deletes)
    world.calm(20)
    assert world.texts() == {}
    for name in "bcdef":
        world.join(name)
    world.calm(20)
    assert "10.0.0.0/24" not in world.texts().values()
    assert "default/late" in ready(world)[2]


# By what it reports


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1", "a loopback address"),
        ("0.0.0.0", "no address of a machine"),
        ("224.0.0.5", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("169.254.1.1", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("::1", "a loopback address"),
    ],
)
def test_an_address_that_leads_nowhere_is_not_accepted_and_nobody_suffers(
    world: World, address: str, what: str
) -> None:
    operator = world.start()
    world.join("odd", address=address)
    for name in "abc":
        world.join(name)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24", "c": "10.0.2.0/24"}
    assert ready(world) == (
        "True",
        "NodeAddressUnusable",
        "Nodes are given their pod CIDRs in IPAM mode cluster-pool. 1 node (odd): status.addresses[0] "
        f"{address}: this is {what}, and no other node can send to it. Have its kubelet (--node-ip) or the cloud "
        "controller manager report one by which other nodes reach it; if it is none of Netloom's, label it "
        "netloom.dev/ignore=true.",
    )
    assert metric("netloom_nodes_waiting", reason="NodeAddressUnusable") == 1
    assert ("NetloomNetwork/default", "Warning", "NodeAddressUnusable") in [each[:3] for each in operator.said.events]
    assert left_out(world) == 1

    # Both ways out that were told.
    if address == "127.0.0.1":
        world.label("odd", **{"netloom.dev_ignore": "true"})
        world.calm(20)
        assert ready(world)[:2] == ACCEPTED
        assert metric("netloom_nodes_waiting") is None
        world.label("odd")
    report(world, "odd", "192.168.0.9")
    world.calm(20)
    assert world.texts()["odd"] == "10.0.3.0/24"
    assert ready(world)[:2] == ACCEPTED


def test_the_address_of_a_pod_is_no_address_of_a_node(world: World) -> None:
    """A virtual kubelet's, which runs as a pod."""
    operator = world.start()
    for name in "abc":
        world.join(name)
    world.calm(20)
    world.join("vk", address="10.0.1.77")
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24", "c": "10.0.2.0/24"}
    assert ready(world)[:2] == ("True", "NodeAddressUnusable")
    assert (
        "1 node (vk): status.addresses[0] 10.0.1.77: it lies in 10.0.1.0/24, a node's pod CIDR, so it may be the "
        "address of a pod, and is not sent to."
    ) in ready(world)[2]
    # A successor that meets it before it knows of any block says the same.
    told = ready(world)
    world.kill(operator)
    world.start()
    world.calm(200)
    assert ready(world) == told
    # A node that moves to such an address keeps the one that it had.
    report(world, "c", "10.0.1.78")
    world.calm(20)
    assert addresses(world, "c") == ["192.168.1.2"]
    status, reason, message = world.condition("netloomnodes", "c", "AddressReported")
    assert (status, reason) == ("False", "InternalIPLost")
    assert message.endswith(
        "It reports 10.0.1.78, which lies in 10.0.1.0/24, a node's pod CIDR, and may be a pod's address."
    )


def test_a_node_without_an_address_is_told_when_that_lasts(world: World) -> None:
    world.start()
    world.join("a")
    world.join("late", address=None)
    world.join("odd", address=None)
    world.calm(20)
    assert ready(world)[:2] == ACCEPTED, "a cloud controller may need a moment"
    report(world, "late", "192.168.0.9")
    world.calm(30)
    assert world.texts() == {"a": "10.0.0.0/24", "late": "10.0.1.0/24"}
    assert ready(world)[:2] == ("True", "NodeAddressMissing")
    assert "1 node (odd): status.addresses: it reports no address of type InternalIP" in ready(world)[2]


def test_a_node_that_lost_its_address_and_its_object_gets_both_back_when_it_can(world: World) -> None:
    world.start()
    world.join("a")
    world.calm(20)
    report(world, "a")
    world.delete("netloomnodes", "a")
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24"}, "its pods live"


def test_an_odd_address_beside_a_good_one_is_passed_over(world: World) -> None:
    world.start()
    world.join("a", address="192.168.0.1")
    report(world, "a", "127.0.0.1", "192.168.0.1", "fe80::1")
    world.calm(20)
    assert addresses(world, "a") == ["192.168.0.1"]
    assert ready(world)[:2] == ("True", "NodeAddressUnusable")
    assert "Node a: status.addresses[2] fe80::1: this is a link-local address" in ready(world)[2]


@pytest.mark.parametrize(("inside", "outside", "status"), [(1, 0, "False"), (1, 1, "True"), (2, 1, "False")])
def test_a_cluster_cidr_is_wrong_if_most_nodes_are_in_it(world: World, inside: int, outside: int, status: str) -> None:
    world.start()
    for number in range(inside):
        world.join(f"in-{number}", address=f"10.0.3.{number + 1}")
    for number in range(outside):
        world.join(f"out-{number}")
    world.calm(20)
    assert ready(world)[:2] == (status, "ClusterCIDROverlapsNodes")
    assert all(world.texts().values())
