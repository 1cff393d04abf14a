"""What peers claim for themselves alone, addresses, MACs and pod CIDRs, and whose claims a CIDR or address meets."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from netloom.cidr import Address, Cidr, format_address
from netloom.kernel.mac import Mac, format_mac
from netloom.kernel.mesh.address_owners import AddressOwners
from netloom.kernel.mesh.desired import Peer
from netloom.kernel.mesh.withheld import addresses_of

Unique = Address | Mac | Cidr
"""What no two peers may share. (The MAC gives the IPv6 gateway.)"""


class AddressConflict(msgspec.Struct, frozen=True):
    """A claim (address, MAC or CIDR, as text) of `peer` that `holder`, being senior, has."""

    claim: str
    holder: str
    peer: str
    kind: Literal["address", "MAC", "CIDR"] = "CIDR"


class PeerClaims:
    """Of these peers. holders: who has what, of those that claim it."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers
        self._owners: AddressOwners[Unique] = AddressOwners(lambda name: peers[name].seniority)
        self.holders = self._owners.holders
        self._held: set[str] = set()
        self._lengths: Counter[tuple[int, int, bool]] = Counter()

    def change(self, name: str, old: Peer | None, new: Peer | None) -> set[str]:
        """It claims what is new instead of what is old. Returns the others that have lost or won something by it."""
        lengths = self._lengths
        before: tuple[Unique, ...] = ()
        after: tuple[Unique, ...] = ()
        if new is not None:
            after = (*addresses_of(new), new.mac, *new.cidrs)
            for prefix in new.cidrs:
                lengths[prefix.version, prefix.length, new.held] += 1
        if old is not None:
            before = (*addresses_of(old), old.mac, *old.cidrs)
            for prefix in old.cidrs:
                lengths[prefix.version, prefix.length, old.held] -= 1
            self._held.discard(name)
        if new is not None and new.held:
            self._held.add(name)
        others = self._owners.change(name, before, after)
        return others | self._in_or_out_of_the_way(old, new) if self._held else others

    def conflicts(self) -> list[AddressConflict]:
        """In order."""
        found = [_conflict(claim, holder, name) for claim, holder, name in self._owners.refused()]
        return sorted(found, key=lambda conflict: (conflict.claim, conflict.peer))

    def has_wider(self, prefix: Cidr, name: str) -> bool:
        """Whether a peer that is not held claims a CIDR that contains this one."""
        claimants = (self.holders.get(wider, name) for wider in self.and_wider(prefix))
        return any(claimant != name and not self._peers[claimant].held for claimant in claimants)

    def and_wider(self, prefix: Cidr) -> Iterable[Cidr]:
        """The prefix and those that contain it, as far as a peer may claim them: of a length that there is."""
        version, longest = prefix.version, prefix.length
        lengths = {length for other, length, _ in self._lengths if other == version and length <= longest}
        return map(prefix.supernet, lengths)

    def overlapping(self, prefixes: Iterable[Cidr]) -> set[str]:
        """Peers with a CIDR that overlaps one of these. All are gone through only where some may lie inside of one: a
        pod's address, or its route, is seen here whenever a pod comes."""
        holders, wide = self.holders, []
        names: set[str] = set()
        for prefix in prefixes:
            names.update(name for wider in self.and_wider(prefix) if (name := holders.get(wider)))
            if any(version == prefix.version and length > prefix.length for version, length, _ in self._lengths):
                wide.append(prefix)
        if wide:
            claims = ((each, name) for each, name in holders.items() if isinstance(each, Cidr))
            names.update(name for cidr, name in claims if any(prefix.contains(cidr) for prefix in wide))
        return names

    def around(self, addresses: Iterable[Address]) -> set[str]:
        """Peers with a CIDR that holds one of these."""
        claims = (wider for address in addresses for wider in self.and_wider(Cidr.of(address)))
        return {name for claim in claims if (name := self.holders.get(claim))}

    def _in_or_out_of_the_way(self, *peers: Peer | None) -> set[str]:
        """Held peers that may have to make way, or may come back: only where the lengths of CIDRs differ."""
        changed = [prefix for peer in peers if peer is not None for prefix in peer.cidrs]
        inner = [(version, length) for version, length, held in self._lengths if held]
        differ = any(each.version == version and each.length < length for each in changed for version, length in inner)
        return self._held if differ else set()


def _conflict(claim: Unique, holder: str, name: str) -> AddressConflict:
    if isinstance(claim, Cidr):
        return AddressConflict(str(claim), holder, name)
    if len(claim) == 6:
        return AddressConflict(format_mac(claim), holder, name, "MAC")
    return AddressConflict(format_address(claim), holder, name, "address")
