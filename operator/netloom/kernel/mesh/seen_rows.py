"""What the kernel is known to hold of the mesh's rows: by dumps, and by its events. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from netloom.kernel.keeper.table import Table
from netloom.kernel.mac import Mac
from netloom.kernel.mesh.holes import Holes
from netloom.kernel.mesh.nexthop_ids import NexthopIds
from netloom.kernel.mesh.rivals import ForeignRoute, RivalRoutes
from netloom.kernel.mesh.rows import (
    EDITED,
    Nexthop,
    OddRoute,
    PeerRows,
    RouteContent,
    RouteKey,
    SeenNexthop,
    SeenRoute,
)
from netloom.kernel.netlink.neighbours import NeighbourKey
from netloom.kernel.netlink.wire import EXCL, REPLACE
from netloom.kernel.ownership import NEXTHOP_IDS


class RowTables(NamedTuple):
    """Of the mesh: what is desired, what is known to be there, and what differs."""

    nexthops: Table[int, Nexthop]
    neighbours: Table[NeighbourKey, Mac]
    routes: Table[RouteKey, RouteContent]


class SeenRows:
    """Notes in the tables what is seen. rows: those that peers should have, by name."""

    def __init__(
        self,
        tables: RowTables,
        ids: NexthopIds,
        rows: Mapping[str, PeerRows],
        rivals: RivalRoutes,
        holes: Holes,
    ) -> None:
        self._nexthops, self._neighbours, self._routes = tables
        self._ids = ids
        self._rows = rows
        self._rivals = rivals
        self._holes = holes

    def load(
        self,
        nexthops: Iterable[SeenNexthop],
        neighbours: dict[NeighbourKey, Mac],
        routes: Sequence[SeenRoute],
        foreign: Sequence[ForeignRoute] = (),
    ) -> None:
        """Replace what is known of the kernel by full dumps (routes and neighbours: owned ones only; `foreign`: others'
        that may come before ours)."""
        nexthops = list(nexthops)
        owned = {seen.id: seen.value for seen in nexthops if seen.owned}
        self._ids.load(owned, (seen.id for seen in nexthops if not seen.owned and seen.id in NEXTHOP_IDS))
        self._nexthops.load(owned)
        self._neighbours.load(neighbours)
        self._holes.load(routes)
        self._routes.load(self._rivals.load([seen for seen in routes if seen.owned], foreign))

    def saw_route(self, seen: SeenRoute, *, replaced: bool) -> bool:
        """A route was made or changed. Returns whether it concerns us.

        A foreign route that *replaced* ours is an edit of ours, and repaired. One that was there first is foreign.
        """
        if seen.owned:
            self._routes.saw(seen.key, seen.content)
        elif replaced and seen.key in self._routes.kernel:
            self._routes.saw(seen.key, EDITED)
        else:
            return seen.key in self._routes.desired
        return True

    def is_second(self, key: RouteKey, flags: int) -> bool:
        """Whether a route of ours that was made, as these flags of the event say, is one more under its key. (An IPv6
        route of several ways looks like one, whether or not another is there.)"""
        version = key.prefix.version if isinstance(key, OddRoute) else key.version
        return not flags & (EXCL | REPLACE) and (version == 4 or key in self._routes.kernel)

    def lost_route(self, seen: SeenRoute) -> bool:
        """A route was deleted. Returns whether it concerns us."""
        if seen.owned or self._routes.kernel.get(seen.key) == EDITED:
            self._routes.gone(seen.key)
            return True
        return seen.key in self._routes.desired

    def saw_nexthop(self, seen: SeenNexthop) -> bool:
        """A nexthop was made or changed. Returns whether it concerns us."""
        if seen.id not in NEXTHOP_IDS:
            return False
        if seen.owned:
            self._nexthops.saw(seen.id, seen.value)
        elif seen.id in self._nexthops.kernel:
            edited = msgspec.structs.replace(seen.value, extra=b"foreign protocol")
            self._nexthops.saw(seen.id, edited)
        else:
            self._ids.foreign.add(seen.id)
        return True

    def lost_nexthops(self, ids: set[int]) -> None:
        """Nexthops were deleted, and with them, without another word, all routes that used them."""
        self._ids.foreign -= ids
        for identity in ids:
            self._nexthops.gone(identity)
            for rows in self._rows.get(self._ids.peer_of.get(identity, ""), ()):
                for prefix in rows.prefixes:
                    if self._routes.kernel.get(prefix, EDITED).nexthop == identity:
                        self._routes.gone(prefix)
        # Only a route that is not as desired can use another nexthop than its peer's own.
        for key in [key for key in self._routes.pending if self._routes.kernel.get(key, EDITED).nexthop in ids]:
            self._routes.gone(key)

    def saw_neighbour(self, key: NeighbourKey, mac: Mac) -> bool:
        """A neighbour on our device was made or changed (EDITED_MAC: no longer permanent). Whether it concerns us."""
        if mac or key in self._neighbours.desired:
            self._neighbours.saw(key, mac)
            return True
        self._neighbours.gone(key)
        return False

    def lost_neighbour(self, key: NeighbourKey) -> bool:
        """A neighbour on our device was deleted. Returns whether it concerns us."""
        self._neighbours.gone(key)
        return key in self._neighbours.desired
