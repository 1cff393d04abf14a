"""The tunnel devices, their addresses and the kernel's switches as a part: what the mesh's rows stand on.

Rare and short, so the kernel is read anew each time, and everything is done step by step, in the worker's thread.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence, Set
from fnmatch import fnmatchcase

import msgspec
import structlog

from netloom.cidr import Address
from netloom.kernel.keeper.part import Attempt, Outcome, Part, Refused, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.mesh import reader
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired, MeshNode
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, OVERHEAD, Encapsulation
from netloom.kernel.mesh.rows import DeviceState
from netloom.kernel.mesh.rows_part import MESH_STATE, MeshRows
from netloom.kernel.mesh.tunnel_device import Interfaces, Mtu, Step
from netloom.kernel.mesh.writer import ALREADY_GONE
from netloom.kernel.netlink.links import InterfaceAddress, Link, read_address, read_link, read_netconf
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.wire import RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNETCONF
from netloom.kernel.ownership import MESH
from netloom.kernel.sysctl import Sysctl, SysctlRecord, of_node, of_tunnel

log = structlog.get_logger(__name__)

_ALL_DEVICES = -1


class MeshDevices(Part[Desired]):
    """See the module. `rows` stand on the devices, and say by which devices the kernel sends to the peers."""

    owns = MESH
    state = MESH_STATE
    groups = ("link", "ipv4-addr", "ipv6-addr", "ipv4-netconf", "ipv6-netconf")
    kinds = frozenset((RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWNETCONF))

    def __init__(self, rows: MeshRows, record: SysctlRecord) -> None:
        self.found = Found()
        self._rows = rows
        self._mesh = rows.mesh
        self._record = record
        self._node: MeshNode | None = None
        self._due = True
        self._expected = False
        self._outgoing: Collection[int] = frozenset()
        self._undone: set[Item] = set()

    # ------------------------------------------------------------------------------------------- what is wanted

    def want(self, desired: Desired, retries: Retries) -> None:
        """Take over what is wanted of this node."""
        if desired.node != self._node:
            self._node = desired.node
            retries.clear()
            self._due = self._expected = True

    def pending(self) -> Iterable[Item]:
        """What could not be done, or has to wait."""
        return self._undone

    # ------------------------------------------------------------------------------------------------- one pass

    @property
    def due(self) -> bool:  # type: ignore[override]
        """The devices are to be looked at: also when packets to peers leave by others than before."""
        return self._due or self._moved

    @property
    def _moved(self) -> bool:
        outgoing = self._mesh.fib.outgoing
        return outgoing != self._outgoing and outgoing != {link.ifindex for link in self.found.underlay}

    def doubt(self) -> None:
        """Everything is to be looked at again."""
        self._due = True

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Prepare all that rows stand on, and tell them. What cannot be done is in the outcome, and the rest is done
        all the same."""
        self.found.surplus = False
        if not self.due and self._undone <= attempt.held:
            return Outcome()
        self._expected = self._expected or self._moved
        self._due, self._outgoing = False, self._mesh.fib.outgoing
        work = DeviceWork(worker.commands, self._record, self._node, attempt.held)
        self.found = found = await worker.call(lambda _commands: work.prepare(self._outgoing))
        self._undone = work.undone
        self._mesh.fib.set_stopped(found.stopped)
        if work.flushed or found.device_state.tunnels != self._mesh.device_state.tunnels:
            self._rows.doubt()
        self._mesh.set_device_state(found.device_state)
        drift, self._expected = not self._expected, False
        return work.outcome(drift=drift)

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Remove what nothing stands on any more."""
        if not self.found.surplus:
            return Outcome()
        work = DeviceWork(worker.commands, self._record, self._node, attempt.held)
        await worker.call(lambda _commands: work.tear_down())
        self._undone |= work.undone
        return work.outcome(drift=False)

    # --------------------------------------------------------------------------------------------------- events

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event: whether it is about what this part looks after or looks at."""
        if self._due:
            return
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = read_link(buffer, start, end)
            self._due = link is not None and self._concerns(link, gone=kind == RTM_DELLINK)
        elif kind == RTM_NEWNETCONF:
            # Somebody changed a switch as forwarding or rp_filter, of all devices or of one.
            ifindex = read_netconf(buffer, start, end)
            known = (_ALL_DEVICES, *(link.ifindex for link in self.found.underlay))
            self._due = ifindex in known or self._mesh.is_tunnel(ifindex)
        else:
            seen = read_address(buffer, start, end)
            self._due = seen is not None and (
                self._mesh.is_tunnel(seen.ifindex)
                or (self._node is not None and seen.local.address in (self._node.local, *self._node.claimed))
                or (device.says_network(seen) and (kind == RTM_NEWADDR) != (seen in self.found.on_networks))
            )

    def _concerns(self, link: Link, *, gone: bool) -> bool:
        if self.owns.link(link.name) or self._mesh.is_tunnel(link.ifindex):
            return True
        known = next((each for each in self.found.underlay if each.ifindex == link.ifindex), None)
        if known is not None and (link.mtu != known.mtu or link.name != known.name):
            return True
        told = self._node is not None and any(fnmatchcase(link.name, pattern) for pattern in self._node.devices)
        return told and (known is None or gone)


class Found(msgspec.Struct):
    """What was found when all was prepared.

    underlay: the devices that carry traffic between the nodes. mtu: for pods. stopped: ifindexes of all devices that
    are down or without a carrier. surplus: there is something to remove. absent: of the addresses that the node is said
    to have, those that are on no device. on_networks: addresses that say that a device, none of ours, is on a network.
    """

    device_state: DeviceState = DeviceState()
    underlay: tuple[Link, ...] = ()
    mtu: Mtu = Mtu()
    stopped: Collection[int] = ()
    surplus: bool = False
    absent: tuple[Address, ...] = ()
    on_networks: tuple[InterfaceAddress, ...] = ()


