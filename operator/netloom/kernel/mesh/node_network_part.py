"""The node's own devices, addresses and routes, for who makes none of them: read once, or followed by event."""

from collections.abc import Callable, Iterable
from typing import Unpack

from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.report import KeeperReport
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.mesh.lifelines import NodeNetwork
from netloom.kernel.mesh.node_network import SeenNodeNetwork, read_node_route
from netloom.kernel.mesh.reader import load_node_network
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import is_endpoint, read_address, read_link
from netloom.kernel.netlink.sockets import once
from netloom.kernel.ownership import Ownership


async def read_node_network() -> NodeNetwork:
    """As they are now, in the network namespace of this thread. Raises OSError."""
    found = SeenNodeNetwork()
    await once(lambda commands: load_node_network(commands, found))
    return found.current()


class NodeNetworkPart(Part[bool]):
    """It owns nothing. known: how things are, without pods' and Netloom's own devices; None: they are not followed.
    readings: how often all was read. changed: is called when what is known is something else."""

    owns = Ownership()
    state = ("dump", "the node's devices, addresses and routes")
    groups = ("link", "ipv4-addr", "ipv6-addr", "ipv4-route", "ipv6-route")
    hears_peers = False
    due = False
    kinds = frozenset(
        (
            *(wire.RTM_NEWLINK, wire.RTM_DELLINK, wire.RTM_NEWADDR, wire.RTM_DELADDR),
            *(wire.RTM_NEWROUTE, wire.RTM_DELROUTE),
        )
    )

    def __init__(self, changed: Callable[[], None]) -> None:
        self.known: NodeNetwork | None = None
        self.readings = 0
        self._changed = changed
        self._followed = False
        self._seen = SeenNodeNetwork()

    def want(self, desired: bool, retries: Retries) -> None:
        """Whether they are followed."""
        if desired != self._followed:
            self._followed, self.due, self.known, self._seen = desired, desired, None, SeenNodeNetwork()

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """A device, an address or a route that came or went; what is Netloom's own is no news."""
        if not self._followed:
            return
        around = self._seen
        if kind in (wire.RTM_NEWLINK, wire.RTM_DELLINK):
            link = None if is_endpoint(buffer, start, end) else read_link(buffer, start, end)
            if link is not None:
                around.saw_link(link, gone=kind == wire.RTM_DELLINK)
                self.due = True  # one that is new may be meant, before it has an address
        elif kind in (wire.RTM_NEWADDR, wire.RTM_DELADDR):
            address = read_address(buffer, start, end)
            if address is not None:
                around.saw_address(address, gone=kind == wire.RTM_DELADDR)
        else:
            route = read_node_route(buffer, start, end)
            if route is not None:
                replaced = bool(flags & wire.REPLACE) and kind == wire.RTM_NEWROUTE
                around.saw_route(route, gone=kind == wire.RTM_DELROUTE, replaced=replaced)
        self.due = self.due or around.fresh or around.due

    def doubt(self) -> None:
        """An event may have been lost."""
        self._seen.due = True
        self.due = self._followed

    async def read(self, worker: Worker) -> bool:
        """All of it, where that is in doubt."""
        if self._followed and self._seen.due:
            self.readings += 1
            await worker.call(lambda commands: load_node_network(commands, self._seen))
        return False

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Say so if they are others."""
        self.due = False
        if self._followed:
            found = self._seen.current()
            devices = {index: each for index, each in found.devices.items() if not each.ours}
            now = NodeNetwork(devices, frozenset(found.routes), frozenset(found.addresses))
            before, self.known = self.known, now
            if before not in (None, now):
                self._changed()
        return Outcome()

    def pending(self) -> Iterable[Item]:
        """Nothing is made."""
        return ()


class NodeNetworkKeeper(Keeper[bool, KeeperReport]):
    """Follows them from when it is first asked until it is told to leave. Until then it has no socket and no thread."""

    names = wire.NAMES
    nothing = bool

    def __init__(self, changed: Callable[[], None], **options: Unpack[KeeperOptions]) -> None:
        """changed: is called when they are others than `around` has said."""
        self.part = NodeNetworkPart(changed)
        self._is_open = False
        super().__init__((self.part,), **options)

    async def open(self) -> None:
        """Nothing yet."""

    async def close(self) -> None:
        """Close what is open."""
        if self._is_open:
            await super().close()

    async def around(self) -> NodeNetwork:
        """As they are now. Raises OSError where they cannot be read."""
        if not self._is_open:
            self._is_open = True
            await super().open()
        if self.part.known is None:
            await self.apply(True)
        if self.part.known is None:
            raise OSError("; ".join(str(each) for each in self.report.failures))
        return self.part.known

    async def leave(self) -> None:
        """Nobody asks any more."""
        if self.part.known is not None:
            await self.apply(False)

    async def prune(self) -> None:
        """There is nothing to go."""

    @property
    def report(self) -> KeeperReport:
        """The state of things now."""
        return KeeperReport(**self._basics())
