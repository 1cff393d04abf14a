"""The tunnels reconciler: from NetloomNetwork and NetloomNodes to this node's end of the mesh.

What it owns is the whole of the node's tunnel state, so there is one key; the names of the nodes that changed are
remembered beside it, and a change of one peer costs one peer, at 10,000 of them too. The data path itself (what is in
the kernel, what differs, repair on the kernel's events) is `netloom.kernel`'s.

Where the objects give no answer (no network, no NetloomNode of this name, a routing mode that is not built yet) the
kernel stays as it is: a mistake in the API must not take the pods' network away.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode, NetworkSpec
from netloom.kernel.address import Address, Prefix, parse_address
from netloom.kernel.dataplane import Dataplane
from netloom.kernel.desired import Desired, Peer, Tunnel
from netloom.kernel.device import VXLAN_OVERHEAD
from netloom.kernel.owned import mac_of
from netloom.kernel.report import Report
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store

log = structlog.get_logger(__name__)

_MESH = "mesh"


class Blocked(msgspec.Struct, frozen=True):
    """Why there is nothing to apply: a reason for the condition, and a sentence with the way out."""

    reason: str
    message: str


class Reading(NamedTuple):
    """What could be made of an object, and sentences about what could not."""

    peer: Peer | None
    problems: tuple[str, ...]


def tunnel_of(network: NetloomNetwork | None, node: NetloomNode | None, node_name: str) -> Tunnel | Blocked:
    """This node's end of the tunnels."""
    if network is None:
        return Blocked("NoNetwork", f'there is no NetloomNetwork "{NETWORK_NAME}": apply one')
    if (blocked := _not_built(network.spec)) is not None:
        return blocked
    if node is None:
        return Blocked("NoNode", f"there is no NetloomNode {node_name}: the operator makes it once a Node exists")
    local, problems = _underlay_of(node)
    if local is None:
        return Blocked("NoAddress", problems[0])
    prefixes, problems = _prefixes_of(node)
    if problems:
        return Blocked("InvalidPodCIDR", " ".join(problems))
    mtu, routing = network.spec.mtu, network.spec.routing
    return Tunnel(
        local=local,
        mac=mac_of(node_name),
        port=routing.port,
        mtu=mtu - VXLAN_OVERHEAD if mtu else 0,
        addresses=tuple(prefix.address for prefix in prefixes),
    )


def peer_of(node: NetloomNode, own: tuple[Prefix, ...] = ()) -> Reading:
    """A remote node as a peer; none while it has no address or no pod CIDR. `own`: this node's pod CIDRs."""
    underlay, problems = _underlay_of(node)
    prefixes, bad = _prefixes_of(node)
    problems += bad
    name = node.metadata.name
    clashing = [prefix for prefix in prefixes if any(overlap(prefix, mine) for mine in own)]
    problems += [
        f"NetloomNode {name}: spec.ipam.podCIDRs {prefix} overlaps a pod CIDR of this node, and is not routed. "
        "Drain the younger of the two nodes, and delete its Node."
        for prefix in clashing
    ]
    prefixes = [prefix for prefix in prefixes if prefix not in clashing]
    if underlay is None or not prefixes:
        return Reading(None, tuple(problems) if node.spec.ipam.pod_cidrs else ())
    peer = Peer(
        name=name,
        underlay=underlay,
        mac=mac_of(name),
        cidrs=tuple(prefixes),
        since=node.metadata.creation_timestamp,
    )
    return Reading(peer, tuple(problems))


def overlap(a: Prefix, b: Prefix) -> bool:
    """Whether two prefixes share an address."""
    if len(a.address) != len(b.address):
        return False
    shift = len(a.address) * 8 - min(a.length, b.length)
    return int.from_bytes(a.address, "big") >> shift == int.from_bytes(b.address, "big") >> shift


def _not_built(spec: NetworkSpec) -> Blocked | None:
    routing = spec.routing
    if routing.mode != "tunnel":
        what = f"spec.routing.mode {routing.mode}"
    elif routing.tunnel_protocol != "vxlan":
        what = f"spec.routing.tunnelProtocol {routing.tunnel_protocol}"
    else:
        return None
    return Blocked(
        "NotImplemented",
        f"NetloomNetwork {NETWORK_NAME}: {what} is not implemented yet, so the node's network stays as it is. "
        "Use mode tunnel with tunnelProtocol vxlan.",
    )


