"""The tunnel devices, their addresses and the kernel's switches as a part: what the mesh's rows stand on.

Rare and short, so the kernel is read anew each time, and everything is done step by step, in the worker's thread.
"""

import errno
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import suppress

import msgspec
import structlog
from msgspec.structs import replace

from netloom.cidr import Address
from netloom.kernel import sysctl as switches
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.keeper.table_writer import ALREADY_GONE
from netloom.kernel.mesh import advertised, port_holders, reader
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired, MeshNode
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, OVERHEAD, Encapsulation
from netloom.kernel.mesh.fib import FibLookups
from netloom.kernel.mesh.rows import DeviceState
from netloom.kernel.mesh.rows_part import MESH_STATE, MeshRows
from netloom.kernel.mesh.tunnel_device import DeviceStep, Interfaces, Mtu
from netloom.kernel.mesh.underlay import Astray, merged, merged_at, own_addresses_of_peers, underlay_of
from netloom.kernel.netlink import receive_offload
from netloom.kernel.netlink.links import Link, is_endpoint, read_address, read_link
from netloom.kernel.netlink.netconf import ALL, DEFAULT, Netconf, read_netconf
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from netloom.kernel.netlink.wire import RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNETCONF
from netloom.kernel.ownership import DEVICE_PREFIX, MESH
from netloom.kernel.sysctl import Sysctl, SysctlRecord, is_strict, of_node, of_tunnel

log = structlog.get_logger(__name__)


