"""The tunnels reconciler: from NetloomNetwork and NetloomNodes to this node's end of the mesh, tunnelled or native.

The data path itself (what is in the kernel, what differs, repair on the kernel's events, which peers are on the node's
own networks) is `netloom.kernel`'s. `reading` says what objects mean, and `encapsulations` by which of them nodes reach
each other while the cluster changes from one to another.
"""

import time
from collections.abc import Iterable, Mapping

import msgspec
import structlog
from prometheus_client.core import Metric

from netloom.api.events import ObjectReference
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, Routing
from netloom.cidr import Address, format_address
from netloom.cidr.interval_set import outermost
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.mesh.desired import Desired, MeshNode
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.kernel.mesh.withheld import WithheldRoute
from netloom.runtime.manager import Run
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.kernel import KernelFeature
from netloom_reconcilers.features.node import NodeContext, Obstacle, written_metric
from netloom_reconcilers.node.known.peers import pod_cidrs_of
from netloom_reconcilers.node.mesh.announcement import AnnouncementReconciler
from netloom_reconcilers.node.mesh.api_addresses import ApiAddresses
from netloom_reconcilers.node.mesh.astray import astray_text, is_own
from netloom_reconcilers.node.mesh.encapsulations import (
    Announcement,
    Leaving,
    Needs,
    accepted,
    announced,
    encapsulations_to,
    wanted,
)
from netloom_reconcilers.node.mesh.machine import MachineFacts, MachineReconciler
from netloom_reconcilers.node.mesh.reading import (
    LocalNode,
    at_our_cost,
    conflict_text,
    further_addresses_of,
    lacks_ipv6,
    misplaced_text,
    node_of,
    own_faults,
    peer_of,
    unreachable,
    withheld_text,
    without_ipv6,
)
from netloom_reconcilers.node.mesh.rival_routes import rival_faults

log = structlog.get_logger(__name__)

LINGER_SECONDS = 30.0
"""How long an encapsulation that nobody needs any more is kept: until every agent that can hear of it has, and no
packet has come by it for as long."""

MOST_SOURCES = 32
"""Of the CRD."""


