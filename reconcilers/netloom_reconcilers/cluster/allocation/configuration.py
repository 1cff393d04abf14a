"""Follows the NetloomNetwork, the nodes' addresses and the Services': by which rules blocks are given, and which blocks
never."""

from collections.abc import Callable, Iterator
from typing import Protocol

from netloom.api.core import Node
from netloom.api.odd_addresses import odd_addresses
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork
from netloom.cidr import Cidr, parse_address
from netloom.ipam import settings as ipam_settings
from netloom.ipam.settings import Settings
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Incarnation, Member
from netloom_reconcilers.cluster.allocation.last_known_addresses import LastKnownAddresses
from netloom_reconcilers.cluster.allocation.node_objects import addresses_of
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange


class Services(Protocol):
    """See `ServiceRanges`."""

    known: tuple[ServiceRange, ...]
    unreadable: str
    on_change: Callable[[], None]

    async def settled(self) -> None: ...

    async def run(self) -> None: ...


class AllocationConfiguration(Member):
    """`settings` is None without a network. A block with a node's address in it (`inside`), or a Service's
    (`services`), is given to nobody."""

    def __init__(self, incarnation: Incarnation, addresses: LastKnownAddresses, services: Services) -> None:
        super().__init__(incarnation)
        self.services = services
        self.odd: dict[str, Problem] = {}
        """What is wrong with the addresses that Nodes report, by node; the first that is."""
        self.settings: Settings | None = None
        self.inside: dict[str, tuple[Cidr, ...]] = {}
        """The addresses of nodes that lie in a cluster CIDR, by node."""
        self._addresses = addresses

    @property
    def mode(self) -> str:
        """The mode in force, else the one asked for; "" without a network."""
        return self.settings.mode if self.settings else ""

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        self.services.on_change = self._configure
        return [self._networks.subscribe(self._network_changed), self._nodes.subscribe(self._node_changed)]

    def _network_changed(self, key: str, old: NetloomNetwork | None, new: NetloomNetwork | None) -> None:
        if key != NETWORK_NAME:
            return
        settings = ipam_settings.read(new.spec.ipam, mode_of(new)) if new is not None else None
        if settings != self.settings:
            self.settings = settings
            self.inside.clear()
            for name, node in self._nodes.items():
                self._note_addresses(name, node)
            self._configure()
        self._publish(Changed.NETWORK)

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        before = self.inside.get(key)
        self._note_addresses(key, new)
        self._note_odd(key, new)
        if before != self.inside.get(key):
            self._configure()

    def _note_addresses(self, name: str, node: Node | None) -> None:
        found = []
        if node is not None and self.settings is not None and self.settings.families:
            known = self._addresses.of(node, self._netloom_nodes.get(name))
            for each in known.addresses:
                address = Cidr.of(parse_address(each.ip))
                if ipam_settings.inside(self.settings.families, address):
                    found.append(address)
        if found:
            self.inside[name] = tuple(found)
        else:
            self.inside.pop(name, None)

    def _note_odd(self, name: str, node: Node | None) -> None:
        before = self.odd.pop(name, None)
        found = next(_missed(node), None) if node is not None else None
        if found is not None:
            self.odd[name] = found
        if found != before:
            self._publish(Changed.WAITING)

    def _configure(self) -> None:
        settings = self.settings or Settings("")
        reserved = {address for found in self.inside.values() for address in found}
        reserved |= {each.cidr for each in self.services.known}
        self._allocator.blocks.configure(settings.mode, settings.pools(), reserved)
        self._publish(Changed.SETTINGS)


def _missed(node: Node) -> Iterator[Problem]:
    """What is wrong with addresses of a family of which the Node reports no other."""
    families = {":" in each.ip for each in addresses_of(node) if each.type == "InternalIP"}
    return (problem for problem in odd_addresses(node) if (":" in problem.value) not in families)


def mode_of(network: NetloomNetwork) -> str:
    """The mode in force, else the one asked for."""
    return network.status.ipam.mode or network.spec.ipam.mode
