"""Blocks by node: those that the ledgers have for it, those that its NetloomNode holds, and where they differ."""

from collections.abc import Iterable, Set

from netloom.cidr import Cidr
from netloom.cidr.interval_set import IntervalSet


class Assignments:
    """A block that a node holds and no ledger has for it is *unrecorded*: to be entered, and given to nobody else."""

    def __init__(self) -> None:
        self.unrecorded: dict[str, tuple[Cidr, ...]] = {}
        """By node, not one with none."""
        self._entered: dict[str, tuple[Cidr, ...]] = {}
        self._held: dict[str, tuple[Cidr, ...]] = {}
        self._ranges: IntervalSet | None = None

    def entered(self, node: str) -> tuple[Cidr, ...]:
        """The blocks that the ledgers have for a node."""
        return self._entered.get(node, ())

    def held(self, node: str) -> tuple[Cidr, ...]:
        """What its NetloomNode holds."""
        return self._held.get(node, ())

    def nodes(self) -> list[str]:
        """All nodes with entries in ledgers."""
        return list(self._entered)

    def holders(self) -> Set[str]:
        """All nodes that hold blocks, are being given some, or have not yet given all back."""
        return self._entered.keys() | self._held.keys()

    def overlap(self, cidr: Cidr) -> Cidr | None:
        """The highest of the unrecorded blocks that shares an address with it."""
        if self._ranges is None:
            self._ranges = IntervalSet(each for cidrs in self.unrecorded.values() for each in cidrs)
        return self._ranges.overlap(cidr)

    # Changes; each returns blocks that are not unrecorded any more, so perhaps free.

    def hold(self, node: str, cidrs: tuple[Cidr, ...]) -> Iterable[Cidr]:
        """What the NetloomNode `node` holds now."""
        return self._change(self._held, node, cidrs)

    def enter(self, node: str, cidr: Cidr) -> Iterable[Cidr]:
        """A ledger has the block for the node now."""
        return self._change(self._entered, node, (*self.entered(node), cidr))

    def strike(self, node: str, cidr: Cidr) -> Iterable[Cidr]:
        """No ledger has the block for the node any more."""
        return self._change(self._entered, node, tuple(each for each in self.entered(node) if each != cidr))

    def _change(self, of: dict[str, tuple[Cidr, ...]], node: str, cidrs: tuple[Cidr, ...]) -> Iterable[Cidr]:
        if cidrs:
            of[node] = cidrs
        else:
            of.pop(node, None)
        entered = self.entered(node)
        before = self.unrecorded.get(node, ())
        after = tuple(cidr for cidr in self._held.get(node, ()) if cidr not in entered)
        if after == before:
            return ()
        self._ranges = None
        if after:
            self.unrecorded[node] = after
        else:
            del self.unrecorded[node]
        return before
