"""Blocks that hold nodes' addresses, or overlap networks that nodes are connected to: not given, and told."""

import pytest

from netloom.ipam.free_blocks import FreeBlocks
from netloom_reconcilers.cluster.allocation.incarnation import Changed
from tests.allocation.test_contested_addresses import report
from tests.allocation.test_network import metric, ready
from tests.allocation.world import World

FIELD = "spec.ipam.clusterPool.ipv4PodCIDRList[0]"
SO = "so a pod could have the address of another machine, and agents write no route into a network of their node."


def move(world: World, name: str, *addresses: str) -> None:
    """The Node reports these addresses from now on."""
    node = world.server.all("nodes")[name]
    status = {"addresses": [{"type": "InternalIP", "address": each} for each in addresses]}
    world.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": status})
    world.calm(20)


def test_blocks_that_overlap_networks_of_nodes_are_passed_over_and_it_is_told(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["172.16.0.0/15"], ipv4MaskSize=16)
    operator = empty.start()
    empty.join("a")
    empty.calm(20)
    empty.connect("a", "172.17.0.0/16", "192.168.0.0/16", "fe80::/64", "nonsense", "0.0.0.0/0")
    empty.calm(20)
    empty.join("b")
    empty.calm(20)
    assert empty.texts() == {"a": "172.16.0.0/16", "b": ""}
    assert metric("netloom_ipam_blocks", cidr="172.16.0.0/15", mask="16", state="reserved") == 1
    assert ready(empty)[:2] == ("False", "ClusterPoolExhausted")
    assert (
        f"{FIELD} 172.16.0.0/15: it overlaps 172.17.0.0/16, a network that node a is connected to, {SO} No block that "
        "overlaps is given to nodes. It can stay; where blocks run short, append a CIDR that overlaps no network of a "
        "node."
    ) in ready(empty)[2]
    assert metric("netloom_network_problems", reason="ClusterCIDROverlapsConnected") == 1
    reasons = operator.said.reasons("NetloomNetwork/default")
    assert reasons.index("ClusterCIDROverlapsConnected") < reasons.index("ClusterPoolExhausted")
    # The agent says that its machine left the network.
    empty.connect("a", "192.168.0.0/16")
    empty.calm(20)
    assert empty.texts()["b"] == "172.17.0.0/16"
    assert ready(empty)[:2] == ("True", "Accepted")


