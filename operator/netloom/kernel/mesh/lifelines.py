"""What this node itself lives by, and which prefixes may therefore not be routed elsewhere.

A route is taken for every address that no longer prefix covers. So a route to somebody's pod CIDR takes the traffic of
this node itself along if the CIDR

- lies in a network that the node is connected to: its machines are sent into the mesh, even where nobody knows of them;
- holds a gateway, another node or the API server, and no connected network within the CIDR leads there. A node whose
  tunnel packets are themselves sent into the tunnel is lost, too.

A CIDR *around* a connected network does that network no harm, as the longer prefix wins. Not connected networks are a
default route that goes by a device without a gateway, and what somebody routes into a point-to-point device: there only
the address that the device has makes a network. The networks of the node's own pods (a bridge, a veth) are no lifeline,
however wide they are made; nor is what is link-local.

Pure. Costs: a question about a prefix that is near none of all this is one look-up, any other a few and a bisection. A
node's address costs its place in a list.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from netloom.cidr import WIDTH, Address, Cidr, Version, format_address

WIDEST: dict[Version, int] = {4: 8, 6: 16}
"""Prefix lengths below these are those of a default route, or of a part of one (0.0.0.0/1, 2000::/3)."""

_NEAR: dict[Version, int] = {4: 16, 6: 32}
"""Of so many leading bits it is remembered whether a lifeline has them."""
_FEW = 32
_LINK_LOCAL = (Cidr.parse("169.254.0.0/16"), Cidr.parse("fe80::/10"))
_MULTICAST = (Cidr.parse("224.0.0.0/4"), Cidr.parse("ff00::/8"))

_VERSION: dict[int, Version] = {4: 4, 16: 6}


class Device(msgspec.Struct, frozen=True):
    """A device of the node. `narrow`: point-to-point or without ARP, so that it has one other end, or none that can be
    asked for. `ours`: made by Netloom."""

    name: str
    narrow: bool = False
    ours: bool = False


class NodeRoute(msgspec.Struct, frozen=True, gc=False):
    """Somebody's route of the main table. `hops`: (ifindex, gateway) of each way; no gateway (empty): on the device's
    network. `automatic`: the kernel made it for an address of the device."""

    destination: Cidr
    hops: tuple[tuple[int, Address], ...]
    metric: int = 0
    automatic: bool = False

    @property
    def wide(self) -> bool:
        """Whether it is a default route, or a part of one."""
        return self.destination.length < WIDEST[self.destination.version]


class Surroundings(msgspec.Struct, frozen=True):
    """The node's devices, routes and addresses, as the kernel shows them; and what they are held against.

    addresses: (ifindex, address) of each address on a device. cidrs: the node's own pod CIDRs. claimed: addresses that
    the node is known by. servers: addresses that it cannot do without, and what each is.
    """

    devices: Mapping[int, Device] = {}
    routes: Collection[NodeRoute] = ()
    addresses: Collection[tuple[int, Address]] = ()
    cidrs: Collection[Cidr] = ()
    claimed: Collection[Address] = ()
    servers: Mapping[Address, str] = {}

    def devices_of_pods(self) -> set[int]:
        """ifindexes of the devices that lead to own pods: they have an address of theirs, and none of the node's."""
        found = {index for index, address in self.addresses if any(_holds(cidr, address) for cidr in self.cidrs)}
        return found - {index for index, address in self.addresses if address in self.claimed}


class _Addresses:
    """Addresses of one family, in order; an address that is added twice is there twice."""

    __slots__ = ("_added", "_all")

    def __init__(self) -> None:
        self._all: list[Address] = []
        self._added: list[Address] = []

    def add(self, address: Address) -> None:
        self._added.append(address)

    def remove(self, address: Address) -> None:
        every = self.sorted()
        del every[bisect_left(every, address)]

    def sorted(self) -> list[Address]:
        if len(self._added) > _FEW:
            self._all += self._added
            self._all.sort()
        else:
            for address in self._added:
                insort(self._all, address)
        self._added.clear()
        return self._all


