"""Pods of two pools on a real cluster: who gets which, that all reach each other, and whoever changes the routing.

Helm installs Netloom there, guard and all, and changes it. Nodes hold several blocks of a pool, as a block has room for
two pods.
"""

import ipaddress
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import kubelets, netloom_cluster
from netloom_e2e.agents import NETWORK, NODES
from netloom_e2e.cluster import HelmError
from netloom_e2e.echo import Echo, ask
from netloom_e2e.everyone import FLOW_SECONDS, HEADERS
from netloom_e2e.fixtures import built
from netloom_e2e.flow import Flows
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import OUTSIDE, OUTSIDE6, Pod
from netloom_e2e.mesh import TUNNEL
from netloom_e2e.netloom_cluster import Release

POOLS = {
    "default": {4: "10.244.128.0/18", 6: "fd00:10:244:80::/58"},
    "blue": {4: "10.244.192.0/18", 6: "fd00:10:244:c0::/58"},
}
IP_POOLS = "/apis/netloom.dev/v1alpha1/netloomippools"
MASKS = {"default": {4: 28, 6: 124}, "blue": {4: 30, 6: 126}}
VERSIONS = (4, 6)
NATIVE_MTU, TUNNEL_MTU = 1500, 1450

VALUES: dict[str, Any] = {
    "ipam": {"mode": "multi-pool"},
    "routingMode": "native",
    "autoDirectNodeRoutes": True,
    "pools": {
        name: {
            "preAllocation": 0,
            **{f"ipv{version}": {"cidrs": [cidr], "maskSize": MASKS[name][version]} for version, cidr in cidrs.items()},
        }
        for name, cidrs in POOLS.items()
    },
}
"""Of the chart."""

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: sea, annotations: {netloom.dev/ip-pool: blue}}
"""
POD = """---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: pause, image: "${{pause}}", imagePullPolicy: Never}}]
"""
BLUE = "{netloom.dev/ip-pool: blue}"
KINDS = {
    "plain": ("default", "{}", "default"),
    "sky": ("default", BLUE, "blue"),
    "wave": ("sea", "{}", "blue"),
    "fish": ("sea", "{}", "blue"),
}
"""Of pods, of which each node has one: namespace, annotations, and the pool that they are to be of."""


@pytest.fixture(scope="module")
def bed() -> Iterator[KubeletCluster]:
    with built():
        kubelets.prepare()
        made = netloom_cluster.cluster(kubelets.prefix(), nodes=2, values=VALUES, dual_stack=True)
    with made as cluster:
        cluster.lab.add_outside()
        yield cluster


@pytest.fixture(scope="module")
def pods(bed: KubeletCluster) -> dict[str, Pod]:
    """By kind and node."""
    bed.apply(NAMESPACE)
    bed.wait("its account", lambda: bed.plane.client.request("GET", "/api/v1/namespaces/sea/serviceaccounts")["items"])
    found = [(kind, node) for kind in KINDS for node in bed.nodes]
    texts = []
    for kind, node in found:
        namespace, annotations, _ = KINDS[kind]
        texts.append(POD.format(name=f"{kind}-{node}", namespace=namespace, annotations=annotations, node=node))
    bed.apply("".join(texts))
    return {f"{kind}-{node}": bed.pod(f"{kind}-{node}", KINDS[kind][0]) for kind, node in found}


def pool_of(address: str) -> str:
    ip = ipaddress.ip_address(address)
    return next(name for name, cidrs in POOLS.items() if ip in ipaddress.ip_network(cidrs[ip.version]))


def unreached(pods: dict[str, Pod], mtu: int) -> list[str]:
    """Who does not reach whom with packets of this size and DF."""
    return [
        f"{near} -> {far} IPv{version}"
        for (near, source), (far, target) in itertools.permutations(pods.items(), 2)
        for version in VERSIONS
        if source.ping(target.of(version), payload=mtu - HEADERS[version]).lost
    ]


def test_pods_get_addresses_of_the_pool_that_they_or_their_namespace_name(pods: dict[str, Pod]) -> None:
    for name, pod in pods.items():
        wanted = KINDS[name.partition("-")[0]][2]
        assert [pool_of(pod.of(version)) for version in VERSIONS] == [wanted] * 2, name


def test_nodes_hold_as_many_blocks_as_their_pods_need(bed: KubeletCluster, pods: dict[str, Pod]) -> None:
    for node in bed.nodes:
        held = bed.plane.client.request("GET", f"{NODES}/{node}")["spec"]["ipam"]["pools"]["allocated"]
        cidrs = [ipaddress.ip_network(cidr) for each in held if each["pool"] == "blue" for cidr in each["cidrs"]]
        for version in VERSIONS:
            assert len([cidr for cidr in cidrs if cidr.version == version]) > 1, held
        for kind in KINDS:
            if KINDS[kind][2] == "blue":
                for address in pods[f"{kind}-{node}"].addresses:
                    assert any(ipaddress.ip_address(address) in cidr for cidr in cidrs), (address, cidrs)


def test_pods_of_all_pools_reach_each_other_natively(pods: dict[str, Pod]) -> None:
    """With packets as large as the network's."""
    assert unreached(pods, NATIVE_MTU) == []


