"""The tunnels reconciler: from NetloomNetwork and NetloomNodes to this node's end of the mesh, tunnelled or native.

What it owns is the whole of the node's mesh, so there is one key; the names of the nodes that changed are remembered
beside it, and a change of one peer costs one peer, at 10,000 of them too. The data path itself (what is in the kernel,
what differs, repair on the kernel's events, which peers are on the node's own networks) is `netloom.kernel`'s; by which
ways nodes reach each other while the cluster changes from one to another is `ways`'.

Where the objects give no answer (no network, no NetloomNode of this name) the kernel stays as it is: a mistake in the
API must not take the pods' network away.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode, Routing
from netloom.cidr import Address, Cidr, parse_address
from netloom.kernel.dataplane import Dataplane
from netloom.kernel.desired import Desired, Node, Peer
from netloom.kernel.owned import mac_of
from netloom.kernel.report import Report
from netloom.kernel.way import Way
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.own_side import OwnSide
from netloom_reconcilers.peers import HELD, Nodes
from netloom_reconcilers.ways import Announcement, Leaving, Needs, accepted, announced, wanted, ways_to

log = structlog.get_logger(__name__)

LINGER_SECONDS = 30.0
"""How long a way that nobody needs any more is kept: until every agent that can hear of it has, and no packet has come
by it for as long."""

_MESH = "mesh"


class Blocked(msgspec.Struct, frozen=True):
    """Why there is nothing to apply: a reason for the condition, and a sentence with the way out."""

    reason: str
    message: str


class Reading(NamedTuple):
    """What could be made of an object, and sentences about what could not."""

    peer: Peer | None
    problems: tuple[str, ...]


def node_of(network: NetloomNetwork | None, node: NetloomNode | None, node_name: str) -> Node | Blocked:
    """This node's side, but for the ways that are its peers' business."""
    if network is None:
        return Blocked("NoNetwork", f'there is no NetloomNetwork "{NETWORK_NAME}": apply one')
    if node is None:
        return Blocked("NoNode", f"there is no NetloomNode {node_name}: the operator makes it once a Node exists")
    local, problems = _underlay_of(node)
    if local is None:
        return Blocked("NoAddress", problems[0])
    prefixes, problems = _prefixes_of(node)
    if problems:
        return Blocked("InvalidPodCIDR", " ".join(problems))
    routing = network.spec.routing
    return Node(
        local=local,
        mac=mac_of(node_name),
        mtu=network.spec.mtu,
        addresses=tuple(prefix.packed for prefix in prefixes),
        devices=network.spec.devices,
        strict=routing.mode == "native" and not routing.direct_routing_skip_unreachable,
    )


class Side(msgspec.Struct, frozen=True):
    """What of this node matters for each of its peers. `able`: it has all tunnels that the network's spec wants."""

    routing: Routing = Routing()
    address: Address = b""
    cidrs: tuple[Cidr, ...] = ()
    able: bool = True
    kept: tuple[Cidr, ...] = ()
    """Of the CIDRs, those that only pods hold on to; see `own_side`."""
    seniority: tuple[str, str] = ("", "")
    """When its object was made, and its name: of two that hold a CIDR, the younger (greater) goes."""


def peer_of(node: NetloomNode, side: Side) -> Reading:
    """A remote node as a peer; none while it has no address or no pod CIDR."""
    underlay, problems = _underlay_of(node)
    prefixes, bad = _prefixes_of(node)
    problems += bad
    name = node.metadata.name
    if underlay is not None and underlay == side.address:
        problems.append(
            f"NetloomNode {name}: spec.addresses has this node's own address, so nothing can be sent to it. Give one "
            "of the two nodes another address, or delete the Node that does not exist any more."
        )
        underlay = None
    clashing = [prefix for prefix in prefixes if any(prefix.overlaps(mine) for mine in side.cidrs)]
    problems += [f"NetloomNode {name}: spec.ipam.podCIDRs {prefix} {_clash(prefix, node, side)}" for prefix in clashing]
    prefixes = [prefix for prefix in prefixes if prefix not in clashing]
    if underlay is None or not prefixes:
        return Reading(None, tuple(problems) if node.spec.ipam.pod_cidrs else ())
    peer = Peer(
        name=name,
        underlay=underlay,
        mac=mac_of(name),
        cidrs=tuple(prefixes),
        since=node.metadata.creation_timestamp,
        ways=ways_to(announced(node).accepts, side.routing, able=side.able),
        underlay6=_underlay6_of(node),
        held=node.metadata.creation_timestamp == HELD,
    )
    return Reading(peer, tuple(problems))