def test_a_cluster_cidr_inside_the_nodes_network_gives_nothing_and_says_the_ways_out(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.90.128.0/22"], ipv4MaskSize=24)
    operator = empty.start()
    for name in "abcd":
        empty.join(name, address=f"10.90.0.{ord(name)}")
        empty.calm(20)
        empty.connect(name, "10.90.0.0/16")
        empty.calm(20)
    assert empty.texts() == {"a": "10.90.128.0/24", "b": "", "c": "", "d": ""}, "of the first nothing was known"
    assert ready(empty)[:2] == ("False", "ClusterCIDROverlapsConnected")
    assert (
        f"{FIELD} 10.90.128.0/22: it overlaps 10.90.0.0/16, a network that nodes a, b, c and 1 more are connected to, "
        f"{SO} Nothing of it is given to nodes, but a holds 10.90.128.0/24, which stays as it is. Append a CIDR that "
        "overlaps no network of a node if there is no room, drain these nodes and delete their Nodes, and restart each "
        "kubelet when its NetloomNode is gone: it gets another block. Where all these addresses are kept for pods, "
        "give the nodes' devices a prefix length that leaves them out: then they are connected to them no more."
    ) in ready(empty)[2]
    assert metric("netloom_network_problems", reason="ClusterCIDROverlapsConnected") == 1
    assert "ClusterCIDROverlapsConnected" in operator.said.reasons("NetloomNetwork/default")
    # Either way out. The LAN becomes smaller, as its devices say:
    for name in "abcd":
        empty.connect(name, "10.90.0.0/17")
    empty.calm(20)
    assert empty.texts() == {name: f"10.90.{128 + number}.0/24" for number, name in enumerate("abcd")}
    assert ready(empty)[:2] == ("True", "Accepted")


def test_a_network_of_few_nodes_around_a_whole_cluster_cidr_keeps_nobody_from_its_block(empty: World) -> None:
    """A VPN or bridge with a much too wide prefix."""
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/16"], ipv4MaskSize=24)
    operator = empty.start()
    for name in "abc":
        empty.join(name)
    empty.calm(20)
    empty.connect("a", "10.0.0.0/8", "192.168.0.0/16")
    empty.calm(20)
    empty.join("d")
    empty.calm(20)
    assert empty.texts()["d"] == "10.42.3.0/24"
    assert metric("netloom_ipam_blocks", cidr="10.42.0.0/16", mask="24", state="reserved") == 0
    assert ready(empty)[:2] == ("True", "ClusterCIDROverlapsConnected")
    assert (
        f"{FIELD} 10.42.0.0/16: it lies in 10.0.0.0/8, a network that node a is connected to. Less than half of the "
        "nodes say so, and its blocks are given all the same; but agents write no route into a network of their node: "
        "pods of a and of other nodes do not reach each other. On these nodes, remove the device (a bridge or VPN) if "
        "it is left over, or give it a longer prefix, so that the network does not hold the CIDR."
    ) in ready(empty)[2]
    assert "ClusterCIDROverlapsConnected" in operator.said.reasons("NetloomNetwork/default")
    # Half of the nodes are: it is the nodes' network.
    empty.connect("b", "10.0.0.0/8")
    empty.calm(20)
    assert ready(empty)[:2] == ("False", "ClusterCIDROverlapsConnected")
    assert "Nothing of it is given to nodes" in ready(empty)[2]
    # One node more, and it is less than half again; one less, and it is not; then nobody is.
    empty.join("e")
    empty.calm(20)
    assert empty.texts()["e"] == "10.42.4.0/24"
    empty.leave("c")
    empty.calm(20)
    assert ready(empty)[:2] == ("False", "ClusterCIDROverlapsConnected")
    for name in "ab":
        empty.connect(name)
    empty.calm(20)
    assert ready(empty)[:2] == ("True", "Accepted")
    assert metric("netloom_ipam_blocks", cidr="10.42.0.0/16", mask="24", state="reserved") == 0


def test_which_networks_hold_a_whole_cluster_cidr_follows_the_cluster_cidrs(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/16"], ipv4MaskSize=24)
    empty.start()
    for name in "abc":
        empty.join(name)
    empty.calm(20)
    empty.connect("a", "10.42.0.0/16")
    empty.calm(20)
    assert metric("netloom_ipam_blocks", cidr="10.42.0.0/16", mask="24", state="reserved") == 0
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/15"], ipv4MaskSize=24)
    empty.join("d")
    empty.calm(20)
    assert metric("netloom_ipam_blocks", cidr="10.42.0.0/15", mask="24", state="reserved") == 253, "3 are in use"
    assert empty.texts()["d"] == "10.43.0.0/24", "there is room beside it"


def test_or_another_cidr_is_appended(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.90.128.0/22"], ipv4MaskSize=24)
    empty.start()
    empty.join("a")
    empty.calm(20)
    empty.connect("a", "10.90.0.0/16")
    empty.join("b")
    empty.calm(20)
    assert "10.90.128.0/22 are in use, or reserved for Services, nodes and their networks (4)" in ready(empty)[2]
    empty.apply_network(ipv4PodCIDRList=["10.90.128.0/22", "10.42.0.0/16"], ipv4MaskSize=24)
    empty.calm(20)
    assert empty.texts() == {"a": "10.90.128.0/24", "b": "10.42.0.0/24"}
    assert ready(empty)[:2] == ("False", "ClusterCIDROverlapsConnected"), "a cannot be reached"


def test_a_successor_knows_it_before_it_gives_anything(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/16"], ipv4MaskSize=24)
    first = empty.start()
    empty.join("a")
    empty.calm(20)
    empty.kill(first)
    empty.connect("a", "10.42.0.0/22")
    empty.join("b", address="10.42.4.4")
    empty.start()
    empty.calm(200)
    assert empty.texts() == {"a": "10.42.0.0/24", "b": "10.42.5.0/24"}


def test_a_bridge_of_a_node_s_own_pods_reserves_nothing_until_it_is_left_over(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/23"], ipv4MaskSize=24)
    empty.start()
    empty.join("a")
    empty.calm(20)
    empty.connect("a", "10.42.0.0/24")
    empty.calm(20)
    assert ready(empty)[:2] == ("True", "Accepted")
    assert metric("netloom_ipam_blocks", cidr="10.42.0.0/23", mask="24", state="free") == 1


def test_a_node_s_address_that_comes_later_keeps_its_block_back(world: World) -> None:
    world.start()
    world.join("a")
    world.calm(20)
    move(world, "a", "192.168.1.0", "10.0.1.20")
    for name in "bc":
        world.join(name)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.2.0/24", "c": "10.0.3.0/24"}
    world.join("d")
    move(world, "a", "192.168.1.0")
    assert world.texts()["d"] == "10.0.1.0/24", "it is free again"


def test_the_address_of_a_node_that_is_left_out_is_no_pod_s_either(world: World) -> None:
    world.start()
    world.join("other", address="10.0.1.20", labels={"netloom.dev/ignore": "true"})
    for name in "abc":
        world.join(name)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.2.0/24", "c": "10.0.3.0/24"}
    assert ready(world)[:2] == ("True", "Accepted")


def test_the_address_that_is_kept_for_a_node_reserves_its_block(world: World) -> None:
    """The Node reports it no more, and others go on sending to it."""
    world.start()
    world.join("a", address="10.0.1.20")
    world.calm(20)
    move(world, "a")
    for name in "bcd":
        world.join(name)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.2.0/24", "c": "10.0.3.0/24", "d": ""}


def test_a_node_s_address_in_a_block_that_another_holds_is_told_at_the_network(empty: World) -> None:
    """kube-controller-manager gives what it likes."""
    empty.apply_network(mode="kubernetes")
    operator = empty.start()
    empty.join("a", "10.42.1.0/24", address="10.42.2.7")
    empty.calm(20)
    empty.join("b", "10.42.2.0/24")
    empty.calm(20)
    assert empty.texts() == {"a": "10.42.1.0/24", "b": "10.42.2.0/24"}
    assert ready(empty) == (
        "False",
        "PodCIDROverlapsNodes",
        "b holds 10.42.2.0/24, which stays as it is: this overlaps 10.42.2.7, the address of node a, so packets to the "
        "node would go to a pod, and agents do not write the route. Give the node whose address it is another one "
        "(--node-ip); or drain these nodes and delete their Nodes, and restart each kubelet when its NetloomNode is "
        "gone: it gets another block.",
    )
    assert "PodCIDROverlapsNodes" in operator.said.reasons("NetloomNetwork/default")
    assert metric("netloom_network_problems", reason="PodCIDROverlapsNodes") == 1
    move(empty, "a", "192.168.0.7")
    assert ready(empty)[:2] == ("True", "Accepted")


def test_an_address_that_appears_in_a_given_block_beside_a_good_one_is_not_accepted_and_told(world: World) -> None:
    world.start()
    for name in "ab":
        world.join(name)
    world.calm(20)
    report(world, "a", "192.168.1.0", "10.0.1.9")
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24"}
    assert ready(world)[:2] == ("True", "NodeAddressUnusable")
    assert "Node a: status.addresses[1] 10.0.1.9: it lies in 10.0.1.0/24, a node's pod CIDR" in ready(world)[2]
    assert [each["ip"] for each in world.server.all("netloomnodes")["a"]["spec"]["addresses"]] == ["192.168.1.0"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done for all blocks, or told to all."""
    found: list[str] = []
    configure = FreeBlocks.configure
    monkeypatch.setattr(FreeBlocks, "configure", lambda *args: (found.append("configure"), configure(*args)))
    return found


def test_one_node_s_change_costs_nothing_for_the_others(empty: World, counted: list[str]) -> None:
    """All nodes on one network inside the pool: it is one reservation, and their addresses are one each."""
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/8"], ipv4MaskSize=24)
    operator = empty.start()
    empty.calm(1)
    allocation, published = operator.allocation, list[object]()
    react = allocation._react
    allocation._configuration.reserved._publish = lambda event: (published.append(event), react(event))[1]
    counted.clear()
    for number in range(60):
        empty.join(f"n{number}", address=f"10.90.0.{number + 1}")
    empty.calm(20)
    for number in range(60):
        empty.connect(f"n{number}", "10.90.0.0/16", "172.17.0.0/16")
    empty.calm(20)
    assert counted == []
    assert len(allocation._allocator.blocks.reserved) == 61
    assert published == [Changed.RESERVED] * 120