class Lifelines:
    """See the module."""

    def __init__(self) -> None:
        self._networks: dict[Cidr, str] = {}
        """Connected networks, with the name of a device of each."""
        self._direct: set[Cidr] = set()
        """All that leads to a device: what lies in it is not taken along by a shorter prefix."""
        self._points: dict[Address, str] = {}
        self._sorted_points: dict[Version, list[Address]] = {4: [], 6: []}
        self._local: frozenset[Address] = frozenset()
        self._lengths: dict[Version, list[int]] = {4: [], 6: []}
        self._nodes: dict[Version, _Addresses] = {4: _Addresses(), 6: _Addresses()}
        self._near: dict[Version, set[int]] = {4: set(), 6: set()}
        self._near_all: set[Version] = set()

    def see(self, around: Surroundings) -> set[Cidr]:
        """Take in how things are now. Returns the prefixes and addresses about which that is something new."""
        before = self._networks, self._direct, self._points, self._local
        pods = around.devices_of_pods()
        self._local = frozenset(address for _, address in around.addresses)
        self._networks, self._direct, self._points = {}, set(), dict(around.servers)
        for route in around.routes:
            self._take(route, around.devices, pods)
        for version in self._lengths:
            self._lengths[version] = sorted({each.length for each in self._direct if each.version == version})
        for network in self._networks:
            self._come_near(network)
        self._sorted_points = {4: [], 6: []}
        for address in sorted(self._points):
            self._sorted_points[_VERSION[len(address)]].append(address)
            self._come_near(Cidr.of(address))
        networks, direct, points, local = before
        changed = networks.keys() ^ self._networks.keys() | direct ^ self._direct
        return changed | {Cidr.of(address) for address in points.keys() ^ self._points.keys() | local ^ self._local}

    def _take(self, route: NodeRoute, devices: Mapping[int, Device], pods: Collection[int]) -> None:
        destination = route.destination
        for ifindex, gateway in route.hops:
            device = devices.get(ifindex, Device(f"#{ifindex}"))
            if device.ours:
                continue
            if gateway:
                # A route by a gateway inside itself (as flannel's to another node's pods) is nothing to live by.
                foreign = route.wide or not _holds(destination, gateway)
                if foreign and ifindex not in pods and not _is_link_local(Cidr.of(gateway)):
                    self._points.setdefault(gateway, "a gateway of this node")
            elif not route.wide:
                self._direct.add(destination)
                connected = route.automatic or not device.narrow
                if connected and ifindex not in pods and not _is_link_local(destination):
                    self._networks.setdefault(destination, device.name)

    def add_node(self, address: Address) -> None:
        """Another node has this address, too."""
        version = _VERSION[len(address)]
        self._nodes[version].add(address)
        self._near[version].add(int.from_bytes(address[: _NEAR[version] // 8], "big"))

    def remove_node(self, address: Address) -> None:
        """One less."""
        self._nodes[_VERSION[len(address)]].remove(address)

    def network_in(self, prefix: Cidr) -> str:
        """A network of the node's own inside the prefix, as the end of a sentence; empty if there is none. A route to
        the prefix does not harm that network itself."""
        inner = [network for network in self._networks if prefix.contains(network)]
        return f"it holds {min(inner)}, a network of this node ({self._networks[min(inner)]})" if inner else ""

    def harm(self, prefix: Cidr, counts: Callable[[Address], bool] = lambda _address: True) -> str:
        """Why a route to this prefix would cut the node off: "it lies in ..." or "it holds ..."; empty if it would not.
        `counts` is asked whether a node's address inside it is a reason."""
        version, near = prefix.version, _NEAR[prefix.version]
        if (
            prefix.length >= near
            and prefix.base >> (WIDTH[version] - near) not in self._near[version]
            and version not in self._near_all
        ):
            return ""
        return " and ".join(self._reasons(prefix, counts))

    def _reasons(self, prefix: Cidr, counts: Callable[[Address], bool]) -> Iterator[str]:
        for network in self._around(prefix):
            if (device := self._networks.get(network)) is not None:
                yield f"it lies in {network}, a network of this node ({device})"
                break
        for address in self._taken_along(self._sorted_points[prefix.version], prefix):
            yield f"it holds {format_address(address)}, {self._points[address]}"
        for address in self._taken_along(self._nodes[prefix.version].sorted(), prefix):
            if address not in self._points and counts(address):
                yield f"it holds {format_address(address)}, the address of a node"
                return

    def _taken_along(self, addresses: Sequence[Address], prefix: Cidr) -> Iterator[Address]:
        """Of these addresses (in order), those that a route to the prefix would take along."""
        at, end = bisect_left(addresses, prefix.packed), bisect_right(addresses, _last(prefix))
        while at < end:
            address = addresses[at]
            inner = self._shelter(address, prefix)
            if inner is None:
                yield address
                at += 1
            else:  # all that it holds is safe
                at = max(at + 1, bisect_right(addresses, _last(inner), at, end))

    def _shelter(self, address: Address, prefix: Cidr) -> Cidr | None:
        """What leads to an address though a route to the prefix around it is made."""
        whole = Cidr.of(address)
        if address in self._local:
            return whole
        longer = [length for length in self._lengths[prefix.version] if length > prefix.length]
        return next((each for length in longer if (each := whole.supernet(length)) in self._direct), None)

    def _around(self, prefix: Cidr) -> Iterator[Cidr]:
        lengths = self._lengths[prefix.version]
        return (prefix.supernet(length) for length in reversed(lengths) if length <= prefix.length)

    def _come_near(self, prefix: Cidr) -> None:
        version, near = prefix.version, _NEAR[prefix.version]
        if prefix.length < near:
            self._near_all.add(version)
        else:
            self._near[version].add(prefix.base >> (WIDTH[version] - near))


def _holds(prefix: Cidr, address: Address) -> bool:
    return prefix.contains(Cidr.of(address))


def _last(prefix: Cidr) -> Address:
    return prefix.last.to_bytes(WIDTH[prefix.version] // 8, "big")


def _is_link_local(prefix: Cidr) -> bool:
    return any(each.contains(prefix) for each in (*_LINK_LOCAL, *_MULTICAST))
