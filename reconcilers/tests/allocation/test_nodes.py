"""What becomes of Nodes: the plain story, and those who come with CIDRs of their own."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from netloom.ipam.pool import RESTING
from netloom.runtime.errors import Forbidden, Invalid
from netloom_reconcilers.cluster.allocation.commit_queue import BatchPolicy
from tests.allocation.server import Json, ModelServer, Request
from tests.allocation.virtual import LOOPS, VirtualClock
from tests.allocation.world import World, no_overlap


def test_a_node_gets_its_cidr_in_the_first_write(world: World) -> None:
    world.join("a", address="192.168.0.7")
    world.start()
    world.calm(10)
    obj = world.server.all("netloomnodes")["a"]
    assert obj["spec"] == {
        "addresses": [{"type": "InternalIP", "ip": "192.168.0.7"}],
        "ipam": {"mode": "cluster-pool", "podCIDRs": ["10.0.0.0/24"]},
    }
    (owner,) = obj["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "a",
        "uid": world.server.all("nodes")["a"]["metadata"]["uid"],
    }
    assert world.writes()["create netloomnodes"] == 1
    assert world.writes()["patch netloomnodes"] == 0


@pytest.mark.slow
def test_many_nodes_cost_hardly_more_than_one_write_each(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/8"], ipv4MaskSize=24)
    for number in range(1000):
        empty.join(f"n{number}")
    empty.start(BatchPolicy())
    empty.calm(20)
    assert len(empty.cidrs()) == 1000
    writes = empty.writes()
    assert writes["create netloomnodes"] == 1000
    assert sum(writes.values()) <= 1025, writes
    assert writes["create netloomledgers"] == 4


@pytest.mark.slow
def test_nodes_of_ever_new_names_leave_no_ledger_each_behind(empty: World) -> None:
    """A block is as large as a ledger range here: each range is an object, and a name in the network, for good."""
    empty.apply_network(ipv6PodCIDRList=["fd00::/32"], ipv6MaskSize=56)
    empty.start(BatchPolicy())
    for wave in range(2 * RESTING // 50):
        names = [f"n{wave}-{number}" for number in range(50)]
        for name in names:
            empty.join(name)
        empty.calm(3)
        assert empty.cidrs().keys() == {*names}
        for name in names:
            empty.leave(name)
        empty.collect_garbage()
        empty.calm(3)
    ledgers = empty.server.all("netloomledgers")
    assert len(ledgers) <= RESTING + 100
    assert len(empty.network["status"]["ipam"]["ledgers"]) <= len(ledgers)


class Denying(ModelServer):
    """While `policy` is set, nobody creates a NetloomNode."""

    policy = True

    def _create(self, request: Request) -> Json:
        if self.policy and request.plural == "netloomnodes":
            raise Forbidden(403, "Forbidden", "ValidatingAdmissionPolicy 'nobody' denied request")
        return super()._create(request)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_thousand_nodes_that_a_policy_denies_wait_until_it_is_gone(loop: Callable[[VirtualClock], Any]) -> None:
    world = World(server=Denying, loop=loop)
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/8"], ipv4MaskSize=24)
    for number in range(1000):
        world.join(f"n{number}")
    operator = world.start(BatchPolicy())
    world.calm(2)
    assert world.cidrs() == {}
    assert len(operator.allocation.nodes.failing) == 1000
    assert 2000 <= world.writes()["create netloomnodes"] <= 5000
    world.server.policy = False
    world.calm(5)
    assert len(world.cidrs()) == 1000
    no_overlap(world)
    world.close()


def test_a_lone_node_does_not_wait_for_company(world: World) -> None:
    operator = world.start()
    world.calm(10)
    now = world.clock.now
    world.join("a")
    world.work(operator, 0.0)
    assert "a" in world.cidrs()
    assert world.clock.now == now


def test_nodes_that_come_shortly_after_another_share_a_commit(world: World) -> None:
    operator = world.start()
    world.calm(10)
    since = len(world.server.executed)
    for name in "abc":
        world.join(name)
        world.work(operator, 0.01)
    assert set(world.cidrs()) == {"a"}
    world.work(operator, 0.1)
    assert set(world.cidrs()) == {"a", "b", "c"}
    writes = world.writes(since)
    assert writes["create netloomledgers"] + writes["replace netloomledgers"] == 2


def test_a_restart_writes_nothing(world: World) -> None:
    for name in "abc":
        world.join(name)
    world.kill(world.start())
    first = world.start()
    world.calm(200)
    world.kill(first)
    before, since = world.texts(), len(world.server.executed)
    world.start()
    world.calm(200)
    assert world.writes(since) == Counter()
    assert world.texts() == before


def test_a_node_that_leaves_gives_its_block_back(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    world.leave("a")
    world.calm(10)
    assert world.cidrs() == {}
    assert "10.0.0.0/24" not in world.server.all("netloomledgers")["v4-10.0.0.0-16"]["spec"]["entries"]


def test_a_node_that_was_recreated_keeps_its_cidr(world: World) -> None:
    world.join("z")
    world.join("a")
    world.start()
    world.calm(10)
    before = world.texts()
    world.leave("a")
    world.join("a")
    world.calm(10)
    (owner,) = world.server.all("netloomnodes")["a"]["metadata"]["ownerReferences"]
    assert owner["uid"] == world.server.all("nodes")["a"]["metadata"]["uid"]
    assert world.texts() == before


def test_a_netloom_node_deleted_by_hand_comes_back_with_its_cidr(world: World) -> None:
    for name in "ab":
        world.join(name)
    world.start()
    world.calm(10)
    before = world.texts()
    world.delete("netloomnodes", "a")
    world.join("c")
    world.calm(10)
    assert {name: world.texts()[name] for name in "ab"} == before


@pytest.mark.parametrize("network_too", [False, True])
def test_definitions_that_go_and_come_back_leave_living_nodes_their_cidrs(empty: World, network_too: bool) -> None:
    """With the ledgers gone, too, only the operator's memory knows whose pods live where."""
    world, pools = empty, {"ipv4PodCIDRList": ["10.0.0.0/21"], "ipv4MaskSize": 24, "ipv6PodCIDRList": ["fd00::/61"]}
    world.apply_network(**pools, ipv6MaskSize=64)
    world.start()
    for name in "fbdace":
        world.join(name)
        world.calm(10)
    before = world.texts()
    assert before["d"] == "10.0.2.0/24 fd00:0:0:2::/64"
    for plural in ("netloomnodes", "netloomledgers"):
        for name in list(world.server.all(plural)):
            world.delete(plural, name)
    if network_too:
        network = world.network
        world.server._update(
            "netloomnetworks", network, {**network, "metadata": {**network["metadata"], "finalizers": []}}
        )
        world.delete("netloomnetworks", "default")
    world.leave("d")
    for name in "0z":
        world.join(name)  # and newcomers do not take them
    world.calm(100)
    world.apply_network(**pools, ipv6MaskSize=64)
    world.calm(200)
    del before["d"]
    after = world.texts()
    assert {name: after[name] for name in before} == before
    assert len(after) == 7
    no_overlap(world)
    world.join("d")
    world.calm(10)
    assert sorted(text.split()[0] for text in world.texts().values()) == [f"10.0.{each}.0/24" for each in range(8)]


