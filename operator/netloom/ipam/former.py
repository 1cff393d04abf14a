"""What nodes had by ledgers that vanished: a wish that each may have its block again, and no claim.

Ledgers go with their CustomResourceDefinition, and the NetloomNodes with theirs, while the nodes' pods live on. An
operator that lived through it gives every node its former block, if a ledger's compare-and-swap still grants it, and
gives it to no newcomer meanwhile. A memory that is wrong or gone costs the pods their addresses, and never gives an
address twice.
"""

from collections.abc import Collection

from netloom.cidr import Cidr
from netloom.cidr.interval_set import IntervalSet


class Former:
    """Disjoint blocks, by node."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Cidr, ...]] = {}
        self._blocks = IntervalSet()

    def __len__(self) -> int:
        return len(self._of)

    def remember(self, node: str, cidr: Cidr) -> None:
        """The node had this block. Of two that overlap the first counts."""
        if self.overlap(cidr) is None:
            self._of[node] = (*self._of.get(node, ()), cidr)
            self._blocks.add(cidr)

    def forget(self, node: str, cidrs: Collection[Cidr] | None = None) -> tuple[Cidr, ...]:
        """The node has these again, or others by now; None: it is gone. What nobody wishes for any more."""
        known = self._of.pop(node, ())
        gone = tuple(cidr for cidr in known if cidrs is None or cidr in cidrs)
        for cidr in gone:
            self._blocks.remove(cidr)
        if kept := tuple(cidr for cidr in known if cidr not in gone):
            self._of[node] = kept
        return gone

    def of(self, node: str) -> tuple[Cidr, ...]:
        """The node's blocks."""
        return self._of.get(node, ())

    def nodes(self) -> list[str]:
        """All that are remembered."""
        return list(self._of)

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """The highest of the remembered blocks that shares an address with it."""
        return self._blocks.overlap(cidr)