class DeviceWork:
    """One go at the devices, in a thread. `flushed`: the kernel may have dropped what stood on a device."""

    def __init__(
        self, commands: CommandSocket, record: SysctlRecord, node: MeshNode | None, held: Set[Hashable]
    ) -> None:
        self.flushed = False
        self._commands = commands
        self._record = record
        self._node = node
        self._held = held
        self._waiting: set[Item] = set()
        self._done: dict[Item, None] = {}
        self._refused: dict[Item, Refused] = {}

    def read(self) -> Interfaces:
        """The kernel's links and addresses."""
        return reader.read_interfaces(self._commands)

    def prepare(self, outgoing: Collection[int]) -> Found:
        """All that rows stand on. `outgoing`: ifindexes of the devices that routes to peers name."""
        node, interfaces = self._node, self.read()
        found = Found(stopped={link.ifindex for link in interfaces.links if not link.running})
        if node is None:
            found.surplus = bool(interfaces.own_links())
            return found
        found.absent = device.absent_addresses(node, interfaces)
        found.on_networks = device.on_networks(interfaces)
        found.underlay = tuple(device.carrying(node, interfaces, outgoing))
        names = [link.name for link in found.underlay]
        self._switch(of_node(names, ipv6=node.ipv6, native=NO_ENCAPSULATION in node.encapsulations))
        tunnels: dict[Encapsulation, int] = {}
        for encapsulation in node.tunnels:
            mtu = device.tunnel_mtu(node, encapsulation, interfaces, outgoing)
            interfaces = self._prepare_tunnel(node, encapsulation, mtu, interfaces)
            link = interfaces.link(encapsulation.device)
            if link is None or device.unfit(link, encapsulation):
                continue
            found.surplus = found.surplus or any(device.surplus_addresses(node, link, interfaces))
            if link.up:
                tunnels[encapsulation] = link.ifindex
        found.surplus = found.surplus or any(device.unwanted(node, interfaces))
        found.device_state = DeviceState(
            tunnels, node.vni, node.ipv6, device.native_mtu(node, found.underlay), node.strict
        )
        underlay = device.underlay_mtu(node, interfaces, outgoing)
        if node.tunnels and underlay.bytes:
            underlay = Mtu(underlay.bytes - OVERHEAD, f"{underlay.why}, less {OVERHEAD} for the tunnel")
        found.mtu = underlay
        return found

    def _prepare_tunnel(
        self, node: MeshNode, encapsulation: Encapsulation, mtu: int, interfaces: Interfaces
    ) -> Interfaces:
        """One device; what the kernel holds afterwards."""
        if self._take(device.replacement(node, encapsulation, interfaces, mtu)):
            interfaces = self.read()
        link = interfaces.link(encapsulation.device)
        if link is None or device.unfit(link, encapsulation):
            return interfaces
        self.flushed = self.flushed or not link.up
        self._switch(of_tunnel(encapsulation.device, ipv6=node.ipv6))
        if self._take(device.adjustment(node, link, mtu)):
            interfaces = self.read()
            link = interfaces.link(encapsulation.device) or link
        self._take(device.missing_addresses(node, link, interfaces))
        return interfaces

    def tear_down(self) -> None:
        """Remove what nothing stands on any more."""
        node, interfaces = self._node, self.read()
        for encapsulation in node.tunnels if node is not None else ():
            link = interfaces.link(encapsulation.device)
            if node is not None and link is not None:
                self._take(device.surplus_addresses(node, link, interfaces))
        self._take(device.unwanted(node, interfaces))

    @property
    def undone(self) -> set[Item]:
        """What could not be done, or has to wait."""
        return self._waiting | self._refused.keys()

    def outcome(self, *, drift: bool) -> Outcome:
        """What came of it. `drift`: what had to be done, somebody had changed."""
        done = [item for item in self._done if item not in self._refused]
        written: list[tuple[str, Sequence[Hashable]]] = [(kind, [key]) for kind, key in done]
        return Outcome(written, done if drift else [], list(self._refused.values()))

    def _take(self, steps: Iterable[Step]) -> bool:
        """Do the steps; whether any was done. A step about a link that failed takes the link's later steps with it."""
        done = False
        for step in steps:
            item = (step.kind, step.key)
            if item in self._held or item in self._refused:
                self._waiting.add(item)
                continue
            refusal = self._commands.execute([step.message]).get(0)
            if refusal is None or (step.deletes and refusal.errno in ALREADY_GONE):
                log.info("device changed", change=f"ip {step.text}", why=step.why)
                self._done[item] = None
                self.flushed = self.flushed or step.flushes
                done = True
            else:
                sentence = device.explain(step, self._node.tunnels if self._node else (), refusal)
                self._refused[item] = Refused(item, sentence, refusal.errno)
        return done

    def _switch(self, switches: Iterable[Sysctl]) -> None:
        for sysctl in switches:
            item: Item = ("sysctl", sysctl.name)
            if item in self._held:
                self._waiting.add(item)
                continue
            try:
                if self._record.set(sysctl):
                    log.info("switch set", sysctl=sysctl.name, value=sysctl.value)
                    self._done[item] = None
            except OSError as error:
                sentence = f"cannot set {sysctl.name} to {sysctl.value}: {error}"
                self._refused[item] = Refused(item, sentence, error.errno or 0)