def test_addresses_follow_the_node_and_heartbeats_cost_nothing(world: World) -> None:
    world.join("a", address="192.168.0.7")
    world.start()
    world.calm(10)
    since = len(world.server.executed)
    node = world.server.all("nodes")["a"]
    heartbeat = {"status": {"addresses": node["status"]["addresses"], "heartbeat": 1}}
    world.server._update("nodes", node, {**node, **heartbeat})
    world.calm(10)
    assert world.writes(since) == Counter()
    node = world.server.all("nodes")["a"]
    moved = [
        {"type": "InternalIP", "address": "192.168.0.8"},
        {"type": "ExternalIP", "address": "2001:db8::8"},
        {"type": "InternalIP", "address": "::ffff:10.0.0.1"},
        {"type": "Hostname", "address": "a"},
        {"type": "InternalIP", "address": "not an address"},
    ]
    world.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": {"addresses": moved}})
    world.calm(10)
    assert world.server.all("netloomnodes")["a"]["spec"]["addresses"] == [
        {"type": "InternalIP", "ip": "192.168.0.8"},
        {"type": "ExternalIP", "ip": "2001:db8::8"},
    ]
    assert world.writes(since) == Counter({"patch netloomnodes": 1, "patch netloomnetworks": 1})
    told = world.condition("netloomnetworks", "default")[2]
    assert "Node a: status.addresses[2] ::ffff:10.0.0.1: '::ffff:10.0.0.1' is not an IP address of its own" in told


