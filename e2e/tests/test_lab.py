"""The lab's networks, before any agent: what the tests of routing stand on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e.echo import Echo, ask
from netloom_e2e.lab import Lab, Machine, Pod, wait_for
from netloom_e2e.namespaces import existing


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two segments behind a router, two nodes in each, both families."""
    with Lab(f"nll{os.getpid() % 10000}", dual_stack=True) as made:
        made.add_segment("a")
        made.add_segment("b", mtu=9000)
        for name, segment in (("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")):
            made.add_node(name, segment=segment)
        yield made


def pod_of(machine: Machine, *, mtu: int = 1500) -> Pod:
    """A pod of both families; the node forwards, as an agent would have it do."""
    machine.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    index = machine.node.removeprefix("n")
    return machine.add_pod("a", f"10.42.{index}.5", f"fd00:42:0:{index}::5", mtu=mtu)


def reaches(source: Machine, address: str, *, payload: int = 56) -> bool:
    """Whether a ping with DF set is answered."""
    words = ["ping", "-n", "-q", "-M", "do", "-c", "1", "-W", "1", "-s", str(payload), address]
    return "1 received" in source.run(*words, check=False)


def test_no_other_lab_of_its_name_takes_it_away(lab: Lab) -> None:
    """Of a process that knows nothing of ours, though it has our number: in a container it may."""
    with pytest.raises(RuntimeError, match="is at work"), Lab(lab.prefix):
        pass
    assert {"sw", "n1", "n4"} <= {name.rpartition("-")[2] for name in existing(f"{lab.prefix}-*")}


def test_nodes_reach_each_other_and_the_control_plane_in_both_families(lab: Lab) -> None:
    n1, n2, n3, n4 = lab.nodes.values()
    assert [n.address for n in (n1, n2, n3, n4)] == ["172.30.1.11", "172.30.1.12", "172.30.2.13", "172.30.2.14"]
    assert [n1.address6, n4.address6] == ["fd00:30:0:1::b", "fd00:30:0:2::e"]
    for node in (n1, n3):
        for to in (lab.address, n2.address, n4.address, n2.address6, n4.address6):
            assert reaches(node, to), f"{node.node} to {to}"


def test_nodes_that_were_introduced_need_no_answers_to_arp(lab: Lab) -> None:
    n1, n2, _, _ = lab.nodes.values()
    for node in (n1, n2):
        node.sysctl(ipv4__conf__eth0__arp_ignore=8)
    assert not reaches(n1, n2.address)
    lab.introduce_nodes()
    assert reaches(n1, n2.address)


def test_nodes_come_and_go_and_the_control_plane_stays_within_reach(lab: Lab) -> None:
    n5, n6 = lab.add_node("n5"), lab.add_node("n6")
    assert reaches(n5, lab.address)
    lab.switch.ip("link", "set", n6.port, "address", "00:00:00:00:00:01")
    assert reaches(n5, lab.address)
    lab.remove_node("n6")
    assert reaches(n5, lab.address)


def test_each_segment_has_its_own_mtu_and_it_can_change(lab: Lab) -> None:
    n1, n2, n3, n4 = lab.nodes.values()
    assert reaches(n3, n4.address, payload=8972)
    assert not reaches(n1, n2.address, payload=1473)
    lab.set_mtu("a", 9000)
    assert reaches(n1, n2.address, payload=8972)
    assert reaches(n1, n3.address, payload=8972)


def test_pods_reach_each_other_through_a_router_that_was_told_where_they_are(lab: Lab) -> None:
    n1, n2, n3, _ = lab.nodes.values()
    a, b, c = pod_of(n1), pod_of(n2), pod_of(n3)
    assert not a.ping(c.address, wait=0.2).received
    for index, node in enumerate((n1, n2, n3), 1):
        lab.router.learn(node, f"10.42.{index}.0/24", f"fd00:42:0:{index}::/64")
    for version in (4, 6):
        assert a.ping(b.of(version)).received, "the router sends it back into the segment"
        assert a.ping(c.of(version)).received
    assert "via 172.30.1.1 " in n1.ip("route", "get", b.address), "no redirect was taken"
    lab.router.forget("10.42.3.0/24")
    assert not a.ping(c.address, wait=0.2).received


def test_a_node_moves_and_keeps_its_pods(lab: Lab) -> None:
    n1, n2, _, n4 = lab.nodes.values()
    pod_of(n1)
    moved = lab.move_node("n1", segment="b")
    assert (moved.address, moved.address6) == ("172.30.2.11", "fd00:30:0:2::b")
    assert "172.30.1.11" not in moved.ip("addr")
    assert reaches(moved, n4.address, payload=8972)
    assert reaches(moved, n2.address)
    assert reaches(moved, lab.address)
    assert lab.nodes["n1"].pods["a"].address == "10.42.1.5"


def test_the_cable_of_a_node_can_be_pulled(lab: Lab) -> None:
    n1, n2, _, _ = lab.nodes.values()
    lab.switch.ip("link", "set", n1.port, "down")
    assert "NO-CARRIER" in n1.ip("link", "show", "eth0")
    assert not reaches(n1, n2.address)
    lab.switch.ip("link", "set", n1.port, "up")
    wait_for("the link to carry again", lambda: reaches(n1, n2.address))


def test_a_pods_mtu_changes_while_it_runs(lab: Lab) -> None:
    n3 = lab.nodes["n3"]
    pod = pod_of(n3, mtu=9000)
    assert pod.ping(n3.address, payload=8972).received
    n3.set_pod_mtu("a", 1450)
    assert not pod.ping(n3.address, payload=1423, wait=0.2).received
    assert pod.ping(n3.address, payload=1422).received


@pytest.mark.parametrize("server", ["192.0.2.10", "2001:db8::a"])
def test_the_outside_sees_who_it_is_that_sends(lab: Lab, tmp_path: Path, server: str) -> None:
    n1 = lab.nodes["n1"]
    pod = pod_of(n1)
    ipv6 = ":" in server
    with Echo(lab.add_outside(), tmp_path) as echo:
        assert ask(n1, server) == (n1.address6 if ipv6 else n1.address)
        assert ask(pod, server, wait=0.2) == "", "nobody told the router where pods are"
        assert echo.seen()[-1] == pod.of(6 if ipv6 else 4)
        lab.router.learn(n1, "10.42.1.0/24", "fd00:42:0:1::/64")
        assert ask(pod, server) == pod.of(6 if ipv6 else 4)


def test_the_first_segment_is_as_it_was_until_a_router_comes() -> None:
    with Lab(f"nlm{os.getpid() % 10000}") as lab:
        n1 = lab.add_node("n1")
        assert n1.ip("route") == (
            "default via 172.31.0.1 dev eth0 \n172.31.0.0/16 dev eth0 proto kernel scope link src 172.31.1.1 \n"
        )
        lab.add_segment("a")
        n2 = lab.add_node("n2", segment="a")
        assert reaches(n1, n2.address)
        prefix = lab.prefix
    assert not existing(f"{prefix}-*")
