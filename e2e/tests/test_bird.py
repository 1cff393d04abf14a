"""BIRD alone, before any agent: pods reach each other only by what it learned, and only while it runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e.bird import Bird, Peer, full_mesh, learned
from netloom_e2e.lab import Lab, Machine, wait_for


def cidrs(node: Machine) -> list[str]:
    index = node.node.removeprefix("n")
    return [f"10.42.{index}.0/24", f"fd00:42:0:{index}::/64"]


def add_pods(lab: Lab) -> None:
    for node in lab.nodes.values():
        node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        index = node.node.removeprefix("n")
        node.add_pod("a", f"10.42.{index}.5", f"fd00:42:0:{index}::5", mtu=1500)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(f"nlg{os.getpid() % 10000}", dual_stack=True) as made:
        yield made


def test_nodes_of_one_segment_learn_each_others_pod_cidrs(lab: Lab, tmp_path: Path) -> None:
    n1, n2, n3 = (lab.add_node(name) for name in ("n1", "n2", "n3"))
    add_pods(lab)
    a, b = n1.pods["a"], n2.pods["a"]
    assert not a.ping(b.of(4), wait=0.2).received
    with full_mesh({node: cidrs(node) for node in (n1, n2, n3)}, tmp_path) as birds:
        wait_for("all routes", lambda: all(len(learned(node)) == 4 for node in (n1, n2, n3)))
        assert learned(n1) == [
            "10.42.2.0/24 via 172.31.1.2 dev eth0 metric 32",
            "10.42.3.0/24 via 172.31.1.3 dev eth0 metric 32",
            "fd00:42:0:2::/64 via fd00:31::102 dev eth0 metric 32 pref medium",
            "fd00:42:0:3::/64 via fd00:31::103 dev eth0 metric 32 pref medium",
        ]
        for version in (4, 6):
            assert a.ping(b.of(version), count=3, interval=0.01).lost == 0

        birds["n2"].stop()
        wait_for("n1 to forget n2", lambda: len(learned(n1)) == 2)
        assert learned(n2) == []
        assert not a.ping(b.of(4), wait=0.2).received
        birds["n2"].start()
        wait_for("n1 to learn again", lambda: len(learned(n1)) == 4)
    assert [learned(node) for node in (n1, n2, n3)] == [[], [], []]


def test_a_router_that_speaks_bgp_joins_two_segments(lab: Lab, tmp_path: Path) -> None:
    router, legs = lab.add_router(), [lab.add_segment(name) for name in ("a", "b")]
    n1, n2, n3 = (lab.add_node(name, segment=at) for name, at in (("n1", "a"), ("n2", "a"), ("n3", "b")))
    add_pods(lab)
    nodes = (n1, n2, n3)
    number = {node.node: 64512 + index for index, node in enumerate(nodes)}
    peers = [Peer(address, number[node.node]) for node in nodes for address in (node.address, node.address6)]
    gateways = {leg.name: (leg.gateway, leg.gateway6) for leg in legs}
    birds = [Bird(router, router_id=gateways["a"][0], asn=64500, peers=peers, folder=tmp_path, relay=True)]
    birds += [
        Bird(
            node,
            router_id=node.address,
            asn=number[node.node],
            announce=cidrs(node),
            peers=[Peer(gateway, 64500) for gateway in gateways[node.segment]],
            folder=tmp_path,
        )
        for node in nodes
    ]
    try:
        for bird in birds:
            bird.start()
        for bird in birds:
            bird.established()
        wait_for("all routes", lambda: all(len(learned(node)) == 4 for node in nodes) and len(learned(router)) == 6)
        # To a node of its own segment a router may name that node as the next hop: BIRD does.
        assert [line for line in learned(n1) if "10.42." in line] == [
            "10.42.2.0/24 via 172.30.1.12 dev eth0 metric 32",
            "10.42.3.0/24 via 172.30.1.1 dev eth0 metric 32",
        ]
        a, c = n1.pods["a"], n3.pods["a"]
        for version in (4, 6):
            assert a.ping(c.of(version), count=3, interval=0.01).lost == 0
    finally:
        for bird in birds:
            bird.stop()
    assert [learned(place) for place in (router, *nodes)] == [[]] * 4
