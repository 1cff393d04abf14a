"""What is live: the indexes that decisions ask, kept up to date by the caches.

Every method named after a kind, or a ConfigMap, takes in its changes and fits `Store.subscribe`; objects of other names
count for nothing. `ClusterState` is used from one event loop, and never waits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from netloom.api.cilium import CONFIG_NAME, CiliumNode, CiliumPodIPPool, spellings
from netloom.api.core import ConfigMap, Node
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.cidr import is_address
from netloom.guard.holdings import Holdings

_NOTHING: dict[str, Any] = {}
"""For all trimmed objects one empty mapping: one of its own for each field of 5,000 nodes would be 1.2 MiB."""

RECORD_NAME = "netloom-guard"
"""Name of the ConfigMap that records the modes in force, and who holds addresses; see `guard.record`."""
CILIUM_MODE, CILIUM_IN_USE = "ciliumMode", "ciliumInUse"
NETLOOM_MODE, NETLOOM_IN_USE = "netloomMode", "netloomInUse"
"""Its keys."""


@dataclass(frozen=True, slots=True)
class Users:
    """Who may write what the others may not, by the user names that the API server knows them by."""

    operators: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()


class ClusterState:
    """What nodes hold, which pools, networks and nodes there are, and which mode is recorded."""

    def __init__(self, users: Users, cilium_namespace: str = "kube-system") -> None:
        self.users = users
        self.cilium_namespace = cilium_namespace
        self.unseen: Callable[[str], str] = lambda kind: ""
        """Why objects of a kind cannot be seen now; "" if they can, or if the cluster does not have the kind.

        Kinds that are asked for: NetloomNode, NetloomNetwork, NetloomIPPool, Node, CiliumNode, CiliumPodIPPool,
        ConfigMap, which stands for the record, and cilium-config.
        """
        self.held = Holdings()
        """By NetloomNodes."""
        self.cilium_held = Holdings()
        """By CiliumNodes."""
        self.nodes: set[str] = set()
        self.node_addresses = Holdings()
        """Addresses of Nodes, as CIDRs of one address."""
        self.network_now: NetloomNetwork | None = None
        self.pools: dict[str, NetloomIPPool] = {}
        self.pool_cidrs = Holdings()
        """By NetloomIPPools."""
        self.cilium_pools: dict[str, CiliumPodIPPool] = {}
        self.cilium_first = 0
        """Version at which the first CiliumNode of those that hold addresses was seen with some; 0: nobody does."""
        self.cilium_before: tuple[int, dict[str, str]] = (0, {})
        """The last change of Cilium's mode that was seen: the version it made, and `data` before it."""
        self.cilium_data: dict[str, str] | None = None
        """`data` of cilium-config; None where there is none."""
        self.recorded: dict[str, str] = {}
        """`data` of the record."""

    def missing(self, *kinds: str) -> tuple[str, ...]:
        """For each of these kinds that cannot be seen now: its name, and why."""
        return tuple(f"{kind}: {why}" for kind in kinds if (why := self.unseen(kind)))

    def netloom_node(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if new is None:
            self.held.remove(key)
            return
        ipam = new.spec.ipam
        pools = ((each.pool, each.cidrs) for each in ipam.pools.allocated)
        self.held.put(key, ipam.mode, ipam.pod_cidrs, pools, more=bool(ipam.pool))

    def node(self, key: str, old: Node | None, new: Node | None) -> None:
        if new is None:
            self.nodes.discard(key)
            self.node_addresses.remove(key)
            return
        self.nodes.add(key)
        addresses = (each.address for each in new.status.addresses if is_address(each.address))
        self.node_addresses.put(key, cidrs=[f"{each}/{128 if ':' in each else 32}" for each in addresses])

    def network(self, key: str, old: NetloomNetwork | None, new: NetloomNetwork | None) -> None:
        if key == NETWORK_NAME:
            self.network_now = new

    def pool(self, key: str, old: NetloomIPPool | None, new: NetloomIPPool | None) -> None:
        if new is None:
            self.pools.pop(key, None)
            self.pool_cidrs.remove(key)
            return
        self.pools[key] = new
        families = (new.spec.ipv4, new.spec.ipv6)
        self.pool_cidrs.put(key, cidrs=[cidr for family in families if family for cidr in family.cidrs])

    def cilium_node(self, key: str, old: CiliumNode | None, new: CiliumNode | None) -> None:
        if new is None:
            self.cilium_held.remove(key)
            self._holds_from(0)
            return
        ipam = new.spec.ipam
        pools = ((each.pool, each.cidrs) for each in ipam.pools.allocated)
        self.cilium_held.put(key, "", ipam.pod_cidrs, pools, more=bool(ipam.pool or ipam.ipv6_pool))
        self._holds_from(_version(new.metadata))

    def cilium_pool(self, key: str, old: CiliumPodIPPool | None, new: CiliumPodIPPool | None) -> None:
        self.cilium_pools.pop(key, None)
        if new is not None:
            self.cilium_pools[key] = new

    def cilium_config(self, key: str, old: ConfigMap | None, new: ConfigMap | None) -> None:
        if key != f"{self.cilium_namespace}/{CONFIG_NAME}":
            return
        if self.cilium_data is not None and new is not None and _ipam(self.cilium_data) != _ipam(new.data):
            self.cilium_before = _version(new.metadata), self.cilium_data
        self.cilium_data = None if new is None else new.data

    def record(self, key: str, old: ConfigMap | None, new: ConfigMap | None) -> None:
        if key.rpartition("/")[2] == RECORD_NAME:
            self.recorded = {} if new is None else new.data
            if new is None or new.data.get(CILIUM_MODE):
                # Written down, or acknowledged by somebody who deleted the record: the change is no news any more.
                self.cilium_before = 0, {}

    def _holds_from(self, version: int) -> None:
        if not self.cilium_held.count:
            self.cilium_first = 0
        elif not self.cilium_first:
            self.cilium_first = version


def trim_netloom_node(node: NetloomNode) -> NetloomNode:
    """A NetloomNode without what no decision asks for; of single addresses, one is enough."""
    ipam = node.spec.ipam
    pools = msgspec.structs.replace(ipam.pools, requested=())
    slim = msgspec.structs.replace(ipam, pools=pools, pool=dict(list(ipam.pool.items())[:1]) or _NOTHING)
    return NetloomNode(metadata=_slim(node.metadata), spec=type(node.spec)(ipam=slim))


def trim_cilium_node(node: CiliumNode) -> CiliumNode:
    """A CiliumNode without what no decision asks for; of single addresses, one is enough."""
    ipam = node.spec.ipam
    one, one_ipv6 = (dict.fromkeys(list(pool)[:1]) or _NOTHING for pool in (ipam.pool, ipam.ipv6_pool))
    slim = msgspec.structs.replace(ipam, pool=one, ipv6_pool=one_ipv6)
    return CiliumNode(metadata=_slim(node.metadata), spec=type(node.spec)(ipam=slim))


def trim_node(node: Node) -> Node:
    """A Node's name and addresses."""
    return Node(metadata=_slim(node.metadata), status=node.status)


def _slim(metadata: ObjectMeta) -> ObjectMeta:
    name, namespace, version = metadata.name, metadata.namespace, metadata.resource_version
    return ObjectMeta(name=name, namespace=namespace, resource_version=version, labels=_NOTHING, annotations=_NOTHING)


def _version(metadata: ObjectMeta) -> int:
    """Positions in one history, whatever the kind: an API server's objects are in one etcd."""
    return int(metadata.resource_version) if metadata.resource_version.isdecimal() else 0


def _ipam(data: dict[str, str]) -> list[str]:
    return [data[key].strip() for key in spellings(data, "ipam")]
