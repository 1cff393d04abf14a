"""What this node itself lives by, and which prefixes may therefore not be routed elsewhere.

A route is taken for every address that no longer prefix covers. So a route to somebody's pod CIDR takes the traffic of
this node itself along if the CIDR

- lies in a network that the node is connected to: its machines are sent into the mesh, even where nobody knows of them;
- holds a gateway, another node or the API server, and no connected network within the CIDR leads there. A node whose
  tunnel packets are themselves sent into the tunnel is lost, too.

A CIDR *around* a connected network does that network no harm, as the longer prefix wins. A connected network is what an
address of the node makes one, or a router or DHCP server says to be one. What somebody routes to a device without a
gateway is none (a default route, a VPN's 10.0.0.0/8). The networks of the node's own pods (a bridge, a veth) are no
lifeline, however wide they are made; nor is what is link-local.

Pure. Costs: a question about a prefix that is near none of all this is one look-up, any other a few and a bisection. A
node's address costs its place in a list.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from netloom.cidr import LINK_LOCAL, MULTICAST, WIDTH, Address, Cidr, Version, format_address, version_of
from netloom.cidr.interval_set import span

WIDEST: dict[Version, int] = {4: 8, 6: 16}
"""Prefix lengths below these are those of a default route, or of a part of one (0.0.0.0/1, 2000::/3)."""

NEAR: dict[Version, int] = {4: 16, 6: 32}
"""Of so many leading bits it is remembered whether a lifeline has them."""

FAR_BITS: dict[Version, int] = {version: WIDTH[version] - bits for version, bits in NEAR.items()}
"""How many bits come after these."""
_FEW = 32


class Device(msgspec.Struct, frozen=True):
    """A device of the node. `ours`: made by Netloom."""

    name: str
    ours: bool = False


class NodeRoute(msgspec.Struct, frozen=True, gc=False):
    """Somebody's route of the main table. `hops`: (ifindex, gateway) of each way; no gateway (empty): on the device's
    network. `connected`: it is there because that network is."""

    destination: Cidr
    hops: tuple[tuple[int, Address], ...]
    metric: int = 0
    connected: bool = False

    @property
    def wide(self) -> bool:
        """Whether it is a default route, or a part of one."""
        return self.destination.length < WIDEST[self.destination.version]


class NodeNetwork(msgspec.Struct, frozen=True):
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
        found = {index for index, address in self.addresses if any(cidr.holds(address) for cidr in self.cidrs)}
        return found - {index for index, address in self.addresses if address in self.claimed}


class _All(set[int]):
    """The set that holds everything."""

    def __contains__(self, _: object) -> bool:
        return True


class _Addresses:
    """Addresses of one family, in order; an address that is added twice is there twice. `added` are not in order yet.
    Their leading bits are noted in `near`."""

    __slots__ = ("_all", "_bytes", "added", "near")

    def __init__(self, version: Version, near: set[int]) -> None:
        self.added: list[Address] = []
        self.near = near
        self._all: list[Address] = []
        self._bytes = NEAR[version] // 8

    def remove(self, address: Address) -> None:
        every = self.sorted()
        del every[bisect_left(every, address)]

    def sorted(self) -> list[Address]:
        if self.added:
            if len(self.added) > _FEW:
                self._all += self.added
                self._all.sort()
            else:
                for address in self.added:
                    insort(self._all, address)
            self.near.update(int.from_bytes(each, "big") for each in {each[: self._bytes] for each in self.added})
            self.added.clear()
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
        self._near: dict[Version, set[int]] = {4: set(), 6: set()}
        self._nodes = {4: _Addresses(4, self._near[4]), 6: _Addresses(6, self._near[6])}
        self._added = {4: self._nodes[4].added, 16: self._nodes[6].added}

    @property
    def networks(self) -> tuple[Cidr, ...]:
        """Networks that the node is connected to, in order; not single addresses."""
        return tuple(sorted(each for each in self._networks if each.length < WIDTH[each.version]))

    def see(self, around: NodeNetwork) -> set[Cidr]:
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
            self._sorted_points[version_of(address)].append(address)
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
                foreign = route.wide or not destination.holds(gateway)
                if foreign and ifindex not in pods and not is_link_local(Cidr.of(gateway)):
                    self._points.setdefault(gateway, "a gateway of this node")
            elif not route.wide:
                self._direct.add(destination)
                if route.connected and ifindex not in pods and not is_link_local(destination):
                    self._networks.setdefault(destination, device.name)

    def move_node(self, before: Iterable[Address], after: Iterable[Address]) -> None:
        """A node has these addresses instead of those; another may have the same."""
        for address in after:
            self._added[len(address)].append(address)
        for address in before:
            self._nodes[version_of(address)].remove(address)

    def network_in(self, prefix: Cidr) -> str:
        """A network of the node's own inside the prefix, as the end of a sentence; empty if there is none. A route to
        the prefix does not harm that network itself."""
        inner = [network for network in self._networks if prefix.contains(network)]
        return f"it holds {min(inner)}, a network of this node ({self._networks[min(inner)]})" if inner else ""

    def harm(self, prefix: Cidr, whose: Callable[[Address], str] = lambda _: "a node") -> str:
        """Why a route to this prefix would cut the node off: "it lies in ..." or "it holds ..."; empty if it would not.
        `whose` is asked for the name of the node with an address inside it; empty: that is no reason."""
        return ", and ".join(self._reasons(prefix, whose)) if self.is_near(prefix) else ""

    def holds_point(self, prefix: Cidr) -> bool:
        """Whether a route to the prefix would take a gateway or a server along."""
        if not self.is_near(prefix):
            return False
        return any(True for _ in self._taken_along(self._sorted_points[prefix.version], prefix))

    def at(self, address: Address, whose: Callable[[Address], str]) -> str:
        """What the node lives by that has this address: "a gateway of this node"; empty if nothing has. Of its own
        addresses none: what leads to them comes before all routes. `whose`: see `harm`."""
        if address in self._local:
            return ""
        if address in self._points:
            return self._points[address]
        nodes = self._nodes[version_of(address)].sorted()
        at = bisect_left(nodes, address)
        name = whose(address) if at < len(nodes) and nodes[at] == address else ""
        return f"the address of {name}" if name else ""

    def takes_along(self, prefix: Cidr, address: Address) -> bool:
        """Whether a route to the prefix would take this address along."""
        return prefix.holds(address) and self._shelter(address, prefix) is None

    @property
    def near(self) -> Mapping[Version, Collection[int]]:
        """The leading `NEAR` bits of whatever is a lifeline, and of some that were: to see at a glance, of thousands,
        which prefixes are worth a question. One of fewer bits always is."""
        for nodes in self._nodes.values():
            if nodes.added:
                nodes.sorted()
        return self._near

    def is_near(self, prefix: Cidr) -> bool:
        """Whether `harm` may find anything."""
        return (
            prefix.length < NEAR[prefix.version] or prefix.base >> FAR_BITS[prefix.version] in self.near[prefix.version]
        )

    def _reasons(self, prefix: Cidr, whose: Callable[[Address], str]) -> Iterator[str]:
        for network in self._around(prefix):
            if (device := self._networks.get(network)) is not None:
                yield f"it lies in {network}, a network of this node ({device})"
                break
        for address in self._taken_along(self._sorted_points[prefix.version], prefix):
            yield f"it holds {format_address(address)}, {self._points[address]}"
        for address in self._taken_along(self._nodes[prefix.version].sorted(), prefix):
            if address not in self._points and (name := whose(address)):
                yield f"it holds {format_address(address)}, the address of {name}"
                return

    def _taken_along(self, addresses: Sequence[Address], prefix: Cidr) -> Iterator[Address]:
        """Of these addresses (in order), those that a route to the prefix would take along."""
        at, end = span(addresses, prefix)
        while at < end:
            address = addresses[at]
            inner = self._shelter(address, prefix)
            if inner is None:
                yield address
                at += 1
            else:  # all that it holds is safe
                at = max(at + 1, bisect_right(addresses, inner.packed_last, at, end))

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
        version = prefix.version
        if prefix.length < NEAR[version]:
            self._near[version] = self._nodes[version].near = _All()
        else:
            self._near[version].add(prefix.base >> FAR_BITS[version])


def is_link_local(prefix: Cidr) -> bool:
    """Whether it is of no network of its own: link-local, or multicast."""
    return any(each[prefix.version].contains(prefix) for each in (LINK_LOCAL, MULTICAST))
