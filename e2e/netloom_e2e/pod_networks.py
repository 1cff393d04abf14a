"""Who wires a cluster's pods: the CNI's own plugins bridge and host-local, with or without routes between nodes.

Or nobody yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from netloom_e2e.kubelet_node import KubeletNode


class PodNetwork(Protocol):
    """What makes nodes ready."""

    @property
    def taints(self) -> Sequence[str]:
        """Keys of taints (NoSchedule) that nodes come with, and that the network takes off."""

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """Called when all Nodes are registered."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge per node with addresses of the Node's podCIDRs, which a controller manager gives.

    mtu: of the pods, in bytes; 0 for the kernel's default.
    routes: static ones between the nodes, which share a segment; else somebody has to make the way.
    """

    mtu: int = 0
    routes: bool = True
    taints: tuple[str, ...] = ()

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        cidrs = {node.name: node.pod_cidrs() for node in nodes}
        for node in nodes:
            node.configure_network(self._configuration(cidrs[node.name]))
            # What else the plugin does when the first pod comes; a node has to forward before that.
            node.machine.sysctl(ipv4__ip_forward=1)
            for cidr in cidrs[node.name]:
                _masquerade(node, cidr)
            for peer in nodes if self.routes else ():
                if peer is not node:
                    way = [f"route replace {cidr} via {peer.machine.address}" for cidr in cidrs[peer.name]]
                    node.machine.batch(way)

    def _configuration(self, cidrs: Sequence[str]) -> dict[str, object]:
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,  # it would translate between pods, too
            "hairpinMode": True,
            "mtu": self.mtu,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": cidr}] for cidr in cidrs],
                "routes": [{"dst": "::/0" if ":" in cidr else "0.0.0.0/0"} for cidr in cidrs],
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": "cluster", "plugins": [bridge, portmap]}


@dataclass(frozen=True, slots=True)
class Nobody:
    """Nodes wait for who comes later, as after `kubeadm init`: the cluster is left before it is Ready."""

    taints: tuple[str, ...] = ()

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """Nothing is there to be installed."""


def _masquerade(node: KubeletNode, cidr: str) -> None:
    """What leaves the cluster has the node's address: nobody outside knows the way to a pod."""
    ours, family = ("ip6tables", ":") if ":" in cidr else ("iptables", ".")
    rule = ["POSTROUTING", "--source", cidr]
    for inside in (each for each in node.cluster_cidrs if family in each):
        node.machine.run(ours, "-t", "nat", "-A", *rule, "--destination", inside, "-j", "RETURN")
    node.machine.run(ours, "-t", "nat", "-A", *rule, "-j", "MASQUERADE")
