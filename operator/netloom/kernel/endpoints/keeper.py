"""The endpoints of a node under a keeper of their own: made and removed on request, and kept as they were made."""

from typing import Unpack

from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, Remains, Wired
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.netlink import wire


class EndpointsKeeper(Keeper[Endpoints, KeeperReport]):
    """`apply` hands over all endpoints that are known, once, after a start; from then on `wire` and `unwire` change
    that very object. Devices of endpoints that it does not hold are left alone until `prune`."""

    names = wire.NAMES
    nothing = Endpoints

    def __init__(self, **options: Unpack[KeeperOptions]) -> None:
        super().__init__((), **options)

    async def wire(self, endpoint: Endpoint, netns: int, inside: int) -> Wired:
        """Make the pair, and set up both ends: all of it or nothing.

        netns:  descriptor of the pod's network namespace. inside: descriptor of a NETLINK_ROUTE socket made in it. Both
        stay the caller's.
        A second call for the same container and interface without `unwire` between is refused (already-there), as CNI
        has it; what an earlier life left of it and nobody wants is replaced. Raises WiringFailed.
        """
        raise NotImplementedError

    async def unwire(self, container: str, interface: str) -> bool:
        """Have it no more: when this returns no route leads to it, and its addresses may be given to others. Whether
        there was something. The pair itself goes in the background, and before a `wire` that it would be in the way of.
        Raises WiringFailed (lost, refused), then it is to be called again."""
        raise NotImplementedError

    async def differences(self, endpoint: Endpoint, inside: int) -> list[str]:
        """What is not as `wire` made it, on both sides, as sentences; none: all is well. Raises WiringFailed."""
        raise NotImplementedError

    async def read_endpoints(self) -> list[Remains]:
        """What the kernel shows, whether wanted or not. Needs no capability."""
        raise NotImplementedError

    async def plan(self, desired: Endpoints) -> list[PlannedChange]:
        """What `apply` and `prune` would change. Writes nothing."""
        raise NotImplementedError

    @property
    def report(self) -> KeeperReport:
        """The state of things now."""
        return KeeperReport(**self._basics())