def _underlay_of(node: NetloomNode) -> tuple[Address | None, list[str]]:
    """The node's first internal IPv4 address: the underlay is IPv4."""
    where = f"NetloomNode {node.metadata.name}: spec.addresses"
    for address in node.spec.addresses:
        if address.type == "InternalIP" and ":" not in address.ip:
            try:
                return parse_address(address.ip), []
            except ValueError as error:
                return None, [f"{where}: {error}"]
    return None, [f"{where} has no IPv4 address of type InternalIP, and tunnels need one. Let the kubelet report it."]


def _prefixes_of(node: NetloomNode) -> tuple[list[Prefix], list[str]]:
    prefixes, problems = [], []
    for text in node.spec.ipam.pod_cidrs:
        try:
            prefixes.append(Prefix.parse(text))
        except ValueError as error:
            problems.append(f"NetloomNode {node.metadata.name}: spec.ipam.podCIDRs: {error}.")
    return prefixes, problems


class TunnelsReconciler:
    """Hands the desired mesh to the data path. `blocked` and `problems` say what keeps it from being whole."""

    def __init__(
        self, node_name: str, networks: Store[NetloomNetwork], nodes: Store[NetloomNode], dataplane: Dataplane
    ) -> None:
        self.controller = Controller("tunnels", self.reconcile)
        self.applied = asyncio.Event()
        self.blocked: Blocked | None = None
        self.problems: dict[str, tuple[str, ...]] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called after every run."""
        self._node_name = node_name
        self._networks = networks
        self._nodes = nodes
        self._dataplane = dataplane
        self._desired = Desired()
        self._own: tuple[Prefix, ...] = ()
        self._touched: set[str] = set()
        networks.subscribe(lambda key, old, new: self.controller.enqueue(_MESH))
        nodes.subscribe(lambda key, old, new: self._node_changed(key))

    def _node_changed(self, name: str) -> None:
        self._touched.add(name)
        self.controller.enqueue(_MESH)

    async def reconcile(self, key: str = _MESH) -> None:
        """Make the kernel what the objects say; what it refuses is in the report, and tried again by the data path."""
        await self._networks.wait_synced()
        await self._nodes.wait_synced()
        desired = self.desired()
        if desired is None:
            self.on_change()
            return
        report = await self._dataplane.apply(desired)
        if not self.applied.is_set():
            self.applied.set()
            log.info("the mesh is in place", node=self._node_name, peers=report.peers, mtu=report.mtu)
        self.on_change()

    def desired(self) -> Desired | None:
        """The whole desired state, brought up to date with the caches; None where the objects give no answer."""
        tunnel = tunnel_of(self._networks.get(NETWORK_NAME), self._nodes.get(self._node_name), self._node_name)
        if isinstance(tunnel, Blocked):
            if tunnel != self.blocked:
                log.warning("the mesh stays as it is", reason=tunnel.reason, message=tunnel.message)
            self.blocked = tunnel
            return None
        self.blocked = None
        self._desired.tunnel = tunnel
        self._bring_up_to_date()
        return self._desired

    def _bring_up_to_date(self) -> None:
        own_node = self._nodes.get(self._node_name)
        own = tuple(_prefixes_of(own_node)[0]) if own_node else ()
        if own != self._own:
            self._own = own
            self._touched.update(self._nodes)
        touched, self._touched = self._touched, set()
        for name in touched:
            node = self._nodes.get(name) if name != self._node_name else None
            peer, problems = peer_of(node, own) if node is not None else Reading(None, ())
            if peer is not None:
                self._desired.set_peer(peer)
            else:
                self._desired.remove_peer(name)
            self._report(name, problems)

    def _report(self, name: str, problems: tuple[str, ...]) -> None:
        if not problems:
            self.problems.pop(name, None)
        elif self.problems.get(name) != problems:
            self.problems[name] = problems
            log.warning("a peer is not whole", peer=name, problems=problems)

    def errors(self, report: Report) -> list[str]:
        """All that keeps the mesh from being whole, as sentences; empty if nothing does."""
        found = [self.blocked.message] if self.blocked else []
        found += [problem for problems in self.problems.values() for problem in problems]
        found += [f"{failure.kind} {failure.key}: {failure.error}" for failure in report.failures]
        found += [
            f"{conflict.claim} is claimed by {conflict.holder} and {conflict.peer}; {conflict.holder} is older and "
            f"keeps it. Delete the Node {conflict.peer}, or give it another."
            for conflict in report.conflicts
        ]
        found += [f"{item}: somebody else keeps changing it; its repair is delayed" for item in report.fought]
        return found