# Dual stack


def test_a_family_that_the_network_gets_later_is_given_to_the_nodes_that_live(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/16"], ipv4MaskSize=24)
    for name in "abc":
        empty.join(name)
    operator = empty.start()
    empty.calm(20)
    later = {"ipv6PodCIDRList": ["fd00::/63"], "ipv6MaskSize": 64}  # 2 blocks
    empty.edit("netloomnetworks", "default", ipam={"clusterPool": later})
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.0.0/24 fd00::/64", "b": "10.0.1.0/24 fd00:0:0:1::/64", "c": "10.0.2.0/24"}
    assert empty.condition("netloomnodes", "c")[:2] == ("False", "ClusterPoolExhausted")
    assert operator.said.reasons("NetloomNode/a") == []
    empty.edit("netloomnetworks", "default", ipam={"clusterPool": {"ipv6PodCIDRList": ["fd00::/63", "fd01::/64"]}})
    empty.calm(20)
    assert empty.texts()["c"] == "10.0.2.0/24 fd01::/64"
    assert empty.condition("netloomnodes", "c")[0] == "True"
    begin = len(empty.server.executed)
    empty.calm(100)
    assert not empty.writes(begin)["patch netloomnodes"]


def dual(world: World) -> None:
    world.apply_network(
        ipv4PodCIDRList=["10.0.0.0/23"], ipv4MaskSize=24, ipv6PodCIDRList=["fd00::/119"], ipv6MaskSize=120
    )


def test_a_node_gets_both_families_in_one_write(empty: World) -> None:
    dual(empty)
    empty.join("a")
    empty.start()
    empty.calm(10)
    assert empty.texts() == {"a": "10.0.0.0/24 fd00::/120"}
    assert empty.writes()["create netloomnodes"] == 1


@pytest.mark.parametrize("ledger", ["v4-10.0.0.0-16", "v6-fd00-0-0-0-56"])
def test_a_crash_between_the_two_ledgers_is_finished_by_the_successor(empty: World, ledger: str) -> None:
    dual(empty)
    empty.join("a")
    first = empty.start()
    empty.handle(empty.until(first, f"create netloomledgers/{ledger}"))
    empty.kill(first)
    empty.start()
    empty.calm(10)
    assert empty.texts() == {"a": "10.0.0.0/24 fd00::/120"}


def test_a_crash_between_the_two_ledgers_is_freed_if_the_node_is_gone(empty: World) -> None:
    dual(empty)
    empty.join("a")
    first = empty.start()
    empty.handle(empty.until(first, "create netloomledgers/v4"))
    empty.kill(first)
    empty.leave("a")
    empty.start()
    empty.calm(200)
    assert empty.server.all("netloomledgers")["v4-10.0.0.0-16"]["spec"].get("used", 0) == 0
    assert empty.mode_in_force == ""


def test_one_family_alone_is_given_to_nobody(empty: World) -> None:
    empty.apply_network(
        ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24, ipv6PodCIDRList=["fd00::/120"], ipv6MaskSize=120
    )
    for name in "ab":
        empty.join(name)
    empty.start()
    empty.calm(10)
    assert empty.texts() == {"a": "10.0.0.0/24 fd00::/120", "b": ""}
    assert empty.server.all("netloomledgers")["v4-10.0.0.0-16"]["spec"]["used"] == 1
    assert "fd00::/120" in empty.condition("netloomnodes", "b")[2]


# Modes in which Nodes come with their CIDRs


@pytest.fixture
def kubernetes(empty: World) -> World:
    empty.apply_network(mode="kubernetes")
    return empty


def test_in_mode_gke_as_well(empty: World) -> None:
    empty.apply_network(mode="gke")
    empty.edit("netloomnetworks", "default", routing={"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8"})
    empty.join("gke-main-pool-1f3c-x7zl")
    empty.start()
    empty.calm(10)
    _, reason, message = empty.condition("netloomnetworks", "default")
    assert reason == "PodCIDRsMissing"
    assert "In IPAM mode gke, GKE's cloud controller writes it, from the cluster's secondary range." in message
    empty.edit("nodes", "gke-main-pool-1f3c-x7zl", podCIDR="10.4.1.0/24", podCIDRs=["10.4.1.0/24"])
    empty.calm(10)
    assert empty.texts() == {"gke-main-pool-1f3c-x7zl": "10.4.1.0/24"}
    assert empty.mode_in_force == "gke"


def test_pod_cidrs_are_taken_from_the_node(kubernetes: World) -> None:
    kubernetes.join("a", "10.244.3.0/24", "fd00:1::/64")
    kubernetes.start()
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.3.0/24 fd00:1::/64"}
    assert kubernetes.server.all("netloomnodes")["a"]["spec"]["ipam"]["mode"] == "kubernetes"


def test_a_node_without_pod_cidrs_waits_for_them(kubernetes: World) -> None:
    operator = kubernetes.start()
    kubernetes.join("a")
    kubernetes.calm(10)
    assert kubernetes.texts() == {}
    status, reason, message = kubernetes.condition("netloomnetworks", "default")
    assert (status, reason) == ("False", "PodCIDRsMissing")
    assert message == (
        "1 node (a): Node spec.podCIDRs is empty. In IPAM mode kubernetes, kube-controller-manager writes it, "
        "if run with --allocate-node-cidrs."
    )
    assert operator.said.reasons("NetloomNetwork/default") == ["PodCIDRsMissing"]
    kubernetes.edit("nodes", "a", podCIDRs=["10.244.0.0/24"])
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.0.0/24"}
    assert kubernetes.condition("netloomnetworks", "default")[:2] == ("True", "Accepted")


def annotate(world: World, name: str, **cidrs: str) -> None:
    """As a cloud's controller, or a user, does; the keyword is the family."""
    keys = {f"netloom.dev/{family}-pod-cidr": cidr for family, cidr in cidrs.items()}
    change = {"metadata": {"annotations": keys}}
    world.server.execute(Request("patch", "nodes", name, change, kind="merge"))


@pytest.mark.parametrize(("first", "second"), [("ipv4", "ipv6"), ("ipv6", "ipv4")])
def test_pod_cidrs_of_annotations_come_late_and_in_either_order(kubernetes: World, first: str, second: str) -> None:
    both = {"ipv4": "10.244.3.0/24", "ipv6": "fd00:1::/64"}
    kubernetes.join("a")
    kubernetes.start()
    kubernetes.calm(10)
    annotate(kubernetes, "a", **{first: both[first]})
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": both[first]}
    annotate(kubernetes, "a", **{second: both[second]})
    kubernetes.calm(10)
    assert set(kubernetes.texts()["a"].split()) == set(both.values())
    assert kubernetes.condition("netloomnodes", "a", "Allocated")[0] in ("", "True")
    assert kubernetes.condition("netloomnetworks", "default")[:2] == ("True", "Accepted")


def test_spec_pod_cidrs_count_before_annotations_and_cilium_name_is_known(kubernetes: World) -> None:
    kubernetes.join("a", "10.244.3.0/24")
    annotate(kubernetes, "a", ipv4="10.244.9.0/24")
    kubernetes.join("b")
    change = {"metadata": {"annotations": {"network.cilium.io/ipv4-pod-cidr": "10.244.4.0/24"}}}
    kubernetes.server.execute(Request("patch", "nodes", "b", change, kind="merge"))
    kubernetes.start()
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.3.0/24", "b": "10.244.4.0/24"}


def test_an_annotation_that_makes_no_sense_is_named_and_one_that_changes_is_not_followed(kubernetes: World) -> None:
    kubernetes.join("a")
    annotate(kubernetes, "a", ipv4="10.244.3.7/24")
    kubernetes.start()
    kubernetes.calm(10)
    message = kubernetes.condition("netloomnodes", "a", "Allocated")[2]
    assert message == (
        "Node a: metadata.annotations[netloom.dev/ipv4-pod-cidr] 10.244.3.7/24: '10.244.3.7/24' has bits set below its "
        "mask: write 10.244.3.0/24. Correct the annotation: it is read again at once."
    )
    annotate(kubernetes, "a", ipv4="10.244.3.0/24")
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.3.0/24"}
    annotate(kubernetes, "a", ipv4="10.244.4.0/24")
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.3.0/24"}
    _, reason, message = kubernetes.condition("netloomnodes", "a", "Allocated")
    assert reason == "PodCIDRsDiffer"
    assert "Node metadata.annotations is 10.244.4.0/24, but the NetloomNode holds 10.244.3.0/24" in message


def test_who_waits_for_a_second_family_is_followed_meanwhile(kubernetes: World) -> None:
    kubernetes.join("holder", "fd00:1::/64")
    kubernetes.join("a", "10.244.3.0/24")
    kubernetes.start()
    kubernetes.calm(10)
    kubernetes.edit("nodes", "a", podCIDRs=["10.244.3.0/24", "fd00:1::/64"])
    kubernetes.calm(10)
    _, reason, message = kubernetes.condition("netloomnodes", "a", "Allocated")
    assert reason == "PodCIDRConflict"
    assert "fd00:1::/64 is held by node holder" in message
    moved = {"status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.7"}]}}
    kubernetes.server.execute(Request("patch", "nodes", "a", moved, "status", "merge"))
    kubernetes.calm(10)
    spec = kubernetes.server.all("netloomnodes")["a"]["spec"]
    assert spec["addresses"] == [{"type": "InternalIP", "ip": "192.168.77.7"}]
    assert kubernetes.texts()["a"] == "10.244.3.0/24"


