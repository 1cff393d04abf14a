"""What the keeper of the data path says about it."""

from netloom.kernel.keeper.report import KeeperReport
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.kernel.mesh.mesh import AddressConflict


class Report(KeeperReport, frozen=True, kw_only=True):
    """The state of the data path.

    mtu:      bytes, of pods; mtu_source says where it comes from. 0: not known.
    underlay: devices that carry the traffic between the nodes.
    tunnels:  those that are ready to receive.
    unreachable: peers that can only be reached natively, and are not on a network of this node.
    reading_seconds: what the reading of the kernel's tables took in the resyncs, in all.
    """

    peers: int = 0
    mtu: int = 0
    mtu_source: str = ""
    underlay: tuple[str, ...] = ()
    tunnels: tuple[Encapsulation, ...] = ()
    unreachable: tuple[str, ...] = ()
    conflicts: tuple[AddressConflict, ...] = ()
    reading_seconds: float = 0.0

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds all that is desired."""
        return super().in_sync and not self.conflicts and not self.unreachable
