"""What a cluster's nodes hold, read from the API server and judged by the standard library's `ipaddress` alone.

Nothing here uses Netloom's own code, so an error of its address arithmetic cannot hide itself.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from netloom_e2e.client import ApiFailure, Client, collection_path
from netloom_e2e.cluster import ControlPlane

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNDERLAY = ipaddress.IPv4Address("198.18.0.1")

NETLOOM_NODES = "netloomnodes.v1alpha1.netloom.dev"
NETWORKS = "netloomnetworks.v1alpha1.netloom.dev"
LEDGERS = "netloomledgers.v1alpha1.netloom.dev"
POOLS = "netloomippools.v1alpha1.netloom.dev"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a ledger."""

    node: str
    marks: tuple[str, ...]


class Cluster:
    """The objects of the API server that allocation is about."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.client: Client = plane.client
        self._numbers: dict[str, int] = {}

    # Writing

    def create_network(self, mode: str = "cluster-pool", **cluster_pool: object) -> None:
        """The NetloomNetwork; `cluster_pool` as in its spec."""
        ipam: dict[str, object] = {"mode": mode}
        if cluster_pool:
            ipam["clusterPool"] = cluster_pool
        self.client.request(
            "POST",
            collection_path(NETWORKS),
            {
                "apiVersion": "netloom.dev/v1alpha1",
                "kind": "NetloomNetwork",
                "metadata": {"name": "default"},
                "spec": {"ipam": ipam},
            },
        )

    def create_pool(self, name: str, *cidrs: str, mask: int = 28, **spec: object) -> None:
        """A NetloomIPPool of IPv4 blocks; `spec` has more of its fields."""
        body = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomIPPool", "metadata": {"name": name}}
        ipv4 = {"ipv4": {"cidrs": list(cidrs), "maskSize": mask}}
        self.client.request("POST", collection_path(POOLS), {**body, "spec": {**ipv4, **spec}})

    def pool(self, name: str) -> dict[str, Any]:
        """A NetloomIPPool."""
        obj: dict[str, Any] = self.client.request("GET", f"{collection_path(POOLS)}/{name}")
        return obj

    def of_pools(self, name: str) -> dict[str, list[str]]:
        """The blocks that a NetloomNode holds, by pool."""
        pools = self.netloom_node(name).get("spec", {}).get("ipam", {}).get("pools", {})
        return {each["pool"]: each["cidrs"] for each in pools.get("allocated", ())}

    def address_of(self, name: str) -> str:
        """What a Node of that name reports unless told: nobody else's."""
        return str(_UNDERLAY + self._numbers.setdefault(name, len(self._numbers)))

    def add_node(self, name: str, *, address: str = "", pod_cidrs: Collection[str] = ()) -> None:
        """A Node as a kubelet registers it. Raises ApiFailure where the API server refuses it."""
        address = address or self.address_of(name)
        spec = {"podCIDR": next(iter(pod_cidrs)), "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
        addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
        body = {"metadata": {"name": name}, "spec": spec, "status": {"addresses": addresses}}
        self.client.request("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", **body})

    def add_nodes(self, *names: str) -> None:
        for name in names:
            self.add_node(name)

    def remove_nodes(self, *names: str) -> None:
        for name in names:
            self.client.request("DELETE", f"/api/v1/nodes/{name}")

    # Reading

    def list(self, resource: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.client.request("GET", collection_path(resource), timeout=30)["items"]
        return items

    def nodes(self) -> set[str]:
        return {node["metadata"]["name"] for node in self.list("nodes")}

    def netloom_node(self, name: str) -> dict[str, Any]:
        """Empty where there is none."""
        try:
            obj: dict[str, Any] = self.client.request("GET", f"{collection_path(NETLOOM_NODES)}/{name}")
        except ApiFailure as failure:
            if failure.status != 404:
                raise
            return {}
        return obj

    def network(self) -> dict[str, Any]:
        obj: dict[str, Any] = self.client.request("GET", f"{collection_path(NETWORKS)}/default")
        return obj

    def held(self) -> dict[str, tuple[Network, ...]]:
        """The CIDRs of every NetloomNode."""
        return {obj["metadata"]["name"]: cidrs_of(obj) for obj in self.list(NETLOOM_NODES)}

    def ledger(self) -> dict[Network, Entry]:
        """All entries of all ledgers."""
        found: dict[Network, Entry] = {}
        for obj in self.list(LEDGERS):
            for line in obj["spec"].get("entries", "").splitlines()[1:]:
                cidr, node, *marks = line.split()
                network = ipaddress.ip_network(cidr)
                assert network not in found, f"{network} is entered twice"
                found[network] = Entry(node, tuple(marks))
        return found

    def events(self, name: str) -> set[tuple[str, str]]:
        """Type and reason of the Events about an object, which `kubectl get events` asks for with the same selector."""
        path = f"{collection_path('events', 'default')}?fieldSelector=involvedObject.name%3D{name}"
        return {(event["type"], event["reason"]) for event in self.client.request("GET", path)["items"]}

    # Judging

    def served(self) -> bool:
        """Whether every Node has CIDRs, and there is no NetloomNode but theirs."""
        held = self.held()
        return held.keys() == self.nodes() and all(held.values())

    def check(self) -> dict[str, tuple[Network, ...]]:
        """Holds whenever nothing is under way: nodes and ledger agree, nothing overlaps. What each node holds."""
        held = self.held()
        assert_disjoint(held)
        assert self._entered() == _by_cidr(held)
        return held

    def agrees(self) -> bool:
        """Whether ledgers have what nodes hold, and nothing else."""
        return self._entered() == _by_cidr(self.held())

    def _entered(self) -> dict[Network, str]:
        return {cidr: entry.node for cidr, entry in self.ledger().items()}


def _by_cidr(held: Mapping[str, Iterable[Network]]) -> dict[Network, str]:
    return {cidr: name for name, cidrs in held.items() for cidr in cidrs}


def cidrs_of(obj: Mapping[str, Any]) -> tuple[Network, ...]:
    ipam = obj["spec"].get("ipam", {})
    of_pools = [cidr for each in ipam.get("pools", {}).get("allocated", ()) for cidr in each.get("cidrs", ())]
    return tuple(map(ipaddress.ip_network, (*ipam.get("podCIDRs", ()), *of_pools)))


def condition(obj: Mapping[str, Any], type_: str) -> tuple[str, str, str]:
    """Status, reason and message; empty where there is no such condition."""
    for each in obj.get("status", {}).get("conditions", ()):
        if each["type"] == type_:
            return each["status"], each["reason"], each["message"]
    return "", "", ""


def assert_disjoint(held: Mapping[str, Iterable[Network]]) -> None:
    """No address belongs to two nodes, nor to two CIDRs of one."""
    for version in (4, 6):
        ranges = sorted(
            (int(cidr.network_address), int(cidr.broadcast_address), name, cidr)
            for name, cidrs in held.items()
            for cidr in cidrs
            if cidr.version == version
        )
        for (_, last, one, mine), (first, _, other, theirs) in itertools.pairwise(ranges):
            assert last < first, f"{mine} of {one} overlaps {theirs} of {other}"