def test_a_second_family_in_spec_pod_cidrs_is_added_and_the_first_stays(kubernetes: World) -> None:
    kubernetes.join("a", "fd00:1::/64")
    kubernetes.start()
    kubernetes.calm(10)
    kubernetes.edit("nodes", "a", podCIDRs=["10.244.3.0/24", "fd00:1::/64"])
    kubernetes.calm(10)
    assert set(kubernetes.texts()["a"].split()) == {"10.244.3.0/24", "fd00:1::/64"}


@pytest.mark.parametrize(
    ("cidrs", "says"),
    [
        (("10.244.0.1/24",), "'10.244.0.1/24' has bits set below its mask: write 10.244.0.0/24"),
        (("nonsense",), "'nonsense' is not a CIDR"),
        (("10.0.0.0/8",), "too large for one node: an IPv4 pod CIDR has at least a /16 mask"),
        (("fd00::/48",), "too large for one node: an IPv6 pod CIDR has at least a /56 mask"),
        (("10.244.0.0/24", "10.245.0.0/24"), "a second IPv4 CIDR, and a node has one per family"),
    ],
)
def test_pod_cidrs_that_make_no_sense_are_reported_and_the_rest_goes_on(
    kubernetes: World, cidrs: tuple[str, ...], says: str
) -> None:
    kubernetes.join("bad", *cidrs)
    kubernetes.join("good", "10.244.7.0/24")
    operator = kubernetes.start()
    kubernetes.calm(10)
    assert kubernetes.texts() == {"bad": "", "good": "10.244.7.0/24"}
    status, reason, message = kubernetes.condition("netloomnodes", "bad")
    assert (status, reason) == ("False", "InvalidPodCIDR")
    assert says in message
    assert operator.said.reasons("NetloomNode/bad") == ["InvalidPodCIDR"]
    assert kubernetes.condition("netloomnetworks", "default")[1] == "InvalidPodCIDR"


