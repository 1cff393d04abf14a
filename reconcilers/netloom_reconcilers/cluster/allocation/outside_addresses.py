"""IPAM modes in which somebody outside writes single addresses into NetloomNodes (`crd`): what is wrong with those.

The operator gives nothing there. It opens the mode lock when a node comes to hold an address, and looks at what is
written: no entry is changed, whatever it says. Of two nodes with one address the younger is told so.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Set

from netloom.api.core import Node
from netloom.api.holdings import addresses, holds, is_in_use
from netloom.api.ipam_modes import IpamMode
from netloom.api.odd_addresses import is_usable
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import Address, Cidr, addresses_in, format_address, is_address, parse_address
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member, NodesAffected
from netloom_reconcilers.cluster.allocation.lock import LockError, ModeLock
from netloom_reconcilers.cluster.allocation.reserved import Services
from netloom_reconcilers.cluster.allocation.waiting import problem

EMPTY_SECONDS = 30.0
"""How long a node may have no address before it is told: whoever gives them has to see the NetloomNode first."""
_SHOWN = 3
_GIVER = "whoever gives addresses from outside (see docs/ipam.md)"


class OutsideAddresses(Member):
    """Follows what NetloomNodes hold of single addresses. `claimants`: the nodes that report one as their own."""

    def __init__(
        self,
        incarnation: Incarnation,
        lock: ModeLock,
        services: Services,
        claimants: Callable[[Address], Set[str]],
    ) -> None:
        super().__init__(incarnation)
        self._lock = lock
        self._services = services
        self._claimants = claimants
        self._empty_since: dict[str, float] = {}

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [self._nodes.subscribe(self._node_changed)]

    def note(self, name: str, obj: NetloomNode | None) -> None:
        """What the NetloomNode says now; others that hold the same address have to be looked at again."""
        held = () if obj is None else addresses_in(text for each in addresses(obj.spec.ipam) for text in each.texts)
        others = self._allocator.singles.hold(name, held, in_use=obj is not None and is_in_use(obj))
        if others:
            self._publish(NodesAffected(others))
        if obj is None or holds(obj.spec.ipam):
            self._empty_since.pop(name, None)
        else:
            self._empty_since.setdefault(name, self._clock())

    async def open(self, obj: NetloomNode, mode: str) -> Problem | None:
        """Makes sure that the mode is in force before the object records that it holds addresses of it. Why it is not:
        no agent gives any then."""
        name, recorded = obj.metadata.name, obj.spec.ipam.mode
        if not is_in_use(obj):
            return None
        if recorded not in ("", mode):
            message = f"it holds addresses of IPAM mode {recorded}, and the network's mode is {mode}."
            way_out = "Remove the Node (and this object with it), and let it join again."
            return problem(name, "ModeLocked", message, way_out)
        try:
            await self._lock.open(mode, ())
        except LockError as error:
            return problem(name, error.reason, f"{error}.", "It is tried again.")
        return None

    def stray(self, obj: NetloomNode, mode: IpamMode) -> Problem | None:
        """Single addresses that were written before the mode was changed to one of CIDRs, and after the lock was clear:
        no agent gave any, and the API server takes no CIDR beside them."""
        if not obj.spec.ipam.pool:
            return None
        message = f"it holds single addresses, and the network's IPAM mode is {mode.name}: no pod is given any."
        way_out = f"Have {_GIVER} take them out; then the node is given what it needs."
        return _of(obj.metadata.name, "", "NotOfThisMode", message, way_out)

    def wrong(self, obj: NetloomNode) -> Problem | None:
        """The first thing that is wrong with what it holds."""
        return next(self._wrong(obj), None)

    def wait(self, name: str) -> float | None:
        """Seconds until it is told that the node has no address; None: that is told, or it has one."""
        rest = self._empty_since.get(name, -EMPTY_SECONDS) + EMPTY_SECONDS - self._clock()
        return rest if rest > 0 else None

    def _wrong(self, obj: NetloomNode) -> Iterator[Problem]:
        name, pool = obj.metadata.name, obj.spec.ipam.pool
        held = self._allocator.singles.of(name)
        if odd := [text for text in pool if not is_address(text)]:
            message = f"not an IP address{_more(odd)}; no pod is given it."
            yield _of(name, odd[0], "InvalidAddress", message, "Write one such as 192.168.1.10.")
        shared = {each: nodes - {name} for each, nodes in self._allocator.singles.shared(name).items()}
        lost = sorted(each for each, nodes in shared.items() if any(self._is_older(node, obj) for node in nodes))
        if lost:
            others = sorted(node for node in shared[lost[0]] if self._is_older(node, obj))
            message = f"node {others[0]}, which is older, holds it as well{_more(lost)}. Neither is changed."
            way_out = f"Take it out of one of the two NetloomNodes: {_GIVER} writes them."
            yield _of(name, format_address(lost[0]), "AddressConflict", message, way_out)
        yield from self._no_pods(name, held)
        if not pool and self.wait(name) is None:
            message = "no address is there, so no pod can start on this node."
            yield _of(name, "", "NoAddresses", message, f"Have {_GIVER} write some.")

    def _no_pods(self, name: str, held: Iterable[Address]) -> Iterator[Problem]:
        """Of what it holds, that which is somebody else's."""
        ranges = self._services.known
        inside: list[tuple[Address, str]] = []
        nodes: list[tuple[Address, str]] = []
        for each in sorted(held):
            host = Cidr.of(each)
            inside += [(each, str(found)) for found in ranges if found.cidr.contains(host)]
            nodes += [(each, min(claimants)) for claimants in (self._claimants(each),) if claimants]
        if inside:
            message = f"it lies in {inside[0][1]}{_more(inside)}: a pod could have the address of a Service."
            way_out = f"Have {_GIVER} take it out."
            yield _of(name, format_address(inside[0][0]), "AddressOfService", message, way_out)
        if nodes:
            message = f"it is an address of node {nodes[0][1]}{_more(nodes)}: packets to the node would go to a pod."
            yield _of(name, format_address(nodes[0][0]), "AddressOfNode", message, f"Have {_GIVER} take it out.")

    def _is_older(self, name: str, obj: NetloomNode) -> bool:
        other = self._netloom_nodes.get(name)
        if other is None:
            return False
        return (other.metadata.creation_timestamp, name) < (obj.metadata.creation_timestamp, obj.metadata.name)

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        """Whose address a node comes to have, or has no more."""
        if not self._allocator.singles.nodes():
            return
        texts = {each.address for node in (old, new) if node is not None for each in node.status.addresses}
        holders = {
            holder
            for text in texts
            if is_usable(text)
            for holder in self._allocator.singles.holders_of(parse_address(text))
        }
        if holders:
            self._publish(NodesAffected(holders))


def _more(found: Collection[object]) -> str:
    return f" (and {len(found) - 1} more such)" if len(found) > 1 else ""


def _of(name: str, text: str, reason: str, message: str, way_out: str) -> Problem:
    field = f"spec.ipam.pool[{text}]" if text else "spec.ipam.pool"
    return Problem(f"NetloomNode {name}", field, "", reason, message, way_out)