def _clash(prefix: Cidr, node: NetloomNode, side: Side) -> str:
    if any(prefix.overlaps(mine) for mine in side.cidrs if mine not in side.kept):
        _, younger = max((node.metadata.creation_timestamp, node.metadata.name), side.seniority)
        return (
            f"overlaps a pod CIDR of this node, and is not routed. Drain {younger}, the younger of the two nodes, and "
            "delete its Node."
        )
    return (
        "is still used by pods of this node, whose own NetloomNode does not hold it any more, and is not routed from "
        "here. Drain this node; see docs/allocation.md."
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


def _underlay6_of(node: NetloomNode) -> Address:
    """Its first internal IPv6 address, empty if it has none: native routes to its IPv6 pod CIDRs go there."""
    for address in node.spec.addresses:
        if address.type == "InternalIP" and ":" in address.ip:
            try:
                return parse_address(address.ip)
            except ValueError:
                return b""
    return b""


def _prefixes_of(node: NetloomNode) -> tuple[list[Cidr], list[str]]:
    prefixes, problems = [], []
    for text in node.spec.ipam.pod_cidrs:
        try:
            prefixes.append(Cidr.parse(text))
        except ValueError as error:
            problems.append(f"NetloomNode {node.metadata.name}: spec.ipam.podCIDRs: {error}.")
    return prefixes, problems


class TunnelsReconciler:
    """Hands the desired mesh to the data path. `blocked` and `problems` say what keeps it from being whole.

    `announcement` is what the node may say of itself, once what it says is so in the kernel; `on_change` is called
    after every run.
    """

    def __init__(
        self,
        node_name: str,
        networks: Store[NetloomNetwork],
        nodes: Nodes,
        dataplane: Dataplane,
        own: OwnSide | None = None,
    ) -> None:
        self.controller = Controller("tunnels", self.reconcile)
        self.own = own or OwnSide(node_name, lambda within: self._dataplane.lodgers(within))
        self.applied = asyncio.Event()
        self.blocked: Blocked | None = None
        self.problems: dict[str, tuple[str, ...]] = {}
        self.announcement: Announcement | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._node_name = node_name
        self._networks = networks
        self._nodes = nodes
        self._dataplane = dataplane
        self._desired = Desired()
        self._needs = Needs()
        self._leaving: dict[Way, Leaving] = {}
        self._side = Side()
        self._touched: set[str] = set()
        networks.subscribe(lambda key, old, new: self.controller.enqueue(_MESH))
        nodes.subscribe(lambda key, old, new: self._node_changed(key))

    def _node_changed(self, name: str) -> None:
        self._touched.add(name)
        self.controller.enqueue(_MESH)

    async def reconcile(self, key: str = _MESH) -> float | None:
        """Make the kernel what the objects say; what it refuses is in the report, and tried again by the data path.
        Returns after how many seconds to look again at a way, or a CIDR, that is to be given up."""
        await self._networks.wait_synced()
        await self._nodes.wait_synced()
        look = await self.own.look(self._nodes.get(self._node_name))
        before = self._ways_now() if self._desired.node is None else self._desired.node.ways
        desired = self.desired(keep=before)
        if desired is None:
            self.on_change()
            return look
        again = await self._let_go(before)
        report = await self._dataplane.apply(desired)
        if not self.applied.is_set():
            self.applied.set()
            log.info("the mesh is in place", node=self._node_name, peers=report.peers, mtu=report.mtu)
        self.settled(report)
        self.on_change()
        return min((each for each in (again, look) if each is not None), default=None)

    def desired(self, keep: tuple[Way, ...] = ()) -> Desired | None:
        """The whole desired state, brought up to date with the caches; None where the objects give no answer.

        `keep`: ways to hold ready whether needed or not.
        """
        network = self._networks.get(NETWORK_NAME)
        own = self.own.effective(self._nodes.get(self._node_name))
        node = node_of(network, own, self._node_name)
        if network is None or own is None or isinstance(node, Blocked):
            if node != self.blocked:
                log.warning("the mesh stays as it is", reason=node.reason, message=node.message)  # type: ignore[union-attr]
            self.blocked = node  # type: ignore[assignment]
            return None
        self.blocked = None
        routing = network.spec.routing
        able = self._able(routing) or not keep
        prefixes = tuple(_prefixes_of(own)[0])
        kept = tuple(prefix for prefix in prefixes if str(prefix) in self.own.kept)
        seniority = own.metadata.creation_timestamp, self._node_name
        self._bring_up_to_date(Side(routing, node.local, prefixes, able, kept, seniority))
        ways, _ = accepted(routing, self._needs.ways, keep)
        self._desired.node = msgspec.structs.replace(node, ways=ways)
        return self._desired

    def _able(self, routing: Routing) -> bool:
        tunnels = self._dataplane.tunnels
        return all(way in tunnels for way in wanted(routing) if way.is_tunnel)

    def _bring_up_to_date(self, side: Side) -> None:
        if side != self._side:
            self._side = side
            self._touched.update(self._nodes)
        touched, self._touched = self._touched, set()
        for name in touched:
            node = self._nodes.get(name) if name != self._node_name else None
            peer, problems = peer_of(node, side) if node is not None else Reading(None, ())
            if node is not None and peer is not None:
                self._desired.set_peer(peer)
                self._needs.change(name, peer.ways, announced(node))
            else:
                self._desired.remove_peer(name)
                self._needs.forget(name)
            self._report(name, problems)

    def _ways_now(self) -> tuple[Way, ...]:
        """What this node was ready for before: by its devices in the kernel, and by what it announced."""
        own = self._nodes.get(self._node_name)
        said = announced(own).accepts if own is not None else ()
        return tuple(dict.fromkeys((*self._dataplane.tunnels, *said)))

    async def _let_go(self, before: tuple[Way, ...]) -> float | None:
        """Of the ways that were kept so far and that nobody needs, keep those that may still be in use: the time runs
        from when they are no longer announced, and again from the last packet. Seconds until the next of them may go.
        """
        node, routing, own = self._desired.node, self._side.routing, self._nodes.get(self._node_name)
        assert node is not None
        assert own is not None
        said = announced(own).accepts
        needed, _ = accepted(routing, self._needs.ways, ())
        held = self._dataplane.tunnels  # by one that could never be made nothing comes, and it would be tried on and on
        unneeded = {way for way in before if way not in needed and (way in held or not way.is_tunnel)}
        if self._dataplane.unknown:
            return LINGER_SECONDS  # somebody may be sent by them of whom nothing is known yet
        self._leaving = {way: each for way, each in self._leaving.items() if way in unneeded}
        now = time.monotonic()
        for way in unneeded:
            left = self._leaving.get(way)
            if left is not None and way not in said and now < left.since + LINGER_SECONDS:
                continue
            received = await self._dataplane.received(way)
            if left is None or way in said or received != left.received:
                self._leaving[way] = Leaving(now, received)
                if left is None:
                    log.info("a way is no longer needed", way=str(way), kept_for=LINGER_SECONDS)
            else:
                del self._leaving[way]
                log.info("a way is given up", way=str(way))
        ways, _ = accepted(routing, self._needs.ways, self._leaving)
        self._desired.node = msgspec.structs.replace(node, ways=ways)
        return min((each.since + LINGER_SECONDS - now for each in self._leaving.values()), default=None)

    def settled(self, report: Report) -> None:
        """Announce what is so, after every pass of the data path: a tunnel is accepted when its device is there; a way
        is sent by until every nexthop has been moved."""
        if self._desired.node is None or self.blocked is not None:
            return
        if self._able(self._side.routing) != self._side.able:
            self.controller.enqueue(_MESH)
        _, announce = accepted(self._side.routing, self._needs.ways, ())
        accepts = tuple(way for way in announce if not way.is_tunnel or way in report.tunnels)
        sends = self._needs.sends
        if report.pending and self.announcement is not None:
            sends |= self.announcement.sends
        self.announcement = Announcement(accepts, sends)

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
        found += [_stranded(name, self._nodes.get(name)) for name in report.stranded]
        found += [f"{item}: somebody else keeps changing it; its repair is delayed" for item in report.fought]
        return found


def _stranded(name: str, node: NetloomNode | None) -> str:
    if node is not None and not _underlay6_of(node) and any(":" in cidr for cidr in node.spec.ipam.pod_cidrs):
        why = "has no IPv6 address of type InternalIP, and native routes to its IPv6 pod CIDRs need one"
    else:
        why = "has no address on a network of this node, and autoDirectNodeRoutes needs that"
    return (
        f"NetloomNode {name}: spec.addresses {why}; it is not routed. In NetloomNetwork {NETWORK_NAME}, set "
        "spec.routing.directRoutingSkipUnreachable to leave such nodes to a router or BGP daemon, or mode hybrid."
    )
