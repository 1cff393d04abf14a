"""The addresses of nodes, with the last known one where a Node that lives reports none.

A cloud controller that restarts, or a kubelet that cannot reach it, takes a Node's addresses out of its status for a
while; were they taken out of its NetloomNode as well, every other node would drop its tunnel. So the last InternalIP of
each family stays in the NetloomNode until the Node reports another of that family, until another Node reports it, or
until the Node is gone. ExternalIPs just follow: nothing is sent to them.

Of several InternalIPs others use the first, so the one that `address_claims` chooses is put there. One that another
Node has is written as what it is, contested, and the loss is told.
"""

from collections.abc import Iterator, Set

import msgspec

from netloom.api.core import Node
from netloom.api.odd_addresses import is_usable
from netloom.api.v1alpha1 import CONTESTED, NETLOOM_NODES, Address, NetloomNode
from netloom.cidr import Address as Packed
from netloom.cidr import Cidr, addresses_in, format_address, parse_address
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.address_claims import AddressClaims, Choice, Claim
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member, NodesAffected
from netloom_reconcilers.cluster.allocation.left_out import LeftOut
from netloom_reconcilers.cluster.allocation.metrics import ADDRESSES_CONTESTED, ADDRESSES_KEPT
from netloom_reconcilers.cluster.allocation.node_objects import (
    MAX_ADDRESSES,
    Reported,
    of_addresses,
    reported_by,
)
from netloom_reconcilers.conditions import Conditions, Readiness

CONDITION = "AddressReported"


class NodeAddresses(msgspec.Struct, frozen=True):
    """What a node's NetloomNode shall say. `kept`: of its addresses, those that the Node does not report any more.
    `loss`: what it goes without, in sentences; empty if nothing. `contested`: of that, something another Node has."""

    addresses: tuple[Address, ...]
    kept: tuple[Address, ...] = ()
    loss: str = ""
    contested: bool = False


def _loss(name: str, kept: list[Address], taken: list[tuple[Address, str]]) -> list[str]:
    found = [
        f"Node {name} reports no usable {_family(each)} address of type InternalIP any more: {each.ip}, its last, is "
        "kept, and other nodes go on sending to it. Another is followed at once. Node status.addresses is "
        "written by the kubelet or the cloud controller manager; if the node is gone, delete its Node."
        for each in kept
    ]
    found += [
        f"Node {name} reports no usable {_family(each)} address of type InternalIP any more, and {each.ip}, its "
        f"last, is Node {other}'s now: nothing is sent to it. If Node {name} is gone, delete it."
        for each, other in taken
    ]
    return found