def test_overlapping_pod_cidrs_are_given_to_the_first_and_reported_at_the_second(kubernetes: World) -> None:
    kubernetes.join("first", "10.244.0.0/23")
    operator = kubernetes.start()
    kubernetes.calm(10)
    kubernetes.join("second", "10.244.1.0/24")
    kubernetes.calm(10)
    assert kubernetes.texts() == {"first": "10.244.0.0/23", "second": ""}
    status, reason, message = kubernetes.condition("netloomnodes", "second")
    assert (status, reason) == ("False", "PodCIDRConflict")
    assert message == (
        "10.244.1.0/24 overlaps 10.244.0.0/23, held by node first. Neither is changed; remove one of the two nodes."
    )
    assert operator.said.reasons("NetloomNode/second") == ["PodCIDRConflict"]
    kubernetes.leave("first")
    kubernetes.calm(10)
    assert kubernetes.texts() == {"second": "10.244.1.0/24"}
    assert kubernetes.condition("netloomnodes", "second")[:2] == ("True", "Allocated")


def test_a_recreated_node_with_another_pod_cidr_gets_that_one(kubernetes: World) -> None:
    kubernetes.join("a", "10.244.0.0/24")
    kubernetes.start()
    kubernetes.calm(10)
    kubernetes.leave("a")
    kubernetes.join("a", "10.244.1.0/24")
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.1.0/24"}
    assert kubernetes.server.all("netloomledgers")["v4-10.244.0.0-16"]["spec"]["used"] == 1


