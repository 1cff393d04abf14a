"""What stands on the host ends of pods' devices: routes to their addresses, and neighbours. Pure."""

from collections.abc import Collection
from typing import Any

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.endpoints import row_messages
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.reader import Reading
from netloom.kernel.endpoints.row_messages import PLAIN, NeighbourKey, RouteKey
from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.table import Table
from netloom.kernel.mac import Mac
from netloom.kernel.netlink.links import LocalAddress


class SurplusAddress(msgspec.Struct, frozen=True):
    """An address on a host end. None is to be there: the node is known to pods by its own."""

    ifindex: int
    local: LocalAddress

    def __str__(self) -> str:
        return f"{self.local} dev {row_messages.device_name(self.ifindex)}"


class Rows:
    """What stands on the host ends. wanted: by the host end's name, the keys that are wanted for its endpoint."""

    def __init__(self) -> None:
        self.routes: Table[RouteKey, str] = Table()
        self.neighbours: Table[NeighbourKey, Mac] = Table()
        self.addresses: Table[SurplusAddress, str] = Table()
        self._wanted: dict[str, tuple[list[RouteKey], list[NeighbourKey]]] = {}
        self._route_to: dict[Cidr, RouteKey] = {}
        self.owners: dict[Cidr, str] = {}
        """Host ends by the addresses that are wanted on them."""

    @property
    def tables(self) -> dict[str, Table[Any, Any]]:
        """By kind."""
        return {"address": self.addresses, "neighbour": self.neighbours, "route": self.routes}

    def want(self, device: str, endpoint: Endpoint | None, ifindex: int) -> None:
        """These rows for that host end; none where there is no endpoint, or no device."""
        routes = [RouteKey(Cidr.of(address), ifindex) for address in endpoint.addresses] if endpoint and ifindex else []
        neighbours = [(ifindex, key.prefix.packed) for key in routes]
        before = self._wanted.get(device, ([], []))
        if before == (routes, neighbours):
            return
        for route in before[0]:
            self.routes.unwant(route)
            if self._route_to.get(route.prefix) == route:
                del self._route_to[route.prefix], self.owners[route.prefix]
        for neighbour in before[1]:
            self.neighbours.unwant(neighbour)
        for route, neighbour in zip(routes, neighbours, strict=True):
            self.routes.want(route, PLAIN)
            self.neighbours.want(neighbour, endpoint.pod_mac if endpoint else b"")
            self._route_to[route.prefix], self.owners[route.prefix] = route, device
        if routes:
            self._wanted[device] = routes, neighbours
        else:
            self._wanted.pop(device, None)

    def items(self, device: str) -> list[Item]:
        """The rows that are wanted for that host end."""
        routes, neighbours = self._wanted.get(device, ([], []))
        return [*(("route", key) for key in routes), *(("neighbour", key) for key in neighbours)]

    def wrote(self, device: str) -> None:
        """All that is wanted for that host end is there."""
        routes, neighbours = self._wanted.get(device, ([], []))
        for route in routes:
            self.routes.saw(route, PLAIN)
        for neighbour in neighbours:
            self.neighbours.saw(neighbour, self.neighbours.desired[neighbour])

    def lost(self, device: str, ifindex: int, *, version: int = 0, neighbours_only: bool = False) -> None:
        """The kernel has dropped what stood on that host end, or one family of it."""
        routes, neighbours = self._wanted.get(device, ([], []))
        for route in routes:
            if route.ifindex == ifindex and not neighbours_only and version in (0, route.prefix.version):
                self.routes.gone(route)
        for neighbour in neighbours:
            if neighbour[0] == ifindex and version in (0, 4 if len(neighbour[1]) == 4 else 6):
                self.neighbours.gone(neighbour)

    def drop_pending(self, ifindex: int) -> None:
        """What nobody wants on a device that is gone is gone with it: a few, among what is pending."""
        for table in self.tables.values():
            for key in [key for key in table.pending if index_of(key) == ifindex and key not in table.desired]:
                table.gone(key)

    def displaced(self, key: RouteKey) -> RouteKey | None:
        """Of one prefix and metric the kernel has one route: the wanted one that this other stands in the place of."""
        wanted = self._route_to.get(key.prefix)
        if wanted is None or wanted == key or (wanted.metric, wanted.tos) != (key.metric, key.tos):
            return None
        return wanted

    def on(self, ifindex: int) -> list[RouteKey]:
        """The routes on a device that nobody wants. Walks over all."""
        return [key for key in self.routes.kernel if key.ifindex == ifindex]

    def load(self, reading: Reading) -> None:
        """All of it, as it was just read."""
        self.routes.load({seen.key: seen.content for seen in reading.routes})
        self.neighbours.load(dict(reading.neighbours))
        self.addresses.load({SurplusAddress(each.ifindex, each.local): "" for each in reading.addresses})

    def retain(self, strangers: Collection[int]) -> None:
        """What is on these devices, and on none of ours that is known, is left alone."""
        known = {key.ifindex for key in self.routes.desired}
        undesired = self.routes.kernel.keys() - self.routes.desired.keys()
        self.routes.retain({key for key in undesired if key.ifindex not in known and not self.displaced(key)})
        self.neighbours.retain({key for key in self.neighbours.kernel if key[0] in strangers})
        self.addresses.retain({key for key in self.addresses.kernel if key.ifindex in strangers})


def index_of(key: Any) -> int:
    """The ifindex of the device that a row is on."""
    return int(key[0] if isinstance(key, tuple) else key.ifindex)
