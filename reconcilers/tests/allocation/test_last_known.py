"""What was known of a node and is not said any more: it stays while the Node lives, and the loss is told."""

from collections import Counter

import pytest

from netloom_reconcilers.cluster.allocation.last_known_addresses import CONDITION
from netloom_reconcilers.cluster.allocation.metrics import ADDRESSES_KEPT
from tests.allocation.world import Operator, World

KEPT = (
    "Node a reports no usable IPv4 address of type InternalIP any more: 192.168.0.7, its last, is kept, and other "
    "nodes go on sending to it. Another is followed at once. Node status.addresses is written by the kubelet or the "
    "cloud controller manager; if the node is gone, delete its Node."
)


def report(world: World, name: str, *addresses: str) -> None:
    """The kubelet or the cloud controller writes Node status.addresses; external ones begin with a plus."""
    node = world.server.all("nodes")[name]
    found = [
        {"type": "ExternalIP" if each[0] == "+" else "InternalIP", "address": each.lstrip("+")} for each in addresses
    ]
    world.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": {"addresses": found}})


def addresses(world: World, name: str) -> list[str]:
    return [each["ip"] for each in world.server.all("netloomnodes")[name]["spec"].get("addresses", [])]


def overwrite(world: World, name: str, **spec: object) -> None:
    """An edit that no rule of the CRD stood in the way of: of an older one, or of a backup's."""
    world.server._store("netloomnodes", "MODIFIED", changed(world, name, spec))


def changed(world: World, name: str, spec: dict[str, object]) -> dict[str, object]:
    obj = world.server.all("netloomnodes")[name]
    return {**obj, "metadata": dict(obj["metadata"]), "spec": {**obj["spec"], **spec}}


@pytest.fixture
def joined(world: World) -> World:
    """Node a at 192.168.0.7, and an operator at rest."""
    world.join("a", address="192.168.0.7")
    world.start()
    world.calm(200)
    return world


def operator_of(world: World) -> Operator:
    return world.operators[-1]


def test_an_address_that_is_not_reported_any_more_is_kept_and_the_loss_is_told_once(joined: World) -> None:
    since, before = len(joined.server.executed), joined.server.all("netloomnodes")["a"]["spec"]
    report(joined, "a")
    joined.calm(10)
    assert joined.server.all("netloomnodes")["a"]["spec"] == before
    assert joined.condition("netloomnodes", "a", CONDITION) == ("False", "InternalIPLost", KEPT)
    assert operator_of(joined).said.reasons("NetloomNode/a") == ["InternalIPLost"]
    assert ADDRESSES_KEPT.collect()[0].samples[0].value == 1
    assert joined.writes(since) == Counter({"patch netloomnodes": 1})

    node = joined.server.all("nodes")["a"]
    joined.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": {"heartbeat": 1}})
    joined.calm(300)
    assert joined.writes(since) == Counter({"patch netloomnodes": 1})

    report(joined, "a", "192.168.0.7")
    joined.calm(300)
    assert joined.condition("netloomnodes", "a", CONDITION)[:2] == ("True", "InternalIPReported")
    assert operator_of(joined).said.reasons("NetloomNode/a") == ["InternalIPLost", "InternalIPReported"]
    assert ADDRESSES_KEPT.collect()[0].samples[0].value == 0
    assert joined.writes(since) == Counter({"patch netloomnodes": 2})


def test_another_address_is_followed_at_once_and_takes_the_complaint_back(joined: World) -> None:
    report(joined, "a")
    joined.calm(10)
    report(joined, "a", "192.168.0.8")
    joined.calm(10)
    assert addresses(joined, "a") == ["192.168.0.8"]
    assert joined.condition("netloomnodes", "a", CONDITION)[:2] == ("True", "InternalIPReported")