def test_pod_cidrs_edited_by_hand_are_reported_and_kept(kubernetes: World) -> None:
    kubernetes.join("a", "10.244.0.0/24")
    operator = kubernetes.start()
    kubernetes.calm(10)
    kubernetes.edit("nodes", "a", podCIDRs=["10.244.5.0/24"])  # the API server would refuse that; an old one may not
    kubernetes.calm(10)
    assert kubernetes.texts() == {"a": "10.244.0.0/24"}
    assert kubernetes.condition("netloomnodes", "a")[:2] == ("False", "PodCIDRsDiffer")
    assert operator.said.reasons("NetloomNode/a") == ["PodCIDRsDiffer"]


# NetloomNodes made or edited by hand


def test_a_name_that_is_no_node_is_reported_and_its_cidr_respected(world: World) -> None:
    world.make("ghost", "10.0.0.0/24")
    operator = world.start()
    world.join("a")
    world.calm(10)
    assert world.texts() == {"a": "10.0.1.0/24", "ghost": "10.0.0.0/24"}
    status, reason, message = world.condition("netloomnodes", "ghost")
    assert (status, reason) == ("False", "NoSuchNode")
    assert message.startswith("there is no Node ghost")
    assert operator.said.reasons("NetloomNode/ghost") == ["NoSuchNode"]
    assert world.condition("netloomnetworks", "default")[1] == "NoSuchNode"
    world.calm(300)
    assert "ghost" in world.cidrs()
    world.delete("netloomnodes", "ghost")
    for name in "bcd":
        world.join(name)
    world.calm(10)
    assert world.texts() == {"a": "10.0.1.0/24", "b": "10.0.2.0/24", "c": "10.0.3.0/24", "d": "10.0.0.0/24"}


def test_a_ghost_whose_node_comes_is_taken_over(world: World) -> None:
    world.make("ghost", "10.0.3.0/24", mode="")
    world.start()
    world.calm(10)
    world.join("ghost")
    world.calm(10)
    obj = world.server.all("netloomnodes")["ghost"]
    assert obj["spec"]["ipam"] == {"mode": "cluster-pool", "podCIDRs": ["10.0.3.0/24"]}
    assert obj["metadata"]["ownerReferences"][0]["kind"] == "Node"
    assert world.condition("netloomnodes", "ghost")[:2] == ("True", "Allocated")


