"""Cluster CIDRs that overlap the addresses of Services: passed over, and told."""

from collections.abc import Sequence

import pytest

from netloom.cidr import Cidr
from netloom.cidr.counted_cidrs import CountedCidrs
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange
from netloom_reconcilers.cluster.overlaps import SERVICES, About, Ranges, overlaps
from tests.allocation.test_network import metric, ready
from tests.allocation.world import World

RANGE = "10.96.0.0/12 (ServiceCIDR kubernetes), from which Services get their addresses"
SO = "so a pod could have the address of a Service."
FIELD = "spec.ipam.clusterPool.ipv4PodCIDRList[0]"


def test_blocks_that_overlap_services_are_passed_over_and_it_is_told_at_once(empty: World) -> None:
    empty.give_services("10.96.0.0/12", "fd00:10:96::/112")
    empty.apply_network(
        ipv4PodCIDRList=["10.95.255.0/24", "10.96.0.0/11"],
        ipv4MaskSize=24,
        ipv6PodCIDRList=["fd00:10:96::/110"],
        ipv6MaskSize=112,
    )
    operator = empty.start()
    empty.calm(1)
    assert ready(empty)[:2] == ("True", "ClusterCIDROverlapsServices"), "before any node has come"
    for name in "ab":
        empty.join(name)
    empty.calm(20)
    assert empty.texts() == {"a": "10.95.255.0/24 fd00:10:96::1:0/112", "b": "10.112.0.0/24 fd00:10:96::2:0/112"}
    assert ready(empty) == (
        "True",
        "ClusterCIDROverlapsServices",
        "Nodes are given their pod CIDRs in IPAM mode cluster-pool. "
        f"spec.ipam.clusterPool.ipv4PodCIDRList[1] 10.96.0.0/11: it overlaps {RANGE}, {SO} No block that overlaps is "
        "given to nodes. It can stay; where blocks run short, append a CIDR that overlaps no Services. "
        "spec.ipam.clusterPool.ipv6PodCIDRList[0] fd00:10:96::/110: it overlaps fd00:10:96::/112 (ServiceCIDR "
        f"kubernetes), from which Services get their addresses, {SO} No block that overlaps is given to nodes. It can "
        "stay; where blocks run short, append a CIDR that overlaps no Services.",
    )
    assert operator.said.events[0][:3] == ("NetloomNetwork/default", "Warning", "ClusterCIDROverlapsServices")
    assert metric("netloom_network_problems", reason="ClusterCIDROverlapsServices") == 1
    assert metric("netloom_ipam_blocks", cidr="10.96.0.0/11", mask="24", state="reserved") == 4096
    assert metric("netloom_ipam_blocks", cidr="10.96.0.0/11", mask="24", state="free") == 4095
    assert metric("netloom_ipam_blocks", cidr="10.96.0.0/11", mask="24", state="allocated") == 1


def test_a_cluster_cidr_inside_the_services_gives_nothing_and_says_why(empty: World) -> None:
    empty.give_services("10.96.0.0/12")
    empty.apply_network(ipv4PodCIDRList=["10.97.0.0/22"], ipv4MaskSize=24)
    empty.start()
    empty.join("a")
    empty.calm(20)
    assert empty.texts() == {"a": ""}
    status, reason, message = ready(empty)
    assert (status, reason) == ("False", "ClusterCIDROverlapsServices")
    assert (
        "Nothing of it is given to nodes. Append a CIDR that overlaps no Services, or put one in its place." in message
    )
    assert (
        "all 4 IPv4 blocks (/24) of 10.97.0.0/22 are in use, or reserved for Services, nodes and their networks (4). "
        "Append a CIDR"
    ) in message
    # As is said: append one. Then all is well, though the first gives nothing still.
    empty.apply_network(ipv4PodCIDRList=["10.97.0.0/22", "10.43.0.0/22"], ipv4MaskSize=24)
    empty.join("b")
    empty.calm(20)
    assert empty.texts() == {"a": "10.43.0.0/24", "b": "10.43.1.0/24"}
    status, reason, message = ready(empty)
    assert (status, reason) == ("True", "ClusterCIDROverlapsServices")
    assert "Nothing of it is given to nodes. It can stay; where blocks run short, append" in message


