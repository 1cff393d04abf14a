"""Judgements on objects that no rule of the API server can make; the others are held against it in e2e/tests."""

from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.api.cidrs import NodeAddresses, check_cidr, check_nodes_outside, check_overlap
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.api.validation import validate_network, validate_node
from netloom.api.validation.network import cluster_cidrs
from netloom.cidr import Cidr, is_address


def network(mode: str = "cluster-pool", **spec: Any) -> NetloomNetwork:
    pool = spec.pop("pool", {"ipv4PodCIDRList": ["10.244.0.0/16"]})
    ipam = {"mode": mode, "clusterPool": pool}
    return msgspec.convert({"metadata": {"name": "default"}, "spec": {"ipam": ipam, **spec}}, NetloomNetwork)


def nodes_inside(of: NetloomNetwork, addresses: NodeAddresses) -> list[Problem]:
    name, reason = "NetloomNetwork default", "ClusterCIDROverlapsNodes"
    return check_nodes_outside(cluster_cidrs(of), addresses, object=name, reason=reason)


def lines(problems: list[Problem]) -> list[str]:
    return [f"{problem.reason} {problem.severity}: {problem}" for problem in problems]


def test_a_good_network_has_no_problems() -> None:
    nodes = {"worker-1": ["192.168.1.11", "fd00::11"], "worker-2": ["worker-2.example.com"]}
    assert validate_network(network()) == []
    assert nodes_inside(network(), nodes) == []


def test_a_cluster_cidr_holds_node_addresses() -> None:
    nodes = {f"worker-{number}": ["192.168.0.1", f"10.244.1.{number}"] for number in range(1, 6)}
    both = {"ipv4PodCIDRList": ["10.246.0.0/16", "10.244.0.0/16"]}
    assert lines(nodes_inside(network(pool=both), nodes)) == [
        "ClusterCIDROverlapsNodes error: NetloomNetwork default: spec.ipam.clusterPool.ipv4PodCIDRList[1] "
        "'10.244.0.0/16': it holds addresses of nodes (10.244.1.1 of node worker-1, 10.244.1.2 of node worker-2, "
        "10.244.1.3 of node worker-3 and 2 more), so a pod could be given the address of a node. "
        "Use CIDRs outside the nodes' network."
    ]


def test_an_unused_cluster_cidr_may_hold_node_addresses() -> None:
    assert nodes_inside(network("kubernetes"), {"worker-1": ["10.244.1.1"]}) == []


def test_the_native_cidr_covers_only_some_cluster_cidrs() -> None:
    routing = {"mode": "native", "ipv4NativeRoutingCIDR": "10.244.0.0/15"}
    three = {"ipv4PodCIDRList": ["10.245.0.0/16", "10.246.0.0/16", "10.0.0.0/10"]}
    assert lines(validate_network(network(pool=three, routing=routing))) == [
        "NativeCIDRTooSmall warning: NetloomNetwork default: spec.routing.ipv4NativeRoutingCIDR '10.244.0.0/15': "
        "it does not cover 10.246.0.0/16, 10.0.0.0/10, so packets to pods there may be masqueraded. "
        "Give a CIDR that holds all cluster CIDRs."
    ]


@pytest.mark.parametrize(
    "spec",
    [
        {"routing": {"mode": "tunnel", "ipv4NativeRoutingCIDR": "10.0.0.0/16"}},
        {"routing": {"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/16"}, "masquerade": {"ipv4": False}},
        {"routing": {"mode": "native", "ipv4NativeRoutingCIDR": "10.244.0.0/16"}},
    ],
    ids=["tunnels", "no masquerading", "covered"],
)
def test_a_native_cidr_that_does_no_harm(spec: dict[str, Any]) -> None:
    assert validate_network(network(**spec)) == []


