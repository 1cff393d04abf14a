"""Brings the tunnel device, its addresses and the kernel's switches to their desired state, one step at a time.

Rare and short, so it is written plainly and blocks; the data path runs it in its thread.
"""

from collections.abc import Hashable, Iterable

import msgspec
import structlog

from netloom.kernel import device, reader
from netloom.kernel.desired import Tunnel
from netloom.kernel.device import Step
from netloom.kernel.links import Link
from netloom.kernel.mesh import Carrier
from netloom.kernel.netlink import Commands, Refusal
from netloom.kernel.owned import VXLAN_DEVICE
from netloom.kernel.sysctl import Sysctl, SysctlRecord, wanted
from netloom.kernel.trouble import Item
from netloom.kernel.writer import ALREADY_GONE

log = structlog.get_logger(__name__)


class DeviceOutcome(msgspec.Struct):
    """What came of it.

    flushed: the kernel may have dropped what stood on the device. waiting: entries whose back-off has not ended.
    """

    carrier: Carrier = Carrier()
    underlay: Link | None = None
    mtu: int = 0
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

    def prepare(self, tunnel: Tunnel | None, held: set[Hashable]) -> DeviceOutcome:
        """All that rows stand on. What cannot be done is in the outcome, and the rest is done all the same."""
        outcome = DeviceOutcome()
        around = reader.surroundings(self._commands)
        if tunnel is None:
            outcome.teardown_due = bool(around.own_links())
            return outcome
        outcome.underlay = around.underlay(tunnel.local)
        if self._take(device.replacement(tunnel, around), tunnel, held, outcome):
            around = reader.surroundings(self._commands)
        link = around.link(VXLAN_DEVICE)
        if link is None or device.unfit(link, tunnel):
            return outcome
        outcome.mtu = device.tunnel_mtu(tunnel, around)
        outcome.flushed = outcome.flushed or not link.up
        self._switch(wanted(VXLAN_DEVICE, _name(outcome.underlay), ipv6=device.has_ipv6(tunnel)), held, outcome)
        if self._take(device.adjustment(tunnel, link, around), tunnel, held, outcome):
            around = reader.surroundings(self._commands)
            link = around.link(VXLAN_DEVICE)
        if link is None:
            return outcome
        self._take(device.missing_addresses(tunnel, link, around), tunnel, held, outcome)
        surplus = [*device.surplus_addresses(tunnel, link, around), *device.unwanted(tunnel, around)]
        outcome.teardown_due = bool(surplus)
        if link.up:
            outcome.carrier = Carrier(link.ifindex, tunnel.vni, device.has_ipv6(tunnel))
        return outcome

    def tear_down(self, tunnel: Tunnel | None, held: set[Hashable]) -> DeviceOutcome:
        """Remove what nothing stands on any more."""
        outcome = DeviceOutcome()
        around = reader.surroundings(self._commands)
        link = around.link(VXLAN_DEVICE)
        if tunnel is not None and link is not None:
            self._take(device.surplus_addresses(tunnel, link, around), tunnel, held, outcome)
        self._take(device.unwanted(tunnel, around), tunnel, held, outcome)
        return outcome

    def _take(self, steps: Iterable[Step], tunnel: Tunnel | None, held: set[Hashable], outcome: DeviceOutcome) -> bool:
        """Do the steps; whether any was done. A step about a link that failed takes the link's later steps with it."""
        failed: set[Item] = set()
        done = False
        for step in steps:
            item = (step.kind, step.key)
            if item in held or item in failed:
                outcome.waiting.add(item)
                continue
            refusal = self._commands.execute([step.message]).get(0)
            if refusal is None or (" delete " in step.text and refusal.errno in ALREADY_GONE):
                log.info("device changed", change=f"ip {step.text}", why=step.why)
                outcome.done.append(item)
                outcome.flushed = outcome.flushed or step.flushes
                done = True
            else:
                failed.add(item)
                outcome.refused.append((item, refusal, device.explain(step, tunnel, refusal)))
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


def _name(link: Link | None) -> str:
    return link.name if link is not None else ""
