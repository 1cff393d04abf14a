"""What stands on the host ends of pods' devices: routes to their addresses, and neighbours. Pure."""

from collections.abc import Collection
from typing import Any

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.reader import EndpointsSeen
from netloom.kernel.endpoints.row_messages import METRIC, PLAIN, RouteKey
from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.table import Table
from netloom.kernel.mac import Mac
from netloom.kernel.netlink.links import LocalAddress, device_name
from netloom.kernel.netlink.neighbours import NeighbourKey


class SurplusAddress(msgspec.Struct, frozen=True):
    """An address on a host end. None is to be there: the node is known to pods by its own."""

    ifindex: int
    local: LocalAddress

    def __str__(self) -> str:
        return f"{self.local} dev {device_name(self.ifindex)}"


class Rows:
    """What stands on the host ends. owners: host ends by the addresses of their endpoints, whether they are there or
    not."""

    def __init__(self) -> None:
        self.routes: Table[RouteKey, str] = Table()
        self.neighbours: Table[NeighbourKey, Mac] = Table()
        self.addresses: Table[SurplusAddress, str] = Table()
        self.owners: dict[Cidr, str] = {}
        self._wanted: dict[str, tuple[Endpoint, int]] = {}
        """By host end: its endpoint, and its ifindex; 0 while it is not there."""

    @property
    def tables(self) -> dict[str, Table[Any, Any]]:
        """By kind."""
        return {"address": self.addresses, "neighbour": self.neighbours, "route": self.routes}

    def want(self, device: str, endpoint: Endpoint | None, ifindex: int) -> None:
        """These rows for that host end; none where there is no endpoint, or (0) no device."""
        before, wanted = self._wanted.get(device), (endpoint, ifindex) if endpoint is not None else None
        if before == wanted:
            return
        if before is not None:
            for route in self._routes(device):
                self.routes.unwant(route)
                self.neighbours.unwant((route.ifindex, route.prefix.packed))
            for cidr in map(Cidr.of, before[0].addresses):
                if self.owners.get(cidr) == device:  # else another has it by now
                    del self.owners[cidr]
            del self._wanted[device]
        if endpoint is not None:
            self._wanted[device] = endpoint, ifindex
            for address in endpoint.addresses:
                self.owners[Cidr.of(address)] = device
            for route in self._routes(device):
                self.routes.want(route, PLAIN)
                self.neighbours.want((ifindex, route.prefix.packed), endpoint.pod_mac)

    def _routes(self, device: str) -> list[RouteKey]:
        endpoint, ifindex = self._wanted.get(device, (None, 0))
        return [RouteKey(Cidr.of(address), ifindex) for address in endpoint.addresses] if endpoint and ifindex else []

    def items(self, device: str) -> list[Item]:
        """The rows that are wanted for that host end."""
        routes = self._routes(device)
        return [*(("route", key) for key in routes), *(("neighbour", (k.ifindex, k.prefix.packed)) for k in routes)]

    def wrote(self, device: str) -> None:
        """All that is wanted for that host end is there."""
        for route in self._routes(device):
            self.routes.saw(route, PLAIN)
            neighbour = route.ifindex, route.prefix.packed
            self.neighbours.saw(neighbour, self.neighbours.desired[neighbour])

    def lost(self, device: str, ifindex: int, *, version: int = 0, neighbours_only: bool = False) -> None:
        """The kernel has dropped what stood on that host end, or one family of it."""
        for route in self._routes(device):
            if route.ifindex == ifindex and version in (0, route.prefix.version):
                self.neighbours.gone((ifindex, route.prefix.packed))
                if not neighbours_only:
                    self.routes.gone(route)

    def drop_pending(self, ifindex: int) -> None:
        """What nobody wants on a device that is gone is gone with it: a few, among what is pending."""
        for table in self.tables.values():
            for key in [key for key in table.pending if index_of(key) == ifindex and key not in table.desired]:
                table.gone(key)

    def in_the_way(self, key: RouteKey) -> bool:
        """Of one prefix and metric the kernel has one route: whether this one is where an endpoint's should be."""
        device = self.owners.get(key.prefix)
        usual = (key.metric, key.tos) == (METRIC, 0)
        return device is not None and usual and key.ifindex != self._wanted[device][1]

    def displaced(self, key: RouteKey) -> RouteKey | None:
        """The wanted one that this other has taken the place of."""
        if not self.in_the_way(key):
            return None
        ifindex = self._wanted[self.owners[key.prefix]][1]
        return RouteKey(key.prefix, ifindex) if ifindex else None

    def standing(self, prefix: Cidr) -> RouteKey | None:
        """The route to that address of an endpoint, if it is there."""
        device = self.owners.get(prefix)
        key = RouteKey(prefix, self._wanted[device][1]) if device is not None else None
        return key if key in self.routes.kernel and key not in self.routes.pending else None

    def on(self, ifindex: int) -> list[RouteKey]:
        """The routes on a device that nobody wants. Walks over all."""
        return [key for key in self.routes.kernel if key.ifindex == ifindex]

    def load(self, reading: EndpointsSeen) -> None:
        """All of it, as it was just read."""
        self.routes.load({seen.key: seen.content for seen in reading.routes})
        self.neighbours.load(dict(reading.neighbours))
        self.addresses.load({SurplusAddress(each.ifindex, each.local): "" for each in reading.addresses})

    def retain(self, unexplained: Collection[int]) -> None:
        """What is on these devices, and on none of ours that is known, is left alone."""
        known = {key.ifindex for key in self.routes.desired}
        undesired = self.routes.kernel.keys() - self.routes.desired.keys()
        self.routes.retain({key for key in undesired if key.ifindex not in known and not self.in_the_way(key)})
        self.neighbours.retain({key for key in self.neighbours.kernel if key[0] in unexplained})
        self.addresses.retain({key for key in self.addresses.kernel if key.ifindex in unexplained})


def index_of(key: Any) -> int:
    """The ifindex of the device that a row is on."""
    return int(key[0] if isinstance(key, tuple) else key.ifindex)
