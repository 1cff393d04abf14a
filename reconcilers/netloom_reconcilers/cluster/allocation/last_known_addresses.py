"""The addresses of nodes, with the last known one where a Node that lives reports none.

A cloud controller that restarts, or a kubelet that cannot reach it, takes a Node's addresses out of its status for a
while; were they taken out of its NetloomNode as well, every other node would drop its tunnel. So the last InternalIP of
each family stays in the NetloomNode until the Node reports another of that family, until another Node reports it, or
until the Node is gone. ExternalIPs just follow: nothing is sent to them.
"""

import msgspec

from netloom.api.core import Node
from netloom.api.odd_addresses import is_usable
from netloom.api.v1alpha1 import NETLOOM_NODES, Address, NetloomNode
from netloom.cidr import Address as Packed
from netloom.cidr import Cidr, parse_address
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member, NodesAffected
from netloom_reconcilers.cluster.allocation.metrics import ADDRESSES_KEPT
from netloom_reconcilers.cluster.allocation.node_objects import MAX_ADDRESSES, addresses_of
from netloom_reconcilers.conditions import Conditions

CONDITION = "AddressReported"


class NodeAddresses(msgspec.Struct, frozen=True):
    """What a node's NetloomNode shall say. `kept`: of its addresses, those that the Node does not report any more.
    `taken`: those that it had and that another Node reports now, with that Node's name."""

    addresses: tuple[Address, ...]
    kept: tuple[Address, ...] = ()
    taken: tuple[tuple[Address, str], ...] = ()

    def loss(self, name: str) -> str:
        """What was lost, in sentences; empty if nothing."""
        found = [
            f"Node {name} reports no {_family(each)} address of type InternalIP any more: {each.ip}, its last, is "
            "kept, and other nodes go on sending to it. Another is followed at once. Node status.addresses is "
            "written by the kubelet or the cloud controller manager; if the node is gone, delete its Node."
            for each in self.kept
        ]
        found += [
            f"Node {name} reports no {_family(each)} address of type InternalIP any more, and {each.ip}, its "
            f"last, is Node {other}'s now: nothing is sent to it. If Node {name} is gone, delete it."
            for each, other in self.taken
        ]
        return " ".join(found)


class LastKnownAddresses(Member):
    """Follows the Nodes' addresses. A node is affected when another one reports the address that was kept for it."""

    def __init__(self, incarnation: Incarnation, conditions: Conditions) -> None:
        """`conditions`: of a field manager that applies no other."""
        super().__init__(incarnation)
        self._conditions = conditions
        self._reporting: dict[Packed, set[str]] = {}
        self._kept: dict[str, frozenset[Packed]] = {}
        self._keepers: dict[Packed, set[str]] = {}
        ADDRESSES_KEPT.set(0)

    def watch(self) -> Unsubscribe:
        """Follows the cache from now on."""
        return self._nodes.subscribe(self._node_changed)

    def of(self, node: Node, obj: NetloomNode | None) -> NodeAddresses:
        """The addresses of a node whose NetloomNode is `obj`, in an order that a loss does not change."""
        reported = tuple(each for each in addresses_of(node) if self.in_pod_cidr(each, obj) is None)
        families = {_family(each) for each in reported if each.type == "InternalIP"}
        kept: list[Address] = []
        taken: list[tuple[Address, str]] = []
        for each in obj.spec.addresses if obj is not None else ():
            if each.type != "InternalIP" or _family(each) in families or not is_usable(each.ip):
                continue
            others = self._reporting.get(parse_address(each.ip), set()) - {node.metadata.name}
            if others:
                taken.append((each, min(others)))
            else:
                kept.append(each)
        if obj is None or not kept:
            return NodeAddresses(reported, taken=tuple(taken))
        order: dict[tuple[str, str], int] = {}
        for each in obj.spec.addresses:
            order.setdefault(_slot(each), len(order))
        merged = dict.fromkeys((*kept, *reported)[:MAX_ADDRESSES])
        ordered = sorted(merged, key=lambda each: order.get(_slot(each), len(order)))
        return NodeAddresses(tuple(ordered), tuple(kept), tuple(taken))

    def in_pod_cidr(self, address: Address, obj: NetloomNode | None) -> Cidr | None:
        """The block of pods' addresses in which one lies that the NetloomNode does not have yet: it is not taken for
        the node's. (A virtual kubelet reports its pod's.) One that it has stays, whatever was given since."""
        if address.type != "InternalIP" or (obj is not None and address in obj.spec.addresses):
            return None
        return self._allocator.given(Cidr.of(parse_address(address.ip)))

    async def tell(self, obj: NetloomNode, known: NodeAddresses) -> NetloomNode | None:
        """Tells of an address that is lost, and that it is back. The object as written, or None where nothing had to
        be: a node that never lost one costs no write."""
        name = obj.metadata.name
        self._note(name, known.kept)
        loss = known.loss(name)
        if loss:
            return await self._conditions.set(NETLOOM_NODES, obj, CONDITION, False, "InternalIPLost", loss)
        told = any(each.type == CONDITION and each.status != "True" for each in obj.status.conditions)
        if not told or not any(each.type == "InternalIP" for each in known.addresses):
            return None
        message = f"Node {name} reports its addresses."
        return await self._conditions.set(NETLOOM_NODES, obj, CONDITION, True, "InternalIPReported", message)

    def _note(self, name: str, addresses: tuple[Address, ...]) -> None:
        """These are kept for this node now."""
        numbers = frozenset(parse_address(each.ip) for each in addresses)
        _move(self._keepers, name, self._kept.pop(name, frozenset()), numbers)
        if numbers:
            self._kept[name] = numbers
        ADDRESSES_KEPT.set(len(self._kept))

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        before, after = _numbers(old), _numbers(new)
        _move(self._reporting, key, before, after)
        if new is None:
            self._note(key, ())
        keepers = {name for number in after - before for name in self._keepers.get(number, ()) if name != key}
        if keepers:
            self._publish(NodesAffected(keepers))


def _move(index: dict[Packed, set[str]], name: str, before: frozenset[Packed], after: frozenset[Packed]) -> None:
    for number in before - after:
        names = index[number]
        names.discard(name)
        if not names:
            del index[number]
    for number in after - before:
        index.setdefault(number, set()).add(name)


def _numbers(node: Node | None) -> frozenset[Packed]:
    found = addresses_of(node) if node is not None else ()
    return frozenset(parse_address(each.ip) for each in found if each.type == "InternalIP")


def _family(address: Address) -> str:
    return "IPv6" if ":" in address.ip else "IPv4"


def _slot(address: Address) -> tuple[str, str]:
    return address.type, _family(address)
