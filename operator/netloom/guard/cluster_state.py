"""What is live: the indexes that decisions ask, kept up to date by the caches.

Every method named after a kind, or a ConfigMap, takes in its changes and fits `Store.subscribe`; objects of other names
count for nothing. `ClusterState` is used from one event loop, and never waits.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from netloom.api.cilium import CONFIG_NAME, CiliumNode, CiliumPodIPPool, Workload, spellings
from netloom.api.core import ConfigMap, ManagedFields, Node
from netloom.api.holdings import blocks, is_in_use
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETWORK_NAME,
    NetloomIPPool,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeStatus,
)
from netloom.cidr import is_address, single
from netloom.guard.holdings import Holdings

W = TypeVar("W", bound=Workload)

_NOTHING: dict[str, Any] = {}
"""For all trimmed objects one empty mapping: one of its own for each field of 5,000 nodes would be 1.2 MiB."""

RECORD_NAME = "netloom-guard"
"""Name of the ConfigMap that records the modes in force, and who holds addresses; see `guard.record`."""
RECORD_MANAGER = "netloom-guard-"
"""How the field managers of guards begin. A mode that is none of theirs was written by somebody else."""
BREAK_GLASS_GROUP = "netloom:break-glass"
"""Who acts as a member of this group is not asked. RBAC says who may: `impersonate` on the resource `groups`."""
CILIUM_MODE, CILIUM_IN_USE = "ciliumMode", "ciliumInUse"
NETLOOM_MODE, NETLOOM_IN_USE = "netloomMode", "netloomInUse"
"""Its keys."""
CHANGES = 16
"""Of Cilium's mode that are remembered: more are not made between two nodes' first addresses and their being heard."""


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
        DaemonSet, Deployment, ConfigMap, which stands for the record, and cilium-config.
        """
        self.held = Holdings()
        """By NetloomNodes."""
        self.cilium_held = Holdings()
        """By CiliumNodes, those included that vanished while their Node lives: its pods have the addresses all the
        same."""
        self.cilium_vanished: set[str] = set()
        """Nodes that live, and whose CiliumNode was deleted or holds nothing any more."""
        self.cilium_seen = False
        """Whether any CiliumNode with addresses was ever seen."""
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
        self.cilium_changes: deque[tuple[int, dict[str, str]]] = deque(maxlen=CHANGES)
        """Changes of Cilium's mode that were seen since none is recorded: the version each made, and `data` before."""
        self.cilium_data: dict[str, str] | None = None
        """Of cilium-config, `data` and what its `binaryData` adds; None where there is none."""
        self.cilium_workloads: dict[str, Workload] = {}
        """What runs Cilium, by kind."""
        self.recorded: dict[str, str] = {}
        """`data` of the record, as guards wrote it."""
        self.tampered: tuple[str, ...] = ()
        """Keys of the record whose value is none that a guard wrote."""
        self.tampered_version = ""
        """Of the record that has those."""

    def missing(self, *kinds: str) -> tuple[str, ...]:
        """For each of these kinds that cannot be seen now: its name, and why."""
        return tuple(f"{kind}: {why}" for kind in kinds if (why := self.unseen(kind)))

    def netloom_node(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if new is None:
            self.held.remove(key)
            return
        ipam = new.spec.ipam
        of_pools = ((each.pool, each.texts) for each in blocks(ipam))
        self.held.put(key, ipam.mode or new.status.ipam.mode, pools=of_pools, more=is_in_use(new))

    def node(self, key: str, old: Node | None, new: Node | None) -> None:
        if new is None:
            self.nodes.discard(key)
            self.node_addresses.remove(key)
            if key in self.cilium_vanished:
                self._releases(key)
            return
        self.nodes.add(key)
        texts = (each.address for each in new.status.addresses if is_address(each.address))
        self.node_addresses.put(key, cidrs=list(map(single, texts)))

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
        if new is None or not new.spec.ipam.held:
            if key in self.cilium_held and key in self.nodes:
                self.cilium_vanished.add(key)
            else:
                self._releases(key)
            return
        ipam = new.spec.ipam
        pools = ((each.pool, each.cidrs) for each in ipam.pools.allocated)
        self.cilium_held.put(key, "", ipam.pod_cidrs, pools, more=bool(ipam.pool or ipam.ipv6_pool))
        self.cilium_vanished.discard(key)
        self.cilium_seen = True
        self._holds_from(_version(new.metadata))

    def cilium_workload(self, key: str, old: Workload | None, new: Workload | None) -> None:
        gone = new or old
        if gone is not None:
            self.cilium_workloads.pop(type(gone).__name__, None)
        if new is not None:
            self.cilium_workloads[type(new).__name__] = new

    def cilium_pool(self, key: str, old: CiliumPodIPPool | None, new: CiliumPodIPPool | None) -> None:
        self.cilium_pools.pop(key, None)
        if new is not None:
            self.cilium_pools[key] = new

    def cilium_config(self, key: str, old: ConfigMap | None, new: ConfigMap | None) -> None:
        if key != f"{self.cilium_namespace}/{CONFIG_NAME}":
            return
        data = None if new is None else new.files
        if self.cilium_data is not None and new is not None and data and _ipam(self.cilium_data) != _ipam(data):
            self.cilium_changes.append((_version(new.metadata), self.cilium_data))
        self.cilium_data = data

    def record(self, key: str, old: ConfigMap | None, new: ConfigMap | None) -> None:
        """A record that is deleted is one that somebody wants to have made anew, from what there is. One that somebody
        else edited is no witness: what a guard wrote counts, as far as it is remembered."""
        if key.rpartition("/")[2] != RECORD_NAME:
            return
        if new is None or (old is not None and old.metadata.uid != new.metadata.uid):
            self.recorded = {}
            for name in tuple(self.cilium_vanished):
                self._releases(name)
        before, self.recorded, tampered = self.recorded, dict(new.data) if new else {}, []
        for mode in (CILIUM_MODE, NETLOOM_MODE):
            value, known = self.recorded.get(mode, ""), before.get(mode, "")
            # A guard takes a mode out only where nobody holds addresses any more.
            taken_out = not value and mode == CILIUM_MODE and self.cilium_held.count > 0
            if value != known and (taken_out or (value and new and not _by_guard(new, mode))):
                tampered.append(mode)
                self.recorded = {key: text for key, text in self.recorded.items() if key != mode}
                self.recorded |= {mode: known} if known else {}
        self.tampered = tuple(tampered)
        self.tampered_version = new.metadata.resource_version if new and tampered else ""
        if new is None or self.recorded.get(CILIUM_MODE):
            # Written down, or acknowledged by somebody who deleted the record: the change is no news any more.
            self.cilium_changes.clear()

    def _releases(self, name: str) -> None:
        self.cilium_vanished.discard(name)
        self.cilium_held.remove(name)
        self._holds_from(0)

    def _holds_from(self, version: int) -> None:
        if not self.cilium_held.count:
            self.cilium_first = 0
        elif not self.cilium_first:
            self.cilium_first = version


def trim_netloom_node(node: NetloomNode) -> NetloomNode:
    """A NetloomNode without what no decision asks for; of single addresses, one is enough."""
    ipam = node.spec.ipam
    pools = msgspec.structs.replace(ipam.pools, requested=())
    slim = msgspec.structs.replace(ipam, pools=pools, pool=_one(ipam.pool))
    used = node.status.ipam
    found = NetloomNode(metadata=_slim(node.metadata), spec=type(node.spec)(ipam=slim))
    if not used.used and not used.mode:
        return found
    used = msgspec.structs.replace(used, used=_one(used.used))
    return msgspec.structs.replace(found, status=NetloomNodeStatus(ipam=used))


def _one(entries: dict[str, Any]) -> dict[str, Any]:
    return dict(list(entries.items())[:1]) or _NOTHING


def trim_cilium_node(node: CiliumNode) -> CiliumNode:
    """A CiliumNode without what no decision asks for; of single addresses, one is enough."""
    ipam = node.spec.ipam
    one, one_ipv6 = (dict.fromkeys(list(pool)[:1]) or _NOTHING for pool in (ipam.pool, ipam.ipv6_pool))
    slim = msgspec.structs.replace(ipam, pool=one, ipv6_pool=one_ipv6)
    return CiliumNode(metadata=_slim(node.metadata), spec=type(node.spec)(ipam=slim))


def trim_node(node: Node) -> Node:
    """A Node's name and addresses."""
    return Node(metadata=_slim(node.metadata), status=node.status)


def trim_workload(workload: W) -> W:
    """A workload without what only people read."""
    return msgspec.structs.replace(workload, metadata=_slim(workload.metadata))


def _slim(metadata: ObjectMeta) -> ObjectMeta:
    name, namespace, version = metadata.name, metadata.namespace, metadata.resource_version
    return ObjectMeta(name=name, namespace=namespace, resource_version=version, labels=_NOTHING, annotations=_NOTHING)


def _version(metadata: ObjectMeta) -> int:
    """Positions in one history, whatever the kind: an API server's objects are in one etcd."""
    return int(metadata.resource_version) if metadata.resource_version.isdecimal() else 0


def _by_guard(record: ConfigMap, key: str) -> bool:
    """Whether the value of a key is one that a guard wrote: the API server notes who wrote which."""
    return any(
        each.operation == "Apply" and each.manager.startswith(RECORD_MANAGER) and f"f:{key}" in _fields_of_data(each)
        for each in record.metadata.managed_fields
    )


def _fields_of_data(fields: ManagedFields) -> Mapping[str, Any]:
    found = fields.fields_v1.get("f:data")
    return found if isinstance(found, dict) else {}


def _ipam(data: dict[str, str]) -> list[str]:
    return [data[key].strip() for key in spellings(data, "ipam")]