def test_a_cluster_cidr_inside_the_services_can_be_replaced(empty: World) -> None:
    empty.give_services("10.96.0.0/12")
    empty.apply_network(ipv4PodCIDRList=["10.97.0.0/22"], ipv4MaskSize=24)
    empty.start()
    empty.join("a")
    empty.calm(20)
    empty.apply_network(ipv4PodCIDRList=["10.42.0.0/22"], ipv4MaskSize=24)
    empty.calm(20)
    assert empty.texts() == {"a": "10.42.0.0/24"}
    assert ready(empty)[:2] == ("True", "Accepted")


def test_who_holds_such_a_block_keeps_it_and_is_named(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.96.0.0/22"], ipv4MaskSize=24)
    operator = empty.start()
    for name in "ab":
        empty.join(name)
    empty.calm(20)
    assert empty.texts() == {"a": "10.96.0.0/24", "b": "10.96.1.0/24"}
    empty.give_services("10.96.0.0/23")  # an administrator adds a range
    empty.join("c")
    empty.calm(20)
    assert empty.texts() == {"a": "10.96.0.0/24", "b": "10.96.1.0/24", "c": "10.96.2.0/24"}
    assert ready(empty) == (
        "False",
        "ClusterCIDROverlapsServices",
        f"{FIELD} 10.96.0.0/22: it overlaps 10.96.0.0/23 (ServiceCIDR kubernetes), from which Services get their "
        f"addresses, {SO} No block that overlaps is given to nodes, but a holds 10.96.0.0/24, b holds 10.96.1.0/24, "
        "which stay as they are. Append a CIDR that overlaps no Services if there is no room, drain these nodes and "
        "delete their Nodes, and restart each kubelet when its NetloomNode is gone: it gets another block.",
    )
    assert "ClusterCIDROverlapsServices" in operator.said.reasons("NetloomNetwork/default")
    # A successor, and the way out that was told: drained, deleted, and back when the NetloomNode is gone.
    empty.kill(operator)
    empty.start()
    empty.leave("a")
    empty.calm(200)
    empty.join("a")
    empty.calm(20)
    assert empty.texts() == {"a": "10.96.3.0/24", "b": "10.96.1.0/24", "c": "10.96.2.0/24"}
    empty.give_services()
    empty.join("d")
    empty.calm(20)
    assert empty.texts()["d"] == "10.96.0.0/24", "no Services there any more"
    assert ready(empty)[:2] == ("True", "Accepted")


def test_what_kube_controller_manager_gives_is_taken_and_reported(empty: World) -> None:
    empty.give_services("10.96.0.0/12")
    empty.apply_network(mode="kubernetes")
    empty.start()
    empty.join("a", "10.96.1.0/24")
    empty.join("b", "10.42.1.0/24")
    empty.calm(20)
    assert empty.texts() == {"a": "10.96.1.0/24", "b": "10.42.1.0/24"}
    assert ready(empty) == (
        "False",
        "PodCIDROverlapsServices",
        f"a holds 10.96.1.0/24, which stays as it is: this overlaps {RANGE}, {SO} Where kube-controller-manager gives "
        "pod CIDRs, start it with a --cluster-cidr that has room elsewhere and still holds what Nodes have: with a "
        "Node's pod CIDR outside it does not start. Or delete all such Nodes before. Then drain these nodes and delete "
        "their Nodes, and restart each kubelet when its NetloomNode is gone: it gets another one.",
    )


def test_of_a_service_alone_it_is_said_what_is_known(empty: World) -> None:
    empty.give_services("10.96.0.1/32", source="Service default/kubernetes")
    empty.apply_network(ipv4PodCIDRList=["10.96.0.0/22"], ipv4MaskSize=24)
    empty.start()
    empty.join("a")
    empty.calm(20)
    assert empty.texts() == {"a": "10.96.1.0/24"}
    assert (
        "it overlaps 10.96.0.1, the address of Service default/kubernetes (how large the range of Services is, nothing "
        "tells), so a pod"
    ) in ready(empty)[2]


def test_services_that_may_not_be_read_are_a_warning(world: World) -> None:
    operator = world.start()
    operator.services.unreadable = "not allowed"
    operator.loop.call_soon(operator.services.on_change)
    world.join("a")
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24"}
    assert ready(world)[:2] == ("True", "ServiceCIDRsUnreadable")
    assert "not allowed. Give the operator the rights of docs/examples/rbac.yaml on servicecidrs" in ready(world)[2]


ALL = [(f"n{number}", Cidr.parse(f"10.96.{number}.0/24")) for number in range(5)]


def of_services(cidr: str) -> Ranges[ServiceRange]:
    found = ServiceRange(Cidr.parse(cidr), "ServiceCIDR kubernetes")
    reserved = CountedCidrs()
    reserved.add(found.cidr)
    return Ranges(reserved, [found])


@pytest.mark.parametrize(
    ("cidr", "services", "held", "told"),
    [
        ("10.96.0.0/16", "10.97.0.0/16", (), None),
        ("10.96.0.0/16", "10.96.128.0/17", (), "warning"),
        ("10.96.0.0/16", "10.96.0.0/16", (), "error"),
        ("10.96.0.0/16", "10.0.0.0/8", (), "error"),
        ("10.96.0.0/16", "10.96.0.1/32", (), "warning"),
        ("10.96.0.0/16", "10.96.0.1/32", ALL[:1], "error"),
        ("10.96.0.0/16", "fd00::/112", (), None),
    ],
)
def test_overlaps(cidr: str, services: str, held: Sequence[tuple[str, Cidr]], told: str | None) -> None:
    whole = [Cidr.parse(cidr)] if Cidr.parse(services).contains(Cidr.parse(cidr)) else []
    found = overlaps(
        SERVICES, of_services(services), [("field", Cidr.parse(cidr))], held, About("NetloomNetwork"), whole
    )
    assert [problem.severity for problem in found] == ([told] if told else [])


def test_many_holders_are_counted() -> None:
    (problem,) = overlaps(SERVICES, of_services("10.96.0.0/12"), [], ALL, About("NetloomNetwork default"))
    assert problem.message.startswith(
        "n0 holds 10.96.0.0/24, n1 holds 10.96.1.0/24, n2 holds 10.96.2.0/24 and 2 more, which stay as they are: "
    )


def test_agents_are_told_of_services_among_pods_and_of_no_others(empty: World) -> None:
    empty.give_services("10.96.0.0/12", "fd00:10:96::/112")
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/8"], ipv4MaskSize=24, ipv6PodCIDRList=["fd00:42::/48"])
    empty.start()
    empty.join("a")
    empty.calm(20)
    assert empty.network["status"]["ipam"]["serviceCIDRs"] == ["10.96.0.0/12"]
    empty.give_services()
    empty.calm(20)
    assert empty.network["status"]["ipam"]["serviceCIDRs"] == ["10.96.0.0/12"], "nothing is known any more"
    empty.give_services("10.200.0.0/16", "172.20.0.0/16")
    empty.calm(20)
    assert empty.network["status"]["ipam"]["serviceCIDRs"] == ["10.200.0.0/16"]
    empty.give_services("172.20.0.0/16")
    empty.calm(20)
    assert empty.network["status"]["ipam"]["serviceCIDRs"] == []
    since = len(empty.server.executed)
    empty.give_services("172.21.0.0/16")
    empty.calm(200)
    assert empty.server.executed[since:] == [], "what is told already is not told again"


def test_agents_are_told_that_there_are_none_only_where_services_and_cluster_cidrs_are_known(empty: World) -> None:
    empty.apply_network(mode="kubernetes")
    operator = empty.start()
    operator.services.unreadable = "not allowed"
    operator.loop.call_soon(operator.services.on_change)
    empty.calm(20)
    assert "serviceCIDRs" not in empty.network["status"].get("ipam", {})
    empty.give_services("10.96.0.0/12")
    empty.calm(20)
    assert "serviceCIDRs" not in empty.network["status"].get("ipam", {}), "of no CIDR"
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/12"], ipv4MaskSize=24)
    empty.calm(20)
    assert empty.network["status"]["ipam"]["serviceCIDRs"] == []
    empty.apply_network(mode="kubernetes")
    empty.calm(20)
    assert "serviceCIDRs" not in empty.network["status"]["ipam"]