class LastKnownAddresses(Member):
    """Follows the Nodes' addresses. A node is affected when another one reports the address that was kept for it."""

    def __init__(self, incarnation: Incarnation, conditions: Conditions, left_out: LeftOut) -> None:
        """`conditions`: of a field manager that applies no other."""
        super().__init__(incarnation)
        self._conditions = conditions
        self._left_out = left_out
        self._kept: dict[str, frozenset[Packed]] = {}
        self._keepers: dict[Packed, set[str]] = {}
        self._claims = AddressClaims()
        self._contested: set[str] = set()
        ADDRESSES_KEPT.set(0)
        ADDRESSES_CONTESTED.set(0)

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [
            self._nodes.subscribe(self._node_changed),
            self._netloom_nodes.subscribe(lambda key, old, new: self._object_changed(key)),
        ]

    def of(self, node: Node, obj: NetloomNode | None) -> NodeAddresses:
        """The addresses of a node whose NetloomNode is `obj`, in an order that a loss does not change."""
        name, found = node.metadata.name, self._accepted(node, obj)
        reported, disputes = found.addresses, list[str]()
        if not self._claims.is_plain(name):
            reported, disputes = self._chosen(node, found)
        if obj is None or obj.spec.addresses == reported:
            return NodeAddresses(reported, loss=" ".join(disputes), contested=bool(disputes))
        families = {_family(each) for each in reported if each.type in _OWN_TYPES}
        kept: list[Address] = []
        taken: list[tuple[Address, str]] = []
        for each in obj.spec.addresses:
            if each.type not in _OWN_TYPES or _family(each) in families or not is_usable(each.ip):
                continue
            others = self._claims.claimants(parse_address(each.ip)) - {name}
            if others:
                taken.append((each, min(others)))
            else:
                kept.append(msgspec.structs.replace(each, type="InternalIP"))
        losses = _loss(name, kept, taken)
        if losses:
            losses += self._inside(node, found, obj)
        loss = " ".join([*losses, *disputes])
        if not kept:
            return NodeAddresses(reported, loss=loss, contested=bool(disputes))
        order: dict[tuple[str, str], int] = {}
        for each in obj.spec.addresses:
            order.setdefault(_slot(each), len(order))
        merged = dict.fromkeys((*kept, *reported)[:MAX_ADDRESSES])
        ordered = sorted(merged, key=lambda each: order.get(_slot(each), len(order)))
        return NodeAddresses(tuple(ordered), tuple(kept), loss, bool(disputes))

    def _chosen(self, node: Node, found: Reported) -> tuple[tuple[Address, ...], list[str]]:
        """The addresses that the Node reports, of its InternalIPs of a family the one first by which others reach it;
        and sentences about what another has."""
        name, disputes = node.metadata.name, list[str]()
        inside = [(each, ip) for each, ip in zip(found.addresses, found.packed, strict=True) if each.type == _INTERNAL]
        ordered: dict[int, list[Address]] = {}  # by bytes of an address
        for size in sorted({len(ip) for _, ip in inside}):
            choice = self._claims.choice(name, size)
            mine = [(each, ip) for each, ip in inside if len(ip) == size]
            if choice.holder:
                disputes.append(self._dispute(name, choice))
                mine = [(Address(CONTESTED, each.ip), ip) for each, ip in mine]
            ordered[size] = [each for each, ip in sorted(mine, key=lambda pair: pair[1] != choice.address)]
        sizes = map(len, found.packed)
        every = zip(found.addresses, sizes, strict=True)
        return tuple(ordered[size].pop(0) if each.type == _INTERNAL else each for each, size in every), disputes

    def _dispute(self, name: str, choice: Choice) -> str:
        holder, ip = choice.holder, format_address(choice.lost)
        has, lost = self._nodes.get(holder), self._nodes.get(name)
        what = (
            f"Node {holder} ({_standing(has)}) and Node {name} ({_standing(lost)}) both report {ip}: {holder} has it, "
            f"and nothing is sent to {name}."
        )
        if _unready(has) == _unready(lost) == 0:
            way_out = (
                f"If {ip} is a virtual IP (keepalived, kube-vip), have both kubelets report the machine's own address "
                "(--node-ip); else give one of the machines another."
            )
        else:
            silent = [each for each, node in ((holder, has), (name, lost)) if _unready(node) == _SILENT]
            gone = f"Node {name}" if silent == [name] else "Node that is left over, once its kubelet is silent"
            way_out = (
                f"If one machine came back under another name, delete the {gone}; if there are two machines, give each "
                "an address of its own, which its kubelet reports (--node-ip)."
            )
        return f"{what} {way_out}"

    def _accepted(self, node: Node, obj: NetloomNode | None) -> Reported:
        """What the Node reports, but for what lies in a pod CIDR."""
        found = reported_by(node)
        if obj is not None and obj.spec.addresses == found.addresses:
            return found  # it has all of them
        if not any(map(self._allocator.given, found.internal)):
            return found
        return of_addresses(tuple(each for each in found.addresses if self.in_pod_cidr(each, obj) is None))

    def _inside(self, node: Node, found: Reported, obj: NetloomNode) -> Iterator[str]:
        """Of what the Node reports and is not `found`, why."""
        for each in reported_by(node).addresses:
            if each not in found.addresses and (block := self.in_pod_cidr(each, obj)) is not None:
                yield f"It reports {each.ip}, which lies in {block}, a node's pod CIDR, and may be a pod's address."

    def in_pod_cidr(self, address: Address, obj: NetloomNode | None) -> Cidr | None:
        """The block of pods' addresses in which one lies that the NetloomNode does not have yet: it is not taken for
        the node's. (A virtual kubelet reports its pod's.) One that it has stays, whatever was given since."""
        if address.type != "InternalIP" or (obj is not None and address in obj.spec.addresses):
            return None
        return self._allocator.given(parse_address(address.ip))

    async def tell(self, obj: NetloomNode, known: NodeAddresses) -> NetloomNode | None:
        """Tells of an address that is lost, and that it is back. The object as written, or None where nothing had to
        be: a node that never lost one costs no write."""
        name = obj.metadata.name
        self._note(name, known.kept)
        (self._contested.add if known.contested else self._contested.discard)(name)
        ADDRESSES_CONTESTED.set(len(self._contested))
        if known.loss:
            reason = "AddressContested" if known.contested else "InternalIPLost"
            return await self._conditions.set(NETLOOM_NODES, obj, CONDITION, Readiness(False, reason, known.loss))
        told = any(each.type == CONDITION and each.status != "True" for each in obj.status.conditions)
        if not told or not any(each.type == "InternalIP" for each in known.addresses):
            return None
        message = f"Node {name} reports addresses of its own."
        readiness = Readiness(True, "InternalIPReported", message)
        return await self._conditions.set(NETLOOM_NODES, obj, CONDITION, readiness)

    def _note(self, name: str, addresses: tuple[Address, ...]) -> None:
        """These are kept for this node now."""
        numbers = frozenset(parse_address(each.ip) for each in addresses)
        _move(self._keepers, name, self._kept.pop(name, frozenset()), numbers)
        if numbers:
            self._kept[name] = numbers
        ADDRESSES_KEPT.set(len(self._kept))

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        if new is None:
            self._note(key, ())
            self._contested.discard(key)
        self._claim(key)

    def look(self, name: str) -> None:
        """What the node claims may be different: it is left out, or takes part again, or a pod CIDR was given."""
        node, now = self._nodes.get(name), tuple[Packed, ...]()
        if node is not None and name not in self._left_out.names:
            now = self._accepted(node, self._netloom_nodes.get(name)).internal
        if now != self._claims.of(name):
            self._claim(name)

    def claimants(self, address: Packed) -> Set[str]:
        """The nodes that report it as an InternalIP, and have it or not."""
        return self._claims.claimants(address)

    def has_any(self, name: str) -> bool:
        """Whether others can send to any InternalIP that the Node reports, or could if it had not lost it."""
        return bool(self._claims.of(name))

    def _object_changed(self, key: str) -> None:
        if key in self._nodes:
            self._claim(key)

    def _claim(self, name: str) -> None:
        """What the node claims now; the others for which that matters are told."""
        before = self._claims.of(name)
        affected = self._claims.change(name, self._claim_of(name))
        if self._keepers:
            new = set(self._claims.of(name)).difference(before)
            affected |= {keeper for each in new for keeper in self._keepers.get(each, ()) if keeper != name}
        if affected:
            self._publish(NodesAffected(affected))

    def _claim_of(self, name: str) -> Claim | None:
        node, obj = self._nodes.get(name), self._netloom_nodes.get(name)
        if node is None or name in self._left_out.names:
            return None
        found, since = self._accepted(node, obj), node.metadata.creation_timestamp
        if obj is None:
            return Claim(found.internal, _unready(node), since)
        absent = addresses_in(obj.status.absent_addresses) if obj.status.absent_addresses else ()
        current = found.internal
        if obj.spec.addresses != found.addresses or len(current) > 1:
            firsts = {_family(each): each.ip for each in reversed(obj.spec.addresses) if each.type == _INTERNAL}
            current = tuple(addresses_in(firsts.values()))
        return Claim(found.internal, _unready(node), since, absent, current)


_SILENT = 2
_UNREADY = {"True": 0, "Unknown": _SILENT}
_INTERNAL = "InternalIP"
_OWN_TYPES = (_INTERNAL, CONTESTED)


def _unready(node: Node | None) -> int:
    """As of a `Claim`."""
    return _UNREADY.get(node.status.ready.status, 1) if node is not None else 1


def _standing(node: Node | None) -> str:
    ready = node.status.ready if node is not None else None
    if ready is None or not ready.status:
        return "not known to be Ready"
    if ready.status == "True":
        return "Ready"
    what = "its kubelet is silent" if ready.status == "Unknown" else "NotReady"
    return f"{what} since {ready.last_transition_time}"


def _move(index: dict[Packed, set[str]], name: str, before: frozenset[Packed], after: frozenset[Packed]) -> None:
    for number in before - after:
        names = index[number]
        names.discard(name)
        if not names:
            del index[number]
    for number in after - before:
        index.setdefault(number, set()).add(name)


def _family(address: Address) -> str:
    return "IPv6" if ":" in address.ip else "IPv4"


def _slot(address: Address) -> tuple[str, str]:
    return address.type, _family(address)
