"""Several Nodes report one address: which is written for whom, what is said of it, and how many writes that takes."""

from collections import Counter

import pytest

from netloom_reconcilers.cluster.allocation.last_known_addresses import CONDITION
from netloom_reconcilers.cluster.allocation.metrics import ADDRESSES_CONTESTED
from tests.allocation.world import World

VIP = "192.168.0.100"
SINCE = "2026-01-01T00:00:00Z"


def report(world: World, name: str, *addresses: str, ready: str = "True") -> None:
    """The kubelet, or for it the node lifecycle controller, writes Node status."""
    node = world.server.all("nodes")[name]
    status = {
        "addresses": [{"type": "InternalIP", "address": each} for each in addresses],
        "conditions": [
            {"type": "DiskPressure", "status": "False", "lastHeartbeatTime": "now"},
            {"type": "Ready", "status": ready, "lastTransitionTime": SINCE, "lastHeartbeatTime": "now"},
        ],
    }
    world.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": status})
    world.calm(10)


def say(world: World, name: str, *absent: str) -> None:
    """The node's agent writes which addresses its machine has not."""
    obj = world.server.all("netloomnodes")[name]
    status = {**obj.get("status", {}), "absentAddresses": list(absent)}
    world.server._update("netloomnodes", obj, {**obj, "metadata": dict(obj["metadata"]), "status": status})
    world.calm(10)


def addresses(world: World, name: str) -> str:
    found = world.server.all("netloomnodes")[name]["spec"].get("addresses", [])
    return " ".join(each["ip"] if each["type"] == "InternalIP" else f"{each['type']}:{each['ip']}" for each in found)


def writes(world: World, since: int) -> Counter[str]:
    return world.writes(since)


@pytest.fixture
def two(world: World) -> World:
    """Nodes a and b, each at its own address, both Ready, and an operator at rest."""
    for name, address in (("a", "192.168.0.1"), ("b", "192.168.0.2")):
        world.join(name, address=address)
    world.start()
    world.calm(200)
    report(world, "a", "192.168.0.1")
    report(world, "b", "192.168.0.2")
    return world


def test_a_virtual_ip_that_moves_changes_nothing(two: World) -> None:
    """Reported first by whoever has it, later by both, as cloud controllers do."""
    since = len(two.server.executed)
    report(two, "a", VIP, "192.168.0.1")
    assert addresses(two, "a") == f"192.168.0.1 {VIP}"
    assert writes(two, since) == Counter({"patch netloomnodes": 1}), "it is listed"
    report(two, "a", "192.168.0.1")
    report(two, "b", VIP, "192.168.0.2")
    assert (addresses(two, "a"), addresses(two, "b")) == ("192.168.0.1", f"192.168.0.2 {VIP}")
    report(two, "a", VIP, "192.168.0.1")
    since = len(two.server.executed)
    for holder, other in ("ab", "ba", "ab"):
        say(two, holder)
        say(two, other, VIP)
    assert (addresses(two, "a"), addresses(two, "b")) == (f"192.168.0.1 {VIP}", f"192.168.0.2 {VIP}")
    assert writes(two, since) == Counter()
    assert two.condition("netloomnodes", "a", CONDITION) == ("", "", "")


def test_a_node_that_registers_while_it_has_the_virtual_ip_moves_to_its_own_once_that_is_gone(two: World) -> None:
    two.join("c", address=VIP)
    report(two, "c", VIP, "192.168.0.3")
    assert addresses(two, "c") == f"{VIP} 192.168.0.3"
    say(two, "c", VIP)
    assert addresses(two, "c") == f"192.168.0.3 {VIP}"
    say(two, "c")
    assert addresses(two, "c") == f"192.168.0.3 {VIP}", "and stays there"


def test_a_node_joins_with_an_address_that_another_one_reports(two: World) -> None:
    report(two, "a", VIP, "192.168.0.1")
    two.join("c", address=VIP)
    two.calm(10)
    assert (addresses(two, "a"), addresses(two, "c")) == (f"192.168.0.1 {VIP}", VIP), "it has no other"


