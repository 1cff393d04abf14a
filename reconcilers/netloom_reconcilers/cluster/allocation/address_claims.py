"""Which of the addresses that a Node reports others send to, where several Nodes report the same. Pure.

A virtual IP (keepalived, kube-vip) stands in the list of every Node that ever held it, often first; a machine that came
back under another name leaves a Node with its address. Decided once, here, and written to the NetloomNodes, the choice
is the same on every node.

- An address that no other Node reports goes before one that several do, one that is on the machine (its agent says what
  is not) before one that is absent, and the one that was chosen before all that are no worse: an address that comes and
  goes moves nobody. Then the Node's own order counts.
- A Node that reports nothing of its own competes for what it shares, with those that have nothing else either: a Ready
  one goes before one that is not, and this before one whose kubelet is silent; then the machine that has the address,
  the Node that had it so far, the older one. Whoever loses has no address.
"""

from collections.abc import Collection, Set
from typing import NamedTuple

import msgspec

from netloom.cidr import Address


class Claim(msgspec.Struct, frozen=True):
    """What counts of a Node.

    addresses: that it reports, in its order, and that others can send to. unready: 0 if it is Ready, 2 if its kubelet
    is silent, else 1. since: its creation. absent: addresses that are on no device. current: those in use so far.
    """

    addresses: tuple[Address, ...]
    unready: int = 0
    since: str = ""
    absent: Collection[Address] = ()
    current: Collection[Address] = ()


class Choice(NamedTuple):
    """The address that a node is reached by, None for none; then `holder` is the node that has `lost` instead."""

    address: Address | None
    lost: Address = b""
    holder: str = ""


class AddressClaims:
    """All claims. A change costs what it concerns: nothing but its own addresses where none is shared."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._claimants: dict[Address, set[str]] = {}
        self._disputed: dict[Address, str] = {}
        """Addresses that a node without one of its own claims, and who has them."""

    def change(self, name: str, claim: Claim | None) -> set[str]:
        """The node claims this now; None: there is none. Returns the others for whom the choice may be another."""
        before = self._claims.get(name)
        if before == claim:
            return set()
        if before is not None and claim is not None and before.addresses == claim.addresses and not self._disputed:
            self._claims[name] = claim
            return set()
        old = before.addresses if before is not None else ()
        new = claim.addresses if claim is not None else ()
        if claim is not None:
            self._claims[name] = claim
        else:
            del self._claims[name]
        affected: set[str] = set()
        doubtful = {*old, *new}
        for address in doubtful:
            if (address in old) == (address in new):
                continue
            claimants = self._claimants.setdefault(address, set())
            (claimants.add if address in new else claimants.discard)(name)
            if len(claimants) == (2 if address in new else 1):  # it is shared since now, or not any more
                affected |= claimants
            if not claimants:
                del self._claimants[address]
        affected.discard(name)
        if self._disputed:
            doubtful.update(*(self._claims[other].addresses for other in affected))
            affected |= self._decided_anew(name, doubtful)
            affected.discard(name)
        return affected

    def of(self, name: str) -> tuple[Address, ...]:
        """What the node claims."""
        claim = self._claims.get(name)
        return claim.addresses if claim is not None else ()

    def claimants(self, address: Address) -> Set[str]:
        """The nodes that claim it."""
        return self._claimants.get(address, _NOBODY)

    def is_plain(self, name: str) -> bool:
        """Whether there is nothing to choose: the node claims one address of a family at most, and nobody else does."""
        mine = self.of(name)
        if len(mine) > 1 and (len(mine) > 2 or len(mine[0]) == len(mine[1])):
            return False
        return not any(map(self._is_shared, mine))

    def choice(self, name: str, size: int) -> Choice:
        """By which of its addresses of that many bytes others reach the node."""
        claim = self._claims.get(name)
        mine = [address for address in claim.addresses if len(address) == size] if claim else []
        if claim is None or not mine:
            return Choice(None)
        mine.sort(key=lambda each: (self._is_shared(each), each in claim.absent, each not in claim.current))
        if not self._is_shared(mine[0]):
            return Choice(mine[0])
        for address in mine:
            holder = self._disputed[address] = self._holder(address)
            if holder == name:
                return Choice(address)
        return Choice(None, mine[0], self._disputed[mine[0]])

    def _decided_anew(self, name: str, addresses: set[Address]) -> set[str]:
        """Of these that are disputed, the claimants of those that another node has now, or whose holder changed."""
        found: set[str] = set()
        for address in addresses & self._disputed.keys():
            claimants = self._claimants.get(address, set())
            if len(claimants) < 2:
                del self._disputed[address]
                continue
            holder = self._holder(address)
            if holder != self._disputed[address] or holder == name:
                self._disputed[address] = holder
                found |= claimants
        return found

    def _is_shared(self, address: Address) -> bool:
        return len(self._claimants[address]) > 1

    def _holder(self, address: Address) -> str:
        def rank(name: str) -> tuple[bool, int, bool, bool, str, str]:
            claim = self._claims[name]
            has_own = any(len(each) == len(address) and not self._is_shared(each) for each in claim.addresses)
            absent, new = address in claim.absent, address not in claim.current
            return has_own, claim.unready, absent, new, claim.since, name

        return min(self._claimants[address], key=rank)


_NOBODY: Set[str] = frozenset()
