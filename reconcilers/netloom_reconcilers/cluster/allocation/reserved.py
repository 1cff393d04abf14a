"""What no block may overlap: addresses of Services, addresses of nodes, networks that nodes are connected to, and what
pools keep free.

An agent writes no route into a network of its own node, or over the addresses that nodes have: it would cut the node
off. So a pod in such a block would be reached by nobody, and the block is passed over. Agents publish the networks
(`status.connectedCIDRs`) once they have a NetloomNode. Before that nothing is known, and the first blocks are given all
the same; who holds one keeps it, and `overlaps` tells.

A network that holds a whole cluster CIDR, and that less than half of the nodes are on, is *odd*: a bridge or VPN of few
with too wide a prefix. It is told, and not reserved, or one node would keep all others from their blocks.

Of what nodes say, only what concerns the cluster CIDRs is kept: in most clusters nothing. In IPAM mode `kubernetes`
nothing is given, so nothing can be passed over; all is kept, to be compared with what nodes hold.
"""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from netloom.api.core import Node
from netloom.api.holdings import block_texts
from netloom.api.odd_addresses import is_usable
from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import VERSIONS, WIDTH, Address, Cidr, parse_address
from netloom.ipam.settings import Settings
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation import node_objects
from netloom_reconcilers.cluster.allocation.incarnation import BlocksFreed, Changed, Incarnation, Member
from netloom_reconcilers.cluster.allocation.node_objects import Reported, addresses_of, reported_by
from netloom_reconcilers.cluster.allocation.service_ranges import ServiceRange


class Services(Protocol):
    """See `ServiceRanges`."""

    known: tuple[ServiceRange, ...]
    unreadable: str
    on_change: Callable[[], None]

    async def answered(self) -> None: ...

    async def run(self) -> None: ...


