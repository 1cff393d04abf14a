"""The data path: the mesh's tunnel devices and the rows on them, under one keeper."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import structlog

from netloom.cidr import Address, Cidr
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.forwarders import RestoringKeeper
from netloom.kernel.keeper.keeper import KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.mesh import reader
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.devices_part import MeshDevices
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.kernel.mesh.holes_part import MeshHoles
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.peer_claims import AddressConflict
from netloom.kernel.mesh.plan import planned_changes
from netloom.kernel.mesh.rivals import RivalRoute
from netloom.kernel.mesh.rows import DeviceState
from netloom.kernel.mesh.rows_part import MeshRows
from netloom.kernel.mesh.underlay import Astray
from netloom.kernel.mesh.withheld import WithheldRoute
from netloom.kernel.netlink.links import Link
from netloom.kernel.netlink.sockets import RefusedError
from netloom.kernel.netlink.wire import NAMES
from netloom.kernel.sysctl import SysctlRecord

log = structlog.get_logger(__name__)

RECORD = "sysctl.json"
"""Name of the record of switches in the run directory."""


class MeshReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the data path.

    mtu:      bytes, of pods; mtu_source says where it comes from. 0: not known.
    underlay: devices that carry the traffic between the nodes.
    tunnels:  those that are ready to receive.
    unreachable: peers that can only be reached natively, and are not on a network of this node: in which IP versions.
    withheld: pod CIDRs that are not routed, as a route to them would cut this node off.
    misplaced: of this node's own pod CIDRs, those that others cannot route for that reason.
    absent:   of the addresses that the node is said to have, those that are on no device.
    astray: peers whose addresses are no node's, by the devices that packets to them leave by.
    sources:  IPv4 addresses that it may send from, and is not said to have.
    connected: networks that other devices than ours, and those of own pods, are on.
    left_out: pod CIDRs of this node and the cluster's in which no unreachable route can be, and why.
    rivals:   foreign routes that take packets to peers' pods.
    reading_seconds: what the reading of the kernel's tables took in the resyncs, in all.
    """

    peers: int = 0
    mtu: int = 0
    mtu_source: str = ""
    underlay: tuple[str, ...] = ()
    tunnels: tuple[Encapsulation, ...] = ()
    unreachable: Mapping[str, tuple[int, ...]] = {}
    conflicts: tuple[AddressConflict, ...] = ()
    withheld: tuple[WithheldRoute, ...] = ()
    misplaced: tuple[WithheldRoute, ...] = ()
    absent: tuple[Address, ...] = ()
    astray: tuple[Astray, ...] = ()
    sources: tuple[Address, ...] = ()
    connected: tuple[Cidr, ...] = ()
    left_out: Mapping[Cidr, str] = {}
    rivals: tuple[RivalRoute, ...] = ()
    reading_seconds: float = 0.0

    @property
    def news(self) -> tuple[object, ...]:
        """An address, or somebody's route, comes and goes by an event, and nothing is written for it; nor for what is
        withheld."""
        more = (self.absent, self.withheld, self.misplaced, self.astray, self.sources, self.connected)
        return (*super().news, *more, self.rivals, self.left_out)

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds all that is desired."""
        return super().in_sync and not self.conflicts and not self.unreachable and not self.withheld


class MeshKeeper(RestoringKeeper[Desired, MeshReport]):
    """See the module."""

    names = NAMES
    nothing = Desired

    def __init__(
        self,
        *,
        run_directory: Path,
        retain_unknown: bool = False,
        **options: Unpack[KeeperOptions],
    ) -> None:
        """`retain_unknown`: the first state that is applied may lack peers that live; what an earlier life left in the
        kernel and no peer explains stays until `prune`."""
        self._record = SysctlRecord(run_directory / RECORD)
        self._mesh = Mesh()
        self._rows = MeshRows(self._mesh, retain_unknown=retain_unknown)
        self._devices = MeshDevices(self._rows, self._record)
        super().__init__((self._devices, self._rows, MeshHoles(self._mesh)), **options)

    async def open(self) -> None:
        """Open the sockets and read what is owned in the kernel. Writes nothing, needs no capability.

        Raises KernelUnsupported.
        """
        await super().open()
        worker = self._connect()
        try:
            interfaces = await worker.call(reader.read_interfaces)
            found = ((_encapsulation_of(link), link.ifindex) for link in interfaces.own_links())
            self._mesh.set_device_state(DeviceState({each: ifindex for each, ifindex in found if each is not None}))
            await self._read(self._rows, worker)
        except RefusedError as error:
            await self.close()
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                why = f"this kernel has no nexthop objects (Linux 5.3 or newer is needed): {error.refusal}"
                raise KernelUnsupported(why) from error
            raise

    async def free_node(self, servers: Mapping[Address, str]) -> None:
        """What has these addresses, and is called so, the node cannot do without: no route is made that takes them
        along, and what an earlier life left of that kind goes, before anything is applied."""
        async with self._lock:
            worker = self._connect()
            self._drain()
            removed = await self._rows.free_node(worker, servers)
            for key in removed:
                log.warning("a route of an earlier run cut this node off, and is removed", route=str(key))
        self._wake.set()

    @property
    def servers(self) -> Mapping[Address, str]:
        """What the node cannot do without, as `free_node` was told."""
        return self._rows.node_network.servers

    @servers.setter
    def servers(self, servers: Mapping[Address, str]) -> None:
        node_network = self._rows.node_network
        node_network.know(node_network.cidrs, node_network.claimed, servers)

    async def plan(self, desired: Desired) -> list[PlannedChange]:
        """What `apply` would change, in its order. Writes nothing, needs no capability."""
        async with self._lock:
            return await self._connect().call(
                lambda commands: planned_changes(commands, self._record, desired, self.servers)
            )

    @property
    def tunnels(self) -> tuple[Encapsulation, ...]:
        """Those that are ready to receive."""
        return tuple(sorted(self._mesh.device_state.tunnels))

    @property
    def absent(self) -> tuple[Address, ...]:
        """Of the addresses that the node is said to have, those that are on no device."""
        return self._devices.found.absent

    @property
    def connected(self) -> tuple[Cidr, ...]:
        """See `MeshReport`."""
        return self._mesh.withheld.lifelines.networks

    def lifeline_at(self, address: Address) -> str:
        """What this node lives by that has the address, as "a gateway of this node"; "" if nothing has. A local pod
        with it would cut the node off. O(log n)."""
        return self._mesh.withheld.lifeline_at(address)

    async def received(self, encapsulation: Encapsulation) -> int:
        """Packets that the tunnel's device has received since it was made."""
        ifindex = self._mesh.device_state.tunnels.get(encapsulation, 0)
        return await self._connect().call(lambda commands: reader.received(commands, ifindex)) if ifindex else 0

    @property
    def report(self) -> MeshReport:
        """The state of things now."""
        found, strict = self._devices.found, self._mesh.device_state.strict
        return MeshReport(
            **self._basics(),
            peers=len(self._mesh.peers),
            mtu=found.mtu.bytes,
            mtu_source=found.mtu.why,
            underlay=tuple(link.name for link in found.underlay),
            tunnels=self.tunnels,
            unreachable=dict(sorted(self._mesh.unreachable.items())) if strict else {},
            conflicts=tuple(self._mesh.claims.conflicts()),
            withheld=self._mesh.withheld.routes(),
            misplaced=self._mesh.withheld.of_own(self._rows.node_network.cidrs),
            absent=self.absent,
            astray=self._devices.astray,
            sources=self._devices.sources,
            connected=self.connected,
            left_out=self._mesh.holes.left_out,
            rivals=self._mesh.rivals.rivals(lambda cidr: self._mesh.peer_of("route", cidr)),
            reading_seconds=self._rows.reading_seconds,
        )


def _encapsulation_of(link: Link) -> Encapsulation | None:
    """The tunnel that this device of our name can serve as it is; None if none."""
    if link.kind not in ("vxlan", "geneve") or not link.up:
        return None
    encapsulation = Encapsulation("vxlan" if link.kind == "vxlan" else "geneve", link.port)
    return encapsulation if link.name == encapsulation.device and not device.unfit(link, encapsulation) else None