def test_an_mtu_too_small_for_ipv6_through_a_tunnel() -> None:
    six = {"ipv6PodCIDRList": ["fd00::/64"]}
    assert lines(validate_network(network(pool=six, mtu=1329))) == [
        "MTUTooSmall warning: NetloomNetwork default: spec.mtu '1329': tunnels take 50 bytes of it, and pods with "
        "IPv6 addresses need 1280. Give at least 1330, or 0 to take the devices' MTU."
    ]
    assert validate_network(network(pool=six, mtu=1330)) == []
    assert validate_network(network(mtu=1329)) == []
    assert validate_network(network(pool=six, mtu=1280, routing={"mode": "native"})) == []


def test_numbers_that_no_schema_bounded() -> None:
    wild = {"ipv4PodCIDRList": ["10.0.0.0/8"], "ipv4MaskSize": 8, "ipv6MaskSize": 130}
    assert lines(validate_network(network(pool=wild, mtu=-1, routing={"tunnelPort": 70000}))) == [
        "OutOfRange error: NetloomNetwork default: spec.ipam.clusterPool.ipv4MaskSize '8': it must be between 16 and "
        "30. Give a number in that range.",
        "OutOfRange error: NetloomNetwork default: spec.ipam.clusterPool.ipv6MaskSize '130': it must be between 56 "
        "and 126. Give a number in that range.",
        "OutOfRange error: NetloomNetwork default: spec.routing.tunnelPort '70000': it must be between 0 and 65535. "
        "Give a number in that range.",
        "OutOfRange error: NetloomNetwork default: spec.mtu '-1': it must be between 0 and 65535. "
        "Give a number in that range.",
    ]


@pytest.mark.parametrize(
    ("protocol", "port", "good"),
    [
        ("vxlan", 1, True),
        ("geneve", 65535, True),
        ("none", 0, True),
        ("vxlan", 0, False),
        ("none", 7, False),
        ("vxlan", 65536, False),
        ("geneve", -1, False),
    ],
)
def test_ports_of_encapsulations_that_no_schema_bounded(protocol: str, port: int, good: bool) -> None:
    """All other nodes would make a device of it."""
    spec = {"encapsulations": [{"protocol": "vxlan", "port": 8472}, {"protocol": protocol, "port": port}]}
    problems = validate_node(msgspec.convert({"metadata": {"name": "worker-1"}, "spec": spec}, NetloomNode))
    assert [problem.field for problem in problems] == ([] if good else ["spec.encapsulations[1].port"])


def test_an_address_of_mode_crd_that_is_none() -> None:
    spec = {"ipam": {"mode": "crd", "pool": {"10.9.0.4": {}, "10.9.0": {}}}}
    node = msgspec.convert({"metadata": {"name": "worker-1"}, "spec": spec}, NetloomNode)
    assert lines(validate_node(node)) == [
        'InvalidAddress error: NetloomNode worker-1: spec.ipam.pool: "10.9.0" is not an IP address. '
        "Write one such as 192.168.1.10."
    ]


cidr_texts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: str(ip_network((address, length), strict=False))
    )
)


@given(cidr_texts)
def test_whatever_ipaddress_writes_is_canonical(text: str) -> None:
    network, problems = check_cidr(text, object="X x", field="f", example="e")
    if is_address(text.partition("/")[0]):
        assert (network, problems) == (Cidr.parse(text), [])
        assert str(network) == text


@given(st.text(alphabet="0123456789abcdefABCDEF:./% ", max_size=45))
def test_what_is_taken_is_a_cidr_to_the_standard_library_too(text: str) -> None:
    network = Cidr.masked(text)
    assert network is None or str(network) == str(ip_network(text, strict=False))


@given(st.lists(cidr_texts, max_size=6))
def test_overlap_is_found_as_by_comparing_all(texts: list[str]) -> None:
    networks = [ip_network(text) for text in texts if Cidr.masked(text)]
    pairs = [(a, b) for i, a in enumerate(networks) for b in networks[i + 1 :]]
    found = check_overlap(texts, object="X x", field="f", so="so")
    assert bool(found) == any(a.overlaps(b) for a, b in pairs)