def test_a_machine_that_comes_back_under_another_name_has_its_address(two: World) -> None:
    two.join("a.example.com", address="192.168.0.1")
    report(two, "a.example.com", "192.168.0.1", ready="False")
    assert (addresses(two, "a"), addresses(two, "a.example.com")) == ("192.168.0.1", "ContestedIP:192.168.0.1")
    status, reason, message = two.condition("netloomnodes", "a.example.com", CONDITION)
    assert (status, reason) == ("False", "AddressContested")
    assert "delete the Node that is left over, once its kubelet is silent" in message, "it is not this one"
    assert ADDRESSES_CONTESTED.collect()[0].samples[0].value == 1

    since = len(two.server.executed)
    report(two, "a", "192.168.0.1", ready="Unknown")
    assert (addresses(two, "a"), addresses(two, "a.example.com")) == ("ContestedIP:192.168.0.1", "192.168.0.1")
    report(two, "a.example.com", "192.168.0.1")
    assert two.condition("netloomnodes", "a.example.com", CONDITION)[:2] == ("True", "InternalIPReported")
    assert two.condition("netloomnodes", "a", CONDITION) == (
        "False",
        "AddressContested",
        f"Node a.example.com (Ready) and Node a (its kubelet is silent since {SINCE}) both report 192.168.0.1: "
        "a.example.com has it, and nothing is sent to a. If one machine came back under another name, delete the "
        "Node a; if there are two machines, give each an address of its own, which its kubelet reports (--node-ip).",
    )
    assert writes(two, since)["patch netloomnodes"] <= 6, "an address and a condition for each, one anew for a"
    since = len(two.server.executed)
    two.calm(300)
    assert writes(two, since) == Counter()

    two.leave("a")
    two.calm(300)
    assert ADDRESSES_CONTESTED.collect()[0].samples[0].value == 0
    assert addresses(two, "a.example.com") == "192.168.0.1"


def test_two_living_nodes_with_nothing_but_the_virtual_ip(two: World) -> None:
    report(two, "a", VIP)
    report(two, "b", VIP)
    assert (addresses(two, "a"), addresses(two, "b")) == (VIP, f"ContestedIP:{VIP}")
    message = two.condition("netloomnodes", "b", CONDITION)[2]
    assert message.startswith(f"Node a (Ready) and Node b (Ready) both report {VIP}: a has it")
    assert "have both kubelets report the machine's own address (--node-ip)" in message
    assert "delete" not in message
    say(two, "a", VIP)
    assert (addresses(two, "a"), addresses(two, "b")) == (f"ContestedIP:{VIP}", VIP), "the machine that has it"
    report(two, "a", "192.168.0.1")
    assert addresses(two, "a") == "192.168.0.1"
    assert two.condition("netloomnodes", "a", CONDITION)[:2] == ("True", "InternalIPReported")


def test_an_address_that_is_contested_and_then_not_reported_any_more(two: World) -> None:
    report(two, "b", "192.168.0.1", ready="False")
    assert addresses(two, "b") == "ContestedIP:192.168.0.1"
    report(two, "b", ready="False")
    assert addresses(two, "b") == ""
    assert two.condition("netloomnodes", "b", CONDITION)[1] == "InternalIPLost"


def test_what_kubelets_say_again_and_again_is_no_news(two: World) -> None:
    operator = two.operators[-1]
    reconciled: list[str] = []
    operator.stores.nodes.subscribe(lambda key, old, new: reconciled.append(key))
    reconciled.clear()
    for _ in range(3):
        report(two, "a", "192.168.0.1")
    assert reconciled == []
    report(two, "a", "192.168.0.1", ready="Unknown")
    assert reconciled == ["a"]


def test_an_operator_that_starts_anew_chooses_the_same_and_writes_nothing(two: World) -> None:
    report(two, "a", VIP, "192.168.0.1")
    report(two, "b", VIP, "192.168.0.2")
    two.join("a.example.com", address="192.168.0.9")
    report(two, "a.example.com", "192.168.0.9")
    two.join("old", address="192.168.0.9")
    report(two, "old", "192.168.0.9", ready="Unknown")
    before = {name: addresses(two, name) for name in two.server.all("netloomnodes")}
    assert before["old"] == "ContestedIP:192.168.0.9"
    two.kill(two.operators[-1])
    since = len(two.server.executed)
    two.start()
    two.calm(300)
    assert {name: addresses(two, name) for name in before} == before
    assert writes(two, since) == Counter()


def test_a_node_that_is_left_out_claims_nothing(two: World) -> None:
    report(two, "a", VIP)
    report(two, "b", VIP)
    assert (addresses(two, "a"), addresses(two, "b")) == (VIP, f"ContestedIP:{VIP}")
    two.label("a", **{"netloom.dev_ignore": "true"})
    two.calm(60)
    assert addresses(two, "b") == VIP
    assert two.condition("netloomnodes", "b", CONDITION)[0] == "True"
    two.label("a")
    two.calm(60)
    assert (addresses(two, "a"), addresses(two, "b")) == (f"ContestedIP:{VIP}", VIP), "it comes as a newcomer"
