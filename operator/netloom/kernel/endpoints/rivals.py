"""What takes packets to pods elsewhere though our routes are there: somebody's route that comes before ours, or a rule.

The kernel is asked where packets go: after each event about a foreign route to a pod's address, after each comparison,
and, while they go elsewhere, again and again. What is somebody else's is left alone, and said.
"""

from collections.abc import Callable
from functools import partial

from netloom.cidr import Cidr, format_address
from netloom.kernel.endpoints import row_messages
from netloom.kernel.endpoints.row_messages import METRIC, RouteKey, SeenPodRoute
from netloom.kernel.endpoints.rows import Rows
from netloom.kernel.keeper.part import Attempt, RefusedEntry, Worker
from netloom.kernel.keeper.retries import Item
from netloom.kernel.netlink.links import device_name
from netloom.kernel.netlink.sockets import BATCH


class RivalPodRoutes:
    """See the module. found: those of our routes that are passed by, and why. doubtful: prefixes to ask about."""

    def __init__(self, rows: Rows) -> None:
        self.found: dict[RouteKey, str] = {}
        self.doubtful: set[Cidr] = set()
        self._rows = rows

    def hear(self, seen: SeenPodRoute) -> None:
        """Somebody's route has come or gone."""
        if seen.key.prefix in self._rows.owners and may_come_first(seen):
            self.doubtful.add(seen.key.prefix)

    def doubt(self) -> None:
        """Whatever may have come or gone."""
        self.doubtful.update(self._rows.owners)

    async def look(self, worker: Worker, attempt: Attempt, whose: Callable[[Item], str]) -> list[RefusedEntry]:
        """Ask about what is in doubt, and about what is to be tried again. Raises OSError."""
        if not self.found and not self.doubtful:
            return []
        for key in [key for key in self.found if self._rows.standing(key.prefix) != key]:
            del self.found[key]
            self.doubtful.add(key.prefix)
        self.doubtful &= self._rows.owners.keys()
        again = {key.prefix for key in self.found if ("route", key) not in attempt.delayed}
        standing = {prefix: self._rows.standing(prefix) for prefix in self.doubtful | again}
        keys = {prefix.packed: key for prefix, key in standing.items() if key is not None}
        self.doubtful -= {key.prefix for key in keys.values()}  # what is not there yet is asked about when it is
        addresses, refused = list(keys), []
        for at in range(0, len(addresses), BATCH):
            some = addresses[at : at + BATCH]
            for address, ifindex, own in await worker.call(partial(row_messages.fib_lookups, addresses=some)):
                key = keys[address]
                if ifindex == key.ifindex and not own:
                    self.found.pop(key, None)
                    continue
                where = "the node itself" if own else device_name(ifindex) if ifindex else "nowhere"
                ask = f"ip {'-6 ' if len(address) == 16 else ''}route get {format_address(address)}"
                by = await worker.call(partial(row_messages.route_taken, address=address))
                self.found[key] = (
                    f"packets go to {where} all the same, by somebody's address, route or rule (`{ask}`)"
                    f"{f': {by}' if by else ''}. The pod gets none until whoever set that takes it away"
                )
                refused.append(RefusedEntry(("route", key), self.found[key], peer=whose(("route", key))))
        return refused


def may_come_first(seen: SeenPodRoute) -> bool:
    """Whether a foreign route takes packets before ours does, if it is to a pod's address."""
    return seen.key.metric < METRIC and seen.key.prefix.length == (32 if seen.key.prefix.version == 4 else 128)