@pytest.mark.parametrize(
    ("before", "now", "then"),
    [
        (("192.168.0.7", "fd00::7"), ("fd00::7",), ["192.168.0.7", "fd00::7"]),
        (("192.168.0.7", "fd00::7"), ("192.168.0.7",), ["192.168.0.7", "fd00::7"]),
        (("192.168.0.7", "+8.8.8.8", "fd00::7"), ("fd00::7",), ["192.168.0.7", "fd00::7"]),
        (("192.168.0.7", "fd00::7"), ("fd00::8", "+8.8.8.8"), ["192.168.0.7", "fd00::8", "8.8.8.8"]),
        (("192.168.0.7", "192.168.0.8"), ("192.168.0.8",), ["192.168.0.8"]),
        (("192.168.0.7", "192.168.0.8"), ("192.168.0.8", "192.168.0.7"), ["192.168.0.7", "192.168.0.8"]),
        (("192.168.0.7", "192.168.0.8"), ("+8.8.8.8",), ["192.168.0.7", "192.168.0.8", "8.8.8.8"]),
        (("192.168.0.7", "+8.8.8.8"), ("192.168.0.7",), ["192.168.0.7"]),
    ],
)
def test_what_is_kept_and_in_which_order(
    joined: World, before: tuple[str, ...], now: tuple[str, ...], then: list[str]
) -> None:
    """Which address others use does not change while it is reported; here it never has to."""
    report(joined, "a", *before)
    joined.calm(10)
    report(joined, "a", *now)
    joined.calm(10)
    assert addresses(joined, "a") == then
    report(joined, "a", *before)
    joined.calm(10)
    back = [each.lstrip("+") for each in before]
    assert addresses(joined, "a") == (back if then[0] in ("192.168.0.7", "fd00::7") else back[::-1])


def test_an_operator_that_starts_while_an_address_is_lost_keeps_it_too_and_writes_nothing(joined: World) -> None:
    report(joined, "a")
    joined.calm(10)
    joined.kill(operator_of(joined))
    since = len(joined.server.executed)
    joined.start()
    joined.calm(300)
    assert addresses(joined, "a") == ["192.168.0.7"]
    assert ADDRESSES_KEPT.collect()[0].samples[0].value == 1
    assert joined.writes(since) == Counter()


def test_an_address_that_is_lost_while_no_operator_runs_is_kept_by_the_next(joined: World) -> None:
    joined.kill(operator_of(joined))
    report(joined, "a")
    joined.start()
    joined.calm(10)
    assert addresses(joined, "a") == ["192.168.0.7"]
    assert joined.condition("netloomnodes", "a", CONDITION)[1] == "InternalIPLost"


@pytest.mark.parametrize("first", ["the loss", "the other node"])
def test_an_address_that_another_node_reports_now_is_not_kept(joined: World, first: str) -> None:
    if first == "the loss":
        report(joined, "a")
        joined.calm(10)
    joined.join("b", address="192.168.0.7")
    joined.calm(10)
    report(joined, "a")
    joined.calm(10)
    assert joined.server.all("netloomnodes")["a"]["spec"]["addresses"] == []
    status, reason, message = joined.condition("netloomnodes", "a", CONDITION)
    assert (status, reason) == ("False", "InternalIPLost")
    assert "192.168.0.7, its last, is Node b's now: nothing is sent to it." in message
    joined.calm(300)
    assert joined.condition("netloomnodes", "a", CONDITION)[0] == "False"
    report(joined, "a", "192.168.0.9")
    joined.calm(10)
    assert joined.condition("netloomnodes", "a", CONDITION)[0] == "True"


def test_a_node_that_is_left_out_takes_the_address_of_none_until_it_takes_part(joined: World) -> None:
    joined.join("b", address="192.168.0.7", labels={"netloom.dev/ignore": "true"})
    joined.calm(20)
    report(joined, "a")
    joined.calm(20)
    assert addresses(joined, "a") == ["192.168.0.7"]
    assert joined.condition("netloomnodes", "a", CONDITION) == ("False", "InternalIPLost", KEPT)
    joined.label("b")
    joined.calm(20)
    assert (addresses(joined, "a"), addresses(joined, "b")) == ([], ["192.168.0.7"])
    assert "192.168.0.7, its last, is Node b's now" in joined.condition("netloomnodes", "a", CONDITION)[2]


def test_a_node_that_was_recreated_without_an_address_keeps_it_until_it_reports_one(joined: World) -> None:
    joined.leave("a")
    joined.join("a")
    report(joined, "a")
    joined.calm(10)
    assert addresses(joined, "a") == ["192.168.0.7"]
    report(joined, "a", "192.168.0.9")
    joined.calm(10)
    assert addresses(joined, "a") == ["192.168.0.9"]


def test_a_node_that_never_had_an_address_is_no_news(world: World) -> None:
    world.join("a")
    report(world, "a")
    world.make("a", "10.0.0.0/24")
    world.start()
    world.calm(10)
    assert addresses(world, "a") == []
    assert world.condition("netloomnodes", "a", CONDITION) == ("", "", "")