def test_overlaps_that_others_made_are_reported_at_the_younger_and_given_to_nobody() -> None:
    world = World()  # the overlap is there before the operator
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    world.make("older", "10.0.0.0/23")
    world.make("younger", "10.0.1.0/24", "10.0.3.0/24")
    for name in ("older", "younger", "a", "b"):
        world.join(name)
    operator = world.start()
    world.calm(10)
    assert world.texts() == {
        "a": "10.0.2.0/24",
        "b": "",
        "older": "10.0.0.0/23",
        "younger": "10.0.1.0/24 10.0.3.0/24",
    }
    assert world.condition("netloomnodes", "older")[1] == ""
    status, reason, message = world.condition("netloomnodes", "younger")
    assert (status, reason) == ("False", "PodCIDRConflict")
    assert message.startswith("10.0.1.0/24 overlaps 10.0.0.0/23, held by node older.")
    assert operator.said.reasons("NetloomNode/younger") == ["PodCIDRConflict"]
    world.close()


def test_a_cidr_added_by_hand_is_kept_from_others_and_cannot_be_taken_away(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    world.edit("netloomnodes", "a", ipam={"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]})
    world.join("b")
    world.calm(10)
    assert world.texts() == {"a": "10.0.0.0/24 10.0.1.0/24", "b": "10.0.2.0/24"}
    with pytest.raises(Invalid):
        world.edit("netloomnodes", "a", ipam={"podCIDRs": ["10.0.1.0/24"]})


@pytest.mark.parametrize(
    ("cidr", "left"), [("10.0.0.0/8", ""), ("10.0.0.9/24", "10.0.1.0/24"), ("nonsense", "10.0.0.0/24")]
)
def test_a_netloom_node_with_unusable_cidrs_is_reported_and_their_space_given_to_nobody(
    world: World, cidr: str, left: str
) -> None:
    world.make("a", cidr)
    world.join("a")
    world.join("b")
    operator = world.start()
    world.calm(10)
    assert world.condition("netloomnodes", "a")[:2] == ("False", "InvalidPodCIDR")
    assert operator.said.reasons("NetloomNode/a")[0] == "InvalidPodCIDR"
    assert world.texts()["b"] == left


def test_a_node_that_was_entered_twice_keeps_one_block_and_the_other_comes_back(empty: World) -> None:
    """What two operators leave that disagree: the node is in two ledgers when it gets its NetloomNode."""
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.1.0.0/24"], ipv4MaskSize=24)
    empty.join("a")
    empty.join("b")
    first = empty.start()
    empty.calm(200)
    empty.leave("b")
    empty.calm(200)
    empty.kill(first)
    entries = "netloom-ledger/1 epoch=2\n10.1.0.0/24 a\n"
    empty.edit("netloomledgers", "v4-10.1.0.0-16", used=1, entries=entries)
    empty.delete("netloomnodes", "a")

    empty.start()
    empty.join("b")
    empty.calm(200)
    assert empty.texts() == {"a": "10.0.0.0/24", "b": "10.1.0.0/24"}


def test_what_the_watch_tells_before_the_answer_makes_no_second_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = world.start()
    world.join("a")
    create = world.until(operator, "create netloomnodes/a")
    nodes, looks = operator.allocation._nodes, list[str]()
    follow = nodes._follow
    monkeypatch.setattr(nodes, "_follow", lambda node, obj: (looks.append(node.metadata.name), follow(node, obj))[1])
    world.pending.remove(create)
    answer = world.server.execute(create.request)
    world.see_all()
    create.answer.set_result(answer)
    world.calm(20)
    assert (world.texts(), looks) == ({"a": "10.0.0.0/24"}, [])
    world.label("a", zone="b")
    world.calm(20)
    assert looks == ["a"], "which it has where there is something to see"