def test_outside_they_have_the_address_of_their_node(bed: KubeletCluster, pods: dict[str, Pod], tmp_path: Path) -> None:
    with Echo(bed.lab.outside, tmp_path):
        for name, pod in pods.items():
            machine = bed.nodes[name.partition("-")[2]].machine
            assert ask(pod, str(OUTSIDE[10])) == machine.address
            assert ask(pod, str(OUTSIDE6[10])) == machine.address6


@pytest.mark.usefixtures("pods")
def test_what_the_guard_refuses_helm_does_not_do(bed: KubeletCluster, release: Release) -> None:
    """The API server asks the guard, in its pods; of the IPAM mode the chart itself knows."""
    before = [bed.plane.client.request("GET", path) for path in (f"{NETWORK}/default", f"{IP_POOLS}/blue")]
    fewer = {"cidrs": ["10.250.0.0/18"], "maskSize": MASKS["blue"][4]}
    pools = VALUES["pools"] | {"blue": VALUES["pools"]["blue"] | {"ipv4": fewer}}
    gone = f"denied the request: .*{POOLS['blue'][4]} cannot be removed or made smaller while it is in use"
    with pytest.raises(HelmError, match=gone):
        release.put(bed.plane, "upgrade", {"pools": pools})
    cluster_pool = {"mode": "cluster-pool", "operator": {"clusterPoolIPv4PodCIDRList": ["10.60.0.0/16"]}}
    with pytest.raises(HelmError, match="the IPAM mode of a live cluster cannot change"):
        release.put(bed.plane, "upgrade", {"ipam": cluster_pool, "pools": None})
    after = [bed.plane.client.request("GET", path) for path in (f"{NETWORK}/default", f"{IP_POOLS}/blue")]
    assert [each["spec"] for each in after] == [each["spec"] for each in before]
    assert {each["metadata"]["name"] for each in bed.plane.client.request("GET", IP_POOLS)["items"]} == POOLS.keys()


def test_the_routing_is_changed_by_an_upgrade_and_no_packet_is_lost(
    bed: KubeletCluster, pods: dict[str, Pod], release: Release
) -> None:
    """Packets that fit into a tunnel, that is: pods keep the MTU that they began with."""
    few = {name: pods[name] for name in pods if name.startswith(("plain", "sky"))}
    with Flows(few, versions=VERSIONS, deadline=FLOW_SECONDS) as flows:
        release.put(bed.plane, "upgrade", {"routingMode": "tunnel", "autoDirectNodeRoutes": False})
        netloom_cluster.rerouted(bed, ["vxlan:8472"], TUNNEL)
        report = flows.stop()
    assert report.lossless, str(report)
    assert unreached(pods, TUNNEL_MTU) == []