def test_both_conditions_stand_beside_each_other(joined: World) -> None:
    report(joined, "a")
    joined.calm(10)
    overwrite(joined, "a", ipam={"mode": "cluster-pool", "podCIDRs": ["nonsense"]})
    joined.calm(70)
    assert joined.condition("netloomnodes", "a", "Allocated")[:2] == ("False", "InvalidPodCIDR")
    assert joined.condition("netloomnodes", "a", CONDITION)[1] == "InternalIPLost"


def test_a_block_with_an_address_that_is_kept_is_given_to_nobody(world: World) -> None:
    world.join("a", address="10.0.1.20")
    world.start()
    world.calm(10)
    report(world, "a")
    world.calm(10)
    for name in "bcd":
        world.join(name)
    world.calm(10)
    assert "10.0.1.0/24" not in world.texts().values()
    assert "10.0.1.20 of node a" in world.condition("netloomnetworks", "default")[2]


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
def test_addresses_emptied_by_hand_come_back(joined: World, restart: bool) -> None:
    if restart:
        joined.kill(operator_of(joined))
    overwrite(joined, "a", addresses=[])
    if restart:
        joined.start()
    joined.calm(10)
    assert addresses(joined, "a") == ["192.168.0.7"]


# Pod CIDRs


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
@pytest.mark.parametrize(("mode", "cidr"), [("cluster-pool", "10.0.0.0/24"), ("kubernetes", "10.244.3.0/24")])
def test_pod_cidrs_emptied_by_hand_come_back_though_another_node_joins(
    empty: World, mode: str, cidr: str, restart: bool
) -> None:
    pool = {"ipv4PodCIDRList": ["10.0.0.0/22"], "ipv4MaskSize": 24} if mode == "cluster-pool" else {}
    empty.apply_network(mode=mode, **pool)
    empty.join("z", *(["10.244.9.0/24"] if mode == "kubernetes" else []))
    operator = empty.start()
    empty.calm(10)
    empty.leave("z")
    empty.join("a", *([cidr] if mode == "kubernetes" else []))
    empty.calm(200)
    before = empty.texts()["a"]
    if restart:
        empty.kill(operator)
    overwrite(empty, "a", ipam={})
    empty.join("b", *(["10.244.4.0/24"] if mode == "kubernetes" else []))
    if restart:
        empty.start()
    empty.calm(200)
    assert empty.texts()["a"] == before
    assert empty.texts()["b"] not in ("", before)


def test_a_nodes_pod_cidrs_that_are_emptied_are_reported_and_kept(empty: World) -> None:
    empty.apply_network(mode="kubernetes")
    empty.join("a", "10.244.0.0/24")
    operator = empty.start()
    empty.calm(10)
    empty.edit("nodes", "a", podCIDRs=[])  # the API server would refuse that; an old one may not
    empty.calm(10)
    assert empty.texts() == {"a": "10.244.0.0/24"}
    status, reason, message = empty.condition("netloomnodes", "a")
    assert (status, reason) == ("False", "PodCIDRsDiffer")
    assert message.startswith("Node spec.podCIDRs is empty, but the NetloomNode holds 10.244.0.0/24, which is not")
    assert operator.said.reasons("NetloomNode/a") == ["PodCIDRsDiffer"]
    empty.edit("nodes", "a", podCIDRs=["10.244.0.0/24"])
    empty.calm(10)
    assert empty.condition("netloomnodes", "a")[:2] == ("True", "Allocated")


@pytest.mark.parametrize("then", ["10.244.0.0/24", "10.244.1.0/24"])
def test_a_recreated_node_without_pod_cidrs_keeps_what_it_had_until_it_gets_some(empty: World, then: str) -> None:
    empty.apply_network(mode="kubernetes")
    empty.join("a", "10.244.0.0/24")
    empty.start()
    empty.calm(10)
    empty.leave("a")
    empty.join("a")
    empty.calm(10)
    assert empty.texts() == {"a": "10.244.0.0/24"}
    assert empty.condition("netloomnodes", "a")[1] == "PodCIDRsDiffer"
    empty.edit("nodes", "a", podCIDRs=[then])
    empty.calm(10)
    assert empty.texts() == {"a": then}
    assert empty.condition("netloomnodes", "a")[0] in ("", "True")
    (owner,) = empty.server.all("netloomnodes")["a"]["metadata"]["ownerReferences"]
    assert owner["uid"] == empty.server.all("nodes")["a"]["metadata"]["uid"]