class MeshDevices(Part[Desired]):
    """See the module. `rows` stand on the devices, and say by which devices the kernel sends to the peers."""

    owns = MESH
    state = MESH_STATE
    groups = ("link", "ipv4-addr", "ipv6-addr", "ipv4-netconf", "ipv6-netconf")
    kinds = frozenset((RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWNETCONF))

    def __init__(self, rows: MeshRows, record: SysctlRecord) -> None:
        self.found = DevicesFound()
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
    def due(self) -> bool:
        """The devices are to be looked at: also when packets to peers leave by others than before."""
        return self._due or self._moved

    @property
    def _moved(self) -> bool:
        fib = self._mesh.fib
        if any(fib.count_behind(ifindex) != count for ifindex, count in self.found.refused.items()):
            return True
        return fib.outgoing != self._outgoing and fib.outgoing != {link.ifindex for link in self.found.underlay}

    def doubt(self) -> None:
        """Everything is to be looked at again."""
        self._due = True

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Prepare all that rows stand on, and tell them. What cannot be done is in the outcome, and the rest is done
        all the same."""
        self.found.surplus = False
        if not self.due and self._undone <= attempt.delayed:
            return Outcome()
        self._expected = self._expected or self._moved
        self._due, self._outgoing = False, self._mesh.fib.outgoing
        work = DeviceWork(worker.commands, self._record, self._node, attempt.delayed)
        known = self._mesh.device_state.tunnels
        self.found = found = await worker.call(lambda _commands: work.prepare(self._mesh.fib, known))
        self._undone = work.undone
        self._mesh.fib.set_stopped(found.stopped)
        if work.flushed or found.device_state.tunnels != self._mesh.device_state.tunnels:
            self._rows.doubt()
        self._mesh.set_device_state(found.device_state)
        drift, self._expected = not self._expected, False
        return work.outcome(drift=drift)

    @property
    def astray(self) -> tuple[Astray, ...]:
        """Peers whose addresses are a pod's or this machine's own, by the devices that packets to them leave by."""
        found, mesh = self.found, self._mesh
        if self._node is None:
            return ()
        every = (*found.astray, *own_addresses_of_peers(self._node, found.interfaces, mesh.fib))
        return tuple(
            replace(each, peers=tuple(mesh.peer_of("address", address) for address in each.addresses)) for each in every
        )

    @property
    def sources(self) -> tuple[Address, ...]:
        """See `MeshReport`: also what routes name, which may be an address of a device that carries nothing."""
        if self._node is None:
            return ()
        named = self._mesh.fib.sources(without=self.found.refused) - {self._node.local, *self._node.claimed}
        return tuple(sorted(named.union(self.found.sources)))

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Remove what nothing stands on any more."""
        if not self.found.surplus:
            return Outcome()
        work = DeviceWork(worker.commands, self._record, self._node, attempt.delayed)
        await worker.call(lambda _commands: work.tear_down())
        self._undone |= work.undone
        return work.outcome(drift=False)

    # --------------------------------------------------------------------------------------------------- events

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event: whether it is about what this part looks after or looks at."""
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = None if is_endpoint(buffer, start, end) else read_link(buffer, start, end)
            concerns = link is not None and self._concerns(link, gone=kind == RTM_DELLINK)
            self._due = self._due or concerns
        elif self._due:
            return
        elif kind == RTM_NEWNETCONF:
            self._due = self._is_switched(read_netconf(buffer, start, end))
        else:
            seen = read_address(buffer, start, end)
            self._due = seen is not None and (
                self._mesh.is_tunnel(seen.ifindex)
                or any(link.ifindex == seen.ifindex for link in self.found.underlay)
                or (self._node is not None and seen.local.address in (self._node.local, *self._node.claimed))
                or self._mesh.fib.is_asked(seen.local.address)
            )

    def _is_switched(self, seen: Netconf | None) -> bool:
        """Whether somebody changed a switch, of all devices or of one. That forwarding is on is nothing to look at: the
        kernel says so of every device when it is switched on here."""
        known = (ALL, DEFAULT, *(link.ifindex for link in self.found.underlay))
        if seen is None or not (seen.ifindex in known or self._mesh.is_tunnel(seen.ifindex)):
            return False
        return seen.forwarding is False or seen.rp_filter is not None

    def _concerns(self, link: Link, *, gone: bool) -> bool:
        if self.owns.link(link.name) or self._mesh.is_tunnel(link.ifindex):
            return True
        counted = (*self.found.underlay, *self.found.measured)
        known = next((each for each in counted if each.ifindex == link.ifindex), None)
        if known is not None and link.mtu != known.mtu and self._mesh.natives:
            self._rows.doubt()  # of IPv6 routes by it the kernel may have changed the MTU, and says nothing
        if known is not None and (link.mtu != known.mtu or link.name != known.name):
            return True
        if advertised.leads_outside(link) and link.ifindex not in self.found.outside and not gone:
            return True
        told = self._node is not None and device.is_told(self._node, link)
        return told and (known is None or gone)


class DevicesFound(msgspec.Struct):
    """What was found when all was prepared.

    interfaces: as they were read at the beginning. underlay: the devices that carry traffic between the nodes; of these
    and their ports, the MTU of those that are measured counts. astray, refused: see `Underlay`. outside: ifindexes of
    all by which a machine is on a network. mtu: for pods. stopped: ifindexes of all devices that are down or without a
    carrier. surplus: there is something to remove. absent: of the addresses that the node is said to have, those that
    are on no device. sources: addresses that it may send from, and is not said to have.
    """

    device_state: DeviceState = DeviceState()
    interfaces: Interfaces = Interfaces()
    underlay: tuple[Link, ...] = ()
    measured: tuple[Link, ...] = ()
    astray: tuple[Astray, ...] = ()
    refused: Mapping[int, int] = {}
    outside: frozenset[int] = frozenset()
    mtu: Mtu = Mtu()
    stopped: Collection[int] = ()
    surplus: bool = False
    absent: tuple[Address, ...] = ()
    sources: tuple[Address, ...] = ()


class DeviceWork:
    """One go at the devices, in a thread. `flushed`: the kernel may have dropped what stood on a device."""

    def __init__(
        self, commands: CommandSocket, record: SysctlRecord, node: MeshNode | None, delayed: Set[Hashable]
    ) -> None:
        self.flushed = False
        self._commands = commands
        self._record = record
        self._node = node
        self._delayed = delayed
        self._waiting: set[Item] = set()
        self._done: dict[Item, None] = {}
        self._refused: dict[Item, RefusedEntry] = {}

    def read(self) -> Interfaces:
        """The kernel's links and addresses."""
        return reader.read_interfaces(self._commands)

    def prepare(self, fib: FibLookups, known: Mapping[Encapsulation, int]) -> DevicesFound:
        """All that rows stand on. `fib`: by which devices packets to the peers leave. `known`: ifindexes that the
        tunnels' devices had before."""
        node, interfaces = self._node, self.read()
        found = DevicesFound(
            interfaces=interfaces, stopped={link.ifindex for link in interfaces.links if not link.running}
        )
        if node is None:
            found.surplus = bool(interfaces.own_links())
            return found
        found.absent = device.absent_addresses(node, interfaces)
        underlay = underlay_of(node, interfaces, fib, lambda: reader.direct_routes(self._commands))
        found.underlay, found.measured = underlay.links, underlay.measured
        found.astray, found.refused = underlay.astray, underlay.refused
        found.sources = device.source_addresses(node, interfaces, found.underlay)
        names = [link.name for link in found.underlay]
        outside = [link for link in interfaces.links if advertised.leads_outside(link)]
        found.outside = frozenset(link.ifindex for link in outside)
        learners = self._learners(node, interfaces, outside)
        self._switch(of_node(names, learners, ipv6=node.ipv6, native=NO_ENCAPSULATION in node.encapsulations))
        tunnels: dict[Encapsulation, int] = {}
        narrow = set[Encapsulation]()
        there = {link.ifindex for link in interfaces.links}
        for encapsulation in node.tunnels:
            mtu, fit = device.tunnel_mtu(underlay.mtu, encapsulation, interfaces), node
            if node.ipv6 and mtu < device.IPV6_MTU:
                narrow.add(encapsulation)
                fit = device.without_ipv6(node)
                refused = device.explain_without_ipv6(underlay.mtu, encapsulation, mtu)
                self._refused[refused.item] = refused
            interfaces = self._prepare_tunnel(fit, encapsulation, mtu, interfaces, known.get(encapsulation, 0))
            link = interfaces.link(encapsulation.device)
            if link is None or device.unfit(link, encapsulation):
                continue
            found.surplus = found.surplus or any(device.surplus_addresses(fit, link, interfaces))
            if link.ifindex not in there:
                self._leave_merging_to(merged_at(underlay.links, interfaces, receive_offload.is_on), link.name)
            if link.up:
                tunnels[encapsulation] = link.ifindex
        found.surplus = found.surplus or any(device.unwanted(node, interfaces))
        found.device_state = DeviceState(
            tunnels, node.vni, node.ipv6, device.native_mtu(node, found.underlay), node.strict, frozenset(narrow)
        )
        found.mtu = underlay.mtu
        if node.tunnels and underlay.mtu.bytes:
            found.mtu = Mtu(underlay.mtu.bytes - OVERHEAD, f"{underlay.mtu.why}, less {OVERHEAD} for the tunnel")
        return found

    def _learners(self, node: MeshNode, interfaces: Interfaces, outside: Iterable[Link]) -> list[str]:
        """Names of the devices that this node is, or may come to be, configured by router advertisements on.

        Where one may come is worth a switch only if forwarding was not on before: else the kernel took none then.
        """
        if not node.ipv6:
            return []
        found = set(advertised.learned_on(self._commands))
        if found:  # what a pod has advertised goes with forwarding
            routes = reader.direct_routes(self._commands)
            found -= {each.ifindex for each in routes if any(cidr.contains(each.destination) for cidr in node.cidrs)}
        with suppress(OSError):  # of a kernel without IPv6; that is said when forwarding is switched on
            if "0" in (switches.read(switches.IPV6), self._record.before(switches.IPV6)):
                told = [link for link in interfaces.links if device.is_told(node, link)]
                found.update(link.ifindex for link in (*outside, *told))
        return [
            link.name for link in interfaces.links if link.ifindex in found and not link.name.startswith(DEVICE_PREFIX)
        ]

    def _prepare_tunnel(
        self, node: MeshNode, encapsulation: Encapsulation, mtu: int, interfaces: Interfaces, known: int
    ) -> Interfaces:
        """One device; what the kernel holds afterwards."""
        if self._take(device.removal(encapsulation, interfaces)):
            interfaces = self.read()
        if interfaces.link(encapsulation.device) is None:
            former = device.former(node, encapsulation, interfaces, known)
            if former is not None:
                self._rename(former, encapsulation.device)
            else:
                self._recall(node, encapsulation)
                self._take([device.creation(node, encapsulation, mtu)])
            interfaces = self.read()
        link = interfaces.link(encapsulation.device)
        if link is None or device.unfit(link, encapsulation):
            return interfaces
        self.flushed = self.flushed or not link.up
        if self._take(device.resizing(link, mtu)):
            interfaces = self.read()
            link = interfaces.link(encapsulation.device) or link
        self._switch(of_tunnel(encapsulation.device, ipv6=node.ipv6, strict=is_strict()))
        if self._take(device.adjustment(node, link)):
            interfaces = self.read()
            link = interfaces.link(encapsulation.device) or link
        self._take(device.missing_addresses(node, link, interfaces))
        return interfaces

    def _leave_merging_to(self, devices: Collection[str], tunnel: str) -> None:
        """A tunnel's device that has just been made does not do again what these have done: it took 5 % of the costs of
        a datagram. What somebody makes of it later, is left."""
        if devices:
            try:
                receive_offload.switch_off(tunnel)
                log.info("device changed", change=f"ethtool -K {tunnel} gro off", why=merged(devices))
            except OSError as error:  # it only costs more
                log.warning("generic receive offload stays on", device=tunnel, why=str(error))

    def _rename(self, link: Link, name: str) -> None:
        self._take([device.renaming(link, name)])
        refused = self._refused.get(("link", name))
        if refused is not None and refused.errno == errno.EBUSY and link.up:
            del self._refused["link", name]
            self._take(device.renaming_down(link, name))

    def _recall(self, node: MeshNode, encapsulation: Encapsulation) -> None:
        """Nothing else than a device of ours, made here with our MAC, is touched in another network namespace."""
        for each in port_holders.moved_away(self._commands, encapsulation):
            if each.link.mac == node.mac and each.link.external:
                self._take([device.recall(encapsulation, each.link, each.netns)])

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

    def _take(self, steps: Iterable[DeviceStep]) -> bool:
        """Do the steps; whether any was done. A step about a link that failed takes the link's later steps with it."""
        done = False
        for step in steps:
            item = (step.kind, step.key)
            if item in self._delayed or item in self._refused:
                self._waiting.add(item)
                continue
            refusal = self._commands.execute([step.message]).get(0)
            if refusal is None or (step.deletes and refusal.errno in ALREADY_GONE):
                log.info("device changed", change=f"ip {step.text}", why=step.why)
                self._done[item] = None
                self.flushed = self.flushed or step.flushes
                done = True
            else:
                self._refused[item] = RefusedEntry(item, self._explain(step, refusal), refusal.errno)
        return done

    def _explain(self, step: DeviceStep, refusal: KernelRefusal) -> str:
        tunnels = self._node.tunnels if self._node else ()
        taken = device.taken_port(step, tunnels, refusal)
        if taken is None:
            return device.explain(step, tunnels, refusal)
        holder = port_holders.holder_of(self._commands, taken, DeviceWork.read(self))
        return f"UDP port {taken.port} is in use by {holder} ({refusal})"

    def _switch(self, switches: Iterable[Sysctl]) -> None:
        for sysctl in switches:
            item: Item = ("sysctl", sysctl.name)
            if item in self._delayed:
                self._waiting.add(item)
                continue
            try:
                if self._record.set(sysctl):
                    log.info("switch set", sysctl=sysctl.name, value=sysctl.value)
                    self._done[item] = None
            except OSError as error:
                sentence = f"cannot set {sysctl.name} to {sysctl.value}: {error}"
                self._refused[item] = RefusedEntry(item, sentence, error.errno or 0)