class Reserved(Member):
    """Keeps the allocator's reservations. One node's change costs what it says, whatever others say."""

    def __init__(self, incarnation: Incarnation, services: Services) -> None:
        super().__init__(incarnation)
        self.services = services
        self.addresses: dict[str, tuple[Cidr, ...]] = {}
        """All that its Node and its NetloomNode say to be the node's, by node."""
        self.networks: dict[str, tuple[Cidr, ...]] = {}
        """Those that the node is connected to, by node."""
        self._of_services: dict[str, tuple[Cidr, ...]] = {}
        self._of_pools: dict[str, tuple[Cidr, ...]] = {}
        """What NetloomIPPools keep free."""
        self._on: Counter[Cidr] = Counter()
        """How many nodes are connected to each of `networks`."""
        self._reserved: set[Cidr] = set()
        """Those that are not odd."""
        self._wide: set[Cidr] = set()
        """Those that hold a whole cluster CIDR: no more than a CIDR has prefixes, however many nodes there are."""
        self._settings = Settings("")
        self._concerned: list[Cidr] = []
        self._prefixes: list[tuple[int, int, int]] = []
        """Of those: bytes of an address, and its bits after the prefix, and those in front."""

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        self.services.on_change = self._services_changed
        self._services_changed()
        return [self._nodes.subscribe(self._node_changed), self._netloom_nodes.subscribe(self._object_changed)]

    def configure(self, settings: Settings) -> None:
        """Other CIDRs may be concerned."""
        self._settings = settings
        self._concerned = [cidr for family in settings.families for cidr in family.cidrs]
        if settings.rules.from_node:
            self._concerned = [Cidr(version, 0, 0) for version in VERSIONS]
        self._prefixes = [_prefix_of(cidr) for cidr in self._concerned]
        self._keep(self._of_pools, "", {cidr: None for pool in settings.pools for cidr in pool.kept_free})
        for name in {*self._nodes, *self._netloom_nodes, *self.addresses, *self.networks}:
            self._note(name)
        self._wide = set(filter(self._is_wide, self._on))
        if self._weigh(self._on):
            self._publish(Changed.RESERVED)

    @property
    def odd(self) -> set[Cidr]:
        """See the module."""
        return self._wide - self._reserved

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        if self._prefixes and (old is None or new is None or old.status.addresses != new.status.addresses):
            self._note(key)
        if (old is None or new is None) and self._weigh(self._wide):
            self._publish(Changed.RESERVED)

    def _object_changed(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if not self._prefixes or (old is not None and new is not None and _said(old) == _said(new)):
            return
        if old is None and new is not None and self._adds_nothing(new):
            return
        self._note(key)

    def _adds_nothing(self, new: NetloomNode) -> bool:
        """Whether a NetloomNode that was just made says no more than its Node: that is known."""
        node = self._nodes.get(new.metadata.name)
        return node is not None and not new.status.connected_cidrs and new.spec.addresses == addresses_of(node)

    def _services_changed(self) -> None:
        self._keep(self._of_services, "", dict.fromkeys(each.cidr for each in self.services.known))
        self._publish(Changed.RESERVED)  # also where nothing but their names changed

    def _note(self, name: str) -> None:
        """What the node says now."""
        node, obj = self._nodes.get(name), self._netloom_nodes.get(name)
        found = reported_by(node) if node is not None else Reported()
        inside = [ip for ip in found.packed if self._is_inside(ip)]
        networks = dict[Cidr, None]()
        if obj is not None:
            if obj.spec.addresses != found.addresses:
                packed = (parse_address(each.ip) for each in obj.spec.addresses if is_usable(each.ip))
                inside += [ip for ip in packed if self._is_inside(ip)]
            if obj.status.connected_cidrs:
                networks = self._networks_of(obj)
        if inside or name in self.addresses:
            self._keep(self.addresses, name, {Cidr.of(ip): None for ip in inside})
        if networks or name in self.networks:
            self._keep(self.networks, name, networks)

    def _is_inside(self, ip: Address) -> bool:
        """Whether it lies in a CIDR that is concerned: asked for each node twice, in most clusters of none."""
        number = int.from_bytes(ip, "big")
        for size, shift, front in self._prefixes:  # noqa: SIM110 - three times as fast as any()
            if number >> shift == front and len(ip) == size:
                return True
        return False

    def _networks_of(self, obj: NetloomNode) -> dict[Cidr, None]:
        own = node_objects.held(obj)
        return {
            cidr: None
            for cidr in map(Cidr.masked, obj.status.connected_cidrs)
            if cidr
            and cidr.length
            and any(map(cidr.overlaps, self._concerned))
            and not any(o.contains(cidr) for o in own)
        }

    def _keep(self, kept: dict[str, tuple[Cidr, ...]], name: str, cidrs: dict[Cidr, None]) -> None:
        before = kept.get(name, ())
        if cidrs.keys() == set(before):
            return
        new, gone = cidrs.keys() - set(before), [cidr for cidr in before if cidr not in cidrs]
        if cidrs:
            kept[name] = tuple(cidrs)
        else:
            del kept[name]
        if kept is self.networks:
            self._count(new, gone)
        else:
            self._reserve(new, gone)
        self._publish(Changed.RESERVED)

    def _count(self, new: Collection[Cidr], gone: Collection[Cidr]) -> None:
        """One node more is connected to these, and one less to those."""
        self._on.update(new)
        self._on.subtract(gone)
        for cidr in gone:
            if not self._on[cidr]:
                del self._on[cidr]
                self._wide.discard(cidr)
        self._wide.update(filter(self._is_wide, new))
        self._weigh((*new, *gone))

    def _is_wide(self, cidr: Cidr) -> bool:
        return any(map(cidr.contains, self._concerned))

    def _weigh(self, cidrs: Collection[Cidr]) -> bool:
        """Reserve of these networks what nodes are connected to, unless it is odd; whether that changed anything."""
        nodes = len(self._nodes)
        wanted = {
            each for each in cidrs if each in self._on and not (each in self._wide and 2 * self._on[each] < nodes)
        }
        new, gone = wanted - self._reserved, (set(cidrs) - wanted) & self._reserved
        self._reserved |= new
        self._reserved -= gone
        self._reserve(new, gone)
        return bool(new or gone)

    def _reserve(self, new: Collection[Cidr], gone: Collection[Cidr]) -> None:
        blocks = self._allocator.blocks
        for cidr in new:
            blocks.reserve(cidr)
        if free := [cidr for cidr in gone if blocks.let_go(cidr)]:
            self._publish(BlocksFreed(sum(map(self._blocks_in, free)), tuple(free)))

    def _blocks_in(self, cidr: Cidr) -> int:
        masks = [family.mask for family in self._settings.families if family.version == cidr.version]
        return sum(1 << max(0, mask - cidr.length) for mask in masks)


def _said(obj: NetloomNode) -> tuple[tuple[object, ...], ...]:
    return obj.spec.addresses, block_texts(obj.spec.ipam), obj.status.connected_cidrs


def _prefix_of(cidr: Cidr) -> tuple[int, int, int]:
    shift = WIDTH[cidr.version] - cidr.length
    return WIDTH[cidr.version] // 8, shift, cidr.base >> shift
