"""Single addresses by node, as NetloomNodes hold them: of no ledger, written by somebody else, by two nodes perhaps.

A cluster has a hundred thousand of them, so a change of one node costs what changed.
"""

from collections.abc import Collection, Set

from netloom.cidr import WIDTH, Address, Cidr
from netloom.cidr.interval_set import IntervalSet


class Singles:
    """Who holds which, and who may be using some."""

    def __init__(self) -> None:
        self._held: dict[str, frozenset[Address]] = {}
        self._users: set[str] = set()
        self._holder: dict[Address, str] = {}
        self._more: dict[Address, set[str]] = {}
        """Of those that several nodes hold, all of these nodes."""
        self._ranges: IntervalSet | None = None

    def hold(self, node: str, addresses: Collection[Address], *, in_use: bool) -> Set[str]:
        """What a node holds now; `in_use`: it may use some, held or not. The other nodes that hold one which it came to
        hold, or holds no more."""
        before, after = self._held.get(node, frozenset()), frozenset(addresses)
        (self._users.add if in_use else self._users.discard)(node)
        if after == before:
            return frozenset()
        self._ranges = None
        if after:
            self._held[node] = after
        else:
            del self._held[node]
        others: set[str] = set()
        for address in before - after:
            others |= self._remove(node, address)
        for address in after - before:
            others |= self._add(node, address)
        return others

    def of(self, node: str) -> frozenset[Address]:
        """All that a node holds."""
        return self._held.get(node, frozenset())

    def nodes(self) -> Set[str]:
        """All that hold any."""
        return self._held.keys()

    def holders(self) -> Set[str]:
        """All that hold any, or may use some."""
        return self._held.keys() | self._users

    def holders_of(self, address: Address) -> Set[str]:
        """All that hold this one."""
        holder = self._holder.get(address)
        return self._more.get(address) or (frozenset() if holder is None else frozenset((holder,)))

    def shared(self, node: str) -> dict[Address, Set[str]]:
        """Of what a node holds, that which others hold as well: all that do."""
        if not self._more:
            return {}
        return {address: self._more[address] for address in self.of(node) if address in self._more}

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """One that lies in a CIDR, if any does."""
        if not self._holder:
            return None
        if cidr.length == WIDTH[cidr.version]:
            return cidr if cidr.packed in self._holder else None
        if self._ranges is None:
            self._ranges = IntervalSet(map(Cidr.of, self._holder))
        return self._ranges.overlap(cidr)

    def _add(self, node: str, address: Address) -> set[str]:
        holder = self._holder.setdefault(address, node)
        if holder == node:
            return set()
        nodes = self._more.setdefault(address, {holder})
        nodes.add(node)
        return nodes - {node}

    def _remove(self, node: str, address: Address) -> set[str]:
        nodes = self._more.get(address, {node})
        nodes.discard(node)
        if not nodes:
            del self._holder[address]
        elif len(nodes) == 1:
            (self._holder[address],) = nodes
            del self._more[address]
        return set(nodes)
