"""The probe's device under a keeper of its own, and what is asked of the kernel on the way to a peer."""

from typing import Unpack

import msgspec

from netloom.cidr import Address
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.fib_lookup import outgoing
from netloom.kernel.netlink.links import Link, dump_links, read_link
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.ownership import DEVICE_PREFIX
from netloom.kernel.probe import tun
from netloom.kernel.probe.part import ProbeDevice, ProbeNode


class Egress(msgspec.Struct, frozen=True):
    """How packets to an address leave, says the kernel: by which device, through a tunnel (`vxlan`, `geneve`) to which
    UDP port or without one (`native`), and how large they may be (bytes; the least of all tunnels' and the device's, as
    that is the pods' MTU). device "": no route leads there."""

    device: str = ""
    kind: str = "native"
    port: int = 0
    mtu: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.port}" if self.port else self.kind


class ProbeKeeper(Keeper[ProbeNode, KeeperReport]):
    """See the module."""

    names = wire.NAMES
    nothing = ProbeNode

    def __init__(self, **options: Unpack[KeeperOptions]) -> None:
        self.device = ProbeDevice()
        super().__init__((self.device,), **options)

    async def close(self) -> None:
        """Close the sockets and the device, which stays."""
        self.device.close()
        await super().close()

    async def plan(self, desired: ProbeNode) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing. Raises KernelUnsupported."""
        if desired.addresses and not tun.is_there():
            raise KernelUnsupported(f"{tun.PATH} is not there: load the module `tun`")
        async with self._lock:
            return await self._connect().call(lambda commands: self.device.plan(commands, desired))

    def look_again(self) -> None:
        """Soon: something suggests that the device, or a route to it, is not as it should be."""
        self.device.doubt()
        self._wake.set()

    async def ways(self, addresses: list[Address]) -> list[Egress]:
        """To each of these."""
        return await self._connect().call(lambda commands: _ways(commands, addresses))

    @property
    def report(self) -> KeeperReport:
        """The state of things now."""
        return KeeperReport(**self._basics())


def _ways(commands: CommandSocket, addresses: list[Address]) -> list[Egress]:
    links = {link.ifindex: link for link in read_all(commands, dump_links(), read_link)}
    tunnels = [each.mtu for each in links.values() if each.name.startswith(DEVICE_PREFIX) and each.external and each.up]
    found = dict(outgoing(commands, addresses))
    return [_way(links.get(found[address]), tunnels) for address in addresses]


def _way(link: Link | None, tunnels: list[int]) -> Egress:
    if link is None:
        return Egress()
    mtu = min([link.mtu, *tunnels])
    if link.external and link.kind in ("vxlan", "geneve"):
        return Egress(link.name, link.kind, link.port, mtu)
    return Egress(link.name, mtu=mtu)
