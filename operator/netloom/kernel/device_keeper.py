"""Brings the tunnel devices, their addresses and the kernel's switches to their desired state, one step at a time.

Rare and short, so it is written plainly and blocks; the data path runs it in its thread.
"""

from collections.abc import Collection, Hashable, Iterable

import msgspec
import structlog

from netloom.kernel import device, reader
from netloom.kernel.desired import Node
from netloom.kernel.device import Mtu, Step, Surroundings
from netloom.kernel.links import Link
from netloom.kernel.mesh import Carriers
from netloom.kernel.netlink import Commands, Refusal
from netloom.kernel.sysctl import Sysctl, SysctlRecord, of_node, of_tunnel
from netloom.kernel.trouble import Item
from netloom.kernel.way import NATIVE, Way
from netloom.kernel.writer import ALREADY_GONE

log = structlog.get_logger(__name__)


class DeviceOutcome(msgspec.Struct):
    """What came of it.

    flushed: the kernel may have dropped what stood on a device. waiting: entries whose back-off has not ended.
    underlay: the devices that carry traffic between the nodes. mtu: for pods. stopped: ifindexes of all devices that
    are down or without a carrier.
    """

    carriers: Carriers = Carriers()
    underlay: tuple[Link, ...] = ()
    mtu: Mtu = Mtu()
    stopped: frozenset[int] = frozenset()
    flushed: bool = False
    teardown_due: bool = False
    done: list[Item] = msgspec.field(default_factory=list)
    refused: list[tuple[Item, Refusal, str]] = msgspec.field(default_factory=list)
    waiting: set[Item] = msgspec.field(default_factory=set)


class DeviceKeeper:
    """Holds nothing between calls: the kernel is read each time."""

    def __init__(self, commands: Commands, record: SysctlRecord) -> None:
        self._commands = commands
        self._record = record

    def prepare(self, node: Node | None, outgoing: Collection[int], held: set[Hashable]) -> DeviceOutcome:
        """All that rows stand on. What cannot be done is in the outcome, and the rest is done all the same.

        `outgoing`: ifindexes of the devices that routes to peers name.
        """
        outcome = DeviceOutcome()
        around = reader.surroundings(self._commands)
        outcome.stopped = frozenset(link.ifindex for link in around.links if not link.running)
        if node is None:
            outcome.teardown_due = bool(around.own_links())
            return outcome
        outcome.underlay = tuple(device.carrying(node, around, outgoing))
        tunnels: dict[Way, int] = {}
        surplus = False
        names = [link.name for link in outcome.underlay]
        self._switch(of_node(names, ipv6=node.ipv6, native=NATIVE in node.ways), held, outcome)
        for way in node.tunnels:
            mtu = device.tunnel_mtu(node, way, around, outgoing)
            around = self._prepare_tunnel(node, way, mtu, around, held, outcome)
            link = around.link(way.device)
            if link is None or device.unfit(link, way):
                continue
            surplus = surplus or any(device.surplus_addresses(node, link, around))
            if link.up:
                tunnels[way] = link.ifindex
        outcome.teardown_due = surplus or any(device.unwanted(node, around))
        outcome.carriers = Carriers(
            tunnels, node.vni, node.ipv6, device.native_mtu(node, outcome.underlay), node.strict
        )
        underlay = device.underlay_mtu(node, around, outgoing)
        outcome.mtu = underlay.inside_tunnel() if node.tunnels and underlay.bytes else underlay
        return outcome

    def _prepare_tunnel(
        self, node: Node, way: Way, mtu: int, around: Surroundings, held: set[Hashable], outcome: DeviceOutcome
    ) -> Surroundings:
        """One device; what the kernel holds afterwards."""
        if self._take(device.replacement(node, way, around, mtu), node, held, outcome):
            around = reader.surroundings(self._commands)
        link = around.link(way.device)
        if link is None or device.unfit(link, way):
            return around
        outcome.flushed = outcome.flushed or not link.up
        self._switch(of_tunnel(way.device, ipv6=node.ipv6), held, outcome)
        if self._take(device.adjustment(node, link, mtu), node, held, outcome):
            around = reader.surroundings(self._commands)
            link = around.link(way.device) or link
        self._take(device.missing_addresses(node, link, around), node, held, outcome)
        return around

    def tear_down(self, node: Node | None, held: set[Hashable]) -> DeviceOutcome:
        """Remove what nothing stands on any more."""
        outcome = DeviceOutcome()
        around = reader.surroundings(self._commands)
        for way in node.tunnels if node is not None else ():
            link = around.link(way.device)
            if node is not None and link is not None:
                self._take(device.surplus_addresses(node, link, around), node, held, outcome)
        self._take(device.unwanted(node, around), node, held, outcome)
        return outcome

    def _take(self, steps: Iterable[Step], node: Node | None, held: set[Hashable], outcome: DeviceOutcome) -> bool:
        """Do the steps; whether any was done. A step about a link that failed takes the link's later steps with it."""
        failed: set[Item] = set()
        done = False
        for step in steps:
            item = (step.kind, step.key)
            if item in held or item in failed:
                outcome.waiting.add(item)
                continue
            refusal = self._commands.execute([step.message]).get(0)
            if refusal is None or (step.deletes and refusal.errno in ALREADY_GONE):
                log.info("device changed", change=f"ip {step.text}", why=step.why)
                outcome.done.append(item)
                outcome.flushed = outcome.flushed or step.flushes
                done = True
            else:
                failed.add(item)
                outcome.refused.append((item, refusal, device.explain(step, node.tunnels if node else (), refusal)))
        outcome.done = [item for item in outcome.done if item not in failed]
        return done

    def _switch(self, switches: Iterable[Sysctl], held: set[Hashable], outcome: DeviceOutcome) -> None:
        for sysctl in switches:
            item = ("sysctl", sysctl.name)
            if item in held:
                outcome.waiting.add(item)
                continue
            try:
                if self._record.set(sysctl):
                    log.info("switch set", sysctl=sysctl.name, value=sysctl.value)
                    outcome.done.append(item)
            except OSError as error:
                refusal = Refusal(error.errno or 0, str(error))
                outcome.refused.append((item, refusal, f"cannot set {sysctl.name} to {sysctl.value}: {error}"))