class TunnelsFeature(KernelFeature):
    """The mesh: its entries in the kernel, and the announcement of what this node accepts."""

    name = "tunnels"
    keeper_runs_as = "dataplane"
    keeper: MeshKeeper
    _desired: Desired

    def __init__(self, context: NodeContext, keeper: MeshKeeper | None = None) -> None:
        run_dir, retain = context.run_dir, context.retain_unknown
        keeper = keeper or MeshKeeper(run_directory=run_dir, on_report=self._reported, retain_unknown=retain)
        super().__init__(context, keeper)
        context.mesh = self
        self.announcement: Announcement | None = None
        self._needs = Needs()
        self._leaving: dict[Encapsulation, Leaving] = {}
        self._local = LocalNode()
        self._sources: set[str] = set()
        """Addresses that this node has sent from, besides its object's, in the life of this process: what comes and
        goes is told once, as every write of a node is heard by all."""
        self._announcer: AnnouncementReconciler | None = None
        self._teller: MachineReconciler | None = None
        self._api_addresses: ApiAddresses | None = None
        self._withheld: frozenset[WithheldRoute] = frozenset()
        if context.api is not None:
            self._api_addresses = ApiAddresses(context.api, self.keeper.free_node)
            self._teller = MachineReconciler(self._node_name, context.nodes, context.api, self._machine)
            self._announcer = AnnouncementReconciler(
                self._node_name, context.nodes, context.api, lambda: self.announcement
            )

    @property
    def pod_mtu(self) -> int:
        """Of pods, in bytes: what the devices between nodes allow, less what a tunnel takes; 0: not known."""
        return self.keeper.report.mtu

    def lifeline_at(self, address: Address) -> str:
        """What this node lives by that has the address; empty if nothing has."""
        return self.keeper.lifeline_at(address)

    def _reported(self, report: MeshReport) -> None:
        self.announce(report)
        self._tell_withheld(report)
        self.context.changed()

    def _tell_withheld(self, report: MeshReport) -> None:
        """What is not routed is told once as an Event of this node, beside the condition."""
        own, events, before = self._said(), self.context.events, self._withheld
        self._withheld = frozenset(report.withheld)
        for route in report.withheld:
            if route not in before:
                log.warning("a route would cut this node off, and is not made", to=route.cidr, whose=route.peer)
                if own is not None and events is not None:
                    about = ObjectReference.of(NETLOOM_NODES, own)
                    events.event(about, "Warning", "RouteWithheld", withheld_text(route, self._nodes.get(route.peer)))

    def components(self) -> Mapping[str, Run]:
        """The reconciler, the kernel's side, and the announcement where there is somebody to tell."""
        found = {**super().components()}
        if self._announcer is not None:
            found["announcement"] = self._announcer.controller.run
        if self._api_addresses is not None:
            found["API server's addresses"] = self._api_addresses.run
        if self._teller is not None:
            found["machine"] = self._teller.controller.run
        return found

    def changed(self) -> None:
        """What is announced may be different."""
        for each in (self._announcer, self._teller):
            if each is not None:
                each.changed()

    def _machine(self) -> MachineFacts | None:
        if self._desired.node is None or not self.applied or self.obstacle is not None:
            return None
        absent, networks = map(format_address, self.keeper.absent), map(str, outermost(self.keeper.connected))
        return MachineFacts(frozenset(absent), frozenset(networks))

    @property
    def is_writing(self) -> bool:
        """Peers are counted as soon as they are known."""
        return self.keeper.report.pending > 0

    def facts(self) -> dict[str, object]:
        """The data path's figures."""
        report = self.keeper.report
        return {
            "peers": report.peers,
            "mtu": report.mtu,
            "mtuSource": report.mtu_source,
            "underlay": report.underlay,
            "tunnels": [str(encapsulation) for encapsulation in report.tunnels],
            "unreachableLeftOut": [f"{prefix}: {why}" for prefix, why in report.left_out.items()],
            "kernelReads": report.compared,
            "kernelReadMs": round(report.reading_seconds * 1000, 1),
        }

    def metrics(self) -> Iterable[Metric]:
        """The same, and what was written; it is the data path that counts."""
        report = self.keeper.report
        yield written_metric("netloom_netlink_writes", "Requests written to the kernel.", report)
        yield counter(
            "netloom_drift_repaired", "Entries that somebody had changed and that were put back.", report.repaired
        )
        yield gauge("netloom_peers", "Remote nodes in the mesh.", report.peers)
        yield gauge(
            "netloom_retained_routes",
            "Routes of an earlier run that no known peer explains.",
            self.keeper.retained,
        )
        yield gauge(
            "netloom_withheld_routes",
            "Pod CIDRs that are not routed, as a route would cut this node off from what it needs itself.",
            len(report.withheld),
        )
        yield gauge(
            "netloom_rival_routes", "Foreign routes that take packets to other nodes' pods.", len(report.rivals)
        )
        yield gauge("netloom_tunnel_mtu_bytes", "MTU inside the tunnels.", report.mtu)
        yield gauge(
            "netloom_dataplane_errors",
            "What keeps the node's data path from being as desired; the agent's /status names each.",
            len(self.errors()) + len(self.context.own.errors()),
        )

    async def _apply(self) -> float | None:
        before = self._encapsulations_now() if self._desired.node is None else self._desired.node.encapsulations
        desired = self.desired(keep=before)
        if desired is None:
            return None
        again = await self._let_go(before)
        report = await self.keeper.apply(desired)
        self._is_in_place(peers=report.peers, mtu=report.mtu)
        self.announce(report)
        return again

    def desired(self, keep: tuple[Encapsulation, ...] = ()) -> Desired | None:
        """The whole mesh. `keep`: encapsulations to hold ready whether needed or not."""
        network, own = self._networks.get(NETWORK_NAME), self.own.effective(self._said())
        node = node_of(network, own, self._node_name)
        if self._is_blocked(node if isinstance(node, Obstacle) else None):
            return None
        assert network is not None
        assert own is not None
        assert isinstance(node, MeshNode)
        routing = network.spec.routing
        able = self._able(routing) or not keep
        prefixes, _ = pod_cidrs_of(own)
        kept = tuple(prefix for prefix in prefixes if str(prefix) in self.own.kept)
        seniority = own.metadata.creation_timestamp, self._node_name
        self._bring_up_to_date(
            LocalNode(routing, node.local, prefixes, able, kept, seniority, self.context.api is not None)
        )
        encapsulations, _ = accepted(routing, self._needs.encapsulations, keep)
        self._desired.node = msgspec.structs.replace(node, encapsulations=encapsulations)
        return self._desired

    def _able(self, routing: Routing) -> bool:
        tunnels = self.keeper.tunnels
        return all(encapsulation in tunnels for encapsulation in wanted(routing) if encapsulation.is_tunnel)

    def _bring_up_to_date(self, local: LocalNode) -> None:
        if local != self._local:
            self._touched.update(self._concerned_by(local))
            self._local = local
        touched, self._touched = self._touched, set()
        for name in touched:
            node = self._nodes.get(name) if name != self._node_name else None
            peer, problems = peer_of(node, local) if node is not None else (None, ())
            if node is not None and peer is not None:
                self._desired.set_peer(peer)
                self._needs.change(name, peer.encapsulations, announced(node))
            else:
                self._desired.remove_peer(name)
                self._needs.forget(name)
            self._desired.set_further(name, further_addresses_of(node, peer, local) if node is not None else None)
            costs = node is not None and bool(problems) and at_our_cost(node, local)
            (self.at_our_cost.add if costs else self.at_our_cost.discard)(name)
            self._report(name, problems)

    def _concerned_by(self, local: LocalNode) -> Iterable[str]:
        """The nodes for which it matters that this node is so now. Whether it has all tunnels changes at every first
        start, and only what some announcements make of it."""
        if msgspec.structs.replace(self._local, able=local.able) != local:
            return self._nodes
        routing, able, nodes = local.routing, local.able, self._nodes
        return [
            name
            for name, peer in self._desired.peers.items()
            if (node := nodes.get(name)) is None
            or peer.encapsulations != encapsulations_to(announced(node).accepts, routing, able=able)
        ]

    def _encapsulations_now(self) -> tuple[Encapsulation, ...]:
        """What this node was ready for before: by its devices in the kernel, and by what it announced."""
        own = self._said()
        said = announced(own).accepts if own is not None else ()
        return tuple(dict.fromkeys((*self.keeper.tunnels, *said)))

    async def _let_go(self, before: tuple[Encapsulation, ...]) -> float | None:
        """Of the encapsulations that were kept so far and that nobody needs, keep those that may still be in use: the
        time runs from when they are no longer announced, and again from the last packet. Seconds until one may go."""
        node, routing, own = self._desired.node, self._local.routing, self._said()
        assert node is not None
        assert own is not None
        said = announced(own).accepts
        needed, _ = accepted(routing, self._needs.encapsulations, ())
        held = self.keeper.tunnels  # by one that could never be made nothing comes, and it would be tried on and on
        unneeded = {each for each in before if each not in needed and (each in held or not each.is_tunnel)}
        if self.keeper.retained:
            return LINGER_SECONDS  # somebody may be sent by them of whom nothing is known yet
        self._leaving = {each: left for each, left in self._leaving.items() if each in unneeded}
        now = time.monotonic()
        for encapsulation in unneeded:
            left = self._leaving.get(encapsulation)
            if left is not None and encapsulation not in said and now < left.since + LINGER_SECONDS:
                continue
            received = await self.keeper.received(encapsulation)
            if left is None or encapsulation in said or received != left.received:
                self._leaving[encapsulation] = Leaving(now, received)
                if left is None:
                    log.info("an encapsulation is no longer needed", which=str(encapsulation), kept_for=LINGER_SECONDS)
            else:
                del self._leaving[encapsulation]
                log.info("an encapsulation is given up", which=str(encapsulation))
        encapsulations, _ = accepted(routing, self._needs.encapsulations, self._leaving)
        self._desired.node = msgspec.structs.replace(node, encapsulations=encapsulations)
        return min((each.since + LINGER_SECONDS - now for each in self._leaving.values()), default=None)

    def announce(self, report: MeshReport) -> None:
        """Announce what is so, after every pass of the data path: a tunnel is accepted when its device is there, and
        an encapsulation sent by until every nexthop has been moved."""
        if self._desired.node is None or self.obstacle is not None:
            return
        if self._able(self._local.routing) != self._local.able:
            self._again()
        _, announce = accepted(self._local.routing, self._needs.encapsulations, ())
        accepts = tuple(each for each in announce if not each.is_tunnel or each in report.tunnels)
        sends = self._needs.sends
        if report.pending and self.announcement is not None:
            sends |= self.announcement.sends
        self._sources |= {*map(format_address, report.sources)}
        self.announcement = Announcement(accepts, sends, tuple(sorted(self._sources)[:MOST_SOURCES]))

    async def plan(self) -> list[PlannedChange]:
        """As any, but that the API server's addresses matter."""
        if self._api_addresses is not None:
            self.keeper.servers = await self._api_addresses.look_up()
        return await super().plan()

    def _found_wrong(self, report: MeshReport) -> list[str]:
        """What keeps the mesh from being whole though the kernel took all."""
        cut_off = [
            unreachable(name)
            for name, versions in report.unreachable.items()
            if 4 in versions or (node := self._nodes.get(name)) is None or not lacks_ipv6(node)
        ]
        network, own, here = self._networks.get(NETWORK_NAME), self._said(), self._desired.node
        if network is not None and own is not None and here is not None and self.obstacle is None:
            cut_off += own_faults(here, network, own, report.absent)
            cut_off += [misplaced_text(own, each) for each in report.misplaced]
        cut_off += [withheld_text(each, self._nodes.get(each.peer)) for each in report.withheld]
        cut_off += [astray_text(each) for each in report.astray if is_own(each)]
        taken, _ = rival_faults(report.rivals, carried=self._carried)
        return [*cut_off, *taken]

    def warnings(self, report: MeshReport | None = None) -> list[str]:
        """What is wrong with other nodes, and what two of them both claim."""
        report = report or self.keeper.report
        nodes = [(name, self._nodes.get(name)) for name in report.unreachable]
        lacking = [without_ipv6(name) for name, node in nodes if node is not None and lacks_ipv6(node)]
        astray = [astray_text(each) for each in report.astray if not is_own(each)]
        _, taken = rival_faults(report.rivals, carried=self._carried)
        return [*super().warnings(), *map(conflict_text, report.conflicts), *lacking, *astray, *taken]

    @property
    def _carried(self) -> bool:
        """Whether routing daemons may have a say: with native routing they may run on every node."""
        return self._local.routing.mode == "native"
